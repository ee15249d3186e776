# SPDX-License-Identifier: Apache-2.0
"""Scores against enumeration and brute force, intervals and tests against simulated truth, and what is refused."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_soft.evaluate.scores import (
    _chernoff,
    _intervals,
    _sign_flip,
    first_k,
    interval,
    maj_at_k,
    mean_at_n,
    paired,
    pass_at_k,
    summary,
)


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


def pass_rates(rng, shape: tuple[float, float], samples: int, sets: int, problems: int) -> np.ndarray:
    """Scores of simulated runs: true pass rates from Beta(shape), `samples` verdicts a problem -> (sets, problems)."""
    return rng.binomial(samples, rng.beta(*shape, size=(sets, problems))) / samples


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


# Intervals


COVERED_SETS = 2000


@pytest.mark.parametrize("problems", [100, 500])
@pytest.mark.parametrize(
    ("shape", "samples"), [((0.5, 0.5), 4), ((2, 2), 32), ((0.2, 1.8), 8), ((0.1, 1.9), 32), ((1.8, 0.2), 1)]
)
def test_the_interval_covers_the_truth(shape, samples, problems):
    """
    Mean pass rates of 0.5, 0.5, 0.1, 0.05 and 0.9. The standard error of a coverage of 95 % over 2000 data sets is
    0.5 %, so 93 and 97 % are four of them away. Either side misses 2.5 % within four standard errors of 0.35 %: the
    percentile and the normal interval cover 93 and 92 % of the fourth at 100 problems, and miss on one side.
    """
    rng = np.random.default_rng([problems, samples])
    truth = shape[0] / sum(shape)
    values = pass_rates(rng, shape, samples, COVERED_SETS, problems)
    low, high = _intervals(values, 0.95, 1000, 0, (0.0, 1.0))
    covered = ((low <= truth) & (truth <= high)).mean()
    assert 0.93 <= covered <= 0.97
    assert max((high < truth).mean(), (truth < low).mean()) <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / COVERED_SETS)
    assert (high - low).mean() < 5 * values.std(1).mean() / math.sqrt(problems)  # 3.92 for normal scores


def test_the_interval_of_pass_at_k_covers_the_truth():
    """E[pass@4] = 1 - E[(1 - p)^4] for p ~ Beta(0.3, 2.7); bounds as above."""
    rng = np.random.default_rng(3)
    shape, n, k, problems = (0.3, 2.7), 16, 4, 100
    truth = 1 - math.prod((shape[1] + i) / (sum(shape) + i) for i in range(k))
    right = rng.binomial(n, rng.beta(*shape, size=(COVERED_SETS, problems)))
    values = pass_at_k([row(n, c) for c in range(n + 1)], k)[right]
    low, high = _intervals(values, 0.95, 1000, 0, (0.0, 1.0))
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97


def test_one_data_set_and_many_have_the_same_interval():
    values = pass_rates(np.random.default_rng(4), (0.5, 0.5), 4, 3, 60)
    low, high = _intervals(values, 0.9, 500, 7, (0.0, 1.0))
    np.testing.assert_allclose([interval(v, 0.9, 500, 7) for v in values], np.stack((low, high), axis=1), rtol=1e-12)


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch):
    values = pass_rates(np.random.default_rng(4), (0.5, 0.5), 4, 1, 60)[0]
    whole = interval(values)
    monkeypatch.setattr("trl_soft.evaluate.scores._CHUNK", 60 * 7)
    assert interval(values) == pytest.approx(whole, rel=1e-12)


def test_an_interval_follows_scale_and_mirror():
    values = pass_rates(np.random.default_rng(5), (0.2, 1.8), 4, 1, 80)[0]
    low, high = interval(values)
    assert interval(1 - values) == pytest.approx((1 - high, 1 - low), abs=0.01)  # quantiles of 2000 are steps
    assert interval(10 * values - 3, bounds=(-3, 7)) == pytest.approx((10 * low - 3, 10 * high - 3), rel=1e-9)


def test_intervals_without_a_bootstrap_distribution():
    low, high = interval(np.zeros(100))
    assert low == 0 and high == pytest.approx(1 - 0.025**0.01, rel=1e-9)  # no success in 100: Clopper and Pearson
    assert interval(np.ones(100)) == pytest.approx((1 - high, 1), rel=1e-9)
    assert interval(np.ones(1)) == pytest.approx((0.025, 1), rel=1e-9)
    assert interval(np.full(7, 31.7), bounds=None) == (31.7, 31.7)
    assert interval(np.array([12.5]), bounds=None) == (12.5, 12.5)
    wide = interval(np.array([0.0, 1.0]))
    assert wide[0] < 0.01 and wide[1] > 0.99


@pytest.mark.parametrize("right", range(1, 8))
def test_a_few_right_problems_of_a_hundred_have_a_useful_interval(right):
    """Resamples without any right problem leave t* unbounded; the interval is still that of Chernoff or narrower."""
    low, high = interval(row(100, right).astype(float))
    floor, ceiling = (end[0] for end in _chernoff(np.array([right / 100]), 100, 0.95))
    assert floor - 1e-12 <= low < right / 100 < high <= ceiling + 1e-12
    assert high < 0.07 + 0.016 * right


def test_the_chernoff_ends_are_where_the_divergence_says():
    mean = np.array([0.01, 0.3, 0.5, 0.99])
    for end in _chernoff(mean, 50, 0.95):
        divergence = mean * np.log(mean / end) + (1 - mean) * np.log((1 - mean) / (1 - end))
        np.testing.assert_allclose(50 * divergence, math.log(40), rtol=1e-6)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_every_interval_holds_its_mean_and_stays_inside(values):
    x = np.array(values)
    low, high = interval(x, resamples=100)
    assert 0 <= low <= x.mean() + 1e-12 and x.mean() - 1e-12 <= high <= 1
    low, high = interval(x, resamples=100, bounds=None)
    assert x.min() <= low <= x.mean() + 1e-12 and x.mean() - 1e-12 <= high <= x.max()


# Two runs


TESTED_SETS = 2000
LEVEL_ERROR = math.sqrt(0.05 * 0.95 / TESTED_SETS)  # 0.5 %


@pytest.mark.parametrize(
    ("null", "problems", "samples", "least"),
    [
        ("same", 100, 1, 0.02),  # some twenty differences of 1: p has few values, and 5 % is between two of them
        ("same", 100, 32, 0.05 - 3 * LEVEL_ERROR),
        ("same", 500, 4, 0.05 - 3 * LEVEL_ERROR),
        ("average", 100, 32, 0.05 - 3 * LEVEL_ERROR),
        ("average", 500, 4, 0.05 - 3 * LEVEL_ERROR),
    ],
)
def test_the_paired_test_rejects_a_true_null_at_its_level(null, problems, samples, least):
    """Pass rates equal problem by problem, or on average only: 5 % within three standard errors of 2000 data sets."""
    rng = np.random.default_rng([problems, samples])
    rates = rng.beta(2, 2, size=(2, TESTED_SETS, problems))
    a = rng.binomial(samples, rates[0]) / samples
    b = rng.binomial(samples, rates[0 if null == "same" else 1]) / samples
    rejected = (_sign_flip(b - a, 2000, 0) <= 0.05).mean()
    assert least <= rejected <= 0.05 + 3 * LEVEL_ERROR


def test_the_paired_interval_covers_the_truth():
    """A gain of 0.1 on every problem, 100 of them: 95 %, within four standard errors of 500 data sets, 1 % each."""
    rng = np.random.default_rng(6)
    rates = 0.8 * rng.beta(0.5, 0.5, size=(500, 100))
    a, b = rng.binomial(8, rates) / 8, rng.binomial(8, rates + 0.1) / 8
    found = [paired(x, y, resamples=200) for x, y in zip(a, b, strict=True)]
    covered = np.mean([f["low"] <= 0.1 <= f["high"] for f in found])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.05 * 0.95 / 500)


def test_the_paired_test_finds_a_clear_gain():
    """0.1 more on each of 200 problems of 8 samples: 6 standard errors, so a miss at p < 0.001 is one in hundreds."""
    rng = np.random.default_rng(7)
    rates = rng.uniform(0.1, 0.8, size=200)
    a, b = rng.binomial(8, rates) / 8, rng.binomial(8, rates + 0.1) / 8
    gain, loss = paired(a, b), paired(b, a)
    assert gain["p_value"] < 0.001 and gain["low"] > 0
    assert gain["difference"] == pytest.approx(b.mean() - a.mean(), rel=1e-12)
    assert loss["p_value"] < 0.001 and loss["high"] < 0 and loss["difference"] == -gain["difference"]


@given(steps=st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_few_differences_are_tested_by_every_sign(steps):
    """In quarters, whose sums are exact, so that ties are ties."""
    scores = np.array(steps) / 4
    vectors = list(itertools.product((-1, 1), repeat=len(steps)))
    extreme = sum(abs(np.dot(signs, steps)) >= abs(sum(steps)) for signs in vectors)
    found = paired(np.maximum(-scores, 0), np.maximum(scores, 0), resamples=256)
    assert found["p_value"] == pytest.approx(extreme / len(vectors), rel=1e-12)


def test_drawn_signs_approach_every_sign():
    """A p-value of 4,000 signs within four standard errors of that of all 2^12."""
    differences = np.random.default_rng(8).normal(0.3, 1, size=(5, 12))
    exact, drawn = _sign_flip(differences, 4096, 0), _sign_flip(differences, 4000, 0)
    assert np.abs(drawn - exact).max() < 4 * 0.5 / math.sqrt(4000)
    assert _sign_flip(np.full((1, 40), 0.1), 99, 0)[0] == 1 / 100  # never 0: the identity counts


def test_a_run_beside_itself():
    a = pass_rates(np.random.default_rng(9), (0.5, 0.5), 4, 1, 100)[0]
    same = paired(a, a)
    assert same["difference"] == 0 and same["p_value"] == 1
    assert same["high"] == -same["low"] == pytest.approx(1 - 0.025**0.01, rel=1e-9)
    lengths = paired(100 * a, 100 * a + 5, bounds=None)
    assert (lengths["low"], lengths["difference"], lengths["high"]) == pytest.approx((5, 5, 5))


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
    a, b = mean_at_n(correct[:, :12]), mean_at_n(correct[:, 12:])
    assert paired(a, b, seed=1) == paired(a, b, seed=1) != paired(a, b, seed=2)
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
        (lambda: interval(np.ones(3), level=1.0), "`level` is 1.0.*set it between 0 and 1"),
        (lambda: interval(np.ones(3), resamples=39), "`resamples` is 39, too few.*set it to 40 or more"),
        (lambda: interval(np.array([0.5, 2])), r"`values` goes from 0.5 to 2, outside.*set `bounds`"),
        (lambda: interval(np.ones(3), bounds=(1, 1)), r"`bounds` is \(1, 1\), which has nothing inside"),
        (lambda: interval(np.array([])), r"`values` of shape \(0,\)"),
        (lambda: interval(np.array([math.nan])), "`values` of shape .* is not one finite number a problem"),
        (lambda: paired(np.ones(2), np.ones(3)), "`a` has 2 problems and `b` 3.*in the same order"),
        (lambda: paired(np.ones(2), np.full(2, 7)), "`b` goes from 7 to 7, outside"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_answers_that_cannot_be_counted_are_refused():
    with pytest.raises(TypeError, match=r"cannot be hashed.*give canonical answers"):
        maj_at_k([[["a"]]], [[True]], 1)


def test_forty_resamples_are_enough():
    assert interval(np.array([0.0, 0.5, 1.0]), resamples=40)[0] >= 0
