# SPDX-License-Identifier: Apache-2.0
"""Scores against enumeration and brute force, their summary, and what is refused."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_soft.evaluate.intervals import interval
from trl_soft.evaluate.scores import first_k, maj_at_k, mean_at_n, pass_at_k, summary


def row(n: int, right: int) -> np.ndarray:
    return np.arange(n) < right


def any_right(verdicts, k: int) -> float:
    """pass@k by its definition: the share of all subsets of k with a right sample, rounded once."""
    subsets = list(itertools.combinations(list(verdicts), k))
    return float(Fraction(sum(any(subset) for subset in subsets), len(subsets)))


def majority(answers, verdicts, k: int) -> float:
    """maj@k by its definition: over all subsets of k, exact."""

    def share(answer) -> Fraction:
        of = [bool(v) for a, v in zip(answers, verdicts, strict=True) if a == answer]
        return Fraction(sum(of), len(of))

    total, subsets = Fraction(0), list(itertools.combinations(answers, k))
    for subset in subsets:
        votes = [answer for answer in subset if answer is not None]
        if votes:
            most = max(votes.count(answer) for answer in votes)
            winners = [answer for answer in set(votes) if votes.count(answer) == most]
            total += sum((share(answer) for answer in winners), Fraction(0)) / len(winners)
    return float(total / len(subsets))


# pass@k, mean@n, first_k


def test_pass_at_k_is_the_enumeration_in_every_small_case():
    for n in range(1, 9):
        for right, k in itertools.product(range(n + 1), range(1, n + 1)):
            assert pass_at_k(row(n, right)[None], k)[0] == any_right(row(n, right), k)


@given(rows=st.lists(st.lists(st.booleans(), min_size=1, max_size=10), min_size=1, max_size=5), data=st.data())
def test_pass_at_k_is_the_enumeration(rows, data):
    k = data.draw(st.integers(1, min(map(len, rows))))
    assert pass_at_k(rows, k).tolist() == [any_right(verdicts, k) for verdicts in rows]


@given(n=st.integers(1, 2000), data=st.data())
def test_pass_at_k_is_the_nearest_float_at_any_size(n, data):
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    missed = math.prod((Fraction(n - right - i, n - i) for i in range(min(k, n - right + 1))), start=Fraction(1))
    assert pass_at_k([row(n, right)], k)[0] == float(1 - missed)


def test_pass_at_one_is_the_mean_and_pass_at_n_is_any():
    correct = np.random.default_rng(0).random((50, 16)) < 0.1
    np.testing.assert_array_equal(pass_at_k(correct, 1), mean_at_n(correct))
    np.testing.assert_array_equal(pass_at_k(correct, 16), correct.any(1))


def test_first_k_reads_the_order_and_its_mean_over_all_orders_is_pass_at_k():
    correct = [False, True, False, False, True]
    assert first_k([correct, correct[::-1]], 1).tolist() == [0, 1]
    orders = [first_k([order], 2)[0] for order in itertools.permutations(correct)]
    assert np.mean(orders) == pytest.approx(pass_at_k([correct], 2)[0], rel=1e-12)


def test_an_array_and_a_list_of_rows_score_the_same():
    correct = np.random.default_rng(0).random((5, 4)) < 0.5
    votes = [["x", "y", None, "x"]] * 5
    for score in (mean_at_n, lambda c: pass_at_k(c, 2), lambda c: first_k(c, 2), lambda c: maj_at_k(votes, c, 2)):
        np.testing.assert_array_equal(score(correct), score([list(r) for r in correct.astype(int)]))


# maj@k


@pytest.mark.parametrize(
    ("answers", "verdicts", "k", "expected"),
    [
        ("aab", (1, 1, 0), 3, 1),
        ("abb", (1, 0, 0), 3, 0),
        ("ab", (1, 0), 2, 1 / 2),  # a tie of two
        ("abc", (1, 0, 0), 3, 1 / 3),  # a tie of three
        ("aabbc", (1, 1, 0, 0, 0), 5, 1 / 2),  # c is behind
        ("aab", (1, 1, 0), 2, 2 / 3),  # aa wins, ab twice half
        ("a--", (1, 0, 0), 3, 1),  # nothing found does not vote
        ("---", (1, 1, 1), 3, 0),  # no vote at all
        ("a--", (1, 1, 1), 2, 2 / 3),  # of three pairs, one has no vote
        ("aab", (1, 0, 0), 3, 1 / 2),  # a grader that disagrees with itself
        ("aabb", (1, 0, 0, 0), 4, 1 / 4),  # and a tie
        ("aaab", (1, 0, 0, 1), 1, 1 / 2),  # 3/4 of 1/3, 1/4 of 1
    ],
)
def test_majority_by_hand(answers, verdicts, k, expected):
    votes = [None if answer == "-" else answer for answer in answers]
    assert maj_at_k([votes], [verdicts], k)[0] == pytest.approx(expected, rel=1e-12)


@given(
    samples=st.lists(st.tuples(st.sampled_from([None, "1", "2", (3, 4)]), st.booleans()), min_size=1, max_size=8),
    data=st.data(),
)
def test_majority_is_brute_force_over_all_subsets(samples, data):
    answers, verdicts = zip(*samples, strict=True)
    k = data.draw(st.integers(1, len(samples)))
    expected = majority(answers, verdicts, k)
    assert maj_at_k([answers], [verdicts], k)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [1, 40])
def test_majority_of_one_and_of_all_need_no_resamples(k):
    rng = np.random.default_rng(0)
    answers = rng.integers(4, size=40)
    verdicts = answers == 0
    value = maj_at_k([answers.tolist()], verdicts[None], k, resamples=1)[0]
    best = np.flatnonzero(np.bincount(answers) == np.bincount(answers).max())
    assert value == pytest.approx(verdicts.mean() if k == 1 else (best == 0).mean(), rel=1e-12)


def test_resampled_majority_is_within_its_error():
    """C(16, 5) = 4368 subsets, 2000 drawn: a mean of 40 problems within four standard errors, 0.5/sqrt(2000) each."""
    rng = np.random.default_rng(1)
    answers = rng.integers(4, size=(40, 16))
    votes, correct = answers.tolist(), answers == 0
    drawn = maj_at_k(votes, correct, 5, resamples=2000)
    exact = maj_at_k(votes, correct, 5, resamples=4368)
    np.testing.assert_allclose(exact[0], majority(votes[0], correct[0], 5), rtol=1e-12)
    assert not np.array_equal(drawn, exact)
    assert np.abs(drawn - exact).max() < 5 * 0.5 / math.sqrt(2000)
    assert abs((drawn - exact).mean()) < 4 * 0.5 / math.sqrt(2000 * 40)


def test_resampled_voters_are_different_samples():
    """Of 20 of 24 samples at least 11 are among the 15 right ones; one sample voting twice could outvote them."""
    assert maj_at_k([["x"] * 15 + ["y"] * 9], [row(24, 15)], 20)[0] == 1
    assert math.comb(24, 20) > 1000


def test_a_problem_scores_the_same_beside_any_other():
    rng = np.random.default_rng(2)
    answers = rng.integers(3, size=(4, 20))
    votes, correct = answers.tolist(), answers == 0
    everything = maj_at_k(votes, correct, 7, resamples=50)
    assert maj_at_k(votes[2:3], correct[2:3], 7, resamples=50)[0] == everything[2]
    ragged = maj_at_k([["x"] * 9, votes[2]], [[True] * 9, correct[2]], 7, resamples=50)
    assert ragged.tolist() == [1, everything[2]]


# The summary


def test_the_summary_is_json_and_its_own_parts():
    rng = np.random.default_rng(10)
    answers = rng.integers(3, size=(30, 6))
    votes, correct = answers.tolist(), answers == 0
    found = summary(correct, votes, seed=3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["problems"], found["samples"], found["level"]) == (30, 6, 0.95)
    assert list(found["pass@k"]) == list(found["maj@k"]) == list(found["first_k"]) == ["1", "2", "4", "6"]
    for entry, values in (
        (found["mean@n"], mean_at_n(correct)),
        (found["pass@k"]["4"], pass_at_k(correct, 4)),
        (found["maj@k"]["4"], maj_at_k(votes, correct, 4, seed=3)),
        (found["first_k"]["2"], first_k(correct, 2)),
    ):
        low, high = interval(values, seed=3)
        assert entry == pytest.approx({"value": values.mean(), "low": low, "high": high}, rel=1e-12)


def test_a_summary_without_votes_and_with_ragged_samples():
    found = summary([[True, False], [False, False, True], [True] * 5], k_values=[2])
    assert found["samples"] == [2, 5] and found["problems"] == 3
    assert "maj@k" not in found and list(found["pass@k"]) == ["2"]
    assert found["pass@k"]["2"]["value"] == pytest.approx((1 + 2 / 3 + 1) / 3)


def test_the_same_seed_gives_the_same_and_another_does_not():
    rng = np.random.default_rng(11)
    answers = rng.integers(3, size=(40, 24))
    votes, correct = answers.tolist(), answers == 0
    state = np.random.get_state()[1].copy()
    first = summary(correct, votes, [8], seed=1)
    assert first == summary(correct, votes, [8], seed=1)
    other = summary(correct, votes, [8], seed=2)
    assert first["maj@k"]["8"]["value"] != other["maj@k"]["8"]["value"]
    assert first["mean@n"]["low"] != other["mean@n"]["low"]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # the global generator is not moved


# What is refused


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: pass_at_k([[True, False]], 3), "k is 3, but a problem has only 2 samples.*set k from 1 to 2"),
        (lambda: pass_at_k([[True] * 4, [True]], 2), "k is 2, but a problem has only 1 samples"),
        (lambda: first_k([[True]], 0), "k is 0, but"),
        (lambda: maj_at_k([["a"]], [[True]], 2), "k is 2, but"),
        (lambda: mean_at_n([]), "holds no problem"),
        (lambda: mean_at_n([[]]), r"`correct\[0\]` has the shape \(0,\).*give an array"),
        (lambda: mean_at_n([True, False]), r"`correct\[0\]` has the shape \(\)"),
        (lambda: mean_at_n([[1], [0.5]]), r"`correct\[1\]` holds something that is neither true nor false"),
        (lambda: mean_at_n([[True, None]]), r"`correct\[0\]` holds something that is neither"),
        (lambda: maj_at_k([["a"]], [[True, True]], 1), "`votes` and `correct` differ"),
        (lambda: maj_at_k([["a"], ["b"]], [[True]], 1), "`votes` and `correct` differ"),
        (lambda: maj_at_k([["a"]], [[True]], 1, resamples=0), "`resamples` is 0.*set it to 1 or more"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_answers_that_cannot_be_counted_are_refused():
    with pytest.raises(TypeError, match=r"cannot be hashed.*give canonical answers"):
        maj_at_k([[["a"]]], [[True]], 1)
