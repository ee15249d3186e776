# SPDX-License-Identifier: Apache-2.0
"""The engine `simple`: one padded batch after the other, each until its longest completion is over.

The model reads a batch as in `generate`, with its own cache, attention mask and positions. So the engine runs every model with a
cache, also hybrids with recurrent layers. Steps are drawn and recorded by the slots of the slot engine (`slots.py`).
"""

import inspect
from collections.abc import Sequence

import torch
from transformers.utils import logging

from ..record import SoftTokens
from .decoded_end import DecodedEnd
from .dropout import evaluating
from .interface import EngineOptions, Key, Parts, Plan, Rollout, Watch, left_padded, positions
from .model_head import ModelHead
from .slots import Slots


logger = logging.get_logger(__name__)


def simple(model, prompts: Sequence[Sequence[int]], plan: Plan, key: Key, options: EngineOptions) -> Parts:
    """The engine `simple`. See `trl_soft.rollout.interface`. It reads the options `slots` (rows of a batch), `lengths` and `watch`."""
    logger.warning_once("`rollout_engine` is simple: padded batches, which wait for their longest completion.")
    limits = options.limits(len(prompts), plan)
    for start in range(0, len(prompts), options.slots):
        numbers = list(range(start, min(start + options.slots, len(prompts))))
        with evaluating(model):
            batch = _complete(
                model,
                numbers,
                [list(prompts[i]) for i in numbers],
                [limits[i] for i in numbers],
                plan,
                key,
                options.watch,
            )
        yield numbers, batch


@torch.no_grad()
def _complete(
    model,
    numbers: list[int],
    prompts: list[list[int]],
    limits: list[int],
    plan: Plan,
    key: Key,
    watch: Watch | None,
) -> Rollout:
    """Complete the B prompts of some numbers, each to at most its limit."""
    rows, device = list(range(len(prompts))), model.device
    vocab_size = model.config.get_text_config().vocab_size
    slots = Slots(len(rows), plan, key, vocab_size, device, looks_up=False)
    slots.admit(rows, numbers, prompts, limits)
    decoded = None if plan.stop.end.is_token else DecodedEnd(slots)
    forward, head = _CachedForward(model), ModelHead(model, plan.thought)
    ids, attention_mask = left_padded(prompts, plan.pad_token_id, device)
    record = None
    with head.watched():
        while slots.all.active.any():
            logits = head.logits(forward(ids, attention_mask, record))
            if decoded is None:
                slots.advance(len(rows), logits, every_row=False)
            else:
                decoded.advance(len(rows), logits)
            slots.tell(watch, numbers)
            ids, record = slots.fed(len(rows), slots.position(len(rows)))
            attention_mask = torch.ones_like(ids)
    return slots.result(rows)


class _CachedForward:
    """A model that reads B texts piece by piece, and keeps what it has read."""

    def __init__(self, model):
        self.model, self.cache, self.attention_mask = model, None, None
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.accepts = inspect.signature(base.forward).parameters

    def __call__(self, ids: torch.Tensor, attention_mask: torch.Tensor, record: SoftTokens | None) -> torch.Tensor:
        """
        Logits (B, V) of the tokens after the next piece.

        Args:
            ids, attention_mask (`torch.Tensor` of shape `(B, S)`): the piece, and 0 at what is padding.
            record (`SoftTokens`, *optional*): the thoughts in it.
        """
        read = [] if self.attention_mask is None else [self.attention_mask]
        self.attention_mask = torch.cat([*read, attention_mask], dim=1)
        inputs = {"input_ids": ids, "attention_mask": self.attention_mask, "use_cache": True}
        if "position_ids" in self.accepts:
            inputs["position_ids"] = positions(self.attention_mask)[:, -ids.size(1) :]
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = 1
        if record is not None:
            inputs["soft_tokens"] = record
        output = self.model(**inputs, past_key_values=self.cache)
        self.cache = getattr(output, "past_key_values", None)
        if self.cache is None:
            raise ValueError(
                f"{type(self.model).__name__} returned no key-value cache, and a rollout needs one. Use "
                "a causal language model with a key-value cache."
            )
        return output.logits[:, -1]
