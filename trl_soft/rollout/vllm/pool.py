# SPDX-License-Identifier: Apache-2.0
"""The memory of a server's requests in flight: one row for each slot, and a plan for each row.

Columns and step are those of the other engines (`trl_soft.rollout.steps`). There are three differences: rows come in any order
and of several plans, each row has its own seed, and a completion can leave its slot and continue in another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from ...noise import KeyedNoise
from ...thoughts import Thought
from ...vocabulary.head_logits import DenseLogits
from .. import book
from ..columns import Rows, begin, block_shapes, by_name
from ..interface import Plan
from ..rules import Rules
from ..steps import Steps
from .layout import Layout


# A server that schedules ahead of its results may take back one step less than this.
UNDO = 4
# Plans that are kept for later requests, and the characters of their rules. The rest of a plan is a small multiple of these,
# because texts that end thoughts share their tables.
_PLANS, _PLAN_TEXT = 256, 2**22
_ALIGN = 8  # bytes: the widest number of a row
_STEPWISE = ("masks", "values", "ids")


@dataclass
class Group:
    """What plans of one kind share: their step, the layout of their actions, and the actions' places in the pool, by name."""

    steps: Steps
    layout: Layout
    action: dict[str, torch.Tensor]
    schema: "tuple[Row, ...]"

    @property
    def thought(self) -> Thought:
        return self.steps.thought

    def room(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return self.action[name]


@dataclass
class Ruled:
    """A plan that is ready for use: its row in the rules, and its group. Plans with equal `fed` feed thoughts alike."""

    plan: Plan
    rule: int
    kind: tuple
    fed: tuple
    group: Group


@dataclass(frozen=True)
class Row:
    """One row of a slot. `shape` is the shape of one step, or of the whole row if it is not `stepwise`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stepwise: bool

    def extent(self, drawn: int) -> tuple[int, ...]:
        return (drawn, *self.shape) if self.stepwise else self.shape

    def size(self, drawn: int) -> int:
        """Bytes, rounded up to the next boundary."""
        return -(-math.prod(self.extent(drawn)) * self.dtype.itemsize // _ALIGN) * _ALIGN


@dataclass(slots=True)
class Parked:
    """
    A completion that has left its slot: at most `drawn` steps, its rows in one piece of memory, and the kind of its actions.

    It holds no plan, so that waiting records keep nothing else in memory. A plan can be made again from a request's rules.
    """

    drawn: int
    thought: str
    layout: Layout
    schema: tuple[Row, ...]  # shared by all records of a layout
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
        count (`int`): R, number of slots. length (`int`): C, most tokens of a completion. width (`int`): W, bytes of an action.
        vocab_size (`int`): V. device.

    Attributes:
        spare (`int`): R, the number of one more slot, which never has a completion. A row of this slot draws and feeds nothing.
        number (`numpy.ndarray` of shape `(R,)`): the plan of each slot, 0 for none. On the host.
        drawn (`numpy.ndarray` of shape `(R,)`): steps drawn for each slot, also after its end. On the host.
    """

    def __init__(self, count: int, length: int, width: int, vocab_size: int, device):
        self.length, self.width, self.vocab_size, self.device = length, width, vocab_size, torch.device(device)
        self.every_row = self.device.type != "cpu"  # so that no count is read from the device
        self.spare = count
        self._nothing = torch.zeros(_ALIGN, dtype=torch.uint8, device=device)
        shapes = block_shapes(count + 1, length)
        self.blocks = {name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in shapes.items()}
        self.arena = torch.zeros(count + 1, length, width, dtype=torch.uint8, device=device)
        self.undo = {
            name: self.blocks[name].new_zeros(count + 1, UNDO, self.blocks[name].size(-1))
            for name in ("numbers", "flags")
        }
        self.columns = SimpleNamespace(**by_name(self.blocks))
        self.seen: torch.Tensor | None = None  # (R + 1, V), from the first request with a repetition penalty on
        self.number, self.drawn = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.rules = Rules(device)
        self.ruled: dict[int, Ruled] = {}
        self._groups: dict[tuple, Group] = {}  # by kind
        self._numbers: dict[str, int] = {}
        self._schemas: dict[Layout, tuple[Row, ...]] = {}
        self._made = self._named = 0

    def bytes(self) -> int:
        """Memory held."""
        blocks = [*self.blocks.values(), *self.undo.values(), self.arena]
        return sum(block.numel() * block.itemsize for block in blocks)

    # Plans

    def known(self, name: str) -> int | None:
        """The number of the plan that was added under `name`."""
        return self._numbers.get(name)

    def add(self, name: str, plan: Plan, layout: Layout) -> int:
        """Add a plan. Returns its number."""
        if layout.width > self.width:
            raise ValueError(
                f"An action of this thought takes {layout.width} bytes a token, but the record was made for "
                f"{self.width}. Raise `record_bytes`."
            )
        self._forget(name)
        self._made += 1
        kind = (*Steps.kind(plan), layout)
        if kind not in self._groups:
            self._groups[kind] = Group(Steps(plan, self.rules), layout, layout.views(self.arena), self._schema(layout))
        fed = plan.thought.key(), layout
        self.ruled[self._made] = Ruled(plan, self.rules.add(plan), kind, fed, self._groups[kind])
        self._numbers[name] = self._made
        self._named += len(name)
        return self._made

    def _forget(self, coming: str) -> None:
        """Drop the oldest unused plans until one more has room. A request that comes back brings its rules."""
        used = set(self.number.tolist())
        for name, number in list(self._numbers.items()):
            if len(self._numbers) < _PLANS and self._named + len(coming) <= _PLAN_TEXT:
                return
            if number not in used:
                gone = self.ruled.pop(number)
                del self._numbers[name]
                self._named -= len(name)
                self.rules.drop(gone.rule)
                if all(ruled.group is not gone.group for ruled in self.ruled.values()):
                    del self._groups[gone.kind]

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
        Begin completions.

        `keys` are (seed, generation, sample), `lengths` the lengths of the prompts, `limits` the caps of the completions, and
        `closed` whether each prompt has closed its thought.
        """
        index = self.on_device(slots)
        closed = [False] * len(slots) if closed is None else closed
        columns = self.on_device(
            [[*key, *numbers] for key, *numbers in zip(keys, lengths, limits, map(int, closed), strict=True)]
        )
        seed, generation, sample, length, limit, answers = columns.unbind(-1)
        rule = self.on_device([self.ruled[int(number)].rule for number in numbers])
        begin(
            self.blocks, index, seed=seed, generation=generation, sample=sample, rule=rule, prompt_length=length, limit=limit,
            thinking=answers == 0,
        )  # fmt: skip
        self.number[list(slots)], self.drawn[list(slots)] = list(numbers), 0

    def see(self, slot: int, tokens: Sequence[int]) -> None:
        """Note the tokens of a slot so far, if it has a repetition penalty."""
        if self.ruled[int(self.number[slot])].plan.repetition_penalty == 1.0:
            return
        if self.seen is None:
            self.seen = torch.zeros(1 + len(self.number), self.vocab_size, dtype=torch.bool, device=self.device)
        self.seen[slot] = False
        self.seen[slot, self.on_device(tokens)] = True

    def park(self, slot: int, to: torch.device | str | None = None) -> Parked:
        """The state of a slot's completion in its own memory. The copy to the device `to` runs in the stream."""
        drawn = min(int(self.drawn[slot]), self.length)
        group = self.ruled[int(self.number[slot])].group
        rows = [self.blocks[name][slot, :drawn] for name in _STEPWISE]
        rows.append(self.arena[slot, :drawn, : group.layout.width])
        rows += [self.blocks[name][slot] for name in ("numbers", "flags")]
        rows += [block[slot] for block in self.undo.values()]
        pieces = []
        for row, of in zip(group.schema, rows, strict=True):
            piece = of.reshape(-1).view(torch.uint8)
            pieces += [piece, self._nothing[: row.size(drawn) - len(piece)]]
        memory = torch.cat(pieces)
        if self.device.type == "cuda" and to is not None and torch.device(to).type == "cpu":
            pinned = torch.empty(memory.shape, dtype=torch.uint8, pin_memory=True)
            memory = pinned.copy_(memory, non_blocking=True)
        elif to is not None:
            memory = memory.to(to)
        return Parked(drawn, group.thought.name, group.layout, group.schema, memory)

    def _schema(self, layout: Layout) -> tuple[Row, ...]:
        """The rows that `park` takes from a slot with this layout."""
        if layout not in self._schemas:
            blocks = {name: (self.blocks[name], True) for name in _STEPWISE}
            blocks["arena"] = (self.arena[:, :, : layout.width], True)
            blocks |= {name: (self.blocks[name], False) for name in ("numbers", "flags")}
            blocks |= {f"undo_{name}": (block, False) for name, block in self.undo.items()}
            self._schemas[layout] = tuple(
                Row(name, block.dtype, tuple(block.shape[2 if stepwise else 1 :]), stepwise)
                for name, (block, stepwise) in blocks.items()
            )
        return self._schemas[layout]

    def clear(self, slot: int) -> None:
        """Mark a slot as empty."""
        self.number[slot] = self.drawn[slot] = 0

    def restore(self, slot: int, number: int, parked: Parked, drawn: int) -> None:
        """
        Continue a parked completion under a plan, after its first `drawn` tokens. Later steps are drawn again, with the same
        result, because noise is keyed.
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
        for name, block in self.undo.items():
            block[slot] = rows[f"undo_{name}"]
            taken_back = drawn < parked.drawn
            self.blocks[name][slot] = rows[f"undo_{name}"][drawn % UNDO] if taken_back else rows[name]
        self.columns.rule[slot] = self.ruled[number].rule  # a plan that was made again may have another row
        self.number[slot], self.drawn[slot] = number, drawn

    # Steps

    def step(self, number: int, slots: np.ndarray, index: torch.Tensor, logits: DenseLogits) -> torch.Tensor:
        """
        Draw the next token or thought of some slots, whose plans are all of one kind.

        `number` is the plan of one of them. `index` is `slots` on the device. `logits` has N rows.

        Returns:
            (N,) int64: the tokens to write down. For a finished completion this is its end of sequence.
        """
        self.drawn[slots] += 1
        return self.draw(self.ruled[number].group, index, logits)

    def draw(self, group: Group, index: torch.Tensor, logits: DenseLogits) -> torch.Tensor:
        """`step` without the host's count of steps, for plans of one group."""
        rows = Rows(self.blocks, index, self.undo, self.seen if group.steps.penalised else None)
        noise = KeyedNoise(rows["seed"], rows["generation"], rows["sample"], rows["t"])
        return group.steps(rows, logits, noise, group.room, self.every_row)

    def memory(self, group: Group) -> tuple:
        """The memory that `draw` reads for a group and that may move: where it lies now."""
        return self.rules.memory(), None if self.seen is None else self.seen.data_ptr()

    def feed(
        self,
        number: int,
        index: torch.Tensor,
        rows: torch.Tensor,
        position: torch.Tensor,
        lookup,
        target: torch.Tensor,
    ) -> None:
        """
        Replace the embeddings of tokens by those of thoughts, where the record has a thought.

        Args:
            number (`int`): a plan that is fed as those of all N slots are.
            index, rows (`torch.Tensor` of shape `(N,)`, int64): slots, and which of the T tokens of a batch are theirs.
            position (`torch.Tensor` of shape `(T,)`): of the tokens in their texts.
            lookup (`Table`): the embedding table.
            target (`torch.Tensor` of shape `(T, H)`): embeddings of the tokens. Those of thoughts are replaced.
        """
        group = self.ruled[number].group
        column, mask = book.thoughts_at(self.blocks, index, position, rows)
        lookup.feed(group.thought, self._read(group, index, column, mask), mask, rows, target)

    @staticmethod
    def _read(group: Group, index: torch.Tensor, t: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """What `embed` reads of the actions at some places; zeros outside a mask, where other bytes may lie."""
        names = group.thought.fed
        return dict(zip(names, book.take([group.action[name] for name in names], index, t, mask), strict=True))

    def candidates(self, number: int, index: torch.Tensor, logits: DenseLogits, tokens: torch.Tensor, count: int):
        """
        The candidates of the latest step of rows of one kind, for `logprobs`: ids and logarithms (N, 1 + count). The written
        token comes first.

        A thought has its candidates and their weights. An answer has its most likely tokens. A forced token, and a thought
        without candidates, has only the token, with its log-probability as drawn. Missing entries repeat the token.
        """
        group = self.ruled[number].group
        thought, answer = group.thought, group.steps.answer
        t = (self.columns.t[index] - 1).clamp(0, self.length - 1)
        own = self.columns.log_probs[index, t].unsqueeze(-1)  # (N, 1)
        log_p, ids = own[:, :0], tokens.unsqueeze(-1)[:, :0]
        if count:
            log_p, ids = logits.log_softmax(answer.temperature or 1.0).topk(min(count, self.vocab_size), -1)
        forced = self.columns.forced_mask[index, t].unsqueeze(-1)
        ids, log_p = torch.where(forced, tokens.unsqueeze(-1), ids), torch.where(forced, own, log_p)
        thoughts = self.columns.thinking_mask[index, t].unsqueeze(-1)
        if not thought.is_token:
            action = self._read(group, index, t, thoughts.squeeze(-1))
            weights = thought.weights(action)
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

    def on_device(self, values) -> torch.Tensor:
        """Numbers of the host as an int64 tensor on the device."""
        made = torch.as_tensor(values, dtype=torch.long)
        made = made.pin_memory() if self.device.type == "cuda" else made
        return made.to(self.device, non_blocking=True)
