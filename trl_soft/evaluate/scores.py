# SPDX-License-Identifier: Apache-2.0
"""Scores of P problems with n graded samples each, their intervals, and the comparison of two runs.

    mean@n    c / n                              c of the n samples are right
    pass@k    1 - C(n - c, k) / C(n, k)          Chen et al. 2021, arXiv 2107.03374, Eq. 1
    maj@k     E[share of right ones in the most frequent answer], over k of the n samples without replacement
    first_k   any of the first k is right        legacy
    interval  mean - t*(1 - a) s .. mean - t*(a) s,  t* = (mean* - mean) / s*,  a = (1 - level) / 2: the bootstrap-t
    paired    p = share of sign vectors e with |sum e d| >= |sum d|,  d = b - a

Each score is one number a problem, and everything random has a seed. `correct` is an array `(P, n)` or, where problems
have different numbers of samples, a sequence of P one-dimensional ones; its order is that in which samples were drawn.
"""

import itertools
import math
import operator
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np


_CHUNK = 2**22  # numbers of one block of resamples: 32 MiB in float64
_BISECTIONS = 60
# Sums of float64 that should be equal differ by less than this share of the largest value.
_ROUNDING = 1e-9
_FLAT = 1e-10  # share of the variance below which that of a resample is rounding

Verdicts = np.ndarray | Sequence[Any]


def mean_at_n(correct: Verdicts) -> np.ndarray:
    """Share of right samples: `correct` (P, n) -> (P,)."""
    return np.array([row.mean() for row in _problems(correct)])


def pass_at_k(correct: Verdicts, k: int) -> np.ndarray:
    """
    Probability that at least one of k samples is right, without bias from the n that were drawn.

    Chen et al. 2021 (arXiv 2107.03374, Eq. 1), in integers of any size: the result is the float next to the fraction.

    Args:
        correct (`np.ndarray` of shape `(P, n)`, bool, or a sequence of P one-dimensional ones):
            Verdicts.
        k (`int`):
            Number of samples, at most the n of every problem.

    Returns:
        `np.ndarray` of shape `(P,)`.
    """
    rows = _problems(correct)
    _check_k(k, rows)
    counts = [(len(row), int(row.sum())) for row in rows]
    table = {(n, c): (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k) for n, c in set(counts)}
    return np.array([table[pair] for pair in counts])


def first_k(correct: Verdicts, k: int) -> np.ndarray:
    """
    Legacy: 1 where any of the first k samples is right, `correct` (P, n) -> (P,).

    It estimates pass@k from k samples and throws the other n - k away: unbiased over runs, but with the noise of one
    draw, so it moves with the order of samples, and the best of several k, seeds or orders is biased upwards. Use
    `pass_at_k`, which is its mean over all orders; this is for comparison with tables that were made so.
    """
    rows = _problems(correct)
    _check_k(k, rows)
    return np.array([float(row[:k].any()) for row in rows])


def maj_at_k(
    votes: Sequence[Sequence[Hashable]], correct: Verdicts, k: int, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """
    Expected correctness of the most frequent answer among k of the n samples, drawn without replacement.

    - A sample without an answer (`None`) has no vote, whatever its verdict; k samples without any vote are wrong.
    - Answers that tie for the most votes share the outcome evenly: the expectation of picking one of them at random.
    - An answer is right as far as its samples were graded right: where a grader disagrees with itself within one
      answer, the share of right ones among all n samples that gave it.

    All subsets are taken where there are no more than `resamples` of them, and for k = 1 and k = n always: then the
    result is exact. Otherwise `resamples` subsets are drawn; a problem's subsets depend on (seed, n, k) alone, so its
    score does not change with the problems beside it. Their standard error is at most `0.5 / sqrt(resamples)` a
    problem.

    Args:
        votes (sequence of P sequences of hashables or `None`):
            Canonical answers: equal answers compare equal.
        correct (`np.ndarray` of shape `(P, n)`, bool, or a sequence of P one-dimensional ones):
            Verdicts, sample by sample as in `votes`.
        k (`int`):
            Number of samples that vote, at most the n of every problem.
        resamples (`int`, *optional*, defaults to `1000`):
            Number of subsets.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the subsets.

    Returns:
        `np.ndarray` of shape `(P,)`.
    """
    rows = _problems(correct)
    _check_k(k, rows)
    if resamples < 1:
        raise ValueError(f"`resamples` is {resamples}, which leaves no subset to vote in; set it to 1 or more.")
    if [len(answers) for answers in votes] != [len(row) for row in rows]:
        raise ValueError(
            "`votes` and `correct` differ in the number of problems or of samples of a problem, so an answer's "
            "verdict is unknown; give one answer, or None, for each verdict."
        )
    members = {n: _subsets(n, k, resamples, seed) for n in {len(row) for row in rows}}
    return np.array([_majority(answers, row, members[len(row)]) for answers, row in zip(votes, rows, strict=True)])


def interval(
    values: np.ndarray,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> tuple[float, float]:
    """
    Interval of the mean over problems, the problems being a sample of those one could have asked.

    The studentised bootstrap (bootstrap-t) over problems. Of 100 hard problems most score 0 and a few do not, and a
    mean below the truth then comes with a standard deviation below the truth: percentile, BCa and normal intervals
    move too little for that (92 to 94 %, nearly all misses on one side), while t* has it in its tail: 94 to 97 % at
    100 and 500 problems. A resample of equal values has no standard deviation and counts as far beyond any other;
    where such ones fill a tail, a bound that holds at any size cuts the interval, for values within `bounds`:
    `P KL(mean, u) <= log(2 / (1 - level))` (Chernoff). That bound alone speaks for values that are all equal (100
    zeros give `[0, 0.036]`) and for a single problem (nearly all of `bounds`).

    Args:
        values (`np.ndarray` of shape `(P,)`):
            One score a problem.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of bootstrap resamples, at least `2 / (1 - level)`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.
        bounds (`tuple[float, float]` or `None`, *optional*, defaults to `(0.0, 1.0)`):
            What a value lies between; the interval stays within. `None` for values without limits (lengths): the
            smallest and largest value take their place, and an interval of equal values, or of one, is that value
            and says nothing.

    Returns:
        `tuple[float, float]`: the lower and upper end.
    """
    x = _finite(values, "values")
    _check_resamples(level, resamples)
    low, high = _intervals(x[None], level, resamples, seed, bounds)
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
    Compares two runs on the same problems.

    The test flips the signs of the differences of problems: had both runs the same pass rate on every problem, each
    sign would be a coin, and p <= 5 % has a chance of at most 5 % (less where scores are coarse: 3 % for 100 problems
    with one sample each). Against runs that differ problem by problem and agree on average only, the level is that of
    a mean test: 5 % from 100 problems on, up to 8 % for 30 problems with very skewed differences. All 2^m sign vectors
    are taken where the m problems with a difference allow it within `resamples`, and otherwise `resamples` random ones
    and the identity, which keeps the level exact. The interval is that of `interval`, with the Chernoff bound on gains
    and on losses.

    Args:
        a (`np.ndarray` of shape `(P,)`):
            One score a problem, of the first run.
        b (`np.ndarray` of shape `(P,)`):
            The same of the second run, problem by problem.
        resamples (`int`, *optional*, defaults to `10_000`):
            Number of bootstrap resamples, and of sign vectors.
        seed (`int`, *optional*, defaults to `0`):
            Seed of both.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage of the interval.
        bounds (`tuple[float, float]` or `None`, *optional*, defaults to `(0.0, 1.0)`):
            What a score lies between; `None` as in `interval`.

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
    _check_resamples(level, resamples)
    for scores, name in ((x, "a"), (y, "b")):
        _check_bounds(scores, bounds, name)
    difference = (y - x)[None]
    low, high = _studentised(difference, level, resamples, seed)
    if bounds is None:
        floor, ceiling = difference.min(1), difference.max(1)
    else:
        width = bounds[1] - bounds[0]
        gain = _chernoff(np.maximum(difference, 0).mean(1) / width, len(x), level)
        loss = _chernoff(np.maximum(-difference, 0).mean(1) / width, len(x), level)
        floor, ceiling = width * (gain[0] - loss[1]), width * (gain[1] - loss[0])
    return {
        "difference": float(difference.mean()),
        "low": float(np.maximum(low, floor)[0]),
        "high": float(np.minimum(high, ceiling)[0]),
        "p_value": float(_sign_flip(difference, resamples, seed)[0]),
    }


def summary(
    correct: Verdicts,
    votes: Sequence[Sequence[Hashable]] | None = None,
    k_values: Sequence[int] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    maj_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Every score with its interval, as what `json.dumps` takes and `json.loads` gives back.

    Args:
        correct (`np.ndarray` of shape `(P, n)`, bool, or a sequence of P one-dimensional ones):
            Verdicts, in the order in which samples were drawn.
        votes (sequence of P sequences of hashables or `None`, *optional*):
            Canonical answers for `maj_at_k`; without them the summary has no `maj@k`.
        k_values (`Sequence[int]`, *optional*):
            The k of pass@k, maj@k and first_k; by default powers of two up to the smallest n, and that n.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage of the intervals.
        resamples (`int`, *optional*, defaults to `2000`):
            Bootstrap resamples of the intervals.
        maj_resamples (`int`, *optional*, defaults to `1000`):
            Subsets of maj@k.
        seed (`int`, *optional*, defaults to `0`):
            Seed of both.

    Returns:
        `dict[str, Any]`: `mean@n` is `{"value", "low", "high"}`; `pass@k`, `maj@k` and `first_k` hold one such each
        under `str(k)`; `problems` is P; `samples` is n, or `[fewest, most]` where problems differ; `level` as given.
    """
    rows = _problems(correct)
    _check_resamples(level, resamples)
    fewest, most = min(map(len, rows)), max(map(len, rows))
    if k_values is None:
        k_values = sorted({2**i for i in range(fewest.bit_length())} | {fewest})
    columns = {("mean@n", 0): mean_at_n(rows)}
    columns |= {("pass@k", k): pass_at_k(rows, k) for k in k_values}
    if votes is not None:
        columns |= {("maj@k", k): maj_at_k(votes, rows, k, maj_resamples, seed) for k in k_values}
    columns |= {("first_k", k): first_k(rows, k) for k in k_values}
    values = np.stack(list(columns.values()))
    low, high = _intervals(values, level, resamples, seed, (0.0, 1.0))
    result: dict[str, Any] = {}
    for (name, k), value, *ends in zip(columns, values.mean(1).tolist(), low.tolist(), high.tolist(), strict=True):
        entry = {"value": value, "low": ends[0], "high": ends[1]}
        if name == "mean@n":
            result[name] = entry
        else:
            result.setdefault(name, {})[str(k)] = entry
    samples = fewest if fewest == most else [fewest, most]
    return result | {"problems": len(rows), "samples": samples, "level": level}


def _problems(correct: Verdicts) -> list[np.ndarray]:
    """Verdicts as P bool arrays."""
    rows = [np.asarray(row) for row in correct]
    if not rows:
        raise ValueError("`correct` holds no problem, so there is nothing to score; give a row of verdicts a problem.")
    for i, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise ValueError(
                f"`correct[{i}]` has the shape {row.shape}, and a problem needs a row of at least one verdict; give "
                "an array (P, n) or one one-dimensional array a problem."
            )
        if row.dtype.kind not in "buif" or not ((row == 0) | (row == 1)).all():
            raise ValueError(
                f"`correct[{i}]` holds something that is neither true nor false, and these scores count right "
                "answers; give bools, False for a sample that could not be graded."
            )
    return [row.astype(bool) for row in rows]


def _check_k(k: int, rows: list[np.ndarray]) -> None:
    fewest = min(map(len, rows))
    if not 1 <= operator.index(k) <= fewest:
        raise ValueError(
            f"k is {k}, but a problem has only {fewest} samples, which say nothing about more; set k from 1 to "
            f"{fewest} or draw more samples."
        )


def _check_resamples(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}, which is no coverage of an interval; set it between 0 and 1, as 0.95.")
    if resamples * (1 - level) < 2 * (1 - _ROUNDING):
        needed = math.ceil(2 / (1 - level) - _ROUNDING)
        raise ValueError(
            f"`resamples` is {resamples}, too few to have one in either tail of an interval of level {level}; set it "
            f"to {needed} or more."
        )


def _check_bounds(values: np.ndarray, bounds: tuple[float, float] | None, name: str) -> None:
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` is {bounds}, which has nothing inside; set the lower end first, or None.")
    if bounds is not None and (values.min() < bounds[0] - _ROUNDING or values.max() > bounds[1] + _ROUNDING):
        raise ValueError(
            f"`{name}` goes from {values.min():g} to {values.max():g}, outside of the bounds {bounds} that its "
            "interval relies on; set `bounds` to what a value can be, or to None."
        )


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    """Scores as float64 (P,)."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(
            f"`{name}` of shape {x.shape} is not one finite number a problem, over which alone a mean and its "
            "interval are defined; give an array (P,) with P at least 1 and leave out problems without a score."
        )
    return x


def _subsets(n: int, k: int, resamples: int, seed: int) -> np.ndarray:
    """Which of n samples vote, one row a subset of k: (subsets, n), all subsets where they are few."""
    if math.comb(n, k) <= max(resamples, n):
        chosen = np.array(list(itertools.combinations(range(n), k)))
    else:
        order = np.random.default_rng([seed, n, k]).random((resamples, n))
        chosen = np.argpartition(order, k - 1, axis=1)[:, :k]
    members = np.zeros((len(chosen), n))
    np.put_along_axis(members, chosen, 1.0, axis=1)
    return members


def _majority(answers: Sequence[Hashable], verdicts: np.ndarray, members: np.ndarray) -> float:
    """Mean correctness of one problem's vote over the subsets `members` (subsets, n)."""
    try:
        classes = {answer: i for i, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
    except TypeError as error:
        raise TypeError(
            "`votes` holds an answer that cannot be hashed, so equal answers cannot be counted; give canonical "
            "answers as strings, numbers or tuples, or None."
        ) from error
    if not classes:
        return 0.0
    voters = np.zeros((len(answers), len(classes)))
    for sample, answer in enumerate(answers):
        if answer is not None:
            voters[sample, classes[answer]] = 1.0
    right = verdicts @ voters / voters.sum(0)  # (classes,)
    counts = members @ voters  # (subsets, classes)
    most = counts.max(1, keepdims=True)
    winners = (counts == most) & (most > 0)
    return float((winners @ right / np.maximum(winners.sum(1), 1)).mean())


def _blocks(resamples: int, problems: int) -> Iterator[int]:
    """Sizes of blocks of resamples that fit into memory."""
    block = max(1, _CHUNK // problems)
    while resamples > 0:
        yield min(block, resamples)
        resamples -= block


def _studentised(values: np.ndarray, level: float, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap-t intervals of D data sets by the same resamples: (D, P) -> (D,) twice, infinite for equal values."""
    problems = values.shape[1]
    rng = np.random.default_rng(seed)
    mean = values.mean(1)
    x = values - mean[:, None]
    square = x**2
    variance = square.mean(1)
    t = []
    for block in _blocks(resamples, problems):
        drawn = rng.integers(problems, size=(block, problems)) + problems * np.arange(block)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=block * problems).reshape(block, problems) / problems
        shift = x @ weights.T  # (D, block)
        # A resample of equal values is 1e5 deviations away, in the direction of its shift.
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
    """Interval of the mean of values in [0, 1] that holds at any number of problems: (D,) -> (D,) twice."""
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


def _intervals(
    values: np.ndarray, level: float, resamples: int, seed: int, bounds: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """`interval` of D data sets by the same resamples: (D, P) -> (D,) twice."""
    _check_bounds(values, bounds, "values")
    low, high = _studentised(values, level, resamples, seed)
    if bounds is None:
        return np.maximum(low, values.min(1)), np.minimum(high, values.max(1))
    width = bounds[1] - bounds[0]
    floor, ceiling = _chernoff((values.mean(1) - bounds[0]) / width, values.shape[1], level)
    return np.maximum(low, bounds[0] + width * floor), np.minimum(high, bounds[0] + width * ceiling)


def _sign_flip(differences: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Two-sided p-values of D data sets by the same signs: (D, P) -> (D,)."""
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
