# SPDX-License-Identifier: Apache-2.0
"""The memory of the requests a server has in flight: one row a slot, each under a plan of its own.

The same columns and the same step as the other engines have (`trl_soft.rollout.steps`); what differs is that rows come in
any order and of several plans, that each has its own seed, and that a slot can be taken away and given back elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from ...noise import KeyedNoise
from ...scoring import DenseLogits
from ..base import Plan
from ..steps import Steps, begin, block_shapes, by_name
from .layout import Layout


# A server that schedules ahead of its results may take back as many steps, less one.
UNDO = 4
# Plans kept for requests to come, and characters of their rules, of which the rest of a plan is a small multiple: texts that
# end thoughts share their tables.
_PLANS, _PLAN_TEXT = 256, 2**22
_ALIGN = 8  # bytes: the widest number of a row
_STEPWISE = ("masks", "values", "ids")


@dataclass
class Ruled:
    """A plan, ready for use: its step, the layout of its actions, and where in the pool those lie, by name."""

    steps: Steps
    layout: Layout
    action: dict[str, torch.Tensor]
    filler: int  # what a completion that is over goes on with
    schema: "tuple[Row, ...]"

    @property
    def thought(self) -> str:
        return self.steps.plan.thought.name

    def room(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return self.action[name]


@dataclass(frozen=True)
class Row:
    """One of the rows of a slot: `shape` is that of one step, or of all there is where it is not `stepwise`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stepwise: bool

    def extent(self, drawn: int) -> tuple[int, ...]:
        return (drawn, *self.shape) if self.stepwise else self.shape

    def size(self, drawn: int) -> int:
        """Bytes, up to the next boundary."""
        return -(-math.prod(self.extent(drawn)) * self.dtype.itemsize // _ALIGN) * _ALIGN


@dataclass(slots=True)
class Parked:
    """
    What was taken out of a slot: `drawn` steps at most, its rows in one piece of memory, and what its actions are.

    It holds no plan: plans are made again of a request's rules, so that records that wait keep nothing but themselves.
    """

    drawn: int
    thought: str
    layout: Layout
    schema: tuple[Row, ...]  # one for all records of a layout
    memory: torch.Tensor  # bytes

    @property
    def rows(self) -> dict[str, torch.Tensor]:
        """Views of the rows, by name."""
        views, offset = {}, 0
        for row in self.schema:
            extent = row.extent(self.drawn)
            piece = self.memory[offset : offset + math.prod(extent) * row.dtype.itemsize]
            views[row.name] = piece.view(row.dtype).view(extent)
            offset += row.size(self.drawn)
        return views

    def bytes(self) -> int:
        """Memory held."""
        return self.memory.numel()


class Pool:
    """
    Args:
        count (`int`): R, slots. length (`int`): C, most tokens of a completion. width (`int`): W, bytes of an action.
        vocab_size (`int`): V. device.

    Attributes:
        number (`numpy.ndarray` of shape `(R,)`): which plan each slot is under, 0 is none. The host's.
        drawn (`numpy.ndarray` of shape `(R,)`): steps each slot was drawn for, those after its end among them. The host's.
    """

    def __init__(self, count: int, length: int, width: int, vocab_size: int, device):
        self.length, self.width, self.vocab_size, self.device = length, width, vocab_size, torch.device(device)
        self.every_row = self.device.type != "cpu"  # so that no count is read off the device
        shapes = block_shapes(count, length)
        self.blocks = {name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in shapes.items()}
        self.arena = torch.zeros(count, length, width, dtype=torch.uint8, device=device)
        self.keys = torch.zeros(count, 2, dtype=torch.long, device=device)  # seed, generation
        self.undo = {
            name: self.blocks[name].new_zeros(count, UNDO, self.blocks[name].size(-1)) for name in ("numbers", "flags")
        }
        self.columns = SimpleNamespace(**by_name(self.blocks))
        self.seen: torch.Tensor | None = None  # (R, V), from the first request on that asks for a repetition penalty
        self.number, self.drawn = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.ruled: dict[int, Ruled] = {}
        self._numbers: dict[str, int] = {}
        self._schemas: dict[Layout, tuple[Row, ...]] = {}
        self._made = self._named = 0

    def bytes(self) -> int:
        """Memory held."""
        blocks = [*self.blocks.values(), *self.undo.values(), self.arena, self.keys]
        return sum(block.numel() * block.itemsize for block in blocks)

    # Plans

    def known(self, name: str) -> int | None:
        """The number of the plan that was added under `name`."""
        return self._numbers.get(name)

    def add(self, name: str, plan: Plan, layout: Layout) -> int:
        """The number of a plan from now on."""
        if layout.width > self.width:
            raise ValueError(
                f"An action of this thought takes {layout.width} bytes a token, and the record was made for "
                f"{self.width}. Raise `record_bytes`."
            )
        self._forget(name)
        self._made += 1
        filler = plan.eos_token_ids[0] if plan.eos_token_ids else plan.pad_token_id
        action = layout.views(self.arena)
        self.ruled[self._made] = Ruled(Steps(plan, self.device), layout, action, filler, self._schema(layout))
        self._numbers[name] = self._made
        self._named += len(name)
        return self._made

    def _forget(self, coming: str) -> None:
        """The oldest plans that no slot is under, until one more has room; a request that comes back brings its rules."""
        used = set(self.number.tolist())
        for name, number in list(self._numbers.items()):
            if len(self._numbers) < _PLANS and self._named + len(coming) <= _PLAN_TEXT:
                return
            if number not in used:
                del self._numbers[name], self.ruled[number]
                self._named -= len(name)

    # Slots

    def admit(
        self,
        slots: Sequence[int],
        numbers: Sequence[int],
        keys: Sequence[tuple[int, int, int]],
        lengths,
        limits,
        closed: Sequence[bool] | None = None,
    ):
        """
        Begin completions: `keys` are (seed, generation, sample), `lengths` the prompts', `limits` the completions', `closed`
        whether the prompt has closed its thought.
        """
        index = self._tensor(slots)
        closed = [False] * len(slots) if closed is None else closed
        columns = self._tensor(
            [[*key, *numbers] for key, *numbers in zip(keys, lengths, limits, map(int, closed), strict=True)]
        )
        seed, generation, sample, length, limit, answers = columns.unbind(-1)
        begin(self.blocks, index, sample=sample, prompt_length=length, limit=limit, thinking=answers == 0)
        self.keys[index] = torch.stack((seed, generation), -1)
        self.number[list(slots)], self.drawn[list(slots)] = list(numbers), 0

    def see(self, slot: int, tokens: Sequence[int]) -> None:
        """The text so far of a slot with a repetition penalty; nothing for others."""
        if self.ruled[int(self.number[slot])].steps.plan.repetition_penalty == 1.0:
            return
        if self.seen is None:
            self.seen = torch.zeros(len(self.number), self.vocab_size, dtype=torch.bool, device=self.device)
        self.seen[slot] = False
        self.seen[slot, self._tensor(tokens)] = True

    def park(self, slot: int, to: torch.device | str | None = None) -> Parked:
        """All that is known of a slot's completion, in memory of its own, copied to a device when the stream gets there."""
        drawn = min(int(self.drawn[slot]), self.length)
        ruled = self.ruled[int(self.number[slot])]
        rows = {name: self.blocks[name][slot, :drawn] for name in _STEPWISE}
        rows["arena"] = self.arena[slot, :drawn, : ruled.layout.width]
        rows |= {name: self.blocks[name][slot] for name in ("numbers", "flags")}
        rows |= {f"undo_{name}": block[slot] for name, block in self.undo.items()}
        rows["keys"] = self.keys[slot]
        target = self.device if to is None else torch.device(to)
        size = sum(row.size(drawn) for row in ruled.schema)
        pinned = self.device.type == "cuda" and target.type == "cpu"
        memory = torch.empty(size, dtype=torch.uint8, device=target, pin_memory=pinned)
        parked = Parked(drawn, ruled.thought, ruled.layout, ruled.schema, memory)
        for name, place in parked.rows.items():
            place.copy_(rows[name], non_blocking=True)
        return parked

    def _schema(self, layout: Layout) -> tuple[Row, ...]:
        """The rows that `park` takes of a slot whose actions lie so."""
        if layout not in self._schemas:
            blocks = {name: (self.blocks[name], True) for name in _STEPWISE}
            blocks["arena"] = (self.arena[:, :, : layout.width], True)
            blocks |= {name: (self.blocks[name], False) for name in ("numbers", "flags")}
            blocks |= {f"undo_{name}": (block, False) for name, block in self.undo.items()}
            blocks["keys"] = (self.keys, False)
            self._schemas[layout] = tuple(
                Row(name, block.dtype, tuple(block.shape[2 if stepwise else 1 :]), stepwise)
                for name, (block, stepwise) in blocks.items()
            )
        return self._schemas[layout]

    def clear(self, slot: int) -> None:
        """Nothing of ours is in the slot any more."""
        self.number[slot] = self.drawn[slot] = 0

    def restore(self, slot: int, number: int, parked: Parked, drawn: int) -> None:
        """
        Go on under a plan with what `park` took out, after its first `drawn` tokens: the steps after those are drawn again, and with
        keyed noise draw the same.
        """
        if not parked.drawn - UNDO < drawn <= parked.drawn:
            raise RuntimeError(
                f"A request comes back with {drawn} tokens, and its record has {parked.drawn}: vLLM schedules further "
                f"ahead of its results than the {UNDO - 1} steps that a record can take back."
            )
        rows = {name: row.to(self.device, non_blocking=True) for name, row in parked.rows.items()}
        for name in ("masks", "values", "ids"):
            self.blocks[name][slot, :drawn] = rows[name][:drawn]
        for name in ("masks", "values"):
            self.blocks[name][slot, drawn:] = 0
        self.arena[slot, :drawn, : parked.layout.width] = rows["arena"][:drawn]
        self.keys[slot] = rows["keys"]
        for name, block in self.undo.items():
            block[slot] = rows[f"undo_{name}"]
            taken_back = drawn < parked.drawn
            self.blocks[name][slot] = rows[f"undo_{name}"][drawn % UNDO] if taken_back else rows[name]
        self.number[slot], self.drawn[slot] = number, drawn

    # Steps

    def step(self, number: int, slots: np.ndarray, index: torch.Tensor, logits: DenseLogits) -> torch.Tensor:
        """
        Draw the next token or thought of some slots under one plan: `index` is `slots` on the device, `logits` has N rows.

        Returns:
            (N,) int64: the tokens to write down, of a completion that is over its end of sequence.
        """
        ruled = self.ruled[number]
        self.drawn[slots] += 1
        own = {name: self.blocks[name][index] for name in ("numbers", "flags")}
        now = SimpleNamespace(**by_name({**self.blocks, **own}), index=index)
        turn = now.t % UNDO
        for name, value in own.items():
            self.undo[name][index, turn] = value
        t, active = now.t.clamp(max=self.length - 1), now.active.clone()
        if ruled.steps.plan.repetition_penalty != 1.0:
            assert self.seen is not None
            now.seen = self.seen[index]
        seed, generation = self.keys[index].unbind(-1)
        noise = KeyedNoise(seed, generation, now.sample, now.t)
        ruled.steps(now, logits, noise, ruled.room, self.every_row)
        for name, value in own.items():
            self.blocks[name][index] = value
        if "seen" in vars(now):
            self.seen[index] = now.seen  # type: ignore[index]
        return torch.where(active, self.blocks["ids"][index, t], ruled.filler)

    def fed(
        self, number: int, index: torch.Tensor, position: torch.Tensor, lookup
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What stands at some positions (N,) of the texts in slots `index` (N,), under one plan.

        Returns:
            mask (N,) bool: where it is a thought; mixed (N, H): what is fed there, arbitrary elsewhere.
        """
        ruled = self.ruled[number]
        j = position - self.columns.prompt_length[index]
        inside = (j >= 0) & (j < self.length)
        j = j.clamp(0, self.length - 1)
        mask = self.columns.thinking_mask[index, j] & inside
        action = {}
        for name, block in ruled.action.items():
            value = block[index, j]
            # Elsewhere the bytes are another plan's, and no ids.
            action[name] = value.masked_fill(~mask.view(-1, *[1] * (value.dim() - 1)), 0)
        return mask, ruled.steps.plan.thought.embed(action, lookup)

    def candidates(self, number: int, index: torch.Tensor, logits: DenseLogits, tokens: torch.Tensor, count: int):
        """
        What the step just made was made of, for `logprobs`: ids and logarithms (N, 1 + count), the token itself first.

        Of a thought these are its candidates and their weights; of an answer the likeliest tokens; of a forced token, or
        a thought without candidates, the token alone, with its log-probability as drawn. What is missing repeats the
        token.
        """
        plan, ruled = self.ruled[number].steps.plan, self.ruled[number]
        t = (self.columns.t[index] - 1).clamp(0, self.length - 1)
        own = self.columns.log_probs[index, t].unsqueeze(-1)  # (N, 1)
        log_p, ids = own[:, :0], tokens.unsqueeze(-1)[:, :0]
        if count:
            log_p, ids = logits.log_softmax(plan.answer.temperature or 1.0).topk(min(count, self.vocab_size), -1)
        forced = self.columns.forced_mask[index, t].unsqueeze(-1)
        ids, log_p = torch.where(forced, tokens.unsqueeze(-1), ids), torch.where(forced, own, log_p)
        thoughts = self.columns.thinking_mask[index, t].unsqueeze(-1)
        if not plan.thought.is_token:
            action = {name: block[index, t] for name, block in ruled.action.items()}
            action = {n: v.masked_fill(~thoughts.view(-1, *[1] * (v.dim() - 1)), 0) for n, v in action.items()}
            weights = plan.thought.weights(action)
            if weights is None:
                ids, log_p = torch.where(thoughts, tokens.unsqueeze(-1), ids), torch.where(thoughts, own, log_p)
            else:
                kept = action["ids"].long()
                log_w = weights.float().clamp(min=0).log().clamp(min=-9999.0)  # JSON has no infinity
                # A token drawn twice has both weights.
                mine = torch.where(kept == tokens.unsqueeze(-1), weights.float(), 0.0).sum(-1, keepdim=True)
                own = torch.where(thoughts, mine.clamp(min=0).log().clamp(min=-9999.0), own)
                order = log_w.topk(min(count, log_w.size(-1)), -1).indices
                missing = count - order.size(-1)
                kept = torch.cat((kept.gather(-1, order), tokens.unsqueeze(-1).expand(-1, missing)), -1)
                log_w = torch.cat((log_w.gather(-1, order), own.expand(-1, missing)), -1)
                ids, log_p = torch.where(thoughts, kept, ids), torch.where(thoughts, log_w, log_p)
        return torch.cat((tokens.unsqueeze(-1), ids), -1), torch.cat((own, log_p), -1)

    def _tensor(self, values) -> torch.Tensor:
        made = torch.tensor(values, dtype=torch.long)
        return made if self.device.type == "cpu" else made.pin_memory().to(self.device, non_blocking=True)
