# SPDX-License-Identifier: Apache-2.0
"""Intervals and the paired test against simulated truth, in small cases by hand, and what is refused."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_soft.evaluate.intervals import (
    _chernoff,
    _difference_intervals,
    _sign_flip,
    bootstrap_intervals,
    interval,
    paired,
)
from trl_soft.evaluate.scores import pass_at_k


def row(n: int, right: int) -> np.ndarray:
    return np.arange(n) < right


def pass_rates(rng, shape: tuple[float, float], samples: int, sets: int, problems: int) -> np.ndarray:
    """Scores of simulated runs: true pass rates from Beta(shape), `samples` verdicts a problem -> (sets, problems)."""
    return rng.binomial(samples, rng.beta(*shape, size=(sets, problems))) / samples


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
    low, high = bootstrap_intervals(values, 0.95, 1000, 0, (0.0, 1.0))
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
    low, high = bootstrap_intervals(values, 0.95, 1000, 0, (0.0, 1.0))
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97


def test_one_data_set_and_many_have_the_same_interval():
    values = pass_rates(np.random.default_rng(4), (0.5, 0.5), 4, 3, 60)
    low, high = bootstrap_intervals(values, 0.9, 500, 7, (0.0, 1.0))
    np.testing.assert_allclose([interval(v, 0.9, 500, 7) for v in values], np.stack((low, high), axis=1), rtol=1e-12)


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch):
    values = pass_rates(np.random.default_rng(4), (0.5, 0.5), 4, 1, 60)[0]
    whole = interval(values)
    monkeypatch.setattr("trl_soft.evaluate.intervals._CHUNK", 60 * 7)
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
    low, high = _difference_intervals(b - a, 0.95, 1000, 0, (0.0, 1.0))
    covered = ((low <= 0.1) & (0.1 <= high)).mean()
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
    p_value = _sign_flip(scores[None], 256, 0)[0]
    assert p_value == pytest.approx(extreme / len(vectors), rel=1e-12)


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


def test_the_same_seed_gives_the_same_and_another_does_not():
    a, b = (np.random.default_rng(seed).integers(5, size=40) / 4 for seed in (11, 12))
    state = np.random.get_state()[1].copy()
    assert interval(a, seed=1) == interval(a, seed=1) != interval(a, seed=2)
    assert paired(a, b, seed=1) == paired(a, b, seed=1) != paired(a, b, seed=2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # the global generator is not moved


# What is refused


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: interval(np.ones(3), level=1.0), "`level` is 1.0.*Set it between 0 and 1"),
        (lambda: interval(np.ones(3), resamples=39), "`resamples` is 39, too few.*set it to 40 or more"),
        (lambda: interval(np.array([0.5, 2])), r"`values` goes from 0.5 to 2, outside.*set `bounds`"),
        (lambda: interval(np.ones(3), bounds=(1, 1)), r"`bounds` is \(1, 1\), which is empty"),
        (lambda: interval(np.array([])), r"`values` of shape \(0,\)"),
        (lambda: interval(np.array([math.nan])), "`values` of shape .* does not hold one finite number"),
        (lambda: paired(np.ones(2), np.ones(3)), "`a` has 2 problems and `b` 3.*in the same order"),
        (lambda: paired(np.ones(2), np.full(2, 7)), "`b` goes from 7 to 7, outside"),
    ],
)
def test_what_has_no_interval_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_forty_resamples_are_enough():
    assert interval(np.array([0.0, 0.5, 1.0]), resamples=40)[0] >= 0
