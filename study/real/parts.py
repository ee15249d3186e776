# SPDX-License-Identifier: Apache-2.0
"""What was drawn, on disk: one compressed file for each arm and round, with token ids and no text, so that writing costs no device time.

A file is written whole or not at all. It may hold a part of its round, if the time was up; a later call draws the rest into the same
file.
"""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Drawn:
    """
    N completions of one arm.

    Args:
        problem (`np.ndarray`, (N,)): index of the problem, over all benchmarks in their order.
        sample (`np.ndarray`, (N,)): number of the sample.
        length (`np.ndarray`, (N,)): tokens, with the end of sequence.
        ids (`np.ndarray`, (sum of lengths,)): the shadow texts, one after the other.
        thinking_length (`np.ndarray`, (N,)): thoughts, with the closing step.
        thinking_cut, clipped (`np.ndarray`, (N,), bool): a cap ended the thought; a cap ended the completion.
        entropy (`np.ndarray`, (N,)): mean over the thoughts, in nats; NaN without a thought.
    """

    problem: np.ndarray
    sample: np.ndarray
    length: np.ndarray
    ids: np.ndarray
    thinking_length: np.ndarray
    thinking_cut: np.ndarray
    clipped: np.ndarray
    entropy: np.ndarray

    def __len__(self) -> int:
        return len(self.problem)

    @classmethod
    def cat(cls, parts: "list[Drawn]") -> "Drawn":
        """All completions of several."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def rows(self) -> list[tuple[int, int]]:
        """The problem and the sample of each completion."""
        return list(zip(self.problem.tolist(), self.sample.tolist(), strict=True))

    def completions(self) -> list[list[int]]:
        """The ids of each completion."""
        ends = np.cumsum(self.length)[:-1]
        return [ids.tolist() for ids in np.split(self.ids, ends)] if len(self) else []


@dataclass(frozen=True)
class Round:
    """
    The samples `first` to `last` - 1 of every problem of an arm.
    """

    arm: str
    first: int
    last: int

    def rows(self, problems: int) -> list[tuple[int, int]]:
        """All its problems and samples. The samples of a problem stand together, so that a rollout reads its prompt once."""
        return [(problem, sample) for problem in range(problems) for sample in range(self.first, self.last)]


class Parts:
    """
    The files of a folder.

    Args:
        folder (`Path`): it need not exist.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def path(self, part: Round) -> Path:
        return self.folder / part.arm / f"{part.first:02d}-{part.last:02d}.npz"

    def read(self, part: Round) -> tuple[Drawn, dict[str, Any]] | None:
        """The completions that were drawn, and `seconds`, `settings` and what else was written with them. `None` if there are none."""
        path = self.path(part)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            return Drawn(*(file[field.name] for field in fields(Drawn))), about

    def check(self, part: Round, about: dict[str, Any], settings: dict[str, Any]) -> None:
        """Raise a `ValueError` if a file was drawn with other settings than those of the design."""
        if about["settings"] != settings:
            raise ValueError(
                f"{self.path(part)} was drawn with {about['settings']}, and the arm {part.arm} of the design is {settings}. Set another "
                "folder of outputs, or put the design back."
            )

    def write(self, part: Round, drawn: Drawn, **about: Any) -> None:
        """Write a file. A reader finds the whole file or the one before."""
        path = self.path(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            arrays = {field.name: getattr(drawn, field.name) for field in fields(Drawn)}
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def rounds(self, arm: str) -> list[Round]:
        """The rounds of an arm that have a file, in order."""
        found = []
        for path in sorted((self.folder / arm).glob("*-*.npz")):
            first, last = map(int, path.stem.split("-"))
            found.append(Round(arm, first, last))
        return sorted(found, key=lambda part: part.first)
