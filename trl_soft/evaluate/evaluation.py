# SPDX-License-Identifier: Apache-2.0
"""The settings of one evaluation run, and their check before anything is loaded."""

import os
from dataclasses import dataclass

from ..files import printable
from ..rollout import ENGINES
from .decoding import Decoding
from .grading import GRADERS
from .presets import get_preset


@dataclass
class Evaluation:
    """
    The settings of one evaluation run.

    Args:
        model (`str`): path or hub id. A decoding may name another model.
        benchmarks (`list[str]`): names, files or hub ids; see `load_problems`.
        decodings (`list[Decoding]`).
        output_dir (`str`): the run's folder. A folder that holds a part of this run is continued.
        preset (`str`): the source of prompts, caps, sampling and answer extraction.
        data_dir (`str`, *optional*), limit (`int`, *optional*), question_column, answer_column: see `load_problems`.
        grader (`str`, *optional*): replaces the grader of the benchmark.
        chunk (`int`): samples that are computed and written together.
        candidates (`int`):
            Number of candidates to write for each step: of a soft thought the heaviest ones, of a token the likeliest ones of the
            distribution it was drawn from, for which each completion is read once more. 0 writes no steps.
        candidates_samples (`int`, *optional*): write the steps of so many samples of each problem. `None`: of all.
        entropy_positions (`int`):
            Number of positions, from the first, whose entropy is measured (`trl_soft.evaluate.entropy`). The measurement
            reads each completion once more. 0 measures none.
        slots, cache_gb, engine, dtype: of the rollout.
        max_completion_length (`int`, *optional*): replaces the cap of the preset.
        option_seed (`int`): seed of the order of multiple-choice options.
        k_values (`list[int]`, *optional*): the k of pass@k and maj@k; `None` means powers of two.
        name (`str`, *optional*): name in reports, where runs of one name are its seeds; `None` means the folder's name.
    """

    model: str
    benchmarks: list[str]
    decodings: list[Decoding]
    output_dir: str
    preset: str = "plain"
    data_dir: str | None = None
    limit: int | None = None
    question_column: str | None = None
    answer_column: str | None = None
    grader: str | None = None
    chunk: int = 256
    candidates: int = 0
    candidates_samples: int | None = None
    entropy_positions: int = 0
    slots: int = 64
    cache_gb: float | None = None
    engine: str = "slots"
    dtype: str = "auto"
    max_completion_length: int | None = None
    option_seed: int = 0
    k_values: list[int] | None = None
    name: str | None = None

    # These settings determine the samples, or what is written of them: a run with another value is another run.
    ASKED = (
        "model", "benchmarks", "preset", "limit", "question_column", "answer_column", "grader", "chunk",
        "engine", "dtype", "max_completion_length", "option_seed", "candidates", "candidates_samples", "entropy_positions", "decodings",
    )  # fmt: skip
    # Digests of the rows and of the weights, because a path can later hold other rows or weights.
    SETTLED = (*ASKED, "problems", "weights")

    def check(self) -> None:
        """Raise a `ValueError` for settings that cannot be evaluated, before anything is loaded."""
        get_preset(self.preset)
        names = [decoding.name for decoding in self.decodings]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated or not names:
            raise ValueError(
                f"`decodings` has the names {names}, but each decoding needs its own name, because its samples are stored under it."
            )
        if not self.benchmarks:
            raise ValueError("`benchmarks` is empty, so there is nothing to evaluate. Name at least one.")
        if self.grader is not None and self.grader not in GRADERS:
            raise ValueError(f"`grader` is {self.grader!r}. Choose one of {', '.join(GRADERS)}.")
        if self.engine not in ENGINES:
            raise ValueError(f"`engine` is {self.engine!r}. Choose one of {', '.join(ENGINES)}.")
        if self.entropy_positions < 0:
            raise ValueError(
                f"`entropy_positions` is {self.entropy_positions}, but it counts positions: 0 measures none."
            )
        for name, least in (("candidates", 0), ("candidates_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` is {value}, but it is a number from {least} up.")
        if self.chunk < 1:
            raise ValueError(f"`chunk` is {self.chunk}, but it counts samples and must be at least 1.")
        for name in filter(None, [self.name, *names]):
            if printable(name) != name:
                raise ValueError(
                    f"A run or decoding has the name {name!r}, which holds control characters. A terminal or a figure would "
                    "obey them. Choose a name of printable characters."
                )
        for model in {decoding.model or self.model for decoding in self.decodings}:
            if (os.path.isabs(model) or model.startswith(".") or model.count("/") > 1) and not os.path.isdir(model):
                raise FileNotFoundError(f"The model folder {model} does not exist (looked from {os.getcwd()}).")
        if self.k_values is not None and (not self.k_values or min(self.k_values) < 1):
            raise ValueError(f"`k_values` is {self.k_values}, but each k counts samples and must be at least 1.")
