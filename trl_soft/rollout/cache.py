# SPDX-License-Identifier: Apache-2.0
"""The KV cache of a rollout: S slots of unequal lengths, preallocated, written in place, read up to each slot's length.

A *slot* is the place of one completion. transformers looks up a model's attention function by name at every call, and asks
the cache for keys and values. During a rollout this module provides both. `SlotCache` writes each slot's key at the slot's
own position, and `slot_attention` reads only up to there. So no prompt is padded on the left, and the model builds no mask.
"""

import inspect
import threading
import weakref
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from .decode_attention import KERNELS, Step, kernel_for, masked


NAME = "trl_soft_slots"
_BLOCK = 64  # the length that is read is rounded up to a multiple of this, so that shapes repeat


class SlotCache(Cache):
    """
    Args:
        shapes: `(key heads, key size, value heads, value size)` of each layer.
        slots (`int`): S. length (`int`): T, tokens that a slot can hold.
        dtype, device: of the keys and values.

    Attributes:
        rows (`slice` or `torch.Tensor`): the slots that are written and read.
        position (`torch.Tensor` of shape `(rows,)`): the position of each slot's one token. `None` while prompts are read.
        index (`torch.Tensor` of shape `(rows,)`): 0, 1, ...: the number of each slot, made once a step for all layers.
        columns (`slice`): the positions of prompt tokens, the same for all rows.
        reach (`int`): most tokens that are read. A larger value costs time and changes nothing.
    """

    def __init__(self, shapes, slots: int, length: int, dtype, device):
        self.slot_layers = [_SlotLayer(self, *shape) for shape in shapes]
        super().__init__(layers=list(self.slot_layers))
        self.slots, self.length = slots, length
        for layer in self.slot_layers:
            layer.keys, layer.values = (
                torch.zeros(slots, length, heads, size, dtype=dtype, device=device)
                for heads, size in (layer.shape[:2], layer.shape[2:])
            )
        self.rows: slice | torch.Tensor = slice(0, slots)
        self.position: torch.Tensor | None = None
        self.index: torch.Tensor | None = None
        self.columns, self.reach = slice(0, 0), 0
        self._masks: dict[int | None, torch.Tensor] = {}
        self._shared: dict[Any, Any] = {}  # values that the layers of a decode step share

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions are always passed

    def decode(self, size: int, position: torch.Tensor, reach: int) -> None:
        """The next call feeds one token to each of the first `size` slots."""
        self.rows, self.position = slice(0, size), position
        self.index = torch.arange(size, device=position.device)
        self.reach = min(-(-reach // _BLOCK) * _BLOCK, self.length)
        self._masks, self._shared = {}, {}

    def prefill(self, rows: torch.Tensor, columns: slice) -> None:
        """The next call feeds the tokens of some columns to some slots."""
        self.rows, self.position, self.columns, self.reach = rows, None, columns, columns.stop
        self._masks = {}

    def copy(self, source: int, targets: torch.Tensor, length: int) -> None:
        """Copy the first `length` tokens of one slot into others."""
        for layer in self.slot_layers:
            for tensor in (layer.keys, layer.values):
                tensor[targets, :length] = tensor[source, :length].clone()

    def move(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Move slots into the places of others."""
        for layer in self.slot_layers:
            for tensor in (layer.keys, layer.values):
                tensor[targets, :length] = tensor[sources, :length]

    def resize(self, keep: torch.Tensor, length: int) -> None:
        """Keep only some slots, with room for `length` tokens. It works layer by layer, so that little is held twice."""
        self.slots, used = len(keep), min(self.length, length)
        self.length = length
        for layer in self.slot_layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                new = old.new_zeros(len(keep), length, *old.shape[2:])
                new[:, :used] = old[keep, :used]
                setattr(layer, name, new)

    def mask(self, window: int | None) -> torch.Tensor:
        """True where a token may attend: (rows or 1, 1, tokens, reach) bool. All layers with one window share it."""
        if window not in self._masks:
            device = self.slot_layers[0].keys.device
            past = torch.arange(self.reach, device=device)
            if self.position is not None:
                now = self.position.view(-1, 1, 1, 1)
            else:
                now = torch.arange(self.columns.start, self.columns.stop, device=device).view(1, 1, -1, 1)
            seen = past <= now
            self._masks[window] = seen if window is None else seen & (past > now - window)
        return self._masks[window]

    def step(self, query, layer: int, scaling=None, window=None, softcap=None, sinks=None) -> Step:
        """The attention of a layer's `query` in a decode step, as a `Step`."""
        assert self.position is not None
        keys, values = (x[: query.size(0)] for x in (self.slot_layers[layer].keys, self.slot_layers[layer].values))
        return Step(query, keys, values, self.position, scaling, window, softcap, sinks, self._shared)


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (S, T, heads, size) each. Attention gets them as (rows, heads, reach, size)."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, cache: SlotCache, *shape: int):
        super().__init__()
        # A weak reference. Otherwise cache and layers hold each other, and gigabytes wait for Python's collector during the
        # update.
        self.cache: Any = weakref.proxy(cache)
        self.shape = shape

    def lazy_initialization(self, key_states, value_states):
        pass

    def update(self, key_states, value_states, *args, **kwargs):
        cache = self.cache
        for tensor, states in ((self.keys, key_states), (self.values, value_states)):
            if cache.position is not None:
                tensor[cache.index, cache.position] = states[:, :, 0].to(tensor.dtype)
            else:
                tensor[cache.rows, cache.columns] = states.transpose(1, 2).to(tensor.dtype)
        return tuple(tensor[cache.rows, : cache.reach].transpose(1, 2) for tensor in (self.keys, self.values))

    def get_mask_sizes(self, query_length):
        return self.cache.reach, 0

    def get_seq_length(self):
        return 0

    def get_max_length(self):
        return self.cache.length


# The cache of this thread's rollout, because attention functions do not get it as an argument.
_active = threading.local()


def slot_attention(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask=None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Attention of `query` (rows, query heads, tokens, size) to the slots' `key` and `value` (rows, heads, reach, size).
    """
    cache: SlotCache = _active.stack[-1]
    if sliding_window is None and _is_sliding(module):
        sliding_window = module.config.sliding_window
    if query.is_cuda and cache.position is not None:
        step = cache.step(query, module.layer_idx, scaling, sliding_window, softcap, s_aux)
        kernel = kernel_for(step, dropout)
        if kernel != "mask":
            return KERNELS[kernel](step), None
    return masked(query, key, value, cache.mask(sliding_window), scaling, softcap, s_aux, dropout), None


def _is_sliding(module) -> bool:
    kinds = getattr(module.config, "layer_types", None)
    return kinds is not None and kinds[module.layer_idx] == "sliding_attention"


AttentionInterface.register(NAME, slot_attention)


@contextmanager
def slots_attended(model, cache: SlotCache):
    """Inside a `with` block, the model's attention is `slot_attention`."""
    before = [(config, config._attn_implementation) for config in _configs(model.config)]
    stack = _active.__dict__.setdefault("stack", [])
    stack.append(cache)
    try:
        for config in (model.config, model.config.get_text_config()):
            config._attn_implementation = NAME
        yield
    finally:
        stack.pop()
        for config, name in before:  # a config before its parts, because it sets its parts too
            config._attn_implementation = name


def _configs(config) -> list:
    """A config and all configs inside it."""
    inside = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ()]
    return [config, *(part for child in inside if child is not None for part in _configs(child))]


def check_slots(model) -> None:
    """Raise a `ValueError` if a layer keeps more than keys and values, or does not use transformers' attention interface."""
    name, others = type(model).__name__, set()
    for layer in DynamicCache(config=model.config).layers:
        others |= {type(layer).__name__} - {"DynamicLayer", "DynamicSlidingWindowLayer"}
    config = model.config.get_text_config()
    others |= set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = (
        ropes
        if "rope_type" in ropes
        else {k: v for rope in ropes.values() if isinstance(rope, dict) for k, v in rope.items()}
    )
    reason = None
    if ropes.get("rope_type") in ("dynamic", "longrope"):
        reason = (
            f"chooses its rotary frequencies by the longest sequence in a call (`rope_type: {ropes['rope_type']}`), so that "
            "a completion would depend on the others in its batch"
        )
    elif len({parameter.device for parameter in model.parameters()}) > 1:
        reason = "lies on several devices"
    elif others:
        reason = f"has layers that keep more than keys and values ({', '.join(sorted(others))})"
    elif getattr(config, "num_kv_shared_layers", 0):
        reason = "shares keys and values between layers"
    elif not model._supports_attention_backend or "position_ids" not in inspect.signature(model.forward).parameters:
        reason = "does not attend through transformers' attention interface at given positions"
    if reason is not None:
        raise ValueError(
            f"{name} {reason}, and the slots of a rollout do not support this. Set `rollout_engine: simple` "
            '(`engine="simple"` in `soft_generate`), which runs padded batches, as `generate` does, and is slower.'
        )


@torch.no_grad()
def probe(model, token: int) -> tuple[list[tuple[int, int, int, int]], torch.dtype]:
    """Heads and sizes of the keys and values of each layer, and their precision, found by feeding one token."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    check_slots(base)
    layers: Any = DynamicCache(config=base.config)
    ids = torch.tensor([[token]], device=base.device)
    model(input_ids=ids, position_ids=torch.zeros_like(ids), past_key_values=layers, use_cache=True)
    layers = layers.layers
    if any(layer.keys is None for layer in layers):
        raise ValueError(
            f"{type(base).__name__} filled no key-value cache, and a rollout needs one. Use a "
            "causal language model with a key-value cache."
        )
    shapes = [(x.keys.size(1), x.keys.size(3), x.values.size(1), x.values.size(3)) for x in layers]
    return shapes, layers[0].keys.dtype
