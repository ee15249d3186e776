# SPDX-License-Identifier: Apache-2.0
"""The plugin's part of a step as CUDA graphs: the host launches one graph in place of some tens of kernels.

A step that embeds the tokens of a batch, feeds thoughts or draws for rows of one kind is captured when it comes for the third
time, for one of the sizes of batch that vLLM captures. A graph reads and writes the memory that it was captured with: the pool,
the rules, vLLM's buffers of a batch, and the inputs that this module owns. If some of that memory moves, another graph is made.

A batch has fewer rows than its size. The other rows of a graph stand for a slot without a request (`Pool.spare`), which draws
nothing and feeds nothing.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .members import Member
from .pool import Group, Pool
from .served_table import ServedLogits, Table


# Steps that come before a graph is made.
_ORDINARY = 2
# Graphs, and steps that wait for one. The least recent is dropped.
_MOST = 512

Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]


def cuda_recorder() -> Recorder:
    """
    A function that captures calls as CUDA graphs, all in one pool of memory.

    It takes a function, calls it twice, and captures the second call. The first compiles what the second launches, so the function
    must be without effect twice over. It returns the replay, and what the captured call returned: memory that a replay writes.
    """
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(launch: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        # `torch.cuda.graph` would also empty the cache of the allocator and collect garbage, which takes longer than many steps.
        with torch.cuda.stream(stream):
            launch()
            # Other threads of the engine copy results meanwhile. Only this thread's calls are captured.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                made = launch()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph.replay, made

    return record


@dataclass
class _Graph:
    """
    A captured step.

    Args:
        replay, made: see `cuda_recorder`.
        index (`torch.Tensor` of shape `(size,)`, int64): the slots of its rows. rows: the places of the rows in the batch, for a graph
            that feeds.
        group: whose step it is. It is kept, so that no other group gets its identity.
        member: the rows that `index` and `rows` hold at present.
    """

    replay: Callable[[], None]
    made: Any
    index: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    group: Group | None = None
    member: Member | None = None


class Graphs:
    """
    Args:
        pool (`Pool`), table (`Table`): what steps read and write.
        sizes (`Sequence[int]`): sizes of batch that are captured.
        dtype (`torch.dtype`): of the model's logits.
        embed: a function from token ids (T,) to embeddings (T, H).
        target (`torch.Tensor` of shape `(> T, H)`): where embeddings go. The last row is no token's: rows that a batch lacks write it.
        record (`Recorder`): what captures a step.

    Attributes:
        made (`int`): graphs that were made.
    """

    def __init__(
        self,
        pool: Pool,
        table: Table,
        sizes: Sequence[int],
        dtype: torch.dtype,
        embed: Callable[[torch.Tensor], torch.Tensor],
        target: torch.Tensor,
        record: Recorder,
    ):
        count = len(pool.number)
        sizes = sorted(set(sizes))
        self.sizes = sizes[: bisect_left(sizes, count) + 1]
        self.pool, self.table, self.embeds, self.target, self.record = pool, table, embed, target, record
        # Made at once, because vLLM gives the memory that is left to its KV cache.
        most = self.sizes[-1] if self.sizes else 0
        self.logits = torch.zeros(most, pool.vocab_size, dtype=dtype, device=pool.device)
        self.hidden: torch.Tensor | None = None
        self._every = torch.arange(most, device=pool.device)
        self.position = torch.zeros(len(target), dtype=torch.long, device=pool.device)
        self.made = 0
        self._known: OrderedDict[tuple, int | _Graph] = OrderedDict()

    def size_of(self, count: int) -> int | None:
        """The smallest size for so many rows."""
        at = bisect_left(self.sizes, count)
        return self.sizes[at] if at < len(self.sizes) else None

    def _graph(self, key: tuple, make: Callable[[], _Graph]) -> _Graph | None:
        """The graph of a step, if it came often enough."""
        known = self._known.get(key, 0)
        if isinstance(known, int):
            if known < _ORDINARY:
                known += 1
            else:
                known, self.made = self._made(make), self.made + 1
            self._known[key] = known
        self._known.move_to_end(key)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return known if isinstance(known, _Graph) else None

    @staticmethod
    def _made(make: Callable[[], _Graph]) -> _Graph:
        try:
            return make()
        except RuntimeError as error:
            raise RuntimeError(
                "The plugin's part of a step cannot be captured in a CUDA graph: something in it waits for the device, or memory is "
                "short. Start the engine with `enforce_eager`, or leave it more memory (`gpu_memory_utilization`)."
            ) from error

    def _captured(self, group: Group, size: int, launch: Callable[[torch.Tensor], Any]) -> _Graph:
        """Capture a function of the slots (size,) of its rows. While it is captured, they are all the spare slot."""
        index = torch.full((size,), self.pool.spare, dtype=torch.long, device=self.pool.device)
        replay, made = self.record(lambda: launch(index))
        return _Graph(replay, made, index, group=group)

    def _fill(self, graph: _Graph, member: Member) -> None:
        """Put the rows of a member into a graph's inputs. Consecutive steps often have the same."""
        if graph.member is member:
            return
        assert graph.index is not None
        count = len(member.slots)
        graph.index[count:] = self.pool.spare
        graph.index[:count] = member.index
        if graph.rows is not None:
            graph.rows[count:] = len(self.target) - 1
            graph.rows[:count] = self._every[:count] if isinstance(member.rows, slice) else member.rows
        graph.member = member

    # Steps

    def embed(self, ids: torch.Tensor) -> bool:
        """Write the embeddings of tokens `ids` (T,) into the first T rows of the target. Returns False if that is not captured."""
        size = len(ids)
        if self.size_of(size) != size:
            return False

        def launch() -> None:
            self.target[:size].copy_(self.embeds(ids))

        key = "embed", size, _place(ids), _place(self.table.weight())
        graph = self._graph(key, lambda: _Graph(*self.record(launch)))
        if graph is None:
            return False
        graph.replay()
        return True

    def feed(self, member: Member, position: torch.Tensor) -> bool:
        """
        `Pool.feed` for the rows of a member in a batch of one token for each request, `position` (T,). Returns False if that is not
        captured.
        """
        size = self.size_of(len(member.slots))
        if size is None:
            return False
        group = self.pool.ruled[member.number].group

        def make() -> _Graph:
            rows = torch.full((size,), len(self.target) - 1, dtype=torch.long, device=self.pool.device)

            def launch(index: torch.Tensor) -> None:
                self.pool.feed(member.number, index, rows, self.position, self.table, self.target)

            graph = self._captured(group, size, launch)
            graph.rows = rows
            return graph

        graph = self._graph(("feed", size, id(group), _place(self.table.weight())), make)
        if graph is None:
            return False
        self._fill(graph, member)
        self.position[: len(position)].copy_(position)
        graph.replay()
        return True

    def draw(self, logits: torch.Tensor, member: Member, hidden, project, nearest) -> torch.Tensor | None:
        """
        `Pool.step` for the rows of a member, of `logits` (N, V) and, if its thought needs them, of `hidden` (N, H).

        Returns:
            The tokens of the rows. `None` if that is not captured.
        """
        count = len(member.slots)
        size = self.size_of(count)
        if size is None:
            return None
        group = self.pool.ruled[member.number].group
        if logits.dtype != self.logits.dtype or logits.size(1) != self.logits.size(1):
            self.logits = logits.new_zeros(self.sizes[-1], logits.size(1))
        if hidden is not None and self.hidden is None:
            self.hidden = hidden.new_zeros(self.sizes[-1], hidden.size(1))
        kept = None if hidden is None else self.hidden

        def launch(index: torch.Tensor) -> torch.Tensor:
            part = None if kept is None else kept[:size]
            view = ServedLogits(self.logits[:size], self.table, self.target.dtype, part, project, nearest)
            return self.pool.draw(group, index, view)

        places = [_place(x) for x in (self.logits, self.table.weight(), kept, nearest) if x is not None]
        key = "draw", size, id(group), self.pool.memory(group), *places
        graph = self._graph(key, lambda: self._captured(group, size, launch))
        if graph is None:
            return None
        self.pool.drawn[member.slots] += 1
        self._fill(graph, member)
        _take(logits, member.rows, self.logits[:count])
        if kept is not None:
            _take(hidden, member.rows, kept[:count])
        graph.replay()
        # vLLM copies the tokens to the host while the next step runs, and that step may write here again.
        return graph.made[:count].clone()


def _place(tensor: torch.Tensor) -> tuple:
    """Where a tensor lies, and its form."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _take(source: torch.Tensor, rows: slice | torch.Tensor, target: torch.Tensor) -> None:
    if isinstance(rows, slice):
        target.copy_(source)
    else:
        torch.index_select(source, 0, rows, out=target)
