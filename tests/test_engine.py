# SPDX-License-Identifier: Apache-2.0
"""Both engines against the naive oracle: the same tokens, records and log-probabilities, however a rollout is arranged."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from tests import tiny
from tests.capture import as_captured
from tests.naive_rollout import naive
from trl_soft import ThinkingSettings
from trl_soft.forward import soft_tokens_added
from trl_soft.rollout import ENGINES, EngineOptions, Key, assemble
from trl_soft.rollout import slot_engine as engine_module
from trl_soft.rollout.make_plan import make_plan, table_rms
from trl_soft.rollout.matcher import looked_up
from trl_soft.thoughts import Hard


C = 20
WORDS = ["1+2=", "3+44=", "5-6=", "7777-8=", "9", "12345678+87654321-1111="]
PROMPTS = [word for word in WORDS for _ in range(3)]


def plan(net, settings: dict, answer=None, **changes):
    settings = ThinkingSettings(**{"max_thinking_length": 12} | settings)
    options = {"vocab_size": net.config.vocab_size, "max_completion_length": C, "eos_token_ids": [1]}
    return make_plan(settings, tiny.tokenizer(), answer or Hard(), rms=table_rms(net), **{**options, **changes})


def run(net, made, engine="slots", prompts=PROMPTS, samples=None, **options):
    ids = [tiny.tokenizer()(prompt)["input_ids"] for prompt in prompts]
    sample = torch.arange(len(ids)) if samples is None else torch.tensor(samples)
    with soft_tokens_added(net):
        options = EngineOptions(**{"slots": len(ids)} | options)
        return assemble(
            {**ENGINES, "naive": naive}[engine](net, ids, made, Key(3, 0, sample), options), len(ids), made
        )


def assert_same(ours, theirs, gaussian=False):
    """Ids and masks exactly; floats to 1e-5, or the rounding of the mixture over sigma squared."""
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert torch.equal(ours.completion_mask, theirs.completion_mask)
    for mask in ("thinking_mask", "forced_mask"):
        assert torch.equal(getattr(ours.record, mask), getattr(theirs.record, mask))
    for name in ("thinking_length", "thinking_surplus", "thinking_cut"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    tolerance = {"rtol": 1e-4, "atol": 5e-5} if gaussian else {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(ours.record.log_probs, theirs.record.log_probs, **tolerance)
    torch.testing.assert_close(ours.entropies, theirs.entropies, rtol=0, atol=1e-5)
    assert ours.record.action.keys() == theirs.record.action.keys()
    thoughts = theirs.record.thinking_mask
    for key, value in theirs.record.flat_action(thoughts).items():
        torch.testing.assert_close(ours.record.flat_action(thoughts)[key], value, rtol=1e-4, atol=5e-5)


ARRANGEMENTS = {
    "all at once": {},
    "one slot": {"slots": 1},
    "refilled": {"slots": 5},
    "more slots than samples": {"slots": 64},
    "prompts in pieces": {"slots": 7, "prefill_tokens": 5},
    "every prompt by itself": {"slots": 7, "share_prompts": False},
    "seldom looked at": {"slots": 5, "check_every": 7},
    "one padded batch": {"engine": "simple"},
    "padded batches": {"engine": "simple", "slots": 5},
}

# Thoughts that every arrangement completes; the others are in three.
EVERYWHERE = ("hard", "gumbel-0.5", "gaussian-hidden")


@pytest.mark.parametrize("settings", tiny.THOUGHTS, ids=tiny.name)
def test_engines_draw_what_the_oracle_draws(settings):
    net = tiny.model()
    made = plan(net, settings)
    theirs = run(net, made, "naive")
    assert len(set(theirs.completion_mask.sum(-1).tolist())) > 1 or settings["thought"] in ("soft", "latent")
    # Arrangements know nothing of thoughts but what a record holds, and where an embedding or a hidden state is in it.
    named = ARRANGEMENTS if tiny.name(settings) in EVERYWHERE else ("all at once", "refilled", "padded batches")
    for arrangement in named:
        assert_same(run(net, made, **ARRANGEMENTS[arrangement]), theirs, settings["thought"] == "gaussian")


@pytest.mark.parametrize(
    "settings",
    [
        {"answer_prefill": ["=a", "b+"], "max_thinking_length": 5},
        {"end_of_thinking": "1;", "thinking_top_k": 20, "thinking_top_p": 1.0},
        {"cold_stop_entropy": 2.0, "cold_stop_length": 2, "thinking_temperature": 1.0},
    ],
    ids=["prefill", "text", "cold"],
)
def test_every_way_to_stop(settings):
    net = tiny.model()
    made = plan(net, settings)
    theirs = run(net, made, "naive", prompts=PROMPTS * 3)
    assert theirs.thinking_cut.any() and not theirs.thinking_cut.all()
    for name, options in ARRANGEMENTS.items():
        # One slot takes the longest, and is refilled as five are.
        if name != "one slot":
            assert_same(run(net, made, prompts=PROMPTS * 3, **options), theirs)


def test_a_text_that_ends_thoughts_costs_no_step_and_no_decoding(monkeypatch):
    """A slot takes as many steps as it draws tokens, up to the next look at what has finished."""
    net, steps = tiny.model(), []
    made = plan(net, {"end_of_thinking": ";", "thinking_top_k": 20, "thinking_top_p": 1.0})
    theirs = run(net, made, "simple")
    looked_up(made, net.config.vocab_size)
    step = engine_module._Run._step
    monkeypatch.setattr(engine_module._Run, "_step", lambda self, reach: (steps.append(reach), step(self, reach)))
    monkeypatch.setattr(type(made.stop.end), "rests", None)
    out = run(net, made, slots=1, check_every=8)
    assert_same(out, theirs)
    assert len(steps) == sum(-(-length // 8) * 8 for length in out.completion_mask.sum(-1).tolist())
    ends = out.completion_ids.gather(1, out.thinking_length.unsqueeze(1) - 1) == tiny.TOKENS.index(";")
    assert ends.sum() > 3


@pytest.mark.parametrize("thought", ["hard", "gumbel"])
def test_a_repetition_penalty(thought):
    net = tiny.model()
    # `;` is no added token. It ends many thoughts as a text, and a step that is drawn again must not count it as seen.
    for settings in ({}, {"end_of_thinking": ";", "thinking_top_k": None if thought == "hard" else 20}):
        made = plan(net, {"thought": thought} | settings, repetition_penalty=1.7)
        theirs = run(net, made, "naive", prompts=PROMPTS * 2)
        # What a slot has seen begins anew with a completion and grows with each piece and token.
        for name in ("all at once", "refilled", "prompts in pieces", "seldom looked at", "padded batches"):
            assert_same(run(net, made, prompts=PROMPTS * 2, **ARRANGEMENTS[name]), theirs)


GATED = {"thought": "gumbel", "thinking_gate": "entropy_trend", "gate_dwell": 2}


@pytest.mark.parametrize("settings", [*tiny.THOUGHTS[:7], GATED], ids=tiny.name)
def test_a_cache_too_small_sends_the_youngest_back(settings, monkeypatch):
    """Read again from their records they go on as if they had never left; their shadow text would not do."""
    net = tiny.model()
    made = plan(net, settings)
    theirs = run(net, made, "naive")
    again = []
    read_again = engine_module._Run._read_again
    monkeypatch.setattr(
        engine_module._Run,
        "_read_again",
        lambda self, slot, number: (again.append(number), read_again(self, slot, number)),
    )
    monkeypatch.setattr(engine_module, "_ROUND", 2)
    token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, size, bytes
    longest = max(map(len, PROMPTS)) + C
    for prefill_tokens in (4096, 3):
        again.clear()
        ours = run(net, made, slots=6, cache_gb=longest * 4 * token / 1e9, prefill_tokens=prefill_tokens)
        assert_same(ours, theirs, settings["thought"] == "gaussian")
        assert again
    # A control: the same with the records of what was sent back left out.
    if settings["thought"] == "gumbel":
        prefill = engine_module._Run._prefill
        monkeypatch.setattr(
            engine_module._Run,
            "_prefill",
            lambda self, rows, prompts, start=0, record=None: prefill(self, rows, prompts, start),
        )
        other = run(net, made, slots=6, cache_gb=longest * 4 * token / 1e9)
        assert not torch.equal(other.completion_ids, theirs.completion_ids) or (
            (other.record.log_probs - theirs.record.log_probs).abs().max() > 1e-3
        )


def test_a_prompt_that_cannot_fit_is_told_the_numbers():
    net = tiny.model()
    with pytest.raises(ValueError, match=r"take 43 tokens of 256 bytes, 1.1e-05 GB.*may have 1e-05 GB"):
        run(net, plan(net, {}), cache_gb=1e-5)


def test_alone_and_in_company():
    net = tiny.model()
    made = plan(net, {})
    together = run(net, made, slots=4)
    for number in (0, 7, 17):
        alone = run(net, made, prompts=[PROMPTS[number]], samples=[number])
        length = alone.completion_ids.size(1)
        assert torch.equal(alone.completion_ids[0], together.completion_ids[number, :length])
        torch.testing.assert_close(
            alone.record.log_probs[0], together.record.log_probs[number, :length], rtol=0, atol=1e-5
        )


def test_a_length_of_its_own_for_each():
    net = tiny.model()
    made = plan(net, {}, eos_token_ids=[])
    lengths = [1 + (7 * i) % C for i in range(len(PROMPTS))]
    theirs = run(net, made, "naive", lengths=lengths)
    assert theirs.completion_mask.sum(-1).tolist() == lengths
    for engine in ENGINES:
        assert_same(run(net, made, engine, lengths=lengths, slots=4), theirs)
    with pytest.raises(ValueError, match="each of which must be whole and from 1 to"):
        run(net, made, lengths=[0] * len(PROMPTS))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_has_a_cap_of_its_own(engine):
    net = tiny.model()
    made = plan(net, {"max_thinking_length": 5, "answer_prefill": ["=a", "b+"], "max_answer_length": 3})
    out = run(net, made, engine, slots=4)
    own = out.completion_mask & ~out.record.thinking_mask & ~out.record.forced_mask
    assert own.sum(-1).max() == 3 and out.thinking_length.unique().numel() > 1
    assert_same(out, run(net, made, "naive"))


def test_greedy_hard_tokens_are_those_of_generate():
    """Token by token, with prompts of unequal lengths padded on the left there and not here."""
    net, tokenizer = tiny.model(), tiny.tokenizer()
    ours = run(net, plan(net, {"thought": "hard", "max_thinking_length": None}, Hard(0.0)), prompts=WORDS, slots=2)
    batch = tokenizer(WORDS, return_tensors="pt", padding=True)
    theirs = net.generate(**batch, do_sample=False, max_new_tokens=C)[:, batch["input_ids"].size(1) :]
    for row, length in enumerate(ours.completion_mask.sum(-1).tolist()):
        assert ours.completion_ids[row, :length].tolist() == theirs[row, :length].tolist()


def test_prompts_are_read_once(monkeypatch):
    net = tiny.model()
    read = []
    prefill = engine_module._Run._prefill
    monkeypatch.setattr(
        engine_module._Run,
        "_prefill",
        lambda self, rows, prompts, *rest: (read.extend(map(tuple, prompts)), prefill(self, rows, prompts, *rest)),
    )
    run(net, plan(net, {}), slots=4)
    assert len(read) == len(set(read)) == len(WORDS)
    read.clear()
    run(net, plan(net, {}), slots=4, share_prompts=False)
    assert len(read) == len(PROMPTS)


def test_the_tail_shrinks(monkeypatch):
    net, sizes = tiny.model(), []
    step = engine_module._Run._step
    monkeypatch.setattr(engine_module._Run, "_step", lambda self, reach: (sizes.append(self.size), step(self, reach)))
    run(net, plan(net, {}, eos_token_ids=[]), lengths=[1 + i for i in range(len(PROMPTS))])
    assert sizes == list(range(len(PROMPTS), 0, -1))


@pytest.mark.parametrize(
    "settings",
    [
        *tiny.THOUGHTS,
        {"end_of_thinking": "1;"},
        {"cold_stop_entropy": 1.0, "cold_stop_length": 2},
        {"answer_prefill": ["12", "3"]},
        {"thinking_gate": "random", "gate_probability": 0.5},
        {"thinking_gate": "entropy", "gate_entropy": 3.18, "gate_dwell": 2},
        {"thinking_gate": "entropy_trend", "thought": "gaussian"},
        {"thinking_gate": "confidence", "gate_confidence": 0.1},
    ],
    ids=tiny.name,
)
def test_every_row_is_some_rows(settings, monkeypatch):
    """The step that a graph captures computes every row, asks the device nothing and hands it nothing; it draws the same."""
    net, advance, step = tiny.model(), engine_module.Slots.advance, engine_module._Run._step
    made = plan(net, settings)
    theirs = run(net, made, slots=5)
    monkeypatch.setattr(
        engine_module.Slots, "advance", lambda self, size, logits, every_row: advance(self, size, logits, True)
    )
    seen = set()

    def captured(self, reach):
        # As on a device, a size is captured after two ordinary steps, which make the room that actions are kept in.
        with as_captured() if len(seen) > 1 else nullcontext():
            step(self, reach)
        seen.add(reach)

    monkeypatch.setattr(engine_module._Run, "_step", captured)
    assert_same(run(net, made, slots=5), theirs, settings.get("thought") == "gaussian")
    assert len(seen) > 3


@pytest.mark.parametrize("engine", ["slots", "simple"])
def test_an_interrupted_rollout_leaves_the_model_as_it_was(engine, monkeypatch):
    net = tiny.model()
    before, implementation = dict(vars(net)), net.config._attn_implementation
    hooks = len(net.lm_head._forward_pre_hooks)
    state, calls = torch.get_rng_state(), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    forward = net.model.forward
    monkeypatch.setattr(net.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(net, plan(net, {"thought": "gaussian", "noise_placement": "hidden"}), engine, slots=4)
    monkeypatch.undo()
    assert len(calls) == 9 and torch.equal(torch.get_rng_state(), state)
    assert vars(net) == before and net.config._attn_implementation == implementation
    assert len(net.lm_head._forward_pre_hooks) == hooks


def test_rollouts_in_two_threads_keep_apart():
    """Models of different shapes, whose attention would fail on each other's keys."""
    nets = tiny.model(), tiny.model(hidden_size=48, num_attention_heads=6, num_key_value_heads=3)
    alone = [run(net, plan(net, {}), slots=4) for net in nets]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda net: run(net, plan(net, {}), slots=4), nets))
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours.completion_ids, theirs.completion_ids)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_company_are_refused(rope):
    parameters = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    if rope == "longrope":
        parameters |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 20}
    net = tiny.model(rope_parameters=parameters)
    with pytest.raises(ValueError, match=f"rope_type: {rope}.*others in its batch"):
        run(net, plan(net, {}))


def test_attention_of_every_part_of_a_config_is_restored(monkeypatch):
    """Setting a config's attention sets that of all configs inside it; each gets its own back."""
    net = tiny.model()
    inner = type(net.config)(**net.config.to_dict())
    inner._attn_implementation = "eager"
    net.config.inner = inner
    monkeypatch.setattr(type(net.config), "sub_configs", {"inner": type(inner)})
    seen = []
    step = engine_module._Run._step
    monkeypatch.setattr(
        engine_module._Run, "_step", lambda *args: (seen.append(inner._attn_implementation), step(*args))[1]
    )
    run(net, plan(net, {}), slots=4)
    assert set(seen) == {"trl_soft_slots"}
    assert [net.config._attn_implementation, inner._attn_implementation] == ["sdpa", "eager"]


def test_between_two_parts_the_model_is_the_callers():
    net = tiny.model()
    made = plan(net, {})
    ids = [tiny.tokenizer()(prompt)["input_ids"] for prompt in PROMPTS]
    with soft_tokens_added(net):
        parts = ENGINES["slots"](net, ids, made, Key(3, 0, torch.arange(len(ids))), EngineOptions(slots=2))
        next(parts)
        assert net.config._attn_implementation == tiny.model().config._attn_implementation and torch.is_grad_enabled()
        net(input_ids=torch.tensor([[4, 5]])).logits.sum().backward()
        parts.close()


def test_keys_and_values_are_gone_when_the_rollout_is(monkeypatch):
    """By themselves: a collector that runs when it likes would leave them to the update, in need of the memory."""
    net, kept = tiny.model(), []

    def made(*args):
        cache = cache_of(*args)
        kept.extend([weakref.ref(cache), weakref.ref(cache.slot_layers[0].keys)])
        return cache

    cache_of = engine_module.SlotCache
    monkeypatch.setattr(engine_module, "SlotCache", made)
    gc.disable()
    try:
        run(net, plan(net, {"thought": "gumbel"}), slots=3)
        assert len(kept) == 2 and [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()
