# SPDX-License-Identifier: Apache-2.0
"""The engine `slots` on a plain Hugging Face model: slots are refilled, and a step never waits for the device.

    queue -> slot     a prompt is read once for all its completions, longest prompts first
    step              mixture -> model -> head -> candidates -> thought -> record, for all slots at once, written in place
    slot -> result    finished completions leave every few steps, and the next samples take their slots

A slot is the place of one completion, and is as long as the tokens of this completion (`cache.py`). If the slots grow beyond
the budget of the cache, the youngest samples go back to the queue. Later they are read again from their records, with their
thoughts. Noise is keyed, so none of this changes a completion.
"""

import inspect
import os
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from transformers.utils import logging

from ..record import SoftTokens
from .cache import SlotCache, probe, slots_attended
from .dropout import evaluating
from .interface import EngineOptions, Key, Parts, Plan, Rollout
from .model_head import ModelHead
from .slots import Kept, Slots


logger = logging.get_logger(__name__)
_GROWTH = 1.5
_ROUND = 64


@torch.no_grad()
def slots(model, prompts: Sequence[Sequence[int]], plan: Plan, key: Key, options: EngineOptions) -> Parts:
    """The engine `slots`. See `trl_soft.rollout.interface`."""
    if not prompts:
        return
    run = _Run(model, [list(prompt) for prompt in prompts], plan, key, options)
    while run.queue or run.busy:
        # While a generator waits, its consumer may use the model. So nothing is yielded inside the block.
        with run.attached():
            run.admit()
            run.make_room()
            for _ in range(run.check_every):
                run.step()
            run.slots.tell(options.watch, run.owner)
            finished = run.collect()
        if finished is not None:
            yield finished


class _Run:
    """One rollout: the queue, the slots, and the host's state of them."""

    def __init__(self, model, prompts, plan: Plan, key: Key, options: EngineOptions):
        self.model, self.prompts, self.plan, self.key, self.options = model, prompts, plan, key, options
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.device = self.base.device
        self.limits = options.limits(len(prompts), plan)
        waits = options.watch is not None or self.device.type != "cuda"
        self.check_every = options.check_every or (1 if waits else 8)
        self.captures = options.cuda_graphs and self.device.type == "cuda"
        # Equal prompts are next to each other, the longest first.
        ids: dict[tuple, int] = {}
        self.prompt_of = [ids.setdefault(tuple(prompt), len(ids)) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), self.prompt_of[i]))
        # Numbers of prompts, with the state of a completion that went back to the queue.
        self.queue: deque[tuple[int, Kept | None]] = deque((number, None) for number in order)

        with evaluating(model):
            shapes, dtype = probe(model, prompts[0][-1])
        longest = max(len(prompt) + limit for prompt, limit in zip(prompts, self.limits, strict=True))
        count, length = self._sizes(shapes, dtype, min(options.slots, len(prompts)), longest)
        self.longest = longest
        self.cache = SlotCache(shapes, count, length, dtype, self.device)
        self.slots = Slots(count, plan, key, self.base.config.get_text_config().vocab_size, self.device)
        self.owner: list[int | None] = [None] * count  # number of the prompt in each slot
        self.resident: list[int | None] = [None] * count  # the prompt whose keys and values a slot begins with
        self.reached = [0] * count  # at most this many tokens are in a slot's cache
        self.size = count  # slots that take part in a step
        self.keeps_logits = "logits_to_keep" in inspect.signature(self.base.forward).parameters
        self.head = ModelHead(self.base, plan.thought)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.warm: dict[int, int] = {}  # eager steps of each size, before it is captured
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        if self.device.type == "cuda" and not self.captures:
            logger.warning_once("`rollout_cuda_graphs` is false: every step is launched kernel by kernel.")
        context = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and longest > context:
            logger.warning_once(
                f"A prompt and its completion may have {longest} tokens but {type(self.base).__name__} was made for "
                f"{context} (`max_position_embeddings`)."
            )

    def _sizes(self, shapes, dtype, count: int, longest: int) -> tuple[int, int]:
        """Number and length of the slots that fit into the budget."""
        per_token = sum(a * b + c * d for a, b, c, d in shapes) * dtype.itemsize
        gb = self.options.cache_gb
        budget = int(gb * 1e9) if gb is not None else free_memory(self.device) // 2
        self.affordable = budget // per_token  # tokens, over all slots
        if longest > self.affordable:
            raise ValueError(
                f"The longest prompt and its completion take {longest} tokens of {per_token} bytes, "
                f"{longest * per_token / 1e9:.3g} GB of keys and values, but the rollout's cache may have "
                f"{budget / 1e9:.3g} GB. Raise `rollout_cache_gb` (`cache_gb` in `soft_generate`), or shorten the prompt "
                "or `max_completion_length`."
            )
        if count * longest <= self.affordable:
            return count, longest
        # Slots as long as the budget allows, but long enough for the longest prompt and a part of its completion.
        shortest = min(max(map(len, self.prompts)) + _ROUND, longest)
        length = max(self.affordable // count, shortest)
        return min(count, self.affordable // length), min(length, longest)

    def attached(self) -> ExitStack:
        """Inside the stack the model runs without dropout, attends to the slots, and keeps hidden states if a thought needs them."""
        stack = ExitStack()
        stack.enter_context(evaluating(self.model))
        stack.enter_context(slots_attended(self.base, self.cache))
        stack.enter_context(self.head.watched())
        return stack

    @property
    def busy(self) -> bool:
        return any(owner is not None for owner in self.owner)

    # From the queue into slots

    def admit(self) -> None:
        """Fill free slots, and read each prompt once. If the queue is empty, move the occupied slots together."""
        if not self.queue and not self.options.static:
            self._close_ranks()
        free = [slot for slot, owner in enumerate(self.owner) if owner is None]
        if not free or not self.queue or (self.options.static and self.busy):
            return
        placed = []
        for number, kept in [self.queue.popleft() for _ in range(min(len(free), len(self.queue)))]:
            # A slot that already begins with this prompt needs no reading.
            same = (slot for slot in free if self.resident[slot] == self.prompt_of[number])
            slot = next(same, free[0])
            free.remove(slot)
            placed.append((slot, number, kept))
        self._read_prompts([(slot, number) for slot, number, _ in placed])
        for slot, number, kept in placed:
            drawn = 0 if kept is None else Slots.drawn(kept)
            self.owner[slot], self.reached[slot] = number, len(self.prompts[number]) - 1 + drawn
        self.slots.admit(
            [slot for slot, _, _ in placed],
            [number for _, number, _ in placed],
            [self.prompts[number] for _, number, _ in placed],
            [self.limits[number] for _, number, _ in placed],
        )
        for slot, number, kept in placed:
            if kept is not None:
                self.slots.restore(slot, kept)
                self._read_again(slot, number)
        self.size = self._bucket(1 + max(slot for slot, owner in enumerate(self.owner) if owner is not None))

    def _read_prompts(self, placed: list[tuple[int, int]]) -> None:
        """Read each prompt except its last token, which the first step feeds."""
        sources = {prompt: slot for slot, prompt in enumerate(self.resident) if prompt is not None}
        copies, unread = [], {}
        for slot, number in placed:
            prompt = self.prompt_of[number]
            if not self.options.share_prompts:
                unread[slot] = [(slot, number)]
            elif self.resident[slot] == prompt:
                continue
            elif prompt in sources:
                copies.append((sources[prompt], slot, number))
            else:
                unread.setdefault(prompt, []).append((slot, number))
        # Copies come before any reading, and the last copy first: a slot is a source only for slots that were filled after
        # it was given away.
        for source, slot, number in reversed(copies):
            self.cache.copy(source, torch.tensor([slot], device=self.device), len(self.prompts[number]) - 1)
        for slot, number in placed:
            self.resident[slot] = self.prompt_of[number]
        readers = sorted((group[0] for group in unread.values()), key=lambda reader: -len(self.prompts[reader[1]]))
        while readers:
            width = max(len(self.prompts[readers[0][1]]) - 1, 1)
            count = max(1, self.options.prefill_tokens // width)
            self._prefill([slot for slot, _ in readers[:count]], [self.prompts[n][:-1] for _, n in readers[:count]])
            readers = readers[count:]
        for (source, number), *others in unread.values():
            if others:
                targets = torch.tensor([slot for slot, _ in others], device=self.device)
                self.cache.copy(source, targets, len(self.prompts[number]) - 1)

    def _prefill(self, rows: list[int], prompts: list[list[int]], start: int = 0, record: SoftTokens | None = None):
        """Read `prompts` into the caches of `rows`, from column `start` on, in pieces of `prefill_tokens`."""
        width = max(map(len, prompts))
        if width == 0:
            return
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        ids = ids.to(self.device)
        index = torch.tensor(rows, device=self.device)
        piece = max(1, self.options.prefill_tokens // len(rows))
        for first in range(0, width, piece):
            part = ids[:, first : first + piece]
            columns = slice(start + first, start + first + part.size(1))
            self.cache.prefill(index, columns)
            soft: dict = {}
            if record is not None and columns.stop > start + 1:
                # The first column is the last token of the prompt. The record begins after it.
                tokens = slice(max(first - 1, 0), first - 1 + part.size(1))
                soft = {"soft_tokens": record.columns(tokens)}
            position = torch.arange(columns.start, columns.stop, device=self.device).expand(len(rows), -1)
            soft |= {"logits_to_keep": 1} if self.keeps_logits else {}
            self.model(input_ids=part, position_ids=position, past_key_values=self.cache, use_cache=True, **soft)

    def _read_again(self, slot: int, number: int) -> None:
        """Read a completion so far, except its last token, with its thoughts as they were fed."""
        drawn = self.reached[slot] - len(self.prompts[number]) + 1
        if drawn == 0:
            return
        record = None
        if drawn > 1 and not self.plan.thought.is_token:
            record = self.slots.record(slot, drawn - 1)
        shadow = self.slots.blocks["ids"][slot, : drawn - 1].tolist()
        self._prefill([slot], [self.prompts[number][-1:] + shadow], len(self.prompts[number]) - 1, record)

    # Steps

    def make_room(self) -> None:
        """Make the slots long enough for the next steps. If the budget is too small, keep fewer slots."""
        needed = max((r for r, owner in zip(self.reached, self.owner, strict=True) if owner is not None), default=0)
        needed = min(needed + self.check_every, self.longest)
        while needed > self.cache.length:
            length = min(max(int(self.cache.length * _GROWTH), needed), self.longest)
            count = min(self.cache.slots, self.affordable // length)
            occupied = [slot for slot, owner in enumerate(self.owner) if owner is not None]
            # The youngest lose least. Their draws are kept, and nothing is drawn again.
            age = {s: self.reached[s] - len(self.prompts[n]) for s, n in enumerate(self.owner) if n is not None}
            occupied.sort(key=lambda slot: -age[slot])
            for slot in reversed(occupied[count:]):
                number = self.owner[slot]
                assert number is not None
                self.queue.appendleft((number, self.slots.save(slot)))
                self.owner[slot] = self.resident[slot] = None
            keep = (
                occupied[:count] + [s for s in range(self.cache.slots) if s not in occupied][: count - len(occupied)]
            )
            self._rearrange(keep, length)
            needed = max((self.reached[s] for s, owner in enumerate(self.owner) if owner is not None), default=0)
            needed = min(needed + self.check_every, self.longest)

    def _rearrange(self, keep: list[int], length: int) -> None:
        index = torch.tensor(keep, device=self.device)
        self.cache.resize(index, length)
        self.slots.keep(index)
        self.owner, self.resident = ([values[slot] for slot in keep] for values in (self.owner, self.resident))
        self.reached = [self.reached[slot] for slot in keep]
        self.size = len(keep)
        self.graphs.clear()  # they read the old memory
        self.warm.clear()

    def step(self) -> None:
        """Draw one token or thought for every slot."""
        occupied = [r for r, owner in zip(self.reached, self.owner, strict=True) if owner is not None]
        reach = min(max(occupied) + 1, self.cache.length)
        self.reached = [min(reached + 1, self.cache.length) for reached in self.reached]
        if self.size in self.graphs:
            self.graphs[self.size].replay()
        elif not self.captures:
            self._step(reach)
        elif self.warm.get(self.size, 0) < 2:
            # Ordinary steps. The second is the first that feeds thoughts.
            self._step(self.cache.length)
            self.warm[self.size] = self.warm.get(self.size, 0) + 1
        else:
            self._capture()
            self.graphs[self.size].replay()

    def _capture(self) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                self._step(self.cache.length)
        except RuntimeError as error:
            raise RuntimeError(
                f"A step of {type(self.base).__name__} cannot be captured in a CUDA graph: something in it waits for the "
                "device. Set `rollout_cuda_graphs: false` (`cuda_graphs=False` in `soft_generate`)."
            ) from error
        self.graphs[self.size] = graph

    def _step(self, reach: int) -> None:
        position = self.slots.position(self.size)
        ids, record = self.slots.fed(self.size, position)
        position = position.clamp(max=self.cache.length - 1)
        self.cache.decode(self.size, position, reach)
        inputs = {"soft_tokens": record} if record is not None else {}
        output = self.model(
            input_ids=ids, position_ids=position.unsqueeze(-1), past_key_values=self.cache, use_cache=True, **inputs
        )
        self.slots.advance(self.size, self.head.logits(output.logits[:, -1]), every_row=self.captures)

    # Out of the slots

    def collect(self) -> tuple[list[int], Rollout] | None:
        """The finished completions, or `None`."""
        active = self.slots.all.active[: self.size].tolist()
        finished = [
            (slot, owner)
            for slot, owner in enumerate(self.owner[: self.size])
            if owner is not None and not active[slot]
        ]
        if not finished:
            return None
        part = self.slots.result([slot for slot, _ in finished])
        for slot, _ in finished:
            self.owner[slot] = None
        return [number for _, number in finished], part

    def _bucket(self, count: int) -> int:
        """Rows of a step for `count` slots: halves of all slots on CUDA, where each size is a graph."""
        if not self.captures:
            return count
        size = self.cache.slots
        while size % 2 == 0 and size // 2 >= count:
            size //= 2
        return size

    def _close_ranks(self) -> None:
        """Move the occupied slots to the front, so that a step has only these rows."""
        occupied = [slot for slot, owner in enumerate(self.owner) if owner is not None]
        size = self._bucket(len(occupied))
        if size == self.size:
            return
        holes = [slot for slot in range(size) if self.owner[slot] is None]
        tail = [slot for slot in occupied if slot >= size]
        if tail:
            holes = holes[: len(tail)]
            sources, targets = (torch.tensor(x, device=self.device) for x in (tail, holes))
            self.cache.move(sources, targets, max(self.reached[slot] for slot in tail))
            self.slots.move(sources, targets)
            for source, target in zip(tail, holes, strict=True):
                self.owner[target], self.resident[target] = self.owner[source], self.resident[source]
                self.reached[target] = self.reached[source]
                self.owner[source] = None
        self.size = size


def free_memory(device: torch.device) -> int:
    """Bytes that are free for a rollout, on the device or in the host's memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
