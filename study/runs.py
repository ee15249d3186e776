# SPDX-License-Identifier: Apache-2.0
"""The finished runs of a study by task, method and seed, and the figures of one run."""

from collections.abc import Callable
from typing import Any

import numpy as np

from trl_soft.evaluate import paired, pass_at_k

from . import rules
from .cells import Design, chosen_rate
from .results import Results
from .rules import Estimate, estimate


Result = dict[str, Any]
Figure = Callable[[Result], float]  # of one run
_RESAMPLES = 1000  # of the interval over problems


def problem_scores(result: Result, split: str, decoding: str, k: int = 1) -> np.ndarray:
    """pass@k of each problem, (P,); mean@n for k = 1."""
    entry = result["scores"][split][decoding]
    right, n = np.array(entry["right"]), entry["samples"]
    return right / n if k == 1 else pass_at_k(np.arange(n) < right[:, None], k)


def score(split: str, decoding: str, k: int = 1) -> Figure:
    """pass@k as a figure, and mean@n for k = 1."""
    return lambda result: float(problem_scores(result, split, decoding, k).mean())


def entry(split: str, decoding: str, name: str) -> Figure:
    """Another entry of a decoding, such as `length`."""
    return lambda result: result["scores"][split][decoding][name]


def learned(result: Result) -> float:
    """Updates until the run has learned."""
    return rules.updates_until_learned(result["curve"]["reward"])


class Runs:
    """
    The final runs with the chosen learning rates.

    Args:
        design (`Design`), results (`Results`): of a study.

    Attributes:
        rates (`dict[str, float | None]`): the chosen learning rate of each method.
        seeds (`int`): how many seeds the design has.
    """

    def __init__(self, design: Design, results: Results):
        self.design, self.results, self.seeds = design, results, len(design["seeds"])
        self.rates = {name: chosen_rate(design, name, results) for name in design.methods}

    def of(self, task: str, method: str) -> dict[int, Result]:
        """The results of one method on one task, by seed."""
        rate = self.rates[method]
        if rate is None:
            return {}
        cells = [cell for cell in self.design.final_cells(method, rate) if cell.task == task]
        found = {cell.seed: self.results.get(cell.name) for cell in cells}
        return {seed: result for seed, result in found.items() if seed is not None and result is not None}

    def measured(self, task: str, method: str) -> dict[str, Any] | None:
        """The scores of the untrained policy's thoughts."""
        result = self.results.get(f"{task}/{method}/measure")
        return None if result is None else result["scores_of_thoughts"]

    def mean(self, task: str, method: str, figure: Figure) -> Estimate | None:
        """A figure with its interval over seeds."""
        return estimate([figure(result) for result in self.of(task, method).values()])

    def difference(
        self, task: str, method: str, other: str, figure: Figure, comparisons: int, theirs: Figure | None = None
    ) -> Estimate | None:
        """
        A figure of `method` less the same of `other` (or `theirs`), seed by seed.

        Args:
            comparisons (`int`): of the question, for the strict interval.
        """
        ours, others = self.of(task, method), self.of(task, other)
        shared = [seed for seed in ours if seed in others]
        return estimate([figure(ours[seed]) - (theirs or figure)(others[seed]) for seed in shared], comparisons)

    def over_problems(
        self,
        task: str,
        method: str,
        other: str,
        split: str,
        decoding: str,
        k: int = 1,
        their_decoding: str | None = None,
    ) -> tuple[float, float] | None:
        """The bootstrap interval over problems of the same difference, with each problem's score averaged over seeds."""
        ours, others = self.of(task, method), self.of(task, other)
        shared = [seed for seed in ours if seed in others]
        if not shared:
            return None
        a = np.mean([problem_scores(others[seed], split, their_decoding or decoding, k) for seed in shared], axis=0)
        b = np.mean([problem_scores(ours[seed], split, decoding, k) for seed in shared], axis=0)
        found = paired(a, b, resamples=_RESAMPLES)
        return found["low"], found["high"]
