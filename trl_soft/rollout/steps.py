# SPDX-License-Identifier: Apache-2.0
"""One step of a rollout for some rows under one plan: the columns it reads and writes, and its arithmetic.

Nothing here owns memory or knows an engine; what a step draws depends on the row's own columns, logits and noise.
"""

from typing import Any

import torch

from ..noise import KeyedNoise
from ..scoring import DenseLogits
from ..thoughts import Hard
from .base import Plan, packed
from .matcher import EndMatcher


# One entry a slot.
NUMBERS = (
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
    "matched",  # state of the matcher: characters of the text that ends a thought, with which the shadow ends
    "surplus",  # characters that the closing step's token writes beyond that text
    "script",  # row of the forced texts that follows the thought
)
FLAGS = (
    "active",  # False once it has finished
    "thinking",  # in its thought
    "done",  # ended by an end-of-sequence token
    "cut",  # its thought reached a cap
)
# C entries a slot, and so has the action.
_MASKS = ("completion_mask", "thinking_mask", "forced_mask")
_VALUES = ("log_probs", "entropies")
_COLUMNS = {"numbers": NUMBERS, "flags": FLAGS, "masks": _MASKS, "values": _VALUES}


def block_shapes(count: int, length: int) -> dict[str, tuple[tuple, torch.dtype]]:
    """Shapes and types of the blocks that hold `count` completions of up to `length` tokens, thoughts' actions apart."""
    return {
        "numbers": ((count, len(NUMBERS)), torch.long),
        "flags": ((count, len(FLAGS)), torch.bool),
        "masks": ((count, length, len(_MASKS)), torch.bool),
        "values": ((count, length, len(_VALUES)), torch.float32),
        "ids": ((count, length), torch.long),
    }


def by_name(blocks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views of the columns of blocks, by name."""
    views = dict(blocks)
    for block, columns in _COLUMNS.items():
        views |= zip(columns, blocks[block].unbind(-1), strict=True)
    return views


def begin(blocks: dict[str, torch.Tensor], index: torch.Tensor, **values) -> None:
    """Make rows `index` of the blocks those of completions that begin to think; `values` are columns, by name."""
    for block in blocks.values():
        block[index] = 0
    columns = by_name(blocks)
    for name, value in {"close_at": -1, "active": True, "thinking": True, **values}.items():
        columns[name][index] = value


class Steps:
    """
    One step of some rows under one plan: what each draws next, and what that makes of it.

    It reads and writes `now`, a namespace with the columns of `by_name` and `index`. Numbers, flags and `seen` have N rows,
    as `logits` and `noise` do; ids, masks, values and actions have S, of which row `index[n]` is the n-th.
    """

    def __init__(self, plan: Plan, device):
        self.plan = plan
        self.script, self.script_length = plan.script(device)
        self.eos = torch.tensor(plan.eos_token_ids, dtype=torch.long, device=device)
        end = plan.stop.end
        self.end = torch.tensor(end.ids[0] if end.is_token else -1, device=device)
        self.matches = None
        if isinstance(end, EndMatcher):
            self.classes, self.matches, self.surplus, self.rows = end.on(device)
        self.one_sampler = isinstance(plan.thought, Hard) and plan.thought.same_as(plan.answer)
        self._drawn: Any = None

    def __call__(self, now, logits: DenseLogits, noise: KeyedNoise, room, every_row: bool) -> None:
        """
        Draw for the active rows. `room(name, value)` is where the action's tensor of that name is kept, (S, C, ...).
        """
        scripted = now.active & ~now.thinking & (now.cursor < self.script_length[now.script])
        answers = now.active & ~now.thinking & ~scripted
        thinks = now.active & now.thinking
        select = _Every if every_row else _Some
        self._drawn = None
        t = now.t.clamp(max=now.ids.size(1) - 1)
        for mask, draw in ((thinks, self._think), (scripted, self._force), (answers, self._answer)):
            rows = select(mask, t, now.index)
            if rows.any:
                draw(now, rows, rows.of(logits), rows.of(noise), room)
        _Every(now.active, t, now.index).put_at(now.completion_mask, now.active)
        if "seen" in vars(now):
            here = torch.arange(len(t), device=t.device)
            now.seen[here, now.ids[now.index, t]] |= now.active
        now.t.add_(now.active)
        now.active.logical_and_(~now.done & (now.t < now.limit))
        if self.plan.max_answer_length is not None:
            now.active.logical_and_(now.answered < self.plan.max_answer_length)

    def _think(self, now, rows, logits: DenseLogits, noise: KeyedNoise, room) -> None:
        plan, thought = self.plan, self.plan.thought
        if self.one_sampler and rows.every:
            action, token, scored = self._token(logits, now, rows, noise)
        else:
            drawn_from = self._penalised(logits, now, rows) if thought.is_token else logits
            (action, token), scored = thought.sample(drawn_from, noise), None
        ends_all = self._is_eos(token)
        ended = ((token == self.end) | (rows.of(now.close_at) == rows.of(now.t))) & ~ends_all
        if self.matches is not None:
            last = len(self.matches) - 1
            matched = self.matches[rows.of(now.matched).clamp(max=last), self.classes[token].long()].long()
            kind = (matched - last - 1).clamp(min=0)
            rows.put(now.matched, matched)
            rows.put(now.surplus, torch.where(ends_all, 0, self.surplus[kind]))
            rows.put(now.script, self.rows[kind])
            ended = (matched > last) & ~ends_all
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
        rows.put(now.script, torch.where(too_long, 1, rows.of(now.script)))
        rows.put(now.thinking, ~(ended | too_long))
        rows.put(now.done, ends_all)
        rows.put_at(now.ids, token)
        rows.put_at(now.thinking_mask, is_thought)
        rows.put_at(now.log_probs, log_prob)
        rows.put_at(now.entropies, entropy)
        for name, value in packed(action).items():
            rows.put_at(room(name, value), value)

    def _force(self, now, rows, logits: DenseLogits, noise: KeyedNoise, room) -> None:
        cursor = rows.of(now.cursor)
        token = self.script[rows.of(now.script), cursor.clamp(max=self.script.size(1) - 1)]
        rows.put_at(now.ids, token)
        rows.put_at(now.forced_mask, torch.ones_like(token, dtype=torch.bool))
        rows.put(now.cursor, cursor + 1)

    def _answer(self, now, rows, logits: DenseLogits, noise: KeyedNoise, room) -> None:
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
        if "seen" not in vars(now):
            return logits
        z, penalty = logits.dense(), self.plan.repetition_penalty
        return DenseLogits(torch.where(rows.of(now.seen), torch.where(z < 0, z * penalty, z / penalty), z))


class _Some:
    """The rows in a mask, by index: the host may know their number."""

    every = False

    def __init__(self, mask: torch.Tensor, t: torch.Tensor, index: torch.Tensor):
        self.rows = mask.nonzero().squeeze(-1)
        self.any = len(self.rows) > 0
        self.all = len(self.rows) == len(mask)
        self.t, self.index = (t, index) if self.all else (t[self.rows], index[self.rows])

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
        target[self.index, self.t] = value.to(target.dtype)


class _Every:
    """All rows, of which those outside a mask are computed for nothing and written as they were."""

    any = every = True

    def __init__(self, mask: torch.Tensor, t: torch.Tensor, index: torch.Tensor):
        self.mask, self.t, self.index = mask, t, index

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
