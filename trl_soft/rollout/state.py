# SPDX-License-Identifier: Apache-2.0
"""What S slots are doing and have drawn: tensors with one row a slot, written in place and never read by the host."""

from types import SimpleNamespace
from typing import Any

import torch

from ..noise import KeyedNoise
from ..record import SoftTokens
from ..scoring import DenseLogits
from ..thoughts import Hard
from .base import Key, Plan, Rollout, packed


Kept = dict[str, dict[str, torch.Tensor]]

# One entry a slot.
_NUMBERS = (
    "sample",  # whose noise
    "prompt",  # last token of the prompt
    "prompt_length",
    "t",  # tokens drawn
    "limit",  # and how many there may be
    "cursor",  # forced tokens it was fed
    "answered",  # tokens of its answer
    "calm",  # cold steps in a row
    "thinking_length",  # thoughts drawn, the closing step among them
    "close_at",  # position whose thought is the last, where only its text could tell; -1 is none
)
_FLAGS = (
    "active",  # False once it has finished
    "thinking",  # in its thought
    "done",  # ended by an end-of-sequence token
    "cut",  # its thought reached a cap
)
# C entries a slot, and so has the action.
_MASKS = ("completion_mask", "thinking_mask", "forced_mask")
_VALUES = ("log_probs", "entropies")


class Slots:
    """
    Args:
        count (`int`): S. plan (`Plan`), key (`Key`). vocab_size (`int`): V. device.
    """

    def __init__(self, count: int, plan: Plan, key: Key, vocab_size: int, device):
        self.plan, self.key, self.device = plan, key, device
        length = plan.max_completion_length
        kinds: dict[str, tuple[tuple, torch.dtype]] = {
            "numbers": ((count, len(_NUMBERS)), torch.long),
            "flags": ((count, len(_FLAGS)), torch.bool),
            "masks": ((count, length, len(_MASKS)), torch.bool),
            "values": ((count, length, len(_VALUES)), torch.float32),
            "ids": ((count, length), torch.long),
        }
        if plan.repetition_penalty != 1.0:
            kinds["seen"] = ((count, vocab_size), torch.bool)  # which tokens prompt and shadow hold
        # A few blocks of memory and not twenty, because each is taken out by itself when a slot finishes.
        self.blocks = {name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in kinds.items()}
        self.action: dict[str, torch.Tensor] = {}
        self._views: dict[int, Any] = {}
        self.script, self.script_length = plan.script(device)
        self.eos = torch.tensor(plan.eos_token_ids, dtype=torch.long, device=device)
        end = plan.stop.end
        self.end = torch.tensor(end.ids[0] if end.is_token else -1, device=device)
        self.samples = key.sample.to(device)
        self.one_sampler = isinstance(plan.thought, Hard) and plan.thought.same_as(plan.answer)
        self._drawn: Any = None

    def _of(self, size: int) -> Any:
        """Views of the first slots, by name."""
        if size not in self._views:
            views = {name: block[:size] for name, block in self.blocks.items()}
            names = ("numbers", _NUMBERS), ("flags", _FLAGS), ("masks", _MASKS), ("values", _VALUES)
            for block, columns in names:
                views |= zip(columns, views[block].unbind(-1), strict=True)
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
        """Slots in the place of others."""
        for block in (*self.blocks.values(), *self.action.values()):
            block[targets] = block[sources]
        self.all.active[sources] = False

    def admit(self, slots: list[int], numbers: list[int], prompts: list[list[int]], limits: list[int]) -> None:
        """Begin completions in some slots."""
        index = torch.tensor(slots, device=self.device)
        for block in (*self.blocks.values(), *self.action.values()):
            block[index] = 0
        values = {
            "sample": self.samples[torch.tensor(numbers, device=self.device)],
            "prompt": torch.tensor([prompt[-1] for prompt in prompts], device=self.device),
            "prompt_length": torch.tensor([len(prompt) for prompt in prompts], device=self.device),
            "limit": torch.tensor(limits, device=self.device),
            "ids": self.plan.pad_token_id,
            "close_at": -1,
            "active": True,
            "thinking": True,
        }
        for name, value in values.items():
            getattr(self.all, name)[index] = value
        for slot, prompt in zip(slots, prompts, strict=True):
            self._see(slot, prompt)

    def _see(self, slot: int, tokens: list[int]) -> None:
        if "seen" in self.blocks:
            self.blocks["seen"][slot] = False
            self.blocks["seen"][slot, torch.tensor(tokens, device=self.device)] = True

    def save(self, slot: int) -> Kept:
        """All that is known of a completion, to be continued in any slot."""
        kinds = {"blocks": self.blocks, "action": self.action}
        return {kind: {name: value[slot].clone() for name, value in of.items()} for kind, of in kinds.items()}

    @staticmethod
    def drawn(kept: Kept) -> int:
        """How many tokens what `save` kept had drawn."""
        return int(kept["blocks"]["numbers"][_NUMBERS.index("t")])

    def restore(self, slot: int, kept: Kept) -> None:
        """Continue what `save` kept."""
        for kind, of in (("blocks", self.blocks), ("action", self.action)):
            for name, value in kept[kind].items():
                of[name][slot] = value

    def position(self, size: int) -> torch.Tensor:
        """Where the token that is fed next stands: the number of tokens before it."""
        now = self._of(size)
        return now.prompt_length - 1 + now.t

    def fed(self, size: int) -> tuple[torch.Tensor, SoftTokens | None]:
        """What the next step feeds: ids (size, 1), and the thoughts in their place."""
        now = self._of(size)
        last, begun = (now.t - 1).clamp(min=0), now.t > 0
        ids = torch.where(begun, now.ids[now.index, last], now.prompt).unsqueeze(1)
        if self.plan.thought.is_token or not self.action:
            return ids, None
        thoughts = (now.thinking_mask[now.index, last] & begun).unsqueeze(1)
        action = {name: value[now.index, last].unsqueeze(1) for name, value in self.action.items()}
        return ids, SoftTokens(self.plan.thought, thoughts, action, torch.zeros_like(thoughts, dtype=torch.float32))

    def advance(self, size: int, logits: DenseLogits, every_row: bool) -> None:
        """
        Draw one token or thought for each active slot of the first `size`, from as many rows of `logits`.

        `every_row`: compute for all slots and write for some, so that no count is read off the device.
        """
        now = self._of(size)
        noise = KeyedNoise(self.key.seed, self.key.generation, now.sample, now.t)
        scripted = now.active & ~now.thinking & (now.cursor < self.script_length[now.cut.long()])
        answers = now.active & ~now.thinking & ~scripted
        thinks = now.active & now.thinking
        select = _Every if every_row else _Some
        self._drawn = None
        t = now.t.clamp(max=self.plan.max_completion_length - 1)
        for mask, draw in ((thinks, self._think), (scripted, self._force), (answers, self._answer)):
            rows = select(mask, t)
            if rows.any:
                draw(now, rows, rows.of(logits), rows.of(noise))
        _Every(now.active, t).put_at(now.completion_mask, now.active)
        if "seen" in self.blocks:
            now.seen[now.index, now.ids[now.index, t]] |= now.active
        now.t.add_(now.active)
        now.active.logical_and_(~now.done & (now.t < now.limit))
        if self.plan.max_answer_length is not None:
            now.active.logical_and_(now.answered < self.plan.max_answer_length)

    def _think(self, now, rows, logits: DenseLogits, noise: KeyedNoise) -> None:
        plan, thought = self.plan, self.plan.thought
        if self.one_sampler and rows.every:
            action, token, scored = self._token(logits, now, rows, noise)
        else:
            drawn_from = self._penalised(logits, now, rows) if thought.is_token else logits
            (action, token), scored = thought.sample(drawn_from, noise), None
        ends_all = self._is_eos(token)
        ended = ((token == self.end) | (rows.of(now.close_at) == rows.of(now.t))) & ~ends_all
        closed = ended | ends_all
        if thought.closes_one_hot:
            action = thought.close(action, closed, token)
        log_prob, entropy = thought.score(logits, action) if scored is None else scored
        is_thought = torch.ones_like(closed)
        if thought.closes_one_hot and not thought.scores_closing and rows.some(closed):
            # The closing step is a token then, in the record as in the update.
            is_thought = ~closed
            as_token = plan.answer.score(logits, {"ids": token})
            log_prob = torch.where(is_thought, log_prob, as_token[0])
            entropy = torch.where(is_thought, entropy, as_token[1])
        thinking_length = rows.of(now.thinking_length) + 1
        too_long, calm = plan.stop.cut(thinking_length, logits, rows.of(now.calm))
        too_long = too_long & ~closed
        rows.put(now.thinking_length, thinking_length)
        rows.put(now.calm, calm)
        rows.put(now.cut, too_long)
        rows.put(now.thinking, ~(ended | too_long))
        rows.put(now.done, ends_all)
        rows.put_at(now.ids, token)
        rows.put_at(now.thinking_mask, is_thought)
        rows.put_at(now.log_probs, log_prob)
        rows.put_at(now.entropies, entropy)
        for name, value in packed(action).items():
            if name not in self.action:
                shape = len(self.blocks["ids"]), plan.max_completion_length, *value.shape[1:]
                self.action[name] = value.new_zeros(shape)
            rows.put_at(self.action[name], value)

    def _force(self, now, rows, logits: DenseLogits, noise: KeyedNoise) -> None:
        cursor = rows.of(now.cursor)
        token = self.script[rows.of(now.cut).long(), cursor.clamp(max=self.script.size(1) - 1)]
        rows.put_at(now.ids, token)
        rows.put_at(now.forced_mask, torch.ones_like(token, dtype=torch.bool))
        rows.put(now.cursor, cursor + 1)

    def _answer(self, now, rows, logits: DenseLogits, noise: KeyedNoise) -> None:
        _, token, (log_prob, entropy) = self._token(logits, now, rows, noise)
        rows.put(now.done, self._is_eos(token))
        rows.put(now.answered, rows.of(now.answered) + 1)
        rows.put_at(now.ids, token)
        rows.put_at(now.log_probs, log_prob)
        rows.put_at(now.entropies, entropy)

    def _token(self, logits: DenseLogits, now, rows, noise: KeyedNoise):
        """A hard token for each row, drawn once a step where thoughts and answers are drawn alike."""
        if self._drawn is not None:
            return self._drawn
        answer = self.plan.answer
        action, token = answer.sample(self._penalised(logits, now, rows), noise)
        drawn = action, token, answer.score(logits, action)
        if self.one_sampler and rows.every:
            self._drawn = drawn
        return drawn

    def _is_eos(self, token: torch.Tensor) -> torch.Tensor:
        return (token.unsqueeze(-1) == self.eos).any(-1)

    def _penalised(self, logits: DenseLogits, now, rows) -> DenseLogits:
        """Logits less likely to repeat prompt and shadow, as `generate` has it; for sampling, not for scoring."""
        if "seen" not in self.blocks:
            return logits
        z, penalty = logits.dense(), self.plan.repetition_penalty
        return DenseLogits(torch.where(rows.of(now.seen), torch.where(z < 0, z * penalty, z / penalty), z))

    def close_matched(self, prompts: dict[int, list[int]], steps: int) -> None:
        """
        Close thoughts whose shadow came to end with the text that ends a thought, in one of the last `steps` steps, in
        the slots that complete `prompts`.

        Only the decoded text can tell, and a step does not wait for it: such a slot goes back to the step it should
        have closed with, and draws it again. Noise is keyed, so it draws the same, and closes.
        """
        now, end = self.all, self.plan.stop.end
        begun, lengths, closing = (x.tolist() for x in (now.t - steps, now.thinking_length, now.close_at))
        candidates = [
            (slot, position)
            for slot in prompts
            for position in range(max(begun[slot], 0), lengths[slot] if closing[slot] < 0 else 0)
        ]
        if not candidates:
            return
        shadows = now.ids.tolist()
        matched = end.match([shadows[slot][: position + 1] for slot, position in candidates])
        closed: set[int] = set()
        for (slot, position), found in zip(candidates, matched, strict=True):
            shadow = shadows[slot][: position + 1]
            if found and slot not in closed and shadow[-1] not in self.plan.eos_token_ids:
                closed.add(slot)
                self._rewind(now, slot, position)
                self._see(slot, [*prompts[slot], *shadow[:-1]])

    def _rewind(self, now, slot: int, position: int) -> None:
        """Back to before the thought at `position`, which will be the last."""
        now.masks[slot, position:] = False
        now.values[slot, position:] = 0
        now.done[slot] = now.cut[slot] = False
        now.cursor[slot] = now.answered[slot] = 0
        now.thinking[slot] = now.active[slot] = True
        now.t[slot] = now.thinking_length[slot] = now.close_at[slot] = position

    def record(self, slot: int, length: int) -> SoftTokens:
        """The first `length` positions of one slot."""
        return self._taken([slot], length)[1]

    def _taken(self, slots: list[int], length: int) -> tuple[torch.Tensor, SoftTokens, torch.Tensor, torch.Tensor]:
        """Ids, record, completion mask and entropies of some slots: copied, a block of memory at a time."""
        index = self._index(slots)

        def take(block):
            taken = block[index, :length]
            return taken.clone() if len(slots) == 1 else taken

        completion_mask, thinking_mask, forced_mask = take(self.blocks["masks"]).unbind(-1)
        log_probs, entropies = take(self.blocks["values"]).unbind(-1)
        action = {name: take(value) for name, value in self.action.items()}
        record = SoftTokens(self.plan.thought, thinking_mask, action, log_probs, forced_mask)
        return take(self.blocks["ids"]), record, completion_mask, entropies

    def result(self, slots: list[int]) -> Rollout:
        """What some slots have drawn, as long as the longest of them."""
        index = self._index(slots)
        numbers = dict(zip(_NUMBERS, self.blocks["numbers"][index].clone().unbind(-1), strict=True))
        flags = dict(zip(_FLAGS, self.blocks["flags"][index].unbind(-1), strict=True))
        used = int(numbers["t"].max())
        ids, record, mask, entropies = self._taken(slots, used)
        if len(slots) > 1:
            ids = ids.masked_fill_(~mask, self.plan.pad_token_id)  # what was drawn after a thought that closed late
        cut = flags["cut"] | (flags["thinking"] > flags["done"])
        return Rollout(ids, mask, record, entropies, numbers["thinking_length"], cut)

    def _index(self, slots: list[int]):
        """What picks their rows: for one of them a slice, which costs a tenth of a gather."""
        return slice(slots[0], slots[0] + 1) if len(slots) == 1 else torch.tensor(slots, device=self.device)


class _Some:
    """The rows in a mask, by index: the host may know their number."""

    every = False

    def __init__(self, mask: torch.Tensor, t: torch.Tensor):
        self.rows = mask.nonzero().squeeze(-1)
        self.any = len(self.rows) > 0
        self.all = len(self.rows) == len(mask)
        self.t = t if self.all else t[self.rows]

    def some(self, mask: torch.Tensor) -> bool:
        """Whether work for the rows in a mask can be left out."""
        return bool(mask.any())

    def of(self, value):
        return value if self.all else value[self.rows]

    def put(self, target: torch.Tensor, value: torch.Tensor) -> None:
        if self.all:
            target.copy_(value)
        else:
            target[self.rows] = value

    def put_at(self, target: torch.Tensor, value: torch.Tensor) -> None:
        """Into the t-th column."""
        target[self.rows, self.t] = value.to(target.dtype)


class _Every:
    """All rows, of which those outside a mask are computed for nothing and written as they were."""

    any = every = True

    def __init__(self, mask: torch.Tensor, t: torch.Tensor):
        self.mask, self.t, self.index = mask, t, torch.arange(len(mask), device=mask.device)

    def some(self, mask: torch.Tensor) -> bool:
        return True

    def of(self, value):
        return value

    def _kept(self, value: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask.view(-1, *[1] * (value.dim() - 1)), value.to(old.dtype), old)

    def put(self, target: torch.Tensor, value: torch.Tensor) -> None:
        target.copy_(self._kept(value, target))

    def put_at(self, target: torch.Tensor, value: torch.Tensor) -> None:
        target[self.index, self.t] = self._kept(value, target[self.index, self.t])
