# SPDX-License-Identifier: Apache-2.0
"""Intervals of a mean over problems, and the comparison of two runs on the same problems.

    interval  mean - t*(1 - a) s .. mean - t*(a) s,  t* = (mean* - mean) / s*,  a = (1 - level) / 2: the bootstrap-t
    paired    p = share of sign vectors e with |sum e d| >= |sum d|,  d = b - a

scipy, which is no dependency, is not used: `scipy.stats.bootstrap` has no bootstrap-t. Its methods cover 92 to 94 % where this interval covers 94 to 97 %.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np


_CHUNK = 2**22  # numbers of one block of resamples: 32 MiB in float64
_BISECTIONS = 60
# Sums of float64 that should be equal differ by less than this share of the largest value.
_ROUNDING = 1e-9
_FLAT = 1e-10  # a resample whose variance is below this share of the variance differs only by rounding


def interval(
    values: np.ndarray,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> tuple[float, float]:
    """
    Interval of the mean over problems. The problems are taken as a random sample of all problems of their kind.

    The method is the studentised bootstrap (bootstrap-t) over problems. On 100 hard problems most scores are 0 and a few
    are not. A sample mean below the true mean then comes with a standard deviation below the true one. Percentile, BCa and
    normal intervals do not account for this: they cover 92 to 94 %, and nearly all misses lie on one side. The tail of
    t* does account for it: the coverage is 94 to 97 % at 100 and 500 problems.

    A resample of equal values has no standard deviation; its t* counts as larger than any other. Such resamples can
    fill a tail. The interval is therefore cut at a bound that holds for any number of problems, for values within
    `bounds`: `P KL(mean, u) <= log(2 / (1 - level))` (Chernoff). Where all values are equal, or where there is only one
    problem, the bound alone gives the interval: 100 zeros give `[0, 0.036]`, one problem gives nearly all of `bounds`.

    Args:
        values (`np.ndarray` of shape `(P,)`):
            One score for each problem.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of bootstrap resamples, at least `2 / (1 - level)`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.
        bounds (`tuple[float, float]` or `None`, *optional*, defaults to `(0.0, 1.0)`):
            Smallest and largest possible value; the interval stays within them. `None` is for values without limits
            (lengths): the smallest and largest observed value take their place. The interval of equal values, or of
            a single value, is then that value alone and carries no information.

    Returns:
        `tuple[float, float]`: the lower and upper end.
    """
    x = _finite(values, "values")
    check_resamples(level, resamples)
    low, high = bootstrap_intervals(x[None], level, resamples, seed, bounds)
    return float(low[0]), float(high[0])


def paired(
    a: np.ndarray,
    b: np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> dict[str, float]:
    """
    Compare the scores of two runs on the same problems.

    The test flips the signs of the differences. If both runs have the same pass rate on every problem, each sign is a
    fair coin, and p <= 5 % has a chance of at most 5 % (3 % for 100 problems with one sample each, whose scores are
    coarse). If the runs differ on single problems and agree only on average, the level is that of a test of means: 5 %
    from 100 problems on, up to 8 % for 30 problems with very skewed differences. All 2^m sign vectors are used where
    the m problems with a difference allow it within `resamples`. Otherwise `resamples` random vectors and the identity
    are used, which keeps the level exact. The interval is computed as in `interval`, with the Chernoff bound on gains
    and on losses.

    Args:
        a, b (`np.ndarray` of shape `(P,)`):
            Scores of the first and of the second run, one for each problem, in the same order.
        resamples (`int`, *optional*, defaults to `10_000`):
            Number of bootstrap resamples, and of sign vectors.
        seed (`int`, *optional*, defaults to `0`):
            Seed of both.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage of the interval.
        bounds (`tuple[float, float]` or `None`, *optional*, defaults to `(0.0, 1.0)`):
            Smallest and largest possible score; `None` as in `interval`.

    Returns:
        `dict[str, float]` with the mean difference b - a under `difference`, its interval under `low` and `high`, and
        the two-sided `p_value`.
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if len(x) != len(y):
        raise ValueError(
            f"`a` has {len(x)} problems and `b` {len(y)}, and problems can only be compared in pairs; give the scores "
            "of both runs on the same problems, in the same order."
        )
    check_resamples(level, resamples)
    for scores, name in ((x, "a"), (y, "b")):
        _check_bounds(scores, bounds, name)
    difference = (y - x)[None]
    low, high = _difference_intervals(difference, level, resamples, seed, bounds)
    return {
        "difference": float(difference.mean()),
        "low": float(low[0]),
        "high": float(high[0]),
        "p_value": float(_sign_flip(difference, resamples, seed)[0]),
    }


def bootstrap_intervals(
    values: np.ndarray, level: float, resamples: int, seed: int, bounds: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Interval ends of D data sets, with the same resamples for all: `values` (D, P) -> (D,) and (D,)."""
    _check_bounds(values, bounds, "values")
    low, high = _studentised(values, level, resamples, seed)
    if bounds is None:
        return np.maximum(low, values.min(1)), np.minimum(high, values.max(1))
    width = bounds[1] - bounds[0]
    floor, ceiling = _chernoff((values.mean(1) - bounds[0]) / width, values.shape[1], level)
    return np.maximum(low, bounds[0] + width * floor), np.minimum(high, bounds[0] + width * ceiling)


def _difference_intervals(
    differences: np.ndarray, level: float, resamples: int, seed: int, bounds: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of `paired` for D data sets: (D, P) -> (D,) and (D,). `bounds` are the bounds of a score."""
    low, high = _studentised(differences, level, resamples, seed)
    if bounds is None:
        return np.maximum(low, differences.min(1)), np.minimum(high, differences.max(1))
    width, problems = bounds[1] - bounds[0], differences.shape[1]
    gain = _chernoff(np.maximum(differences, 0).mean(1) / width, problems, level)
    loss = _chernoff(np.maximum(-differences, 0).mean(1) / width, problems, level)
    return np.maximum(low, width * (gain[0] - loss[1])), np.minimum(high, width * (gain[1] - loss[0]))


def check_resamples(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(
            f"`level` is {level}, which cannot be the coverage of an interval. Set it between 0 and 1, for example to 0.95."
        )
    if resamples * (1 - level) < 2 * (1 - _ROUNDING):
        needed = math.ceil(2 / (1 - level) - _ROUNDING)
        raise ValueError(
            f"`resamples` is {resamples}, too few for one resample in each tail of an interval of level {level}; "
            f"set it to {needed} or more."
        )


def _check_bounds(values: np.ndarray, bounds: tuple[float, float] | None, name: str) -> None:
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` is {bounds}, which is empty; set the lower end first, or set None.")
    if bounds is not None and (values.min() < bounds[0] - _ROUNDING or values.max() > bounds[1] + _ROUNDING):
        raise ValueError(
            f"`{name}` goes from {values.min():g} to {values.max():g}, outside the bounds {bounds} that the "
            "interval relies on; set `bounds` to the range of possible values, or to None."
        )


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    """Scores as float64 (P,)."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(
            f"`{name}` of shape {x.shape} does not hold one finite number for each problem, so it has no mean; "
            "give an array (P,) with P at least 1 and leave out problems without a score."
        )
    return x


def _blocks(resamples: int, problems: int) -> Iterator[int]:
    """Sizes of blocks of resamples that fit into memory."""
    block = max(1, _CHUNK // problems)
    while resamples > 0:
        yield min(block, resamples)
        resamples -= block


def _studentised(values: np.ndarray, level: float, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap-t ends of D data sets: (D, P) -> (D,) and (D,); infinite where all values are equal."""
    problems = values.shape[1]
    rng = np.random.default_rng(seed)
    mean = values.mean(1)
    x = values - mean[:, None]
    square = x**2
    variance = square.mean(1)
    t = []
    for block in _blocks(resamples, problems):
        indices = rng.integers(problems, size=(block, problems)) + problems * np.arange(block)[:, None]
        weights = np.bincount(indices.ravel(), minlength=block * problems).reshape(block, problems) / problems
        shift = x @ weights.T  # (D, block)
        # A resample of equal values gets a t* of 1e5, in the direction of its shift.
        spread = np.maximum(square @ weights.T - shift**2, _FLAT * variance[:, None])
        t.append(shift / np.sqrt(np.maximum(spread, np.finfo(np.float64).tiny)))
    tail = (1 - level) / 2
    lower, upper = np.quantile(np.concatenate(t, axis=1), [tail, 1 - tail], axis=1, method="inverted_cdf")
    deviation = np.sqrt(variance)
    equal = np.ptp(values, axis=1) <= _ROUNDING * np.abs(values).max(1)
    low = np.where(equal, -np.inf, mean - upper * deviation)
    high = np.where(equal, np.inf, mean - lower * deviation)
    return np.minimum(low, mean), np.maximum(high, mean)


def _chernoff(mean: np.ndarray, problems: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the Chernoff interval of means of values in [0, 1], for any number of problems: (D,) -> (D,) and (D,)."""
    limit = math.log(2 / (1 - level)) / problems

    def upper(m: np.ndarray) -> np.ndarray:
        low, high = m.copy(), np.ones_like(m)
        for _ in range(_BISECTIONS):
            u = (low + high) / 2
            with np.errstate(divide="ignore", invalid="ignore"):
                divergence = np.where(m > 0, m * np.log(m / u), 0) + np.where(
                    m < 1, (1 - m) * np.log((1 - m) / (1 - u)), 0
                )
            beyond = divergence > limit
            low, high = np.where(beyond, low, u), np.where(beyond, u, high)
        return high

    m = np.clip(mean, 0, 1)
    return 1 - upper(1 - m), upper(m)


def _sign_flip(differences: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Two-sided p-values of D data sets, with the same signs for all: (D, P) -> (D,)."""
    differences = differences[:, differences.any(0)]  # a zero has no sign
    problems = differences.shape[1]
    observed = np.abs(differences.sum(1))
    observed -= _ROUNDING * np.abs(differences).sum(1)
    if 2**problems <= resamples:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=problems)))
        return (np.abs(differences @ signs.T) >= observed[:, None]).mean(1)
    rng = np.random.default_rng(seed)
    count = np.ones(len(differences))  # the identity
    for block in _blocks(resamples, problems):
        signs = 2.0 * rng.integers(2, size=(block, problems)) - 1
        count += (np.abs(differences @ signs.T) >= observed[:, None]).sum(1)
    return count / (resamples + 1)
