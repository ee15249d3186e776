# SPDX-License-Identifier: Apache-2.0
"""The state and the draws of S slots: tensors with one row for each slot, written in place and never read by the host."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from ..noise import KeyedNoise
from ..record import SoftTokens
from ..vocabulary.head_logits import DenseLogits
from . import book
from .columns import FLAGS, NUMBERS, Rows, begin, block_shapes, by_name
from .interface import Key, Plan, Rollout, Watch, packed
from .matcher import looked_up
from .rules import Rules
from .steps import Steps


Kept = dict[str, dict[str, torch.Tensor]]


class Slots:
    """
    Args:
        count (`int`): S. plan (`Plan`), key (`Key`). vocab_size (`int`): V. device.
        looks_up (`bool`): find a text that ends thoughts in each step. False leaves it to the caller (`DecodedEnd`).
    """

    def __init__(self, count: int, plan: Plan, key: Key, vocab_size: int, device, looks_up: bool = True):
        self.plan, self.key, self.device = plan, key, device
        rules = Rules(device)
        self.rule = rules.add(looked_up(plan, vocab_size) if looks_up else plan)
        self.steps = Steps(plan, rules)
        length = plan.max_completion_length
        kinds = block_shapes(count, length)
        if plan.repetition_penalty != 1.0:
            kinds["seen"] = ((count, vocab_size), torch.bool)  # True for tokens in the prompt and the shadow
        # A few blocks of memory instead of twenty, because each is copied on its own when a slot finishes.
        self.blocks = {name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in kinds.items()}
        self.action: dict[str, torch.Tensor] = {}
        self._views: dict[int, Any] = {}
        self.samples = key.sample.to(device)
        # Whether completions may have no soft step: a prompt that has closed its thought, or a gate.
        self._may_be_hard = plan.gate is not None
        self._told: dict[int, int] = {}  # by number of a prompt, the columns that `tell` has handed on

    def _of(self, size: int) -> Any:
        """Views of the first slots, by name."""
        if size not in self._views:
            views = by_name({name: block[:size] for name, block in self.blocks.items()})
            self._views[size] = SimpleNamespace(**views, index=torch.arange(size, device=self.device))
        return self._views[size]

    @property
    def all(self) -> Any:
        """Views of all slots, by name."""
        return self._of(len(self.blocks["ids"]))

    def keep(self, index: torch.Tensor) -> None:
        """Some slots alone."""
        self.blocks = {name: block[index] for name, block in self.blocks.items()}
        self.action = {name: value[index] for name, value in self.action.items()}
        self._views.clear()

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Move slots into the places of others."""
        for block in (*self.blocks.values(), *self.action.values()):
            block[targets] = block[sources]
        self.all.active[sources] = False

    def admit(self, slots: list[int], numbers: list[int], prompts: list[list[int]], limits: list[int]) -> None:
        """Begin completions in some slots, with a thought, or with the answer if the prompt has closed its thought."""
        closed = self.plan.closed(prompts)
        self._may_be_hard |= any(closed)
        index = torch.tensor(slots, device=self.device)
        for block in self.action.values():
            block[index] = 0
        begin(
            self.blocks,
            index,
            sample=self.samples[torch.tensor(numbers, device=self.device)],
            rule=self.rule,
            prompt=torch.tensor([prompt[-1] for prompt in prompts], device=self.device),
            prompt_length=torch.tensor([len(prompt) for prompt in prompts], device=self.device),
            limit=torch.tensor(limits, device=self.device),
            thinking=~torch.tensor(closed, device=self.device),
            ids=self.plan.pad_token_id,
        )
        if "seen" in self.blocks:
            for slot, prompt in zip(slots, prompts, strict=True):
                self.blocks["seen"][slot, torch.tensor(prompt, device=self.device)] = True

    def save(self, slot: int) -> Kept:
        """The state of a completion, which any slot can continue."""
        kinds = {"blocks": self.blocks, "action": self.action}
        return {kind: {name: value[slot].clone() for name, value in of.items()} for kind, of in kinds.items()}

    @staticmethod
    def drawn(kept: Kept) -> int:
        """Number of tokens of a completion that `save` has stored."""
        return int(kept["blocks"]["numbers"][NUMBERS.index("t")])

    def restore(self, slot: int, kept: Kept) -> None:
        """Continue a completion that `save` has stored."""
        for kind, of in (("blocks", self.blocks), ("action", self.action)):
            for name, value in kept[kind].items():
                of[name][slot] = value

    def position(self, size: int) -> torch.Tensor:
        """Position of the token that is fed next: the number of tokens before it."""
        now = self._of(size)
        return now.prompt_length - 1 + now.t

    def fed(self, size: int, position: torch.Tensor) -> tuple[torch.Tensor, SoftTokens | None]:
        """The input of the next step at its `position` (size,): ids (size, 1), and the thoughts that replace them."""
        now = self._of(size)
        last, thoughts = book.thoughts_at(self.blocks, now.index, position)
        ids = torch.where(now.t > 0, now.ids[now.index, last], now.prompt).unsqueeze(1)
        if self.plan.thought.is_token or not self.action:
            return ids, None
        thought = self.plan.thought
        action = {name: self.action[name][now.index, last].unsqueeze(1) for name in thought.fed}
        # Feeding reads nothing else from a record. The other columns only have the right shape.
        return ids, SoftTokens(thought, thoughts.unsqueeze(1), action, now.log_probs[:, :1], now.forced_mask[:, :1])

    def advance(self, size: int, logits: DenseLogits, every_row: bool) -> None:
        """
        Draw one token or thought for each active slot of the first `size`, from as many rows of `logits`.

        `every_row`: compute for all slots and write for some, so that no count is read from the device.
        """
        self._draw(self._of(size).index, logits, every_row)

    def draw_again(self, index: torch.Tensor, logits: DenseLogits) -> None:
        """Draw one token or thought for some slots alone, from `logits` of all slots."""
        self._draw(index, logits[index], every_row=False)

    def _draw(self, index: torch.Tensor, logits: DenseLogits, every_row: bool) -> None:
        """One token or thought for each active slot of `index` (N,), from N rows of `logits`."""
        rows = Rows(self.blocks, index, seen=self.blocks.get("seen"))
        noise = KeyedNoise(self.key.seed, self.key.generation, rows["sample"], rows["t"])
        if self._may_be_hard and not self.action:
            # A record has the tensors of an action even if no step is soft. This draw only makes the tensors.
            for name, value in self.plan.thought.sample(logits, noise)[0].items():
                self._room(name, value)
        self.steps(rows, logits, noise, self._room, every_row)

    def _room(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """The memory of an action's tensor, (S, C, ...), for rows like those of `value`."""
        if name not in self.action:
            shape = len(self.blocks["ids"]), self.plan.max_completion_length, *value.shape[1:]
            self.action[name] = packed({name: value})[name].new_zeros(shape)
        return self.action[name]

    def record(self, slot: int, length: int) -> SoftTokens:
        """The record of the first `length` positions of one slot."""
        return self._taken([slot], length)[1]

    def _taken(
        self, slots: list[int], length: int, begin: int = 0
    ) -> tuple[torch.Tensor, SoftTokens, torch.Tensor, torch.Tensor]:
        """Ids, record, completion mask and entropies of some slots in columns `begin` to `length`, copied block by block."""
        index = self._index(slots)

        def take(block):
            taken = block[index, begin:length]
            return taken.clone() if len(slots) == 1 else taken

        completion_mask, thinking_mask, forced_mask = take(self.blocks["masks"]).unbind(-1)
        log_probs, entropies = take(self.blocks["values"]).unbind(-1)
        action = {name: take(value) for name, value in self.action.items()}
        record = SoftTokens(self.plan.thought, thinking_mask, action, log_probs, forced_mask)
        return take(self.blocks["ids"]), record, completion_mask, entropies

    def tell(self, watch: Watch | None, owner: Sequence[int | None]) -> None:
        """Hand `watch` what the completions in the slots have gained since the last call. `owner`: number of the prompt in each slot."""
        if watch is None:
            return
        drawn = self.all.t.tolist()
        for slot, number in enumerate(owner):
            begin = 0 if number is None else self._told.get(number, 0)
            if number is not None and drawn[slot] > begin:
                self._told[number] = drawn[slot]
                watch(number, self.result([slot], begin).to("cpu"))

    def result(self, slots: list[int], begin: int = 0) -> Rollout:
        """The rollout of some slots from column `begin` on, up to the end of the longest of them."""
        index = self._index(slots)
        numbers = dict(zip(NUMBERS, self.blocks["numbers"][index].clone().unbind(-1), strict=True))
        flags = dict(zip(FLAGS, self.blocks["flags"][index].unbind(-1), strict=True))
        used = int(numbers["t"].max())
        ids, record, mask, entropies = self._taken(slots, used, begin)
        cut = flags["cut"] | (flags["thinking"] > flags["done"])
        return Rollout(ids, mask, record, entropies, numbers["thinking_length"], numbers["surplus"], cut)

    def _index(self, slots: list[int]):
        """An index of their rows. For one slot it is a slice, which costs a tenth of a gather."""
        return slice(slots[0], slots[0] + 1) if len(slots) == 1 else torch.tensor(slots, device=self.device)
