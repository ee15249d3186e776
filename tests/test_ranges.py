# SPDX-License-Identifier: Apache-2.0
"""Every number has a range in which float32 holds what is drawn with it, every text a length, and every error is short."""

import pytest
import torch

from tests import tiny
from trl_soft import ThinkingSettings, soft_generate
from trl_soft.noise import KeyedNoise
from trl_soft.ranges import LENGTHS, RANGES, Range, check, shown
from trl_soft.thoughts import Hard
from trl_soft.vocabulary.head_logits import DenseLogits
from trl_soft.vocabulary.neighbours import nearest_tokens


V, H, N = 64, 16, 16
# What a range is of, by the thoughts that read it.
READ_BY = {
    "gumbel_temperature": [{"thought": "gumbel", "gumbel_density": density} for density in ("gumbel", "concrete")],
    "noise_scale": [
        {"thought": "gumbel"},
        *({"thought": "gaussian", "noise_placement": p} for p in ("embedding", "hidden", "logits", "probabilities")),
    ],
    "noise_rms": [{"thought": "gaussian"}, {"thought": "gaussian", "noise_placement": "hidden"}],
    "dirichlet_concentration": [{"thought": "dirichlet"}],
    "mixture_beta": [{"thought": "mixture"}],
    "thinking_temperature": [
        {"thought": kind} for kind in ("hard", "soft", "gumbel", "gaussian", "dirichlet", "mixture", "multiplex", "neighbour", "latent")
    ],
    "thinking_top_p": [{"thought": kind} for kind in ("hard", "soft", "gumbel", "dirichlet", "mixture", "neighbour")],
    "thinking_min_p": [{"thought": kind} for kind in ("hard", "soft", "gumbel", "dirichlet", "mixture", "neighbour")],
}  # fmt: skip
BOUNDS = [
    (settings | {name: bound}, name) for name, kinds in READ_BY.items() for settings in kinds
    for bound in (RANGES[name].low, RANGES[name].high)
]  # fmt: skip


def drawn(settings: dict, sharpness: float):
    """What a thought draws from logits so sharp, and how it scores it."""
    thought = ThinkingSettings(**settings).make_thought(Hard(), 1.0)
    draw = torch.Generator().manual_seed(5)
    table, hidden = torch.randn(V, H, generator=draw), torch.randn(N, H, generator=draw)
    z = sharpness * torch.randn(N, V, generator=draw)
    nearest = nearest_tokens(table, thought.neighbours) if thought.neighbours else None
    logits = DenseLogits(z, table, hidden=hidden, project=lambda h: h @ table.T, nearest=nearest)
    rows = torch.arange(N)
    action, token = thought.sample(logits, KeyedNoise(3, 0, rows, torch.zeros_like(rows)))
    return action, token, thought.score(logits, action)


@pytest.mark.parametrize("sharpness", [0.1, 10.0, 100.0])
@pytest.mark.parametrize("settings, name", BOUNDS, ids=str)
def test_at_its_bounds_a_thought_is_finite(settings, name, sharpness):
    action, token, (log_probs, entropies) = drawn(settings, sharpness)
    # Off the support a logarithm is -inf.
    assert not any(value.isnan().any() for value in action.values() if value.is_floating_point())
    assert log_probs.isfinite().all() and entropies.isfinite().all()
    assert ((token >= 0) & (token < V)).all()


@pytest.mark.parametrize(
    "name", [name for name, found in RANGES.items() if name in ThinkingSettings.__dataclass_fields__]
)
def test_beyond_its_bounds_a_number_is_refused(name):
    found = RANGES[name]
    reader = next((dict(kinds[0]) for key, kinds in READ_BY.items() if key == name), {})
    reader |= {
        "multiplex_width": {"thought": "multiplex"},
        "neighbour_width": {"thought": "neighbour"},
        "soft_width": {"thought": "soft"},
        "soft_contrast": {"thought": "soft"},
    }.get(name, {})
    beyond = [found.high + 1, -1, float("nan"), float("inf"), "1", True, 10**400]
    for value in beyond + ([] if found.whole else [5e-324, 1e308] if found.low > 0 else [1e308]):
        with pytest.raises(ValueError, match=f"`{name}` is .*, but it must be") as error:
            ThinkingSettings(**{**reader, name: value})
        assert len(str(error.value)) < 200


def test_answers_are_drawn_within_the_same_ranges(tmp_path):
    net, tokenizer, settings = tiny.model(), tiny.tokenizer(), ThinkingSettings()
    for name, value in (("temperature", 5e-324), ("repetition_penalty", 1e-300), ("top_p", 1e-9), ("top_k", 2**40)):
        with pytest.raises(ValueError, match=f"`{name}` is .*, but it must be"):
            soft_generate(net, tokenizer, ["1+2="], settings, **{name: value})
        with pytest.raises(ValueError, match=f"`{name}` is .*, but it must be"):
            tiny.config(tmp_path, **{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"end_of_thinking": "x" * 65},
        {"end_of_thinking": 3},
        {"answer_prefill": ["", "x" * 257]},
        {"answer_prefill": ["x"] * 100_000},
        {"answer_prefill": {"a": 1, "b": 2}},
        {"thought": "x" * 10**6},
        {"thought": ["gumbel"]},
        {"noise_placement": ["x" * 10**6]},
        {"eval_greedy": "x" * 10**6},
    ],
    ids=lambda settings: str(settings)[:40],
)
def test_texts_have_a_length(settings):
    with pytest.raises(ValueError) as error:
        ThinkingSettings(**settings)
    assert len(str(error.value)) < 400
    assert LENGTHS["end_of_thinking"] == 64 and LENGTHS["answer_prefill"] == 256


@pytest.mark.parametrize("settings", [{"end_of_thinking": "\ud800"}, {"answer_prefill": ["a", "b\udfff"]}])
def test_half_a_surrogate_pair_is_no_text(settings):
    with pytest.raises(ValueError, match="half of a surrogate pair, which is not a character") as error:
        ThinkingSettings(**settings)
    str(error.value).encode()


def test_values_are_shown_short():
    assert shown("short") == "'short'" and shown("x" * 100).endswith("and 20 characters more")
    assert shown(10**400) == "a whole number of 1329 bits" and shown([1] * 10**6) == "a list of 1000000"
    assert len(shown(object())) < 100 and shown(1e-4) == "0.0001"
    check("temperature", 0)
    with pytest.raises(
        ValueError, match="`soft_seed` is -1, but it must be at least 0 and at most 9223372036854775807"
    ):
        check("seed", -1, called="soft_seed")
    assert str(Range(1e-6, 1e6, zero=True)) == "0, or from 1e-06 to 1e+06"
