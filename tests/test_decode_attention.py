# SPDX-License-Identifier: Apache-2.0
"""Attention of a decode step: every path against the mask, and which path is taken where."""

import sys
from collections import OrderedDict
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from tests.capture import as_captured
from trl_soft.rollout import compiled_attention, decode_attention
from trl_soft.rollout.cache import SlotCache, _active, slot_attention
from trl_soft.rollout.decode_attention import (
    KERNELS,
    Features,
    Installed,
    Step,
    block_mask,
    choose,
    installed,
    kernel_for,
    told,
    try_out,
)


# Lengths within a block of FlexAttention, at its edges and beyond; the last slot is full.
ROOM = 300
POSITION = torch.tensor([0, 5, 127, 128, 200, 255, 256, ROOM - 1])
# Heads that ask and heads that are asked, sizes of a key's and a value's, and what is asked besides.
KINDS = {
    "plain": {},
    "group-2": {"heads": (4, 2)},
    "group-6": {"heads": (12, 2), "scaling": 0.3},
    "window": {"heads": (4, 2), "window": 7},
    "window-of-blocks": {"window": 130},
    "cap": {"softcap": 5.0},
    "sinks": {"heads": (6, 2), "sinks": True},
    "wide-values": {"heads": (4, 2), "sizes": (16, 24)},
    "all": {"heads": (6, 2), "window": 40, "softcap": 5.0, "sinks": True},
}


def step(heads=(4, 4), sizes=(16, 16), sinks=False, seed=0, **asked) -> Step:
    torch.manual_seed(seed)
    rows = len(POSITION)
    return Step(
        torch.randn(rows, heads[0], 1, sizes[0]),
        torch.randn(rows, ROOM, heads[1], sizes[0]),
        torch.randn(rows, ROOM, heads[1], sizes[1]),
        POSITION,
        sinks=torch.randn(heads[0]) if sinks else None,
        **asked,
    )


def right(of: Step) -> torch.Tensor:
    """Slot by slot and head by head, with what it sees cut out."""
    rows, heads, _, size = of.query.shape
    group = heads // of.keys.size(2)
    out = torch.zeros(rows, 1, heads, of.values.size(-1))
    for row in range(rows):
        last = of.position[row].item() + 1
        first = 0 if of.window is None else max(last - of.window, 0)
        for head in range(heads):
            z = of.keys[row, first:last, head // group] @ of.query[row, head, 0] * (of.scaling or size**-0.5)
            z = z if of.softcap is None else of.softcap * torch.tanh(z / of.softcap)
            if of.sinks is not None:
                z = torch.cat([z, of.sinks[head : head + 1]])
            p = torch.softmax(z, 0)[: last - first]
            out[row, 0, head] = p @ of.values[row, first:last, head // group]
    return out


@pytest.fixture
def flash(monkeypatch):
    """A stand-in for flash-attn that does what its documentation says of a cache whose new tokens are in it."""

    def flash_attn_with_kvcache(
        q, k_cache, v_cache, *, cache_seqlens, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0
    ):
        assert q.dim() == 4 and q.size(1) == 1 and cache_seqlens.dtype == torch.int32 and causal
        before = window_size[0]
        assert window_size[1] == (-1 if before == -1 else 0)
        return right(
            Step(
                q.transpose(1, 2), k_cache, v_cache, cache_seqlens - 1, softmax_scale,
                None if before == -1 else before + 1, softcap or None,
            )
        )  # fmt: skip

    module = ModuleType("flash_attn")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.fixture
def varlen(monkeypatch):
    """A stand-in for torch's: sequences lie one after the other, and the first `seqused_k` tokens of each are used."""

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa, seqused_k):
        assert cu_q.tolist() == list(range(len(q) + 1)) and max_q == 1 and enable_gqa
        k, v = (torch.stack([x[a : a + max_k] for a in cu_k[:-1].tolist()]) for x in (k, v))
        before = window_size[0]
        return right(Step(q.unsqueeze(2), k, v, seqused_k - 1, scale, None if before == -1 else before + 1)).squeeze(1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention as torch computes it without a compiler, in the place of the compiled one."""
    monkeypatch.setitem(KERNELS, "FlexAttention", lambda step: decode_attention._flex(step, compiled=False))


FEATURES = {"flash-attn": {"sinks", "wide-values", "all"}, "varlen": {"cap", "sinks", "wide-values", "all"}}
CASES = [(path, kind) for path in ("mask", *KERNELS) for kind in KINDS if kind not in FEATURES.get(path, ())]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("path", "kind"), CASES, ids=["-".join(case) for case in CASES])
def test_each_slot_attends_to_its_own_length(path, kind, flash, varlen, uncompiled):
    given = step(**KINDS[kind])
    found = (KERNELS | {"mask": decode_attention._by_mask})[path](given)
    torch.testing.assert_close(found, right(given), rtol=0, atol=1e-6)  # float32 sums of up to 300 terms


@pytest.mark.parametrize("window", [None, 1, 7, 130, 1000])
@pytest.mark.parametrize("queries", [1, 6])
def test_blocks_are_those_that_hold_a_key_to_see(window, queries):
    """As torch finds them by looking at every key."""

    def seen(b, h, q, k):
        now = POSITION[b]
        return (k <= now) if window is None else (k <= now) & (k > now - window)

    ours = block_mask(POSITION, ROOM, window, queries)
    theirs = create_block_mask(seen, len(POSITION), None, queries, ROOM, device="cpu", BLOCK_SIZE=128)
    assert ours.shape == theirs.shape
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert (ours.kv_indices < ours.kv_indices.size(-1)).all()  # what is beyond the count is never read out of bounds


@pytest.mark.parametrize("path", ["mask", *KERNELS])
def test_nothing_is_read_back(path, monkeypatch):
    """What is ours around the kernels, so that a step can be captured."""
    given = step(heads=(4, 2), window=7)
    module = ModuleType("flash_attn")
    module.flash_attn_with_kvcache = lambda q, *args, **options: q
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda q, *args, **options: q)
    monkeypatch.setattr(decode_attention, "call_compiled", lambda kind, tensors, options: tensors[0])
    with as_captured():
        (KERNELS | {"mask": decode_attention._by_mask})[path](given)


def test_no_number_of_slots_and_no_length_reaches_the_limit_of_compilations(monkeypatch):
    """With torch's limit at two: three numbers of slots, a window, and three lengths of one number of slots."""
    monkeypatch.setattr(compiled_attention, "_compile", partial(torch.compile, fullgraph=True, backend="eager"))
    monkeypatch.setattr(compiled_attention, "_functions", OrderedDict())
    monkeypatch.setattr(compiled_attention, "_FUNCTIONS", 3)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2, automatic_dynamic_shapes=False), torch.no_grad():
        for slots, length, window in [
            (3, 100, None),
            (3, 100, 64),
            (4, 100, None),
            *((2, n, None) for n in (100, 128, 160)),
        ]:
            query, keys, values = (torch.randn(slots, *size, 16) for size in ((4, 1), (length, 2), (length, 2)))
            given = Step(query, keys, values, torch.arange(slots) + 90, window=window)
            torch.testing.assert_close(KERNELS["FlexAttention"](given), right(given), rtol=0, atol=1e-6)
    kept = [(kind[0], kind[-4]) for kind in compiled_attention._functions]
    assert kept == [(3, 64), (4, None), (2, None)]  # slots and windows


def test_a_layer_of_a_step_writes_its_keys_and_its_values_and_no_more():
    """Where each slot's token goes is worked out once for all layers."""
    torch.manual_seed(0)
    cache = SlotCache([(2, 16, 2, 8)] * 2, slots=5, length=ROOM, dtype=torch.float32, device="cpu")
    position = torch.tensor([3, 140, 0, 299])
    cache.decode(4, position, ROOM)
    for layer in cache.slot_layers:
        key, value = torch.randn(4, 2, 1, 16), torch.randn(4, 2, 1, 8)
        with torch.profiler.profile() as profiler:
            layer.update(key, value)
        counts = {event.key: event.count for event in profiler.key_averages()}
        assert counts["aten::index_put_"] == 2 and "aten::arange" not in counts
        for tensor, states in ((layer.keys, key), (layer.values, value)):
            right = torch.zeros_like(tensor)
            for slot, at in enumerate(position.tolist()):
                right[slot, at] = states[slot, :, 0]
            assert torch.equal(tensor, right)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("path", KERNELS)
def test_a_step_of_the_cache(path, window, flash, varlen, uncompiled):
    """Some of its slots, at their own positions; two layers share what the step has in common."""
    torch.manual_seed(0)
    cache = SlotCache([(2, 16, 2, 16)] * 2, slots=8, length=ROOM, dtype=torch.float32, device="cpu")
    for layer in cache.slot_layers:
        layer.keys.normal_()
        layer.values.normal_()
    config = SimpleNamespace(
        layer_types=["sliding_attention" if window else "full_attention"] * 2, sliding_window=window
    )
    _active.__dict__.setdefault("stack", []).append(cache)
    try:
        for position in (torch.tensor([3, 140, 0, 77]), torch.tensor([4, 141, 1, 78])):
            cache.decode(4, position, ROOM)
            for layer in range(2):
                query, new = torch.randn(4, 4, 1, 16), torch.randn(2, 4, 2, 1, 16)
                key, value = cache.slot_layers[layer].update(*new)
                module = SimpleNamespace(layer_idx=layer, config=config)
                expected, _ = slot_attention(module, query, key, value)
                found = KERNELS[path](cache.step(query, layer, window=window))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    finally:
        _active.stack.pop()


# The choice


ALL = Installed(9, "2.8.3", True, True)
HALF, FULL = (Features(dtype, 128, 128) for dtype in (torch.bfloat16, torch.float32))


def but(of, **changes):
    return type(of)(**{**vars(of), **changes})


@pytest.mark.parametrize(
    ("there", "asked", "chosen", "reasons"),
    [
        (ALL, HALF, "flash-attn", {}),
        (ALL, but(HALF, window=True, softcap=True), "flash-attn", {}),
        (but(ALL, flash=None), HALF, "varlen", {"flash-attn": "is not installed"}),
        (but(ALL, flash="2.5.9"), HALF, "varlen", {"flash-attn": "is 2.5.9, and 2.6"}),
        (but(ALL, flash=None), but(HALF, softcap=True), "FlexAttention", {"varlen": "has no cap"}),
        (but(ALL, flash=None, varlen=False), HALF, "FlexAttention", {"varlen": "from torch 2.13 on"}),
        (ALL, but(HALF, sinks=True), "FlexAttention", {"flash-attn": "no sinks", "varlen": "no sinks"}),
        (ALL, FULL, "FlexAttention", {"flash-attn": "takes half precision, and keys are in float32"}),
        (ALL, but(HALF, size=192), "FlexAttention", {"flash-attn": "heads of one size"}),
        (ALL, but(HALF, size=512, value_size=512), "FlexAttention", {"flash-attn": "up to 256"}),
        (but(ALL, triton=False), FULL, "mask", {"FlexAttention": "needs Triton"}),
        (but(ALL, capability=7), HALF, "mask", {"flash-attn": "needs compute capability 8", "FlexAttention": "has 7"}),
        (ALL, but(FULL, size=8, value_size=8), "mask", {"FlexAttention": "size 16 and more, and these have 8"}),
        (ALL, but(HALF, dropout=True), "mask", {"FlexAttention": "has no dropout"}),
    ],
)  # fmt: skip
def test_which_path_is_taken(there, asked, chosen, reasons):
    tried = []
    found, why = choose(there, asked, tried.append)
    assert found == chosen and tried == ([chosen] if chosen != "mask" else [])
    assert all(clause in why[name] for name, clause in reasons.items())
    assert chosen not in why and all(f"{name} {clause}" in told(found, why) for name, clause in why.items())


def test_a_kernel_that_fails_its_trial_is_passed_over_and_named():
    found, why = choose(ALL, HALF, lambda kernel: None if kernel == "FlexAttention" else f"failed ({kernel})")
    assert found == "FlexAttention" and why == {name: f"failed ({name})" for name in ("flash-attn", "varlen")}
    found, why = choose(ALL, HALF, lambda kernel: "failed")
    assert found == "mask" and len(why) == 3
    assert "each slot costs what the longest does" in told(found, why)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["group-6", "window", "all", "wide-values"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trial_passes_what_is_right(kind, dtype, uncompiled):
    given = step(**KINDS[kind])
    given.query, given.keys, given.values = (x.to(dtype) for x in (given.query, given.keys, given.values))
    before = torch.random.get_rng_state()
    assert try_out("FlexAttention", given) is None
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"position": lambda step: step.position.clamp(min=1) - 1}, "off the mask"),
        ({"window": lambda step: step.window + 1}, "off the mask"),
        ({"softcap": lambda step: None}, "off the mask"),
        ({"scaling": lambda step: 0.5}, "off the mask"),
        ({"query": lambda step: 1 / 0}, r"failed when it was tried \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_a_trial_finds_what_is_wrong(monkeypatch, fault, reason):
    given = step(heads=(6, 2), window=40, softcap=0.5)

    def wrong(of):
        return decode_attention._by_mask(Step(**{**vars(of), **{name: change(of) for name, change in fault.items()}}))

    monkeypatch.setitem(KERNELS, "varlen", wrong)
    assert try_out("varlen", given) is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(try_out("varlen", given))


def test_it_is_tried_and_told_once_for_a_kind_of_layer(monkeypatch):
    tried, heard = [], []
    monkeypatch.setattr(decode_attention, "_chosen", {})
    monkeypatch.setattr(decode_attention, "installed", lambda device: ALL)
    monkeypatch.setattr(decode_attention, "try_out", lambda kernel, like: tried.append(kernel))
    monkeypatch.setattr(decode_attention.logger, "warning_once", heard.append)
    kinds = [step(), step(seed=1), step(window=7), step(heads=(4, 2)), step(window=8)]
    assert [kernel_for(kind) for kind in kinds] == ["FlexAttention"] * 5  # float32
    assert tried == ["FlexAttention"] * 3
    assert all(
        "attends by FlexAttention, each slot up to its own length (flash-attn takes half" in text for text in heard
    )


def test_what_is_installed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    found = installed(torch.device("cuda"))
    assert found.capability == 8 and found.flash is None
    assert found.varlen is (tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13))
