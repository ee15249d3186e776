# SPDX-License-Identifier: Apache-2.0
"""A text that ends thoughts, found by decoding: for any tokenizer, on a host that waits for each step.

The table of `matcher.py` finds the text on the device, and it needs a tokenizer whose tokens write their characters one after the other.
"""

from dataclasses import replace

import torch

from ..vocabulary.head_logits import DenseLogits
from .interface import forced_row
from .slots import Slots
from .stop import EndToken


class DecodedEnd:
    """
    Steps of slots whose thoughts are ended by a text.

    A step draws a token, and then the shadow is decoded. A slot whose token completes the text takes the step again, under a plan in
    which that token ends thoughts. Noise is keyed, so it draws the same token, and the thought closes.

    Args:
        slots (`Slots`): made with `looks_up` false.
    """

    def __init__(self, slots: Slots):
        self.slots, self.plan = slots, slots.plan
        self._rules: dict[int, int] = {}  # by token, the row of the plan in which it ends thoughts

    def advance(self, size: int, logits: DenseLogits) -> None:
        """`Slots.advance` of the first `size` slots."""
        blocks, now = self.slots.blocks, self.slots.all
        before = {name: blocks[name].clone() for name in ("numbers", "flags", "seen") if name in blocks}
        thinks = (now.active & now.thinking).nonzero().squeeze(-1).tolist()
        self.slots.advance(size, logits, every_row=False)
        shadows = [now.ids[slot, : now.t[slot]].tolist() for slot in thinks]
        rests = self.plan.stop.end.rests(shadows) if shadows else []
        closing = [
            (slot, shadow[-1], rest)
            for slot, shadow, rest in zip(thinks, shadows, rests, strict=True)
            if rest is not None and shadow[-1] not in self.plan.eos_token_ids
        ]
        if not closing:
            return
        index = torch.tensor([slot for slot, _, _ in closing], device=self.slots.device)
        for name, block in before.items():
            blocks[name][index] = block[index]
        for slot, token, rest in closing:
            now.rule[slot], now.surplus[slot] = self._rule(token), len(rest)
            now.script[slot] = forced_row(rest, self.plan.prefill)
        self.slots.draw_again(index, logits)

    def _rule(self, token: int) -> int:
        if token not in self._rules:
            ended_by = replace(self.plan.stop, end=EndToken(token))  # type: ignore[arg-type]
            self._rules[token] = self.slots.steps.rules.add(replace(self.plan, stop=ended_by))
        return self._rules[token]
