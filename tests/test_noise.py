# SPDX-License-Identifier: Apache-2.0
"""Keyed noise: the published generator, the right distributions, and nothing but the key."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_soft import KeyedNoise
from trl_soft.noise import philox


def keyed(n: int = 4, seed: int = 1, generation: int = 2, start: int = 0) -> KeyedNoise:
    return KeyedNoise(seed, generation, torch.arange(start, start + n), torch.full((n,), 3))


# Known answers of the authors' Random123 library, philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), tuple(key))
    assert [word.item() for word in words] == expected


def test_the_same_key_draws_the_same_in_any_batch():
    everything, part = keyed(8), keyed(3, start=4)
    ids = torch.arange(5).expand(8, -1)
    torch.testing.assert_close(part.gumbel(ids[:3]), everything.gumbel(ids)[4:7], rtol=0, atol=0)
    torch.testing.assert_close(part.normal(7), everything.normal(7)[4:7], rtol=0, atol=0)
    torch.testing.assert_close(everything[torch.tensor([5])].uniform(2), everything.uniform(2)[5:6], rtol=0, atol=0)


def test_a_candidate_draws_the_same_in_any_order():
    ids = torch.tensor([[3, 9, 1]] * 4)
    torch.testing.assert_close(keyed().gumbel(ids)[:, [2, 0, 1]], keyed().gumbel(ids[:, [2, 0, 1]]), rtol=0, atol=0)


def test_a_longer_draw_begins_with_the_shorter():
    torch.testing.assert_close(keyed().normal(9)[:, :4], keyed().normal(4), rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [
        keyed(seed=2),
        keyed(seed=1 + 2**32),
        keyed(generation=3),
        keyed(start=1),
        KeyedNoise(1, 2, torch.arange(4), torch.full((4,), 4)),
    ],
)
def test_every_part_of_the_key_matters(other):
    assert not torch.equal(keyed().normal(4), other.normal(4))
    assert not torch.equal(keyed().uniform(4), other.uniform(4))


def test_streams_do_not_share_numbers():
    ids = torch.arange(4).expand(4, -1)
    from_gumbel = torch.exp(-torch.exp(-keyed().gumbel(ids).double()))
    assert (from_gumbel - keyed().uniform(4)).abs().min() > 1e-5


def test_the_global_generator_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    first = keyed().normal(4)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    assert torch.equal(first, keyed().normal(4))


def test_distributions():
    """Means and variances within five standard errors of 200,000 draws."""
    n = 200_000
    noise = KeyedNoise(0, 0, torch.arange(n), torch.zeros(n, dtype=torch.long))
    euler = 0.5772156649
    for values, mean, variance in (
        (noise.gumbel(torch.zeros(n, 1, dtype=torch.long)), euler, math.pi**2 / 6),
        (noise.normal(1), 0.0, 1.0),
        (noise.uniform(1), 0.5, 1 / 12),
    ):
        values = values.double().flatten()
        assert abs(values.mean() - mean) < 5 * math.sqrt(variance / n)
        fourth = ((values - values.mean()) ** 4).mean()
        assert abs(values.var() - variance) < 5 * math.sqrt((fourth - variance**2) / n)


def test_normal_coordinates_are_independent():
    n = 100_000
    values = KeyedNoise(0, 0, torch.arange(n), torch.zeros(n, dtype=torch.long)).normal(4).double()
    correlation = torch.corrcoef(values.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(n)


@given(
    seed=st.integers(0, 2**63 - 1),
    generation=st.integers(0, 2**32 - 1),
    sample=st.integers(0, 2**32 - 1),
    position=st.integers(0, 2**28 - 1),
    index=st.integers(0, 2**20),
)
def test_every_draw_is_finite_and_open(seed, generation, sample, position, index):
    noise = KeyedNoise(seed, generation, torch.tensor([sample]), torch.tensor([position]))
    assert noise.gumbel(torch.tensor([[index]])).isfinite().all()
    assert noise.normal(3).isfinite().all()
    assert (noise.uniform(3) > 0).all() and (noise.uniform(3) < 1).all()
