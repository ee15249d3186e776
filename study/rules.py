# SPDX-License-Identifier: Apache-2.0
"""The registered rules, each one function: what is chosen, which interval, and what the words of a verdict mean.

`README.md` beside this file states them in words. Nothing here reads a file or knows a method.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


LEVEL = 0.95
# A difference inside this many points of a score on either side is no difference that matters.
MARGIN = 0.02
# "Learned": the mean reward of so many updates in a row is at least so high.
LEARNED, WINDOW = 0.7, 3


def choose_best(scores: Mapping[float, float]) -> float:
    """The value with the best score. Of equal scores, the smallest value. For learning rates and for temperatures."""
    return min(scores, key=lambda value: (-scores[value], value))


def tuning_score(hard: float, own: float) -> float:
    """What a learning rate is chosen by: half for hard inference at temperature 1, half for the method's own thought."""
    return (hard + own) / 2


def updates_until_learned(rewards: Sequence[float | None], level: float = LEARNED, window: int = WINDOW) -> int:
    """
    The first update u at which the mean reward of the updates u - window + 1 .. u is at least `level`. Updates count from 1.
    A run that never gets there counts as one update more than it has. An update without a reward (`None`) has reward 0.
    """
    values = [0.0 if reward is None or math.isnan(reward) else reward for reward in rewards]
    for end in range(window, len(values) + 1):
        if fmean(values[end - window : end]) >= level - 1e-9:  # a mean that rounding holds just below it
            return end
    return len(values) + 1


def t_coverage(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if freedom % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))


def t_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level."""
    low, high = 0.0, 1.0
    while t_coverage(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_coverage(middle, freedom) < level else (low, middle)
    return high


@dataclass(frozen=True)
class Estimate:
    """
    A mean over seeds.

    Args:
        mean (`float`): over the seeds.
        low, high (`float`): ends of its 95 % interval over seeds.
        strict_low, strict_high (`float`): ends of the interval that a verdict reads, with Bonferroni's correction.
        seeds (`int`): how many.
    """

    mean: float
    low: float
    high: float
    strict_low: float
    strict_high: float
    seeds: int


def estimate(values: Sequence[float], comparisons: int = 1, level: float = LEVEL) -> Estimate | None:
    """
    Mean and Student-t intervals over seeds. `None` for fewer than two seeds, which say nothing about a spread.

    Args:
        values: one for each seed.
        comparisons (`int`): how many comparisons the question makes. The strict interval has level 1 - (1 - level) / comparisons.
    """
    n = len(values)
    if n < 2:
        return None
    mean, error = fmean(values), stdev(values) / math.sqrt(n)
    half = error * t_quantile(level, n - 1)
    strict = error * t_quantile(1 - (1 - level) / comparisons, n - 1)
    return Estimate(mean, mean - half, mean + half, mean - strict, mean + strict, n)


BEATS, LOSES, NO_DIFFERENCE, NOT_RUN = "beats", "loses", "no difference shown", "not run"


def verdict(difference: Estimate | None, seeds: int, words: tuple[str, str] = (BEATS, LOSES)) -> str:
    """
    What the word for a difference is.

    Args:
        difference (`Estimate`, *optional*): method less control.
        seeds (`int`): how many seeds the design has. With fewer there is no verdict.
        words: for a strict interval above 0 and below 0.
    """
    if difference is None or difference.seeds < seeds:
        return NOT_RUN
    if difference.strict_low > 0:
        return words[0]
    return words[1] if difference.strict_high < 0 else NO_DIFFERENCE


DECORATIVE, MATTERS, UNDECIDED = "decorative", "matters", "undecided"


def softness(difference: Estimate | None, seeds: int, margin: float = MARGIN) -> str:
    """
    What the softness of a thought does: own thought less arg-max. `decorative`: the strict interval is inside the margin.
    `matters`: it is not, and it has no 0. `undecided`: the rest.
    """
    if difference is None or difference.seeds < seeds:
        return NOT_RUN
    low, high = difference.strict_low, difference.strict_high
    if -margin <= low and high <= margin:
        return DECORATIVE
    return MATTERS if low > 0 or high < 0 else UNDECIDED
