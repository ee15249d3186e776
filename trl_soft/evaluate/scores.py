# SPDX-License-Identifier: Apache-2.0
"""Scores of graded samples: mean@n, pass@k, maj@k and first_k, one number for each problem, and their summary.

    mean@n    c / n                              c of the n samples are right
    pass@k    1 - C(n - c, k) / C(n, k)          Chen et al. 2021, arXiv 2107.03374, Eq. 1
    maj@k     E[share of right samples in the most frequent answer], over k of the n samples without replacement
    first_k   1 if any of the first k samples is right; legacy

`correct` holds the verdicts: an array of shape `(P, n)`, or a sequence of P one-dimensional arrays where problems have
different numbers of samples. Samples stand in the order in which they were drawn. Everything random has a seed.
"""

import itertools
import math
import operator
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .intervals import bootstrap_intervals, check_resamples


Verdicts = np.ndarray | Sequence[Any]


def mean_at_n(correct: Verdicts) -> np.ndarray:
    """Share of right samples: `correct` (P, n) -> (P,)."""
    return np.array([row.mean() for row in _problems(correct)])


def pass_at_k(correct: Verdicts, k: int) -> np.ndarray:
    """
    Probability that at least one of k samples is right, estimated without bias from n samples.

    Chen et al. 2021 (arXiv 2107.03374, Eq. 1). The fraction is computed in integers and rounded once to a float.

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
    Legacy score: 1 where any of the first k samples is right, else 0. `correct` (P, n) -> (P,).

    It estimates pass@k from k samples and ignores the other n - k. It has no bias over many runs, but it has the noise
    of one draw: it changes with the order of the samples, and the best of several k, seeds or orders is too high. Use
    `pass_at_k`, which is the mean of this score over all orders. Use `first_k` only to compare with tables that use it.
    """
    rows = _problems(correct)
    _check_k(k, rows)
    return np.array([float(row[:k].any()) for row in rows])


def maj_at_k(
    votes: Sequence[Sequence[Hashable]], correct: Verdicts, k: int, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """
    Expected correctness of the most frequent answer among k of the n samples, drawn without replacement.

    - A sample without an answer (`None`) has no vote, whatever its verdict. Without any vote the outcome is wrong.
    - If several answers tie for the most votes, the outcome is the mean over them.
    - The correctness of an answer is the share of right verdicts among all n samples that gave it. It differs from 0
      and 1 only where a grader gave different verdicts to equal answers.

    The result is exact where there are at most `resamples` subsets, and always for k = 1 and k = n. Otherwise
    `resamples` subsets are drawn. The subsets of a problem depend on (seed, n, k) alone, so the score of a problem does
    not depend on the other problems. The standard error is at most `0.5 / sqrt(resamples)` for each problem.

    Args:
        votes (sequence of P sequences of hashables or `None`):
            Canonical answers: answers with the same meaning compare equal.
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
            "verdict is unknown. Give one answer, or None, for each verdict."
        )
    members = {n: _subsets(n, k, resamples, seed) for n in {len(row) for row in rows}}
    return np.array([_majority(answers, row, members[len(row)]) for answers, row in zip(votes, rows, strict=True)])


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
    Every score with its interval, in types that JSON keeps.

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
        `dict[str, Any]`: `mean@n` is `{"value", "low", "high"}`; `pass@k`, `maj@k` and `first_k` map each
        `str(k)` to such an entry; `problems` is P; `samples` is n, or `[fewest, most]` where problems differ.
    """
    rows = _problems(correct)
    check_resamples(level, resamples)
    fewest, most = min(map(len, rows)), max(map(len, rows))
    if k_values is None:
        k_values = sorted({2**i for i in range(fewest.bit_length())} | {fewest})
    columns = {("mean@n", 0): mean_at_n(rows)}
    columns |= {("pass@k", k): pass_at_k(rows, k) for k in k_values}
    if votes is not None:
        columns |= {("maj@k", k): maj_at_k(votes, rows, k, maj_resamples, seed) for k in k_values}
    columns |= {("first_k", k): first_k(rows, k) for k in k_values}
    values = np.stack(list(columns.values()))
    low, high = bootstrap_intervals(values, level, resamples, seed, (0.0, 1.0))
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
        raise ValueError(
            "`correct` holds no problem, so there is nothing to score; give a row of verdicts for each problem."
        )
    for i, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise ValueError(
                f"`correct[{i}]` has the shape {row.shape}, and a problem needs a row of at least one verdict; give "
                "an array (P, n) or a one-dimensional array for each problem."
            )
        if row.dtype.kind not in "buif" or not ((row == 0) | (row == 1)).all():
            raise ValueError(
                f"`correct[{i}]` holds something that is neither true nor false, and these scores count right "
                "answers; give bools, and False for a sample that could not be graded."
            )
    return [row.astype(bool) for row in rows]


def _check_k(k: int, rows: list[np.ndarray]) -> None:
    fewest = min(map(len, rows))
    if not 1 <= operator.index(k) <= fewest:
        raise ValueError(
            f"k is {k}, but a problem has only {fewest} samples, which say nothing about more; set k from 1 to "
            f"{fewest} or draw more samples."
        )


def _subsets(n: int, k: int, resamples: int, seed: int) -> np.ndarray:
    """Subsets of k of n samples, as 0 and 1: (subsets, n). All subsets where they are few, else `resamples` of them."""
    if math.comb(n, k) <= max(resamples, n):
        subsets = np.array(list(itertools.combinations(range(n), k)))
    else:
        order = np.random.default_rng([seed, n, k]).random((resamples, n))
        subsets = np.argpartition(order, k - 1, axis=1)[:, :k]
    members = np.zeros((len(subsets), n))
    np.put_along_axis(members, subsets, 1.0, axis=1)
    return members


def _majority(answers: Sequence[Hashable], verdicts: np.ndarray, members: np.ndarray) -> float:
    """Mean outcome of the vote on one problem over the subsets `members` (subsets, n)."""
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
