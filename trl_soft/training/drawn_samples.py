# SPDX-License-Identifier: Apache-2.0
"""The completions of a rollout as rows that can take each other's places, also from another process."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..rollout import Rollout


Name = tuple[str, Any]
Sample = tuple[dict[Name, Any], Rollout]


class DrawnSamples:
    """
    The completions of a rollout on this process, with everything that belongs to one of them.

    Args:
        inputs (`Sequence[dict]`): the row of the data set of each completion.
        prompts (`Sequence`): their prompts.
        outputs (`Sequence`): what TRL's `_generate` returns for them. A list with an item for each completion is divided.
        rollout (`Rollout`): what was drawn.
        answer_phases (`Sequence`): as in [`InFlight`].
        logged (`Mapping[str, list]`): columns of the table of completions that reward functions have logged.
    """

    def __init__(
        self,
        inputs: Sequence[dict],
        prompts: Sequence,
        outputs: Sequence,
        rollout: Rollout,
        answer_phases: Sequence,
        logged: Mapping[str, list],
    ):
        self._count, self._rollout, self._outputs = len(inputs), rollout, list(outputs)
        self._replaced: dict[int, Rollout] = {}
        own = {"inputs": inputs, "prompts": prompts, "answer_phases": answer_phases}
        columns: dict[Name, Sequence] = {("own", name): values for name, values in own.items()}
        columns |= {("output", i): values for i, values in enumerate(outputs) if isinstance(values, list)}
        columns |= {("logged", name): values for name, values in logged.items()}
        self._columns = {name: list(values) for name, values in columns.items() if len(values) == len(self)}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Sample:
        return {name: values[row] for name, values in self._columns.items()}, self._rollout[
            [row]
        ]  # a copy, which can be sent alone

    def __setitem__(self, row: int, sample: Sample) -> None:
        values, self._replaced[row] = sample
        for name in {**self._columns, **values}:
            # A reward function may log a column for some rollouts alone.
            self._columns.setdefault(name, [None] * len(self))[row] = values.get(name)

    @property
    def inputs(self) -> list[dict]:
        return self._columns["own", "inputs"]

    @property
    def prompts(self) -> list:
        return self._columns["own", "prompts"]

    @property
    def answer_phases(self) -> list[str | None]:
        return self._columns["own", "answer_phases"]

    @property
    def completion_ids(self) -> list[list[int]]:
        return self._columns["output", 1]

    def outputs(self) -> list:
        """As TRL's `_generate` would return them for these completions."""
        return [self._columns.get(("output", i), value) for i, value in enumerate(self._outputs)]

    def logged(self) -> dict[str, list]:
        return {name[1]: list(values) for name, values in self._columns.items() if name[0] == "logged"}

    def rollout(self, join) -> Rollout:
        """What was drawn, as one `Rollout`. `join` takes pairs of rows and their `Rollout`, and the number of all rows."""
        if not self._replaced:
            return self._rollout
        kept = [row for row in range(len(self)) if row not in self._replaced]
        parts = [([row], drawn) for row, drawn in self._replaced.items()]
        return join([*([(kept, self._rollout[kept])] if kept else []), *parts], len(self))
