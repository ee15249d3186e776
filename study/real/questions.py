# SPDX-License-Identifier: Apache-2.0
"""The questions of part B: the differences that each one reads, and its word. README.md beside this file registers them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_soft.evaluate import paired

from ..results import Results
from ..rules import DECORATIVE, LEVEL, MARGIN, MATTERS, NOT_RUN, UNDECIDED
from ..runs import problem_scores
from .arms import TASK, RealDesign


CONFIRMED, OVERTURNED = "confirmed", "overturned"
EQUAL = 0.01  # (a): a difference inside one point is "equal"
_SIZES = {"a": 2, "b": 14, "c": 1}  # comparisons of each question on one benchmark, as registered
_RESAMPLES = 4000


@dataclass(frozen=True)
class Difference:
    """
    A difference of two arms, paired by problem.

    Args:
        name (`str`): what is compared.
        arm, other (`str`): arm less other.
        mean (`float`): over the problems.
        low, high (`float`): ends of its 95 % interval over problems.
        strict_low, strict_high (`float`): ends of the interval that a word reads.
    """

    name: str
    arm: str
    other: str
    mean: float
    low: float
    high: float
    strict_low: float
    strict_high: float


@dataclass(frozen=True)
class Finding:
    """
    The answer to a question on one benchmark.

    Args:
        word (`str`).
        differences (`list[Difference]`): empty if the word is `not run`.
    """

    word: str
    differences: list[Difference] = field(default_factory=list)


Arms = Mapping[str, dict[str, Any]]  # the results of one model, by arm


def models(design: RealDesign, results: Results, phase: str = "evaluate") -> dict[str, dict[str, dict[str, Any]]]:
    """
    The results by the name of the model and by arm, of those that asked the registered problems.

    Args:
        phase (`str`): `evaluate`, without training, or `train`.
    """
    registered = {name: entry["sha256"] for name, entry in json.loads(design.problems.read_text("utf-8")).items()}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results.found.values():
        cell = result["cell"]
        if cell["task"] == TASK and cell["phase"] == phase:
            if {name: entry["sha256"] for name, entry in result["problems"].items()} == registered:
                found.setdefault(result["model"]["name"], {})[cell["method"]] = result
    return found


def samples(arms: Arms, names: Sequence[str], benchmark: str) -> int:
    """The number of samples that all these arms have."""
    return min(arms[name]["scores"][benchmark]["own"]["samples"] for name in names)


def powers(n: int) -> list[int]:
    """1, 2, 4, ... up to n."""
    return [2**i for i in range(n.bit_length())]


def difference(
    arms: Arms, benchmark: str, arm: str, other: str, size: int, name: str = "mean@n", k: int = 1
) -> Difference:
    """
    pass@k of an arm less that of another, and mean@n for k = 1.

    Args:
        size (`int`): comparisons of the question, for the strict interval.
    """
    ours, theirs = (problem_scores(arms[x], benchmark, "own", k) for x in (arm, other))
    wide, strict = (
        paired(theirs, ours, resamples=_RESAMPLES, level=level) for level in (LEVEL, 1 - (1 - LEVEL) / size)
    )
    return Difference(name, arm, other, wide["difference"], wide["low"], wide["high"], strict["low"], strict["high"])


def best(arms: Arms, benchmark: str, names: Sequence[str], k: int = 1) -> str:
    """The arm with the highest pass@k. Of equal ones, the first."""
    return max(names, key=lambda name: float(problem_scores(arms[name], benchmark, "own", k).mean()))


def nearest(arms: Arms, benchmark: str, arm: str, names: Sequence[str]) -> str:
    """The arm whose thoughts have the mean entropy that is nearest to that of `arm`."""

    def entropy(name: str) -> float:
        return arms[name]["scores"][benchmark]["own"]["entropy"] or 0.0

    return min(names, key=lambda name: abs(entropy(name) - entropy(arm)))


def _has(arms: Arms, names: Sequence[str]) -> bool:
    return all(name in arms for name in names)


def soft_is_greedy(design: RealDesign, arms: Arms, benchmark: str) -> Finding:
    """Question (a)."""
    questions = design["questions"]
    soft, greedy, sampled = questions["soft"], questions["greedy"], questions["temperatures"]
    if not _has(arms, [soft, greedy, *sampled]):
        return Finding(NOT_RUN)
    top = best(arms, benchmark, sampled)
    first, second = (difference(arms, benchmark, soft, other, _SIZES["a"]) for other in (greedy, top))
    if abs(first.mean) <= EQUAL + 1e-9 and second.strict_high < 0:
        word = CONFIRMED
    elif first.strict_low > 0 or first.strict_high < 0 or second.strict_low > 0:
        word = OVERTURNED
    else:
        word = UNDECIDED
    return Finding(word, [first, second])


def gumbel_beats_discrete(design: RealDesign, arms: Arms, benchmark: str) -> Finding:
    """Question (b)."""
    gumbel, discrete = design["questions"]["gumbel"], design["questions"]["discrete"]
    if not _has(arms, [*gumbel, *discrete]):
        return Finding(NOT_RUN)
    mine, matched, tuned = design["questions"]["matched"], [], []
    other = nearest(arms, benchmark, mine, discrete)
    for k in powers(samples(arms, [*gumbel, *discrete], benchmark)):
        matched.append(difference(arms, benchmark, mine, other, _SIZES["b"], f"matched entropy, pass@{k}", k))
        pair = best(arms, benchmark, gumbel, k), best(arms, benchmark, discrete, k)
        tuned.append(difference(arms, benchmark, *pair, _SIZES["b"], f"best temperature, pass@{k}", k))
    every = matched + tuned
    if all(d.strict_low > 0 for d in every):
        word = CONFIRMED
    elif any(d.strict_high < 0 for d in every) or all(d.mean <= 0 for d in tuned):
        word = OVERTURNED
    else:
        word = UNDECIDED
    return Finding(word, every)


def softness(design: RealDesign, arms: Arms, benchmark: str) -> Finding:
    """Question (c)."""
    pair = design["questions"]["decorative"]
    if not _has(arms, pair):
        return Finding(NOT_RUN)
    found = difference(arms, benchmark, *pair, _SIZES["c"])
    if -MARGIN <= found.strict_low and found.strict_high <= MARGIN:
        word = DECORATIVE
    else:
        word = MATTERS if found.strict_low > 0 or found.strict_high < 0 else UNDECIDED
    return Finding(word, [found])


QUESTIONS = {
    "a": ("Is plain soft thinking equal to greedy decoding?", soft_is_greedy),
    "b": ("Do Gumbel thoughts beat discrete sampling at every k?", gumbel_beats_discrete),
    "c": ("Is the softness of a Gumbel thought decorative?", softness),
}
