# SPDX-License-Identifier: Apache-2.0
"""What a step of a rollout asks of a device beside the model: counted, not timed, and on no device.

    python benchmarks/steps.py [--rows 64] [--vocabulary 151936] [--hidden 1536]

Every tensor is of torch's meta device: shapes and types without memory, so that any size is counted in milliseconds. A step is
what a captured graph holds: all rows are computed, thoughts and answers alike. For every thought, with plain torch and with
the Triton kernels, by phase,

    feed     what turns the last step's thoughts into the model's inputs        sample   draws and scores thoughts
    answer   draws and scores answers                                           record   all else: what a step writes down

and for each phase

    operations   kernels that are launched: torch's operations, views left out, and ours
    host_reads   operations that wait for the device
    megabytes    read and written by them
    logits       megabytes of numbers as many as the logits at least, in multiples of the logits'; tables left out

Prints one JSON object last.
"""

import os


os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.ends import Never, ends_with
from trl_soft import ThinkingSettings, kernels
from trl_soft.rollout import Key, StopRule
from trl_soft.rollout.interface import Plan
from trl_soft.rollout.matcher import looked_up
from trl_soft.rollout.slots import Slots
from trl_soft.rollout.vllm.layout import layout_of
from trl_soft.rollout.vllm.members import Members
from trl_soft.rollout.vllm.pool import Pool
from trl_soft.rollout.vllm.served_table import ServedLogits, Table
from trl_soft.thoughts import Hard
from trl_soft.vocabulary.embedding_table import Lookup
from trl_soft.vocabulary.head_logits import DenseLogits, transformed


META = torch.device("meta")
PHASES = ("feed", "sample", "answer", "record")
CASES: dict[str, dict] = {
    "hard": {"thought": "hard"},
    "hard-topk-topp": {"thought": "hard", "thinking_top_k": 20, "thinking_top_p": 0.95},
    "soft": {"thought": "soft"},
    "gumbel": {"thought": "gumbel"},
    "gumbel-text": {"thought": "gumbel", "end_of_thinking": "The final answer is"},
    "gumbel-concrete": {"thought": "gumbel", "gumbel_density": "concrete"},
    "gumbel-softgrpo": {"thought": "gumbel", "gumbel_density": "softgrpo"},
    "gaussian": {"thought": "gaussian"},
    "gaussian-hidden": {"thought": "gaussian", "noise_placement": "hidden"},
    "gaussian-logits": {"thought": "gaussian", "noise_placement": "logits", "noise_scale": 1.0},
    "gaussian-probabilities": {"thought": "gaussian", "noise_placement": "probabilities"},
    "dirichlet": {"thought": "dirichlet"},
    "mixture": {"thought": "mixture"},
    "multiplex": {"thought": "multiplex"},
    "neighbour": {"thought": "neighbour"},
    "latent": {"thought": "latent"},
}
# Answers that plain torch draws on CUDA too, beside a gumbel thought.
ANSWERS: dict[str, dict] = {
    "answers with top-p": {"top_p": 0.95},
    "answers with min-p": {"min_p": 0.05},
    "answers with a repetition penalty": {"repetition_penalty": 1.1},
    "answers with top-k 200": {"top_k": 200},
}
# Operations that read as much of their first operand as they return, and that write as much of it as they are given.
_PICKS = {"gather", "index", "index_select", "embedding"}
_PUTS = {"index_put_", "scatter_", "scatter", "index_copy_", "index_add_", "_index_put_impl_"}
_FILLS = {
    "zeros",
    "empty",
    "full",
    "arange",
    "new_zeros",
    "new_empty",
    "zeros_like",
    "empty_like",
    "ones_like",
    "fill_",
    "zero_",
}
# Memory, and numbers of the host.
_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "scalar_tensor", "promote_types"}
# Kernels of ours that read all logits.
_WHOLE = {"_blocks", "_softmax"}
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "item", "equal", "is_nonzero"}
_READERS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "to_list"}


class Counts(dict):
    """Figures by phase."""

    def __init__(self):
        super().__init__(
            {phase: {"operations": 0, "kernels": 0, "host_reads": 0, "bytes": 0, "logits": 0} for phase in PHASES}
        )

    def total(self, figure: str, phases=PHASES) -> int:
        return sum(self[phase][figure] for phase in phases)


class Counter(TorchDispatchMode):
    """
    Args:
        numbers (`int`): N x V. tables: tensors that are as large and no logits.
    """

    def __init__(self, numbers: int, tables=()):
        super().__init__()
        self.counts, self.phase, self.numbers = Counts(), "record", numbers
        self.tables = {table.untyped_storage()._cdata for table in tables}

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def around(self, function: Callable, phase: str) -> Callable:
        def counted(*args, **kwargs):
            with self.within(phase):
                return function(*args, **kwargs)

        return counted

    def launched(self, name: str, moved: int) -> None:
        """A kernel of ours."""
        here = self.counts[self.phase]
        here["operations"] += 1
        here["kernels"] += 1
        here["bytes"] += moved
        here["logits"] += moved if name in _WHOLE else 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if view or name in _FREE:
            return out
        here = self.counts[self.phase]
        here["operations"] += 1
        masks = name in ("index", "index_put_", "index_put", "_index_put_impl_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        here["host_reads"] += name in _READS or masks
        moved, logits = self._moved(name, args, kwargs or {}, out)
        here["bytes"] += moved
        here["logits"] += logits
        return out

    def _moved(self, name: str, args, kwargs, out) -> tuple[int, int]:
        """Bytes read and written, and those of tensors as large as the logits."""
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if name in _FILLS:
            read = []
        elif name in _PICKS:
            read = [*read[1:], *written]
        elif name in _PUTS:
            read = read[1:]
            written = read[-1:]
        tensors = read + written
        large = [x for x in tensors if x.numel() >= self.numbers and x.untyped_storage()._cdata not in self.tables]
        return sum(map(_bytes, tensors)), sum(map(_bytes, large))


def _bytes(x: torch.Tensor) -> int:
    """Of the numbers in memory, of which an expanded tensor has fewer than entries."""
    entries = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        entries *= size if stride else 1
    return entries * x.element_size()


class Readers(TorchFunctionMode):
    """Methods that bring a tensor to the host; on the meta device, which has no numbers, most of them are errors."""

    def __init__(self, counter: Counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in _READERS:
            self.counter.counts[self.counter.phase]["host_reads"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(counter: Counter) -> Iterator[None]:
    kernels.watchers.append(counter.launched)
    try:
        with counter, Readers(counter):
            yield
    finally:
        kernels.watchers.remove(counter.launched)


def _stop(settings: dict, cap: int) -> StopRule:
    """Thoughts end by a text, where one is set, and by their cap."""
    end: Any = ends_with(settings["end_of_thinking"]) if "end_of_thinking" in settings else Never()
    return StopRule(end, cap)


def _nearest(thought, vocabulary: int) -> torch.Tensor | None:
    """The neighbours of tokens, which are there before the first step."""
    return torch.empty(vocabulary, thought.neighbours, dtype=torch.int32, device=META) if thought.neighbours else None


def in_process(settings: dict, rows: int, vocabulary: int, hidden: int, answers: dict | None = None) -> Counts:
    """A step of `rollout_engine: slots`, and the feeding of the next. `answers`: top-k, top-p, min-p, `repetition_penalty`."""
    answers = dict(answers or {})
    penalty = answers.pop("repetition_penalty", 1.0)
    thought = ThinkingSettings(**settings).make_thought(Hard(), table_rms=0.02)
    stop = _stop(settings, 100)
    plan = Plan(
        thought,
        Hard(**answers),
        stop,
        max_completion_length=128,
        eos_token_ids=[2],
        pad_token_id=0,
        repetition_penalty=penalty,
    )
    slots = Slots(rows, plan, Key(1, 0, torch.arange(rows)), vocabulary, META)
    slots.admit(list(range(rows)), list(range(rows)), [[5, 6]] * rows, [128] * rows)
    embedding = nn.Embedding(vocabulary, hidden, device=META, dtype=torch.bfloat16).requires_grad_(False)
    table = embedding.weight if kernels.fused(META) else embedding.weight.float()
    states = torch.empty(rows, hidden, device=META, dtype=torch.bfloat16)
    z = torch.empty(rows, vocabulary, device=META, dtype=torch.bfloat16)

    def view() -> DenseLogits:
        # As the engine has it: the model's head once more, in float32.
        head = {
            "hidden": states,
            "project": lambda h: transformed(nn.functional.linear(h, embedding.weight).float(), 1.0, None),
            "nearest": _nearest(thought, vocabulary),
        }
        return DenseLogits(z, table if thought.mixes_vocabulary else None, 1.0, torch.bfloat16, **head)

    def feed() -> None:
        ids, record = slots.fed(rows, slots.position(rows))
        if record is not None:
            record.feed(ids, states.unsqueeze(1), Lookup(embedding))  # the embedding of ids is the model's

    return _counted_step(thought, plan.answer, lambda: slots.advance(rows, view(), every_row=True), feed, z, table)


def vllm(settings: dict | list[dict], rows: int, vocabulary: int, hidden: int) -> Counts:
    """
    A step of the plugin's pool and the feeding of the next, as vLLM's sampler and model state have them; vLLM's own launches are not
    counted. Of several settings, row i is under the i-th.
    """
    several = settings if isinstance(settings, list) else [settings]
    pool = Pool(rows, 128, 4 * hidden, vocabulary, META)
    numbers = []
    for i, some in enumerate(several):
        own = {"max_thinking_length": 100, **some}
        thought = ThinkingSettings(**own).make_thought(Hard(), table_rms=0.02)
        stop = _stop(own, own["max_thinking_length"])
        plan = Plan(thought, Hard(), stop, max_completion_length=128, eos_token_ids=[2], pad_token_id=0)
        with kernels.plain():
            layout = layout_of(thought, 256, hidden, torch.bfloat16)
        numbers.append(pool.add(str(i), looked_up(plan, vocabulary), layout))
    of = [numbers[i % len(numbers)] for i in range(rows)]
    pool.admit(range(rows), of, [(3, 0, i) for i in range(rows)], [2] * rows, [128] * rows)
    weight = torch.empty(vocabulary, hidden, device=META, dtype=torch.bfloat16)
    states = torch.empty(rows, hidden, device=META, dtype=torch.bfloat16)
    z = torch.empty(rows, vocabulary, device=META, dtype=torch.bfloat16)
    table, every = Table(lambda: weight, 0, vocabulary), torch.arange(rows, device=META)
    positions = torch.full((rows,), 2, device=META)
    members, slots, draws = Members(pool), np.arange(rows), np.ones(rows, dtype=bool)

    def step() -> None:
        for member in members.of(slots, draws).drawn:
            rows_of = z[member.rows]
            thought = pool.ruled[member.number].plan.thought
            head = (
                {"hidden": states[member.rows], "project": functools.partial(nn.functional.linear, weight=weight)}
                if thought.needs_hidden
                else {"nearest": _nearest(thought, vocabulary)}
            )
            pool.step(member.number, member.slots, member.index, ServedLogits(rows_of, table, torch.bfloat16, **head))

    def feed() -> None:
        for member in members.of(slots, draws).fed:
            rows_of = every if isinstance(member.rows, slice) else member.rows
            pool.feed(member.number, member.index, rows_of, positions, table, states)

    first = pool.ruled[numbers[0]].plan
    return _counted_step(first.thought, first.answer, step, feed, z, weight)


def _counted_step(thought, answer, step: Callable[[], Any], feed: Callable[[], Any], z, table) -> Counts:
    """The second step; the first makes the memory of its actions."""
    step()
    counter = Counter(z.numel(), [table])
    names = ("sample", "close", "score", "sample_and_score")
    for who, phase in ((thought, "sample"), (answer, "answer")):
        for name in filter(functools.partial(hasattr, who), names):
            setattr(who, name, counter.around(getattr(who, name), phase))
    with torch.no_grad(), counted(counter):
        with counter.within("feed"):
            feed()
        step()
    for who in (thought, answer):
        for name in set(names) & vars(who).keys():
            delattr(who, name)
    return counter.counts


# Each takes (settings, rows, vocabulary, hidden size).
ENGINES: dict[str, Callable[..., Counts]] = {"in_process": in_process, "vllm": vllm}
# Several settings in a batch of vLLM's: that share a thought, and that do not.
BATCHES: dict[str, list[dict]] = {
    "sixteen plans of a gumbel thought": [{"max_thinking_length": 50 + i} for i in range(16)],
    "gumbel, hard and gaussian": [CASES["gumbel"], CASES["hard"], CASES["gaussian"]],
}


def figures(counts: Counts, logits_bytes: int) -> dict:
    """For people: megabytes, multiples of the logits."""
    made = {}
    for phase in (*PHASES, "step"):
        of = {name: counts.total(name) if phase == "step" else counts[phase][name] for name in counts[PHASES[0]]}
        made[phase] = {
            "operations": of["operations"],
            "kernels": of["kernels"],
            "host_reads": of["host_reads"],
            "megabytes": round(of["bytes"] / 1e6, 3),
            "logits": round(of["logits"] / logits_bytes, 2),
        }
    return made


def count(engine: str, case: str, way: str, rows: int, vocabulary: int, hidden: int) -> Counts:
    """`way` is `plain` or `kernels`."""
    with kernels.plain() if way == "plain" else kernels.interpreted():
        if case in ANSWERS:
            return in_process(CASES["gumbel"], rows, vocabulary, hidden, ANSWERS[case])
        return ENGINES[engine](CASES[case] if case in CASES else BATCHES[case], rows, vocabulary, hidden)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1536)
    sizes = vars(parser.parse_args())
    logits_bytes = sizes["rows"] * sizes["vocabulary"] * 2
    result: dict = {"sizes": sizes}
    for engine in ENGINES:
        result[engine] = {
            case: {way: figures(count(engine, case, way, **sizes), logits_bytes) for way in ("plain", "kernels")}
            for case in (*CASES, *(BATCHES if engine == "vllm" else ANSWERS))
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
