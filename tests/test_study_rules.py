# SPDX-License-Identifier: Apache-2.0
"""The registered rules of the study."""

import math

import pytest

from study import rules
from study.rules import Estimate, estimate, softness, verdict


def test_the_best_and_of_equal_ones_the_smallest():
    assert rules.choose_best({1e-4: 0.5, 3e-4: 0.7, 1e-3: 0.6}) == 3e-4
    assert rules.choose_best({1e-3: 0.7, 3e-4: 0.7, 1e-4: 0.2}) == 3e-4
    assert rules.tuning_score(0.5, 0.8) == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("rewards", "update"),
    [
        ([0.1, 0.2, 0.9, 1.0, 1.0], 4),  # (0.2 + 0.9 + 1.0) / 3 = 0.7
        ([0.7, 0.7, 0.7], 3),
        ([1.0, 1.0], 3),  # no three updates: one more than it has
        ([0.69] * 60, 61),
        ([1.0, None, 1.0, 1.0, 1.0], 5),  # an update without a reward counts as 0
        ([math.nan, 1.0, 1.0], 4),
    ],
)
def test_updates_until_learned(rewards, update):
    assert rules.updates_until_learned(rewards) == update


@pytest.mark.parametrize(
    ("level", "freedom", "t"),  # scipy.stats.t.ppf((1 + level) / 2, freedom)
    [(0.95, 1, 12.706204736), (0.95, 2, 4.302652730), (0.95, 3, 3.182446305), (0.95, 4, 2.776445105),
     (0.99, 9, 3.249835542), (0.95, 30, 2.042272456), (0.9975, 4, 6.758252833)],
)  # fmt: skip
def test_quantiles_of_t(level, freedom, t):
    assert rules.t_quantile(level, freedom) == pytest.approx(t, rel=1e-8)


def test_intervals_over_seeds():
    found = estimate([0.1, 0.2, 0.3, 0.4, 0.5], comparisons=20)
    error = math.sqrt(0.025) / math.sqrt(5)
    assert found.mean == pytest.approx(0.3) and found.seeds == 5
    assert found.high - found.mean == pytest.approx(2.776445105 * error)
    assert found.mean - found.low == pytest.approx(2.776445105 * error)
    assert found.strict_high - found.mean == pytest.approx(6.758252833 * error)  # level 0.9975
    assert estimate([0.1], 1) is None


def made(low: float, high: float, seeds: int = 5) -> Estimate:
    """An estimate whose strict interval this is. Its own interval is narrower, and no word may depend on it."""
    middle = (low + high) / 2
    return Estimate(middle, middle - 1e-6, middle + 1e-6, low, high, seeds)


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        (made(0.001, 0.2), "beats"),
        (made(-0.2, -0.001), "loses"),
        (made(-0.001, 0.2), "no difference shown"),
        (made(0.0, 0.2), "no difference shown"),
        (made(0.1, 0.2, seeds=4), "not run"),
        (None, "not run"),
    ],
)
def test_words_of_a_verdict(difference, word):
    assert verdict(difference, 5) == word


def test_other_words():
    assert verdict(made(1, 2), 5, ("slower", "faster")) == "slower"


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        (made(-0.02, 0.02), "decorative"),
        (made(0.001, 0.019), "decorative"),
        (made(0.01, 0.03), "matters"),
        (made(-0.5, -0.1), "matters"),
        (made(-0.01, 0.03), "undecided"),
        (made(-0.01, 0.01, seeds=2), "not run"),
        (None, "not run"),
    ],
)
def test_words_for_softness(difference, word):
    assert softness(difference, 5) == word
