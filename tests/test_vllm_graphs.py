# SPDX-License-Identifier: Apache-2.0
"""The plugin's part of a step as graphs. A stand-in for CUDA's graphs calls the captured function again, on the same memory."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.test_vllm_parts import (
    STEPS,
    TABLE,
    THOUGHTS,
    H,
    assert_same,
    name,
    of_slots,
    plan,
    pool_of,
    read,
    served,
    whole,
)
from trl_soft.rollout.vllm.engine_support import why_not_captured
from trl_soft.rollout.vllm.graphs import Graphs
from trl_soft.rollout.vllm.members import Members
from trl_soft.vocabulary.neighbours import nearest_tokens


NEAREST = nearest_tokens(TABLE, 3)


class Recorder:
    """
    What `cuda_recorder` does, by plain calls.

    Attributes:
        replays (`list`): how often each capture ran again.
    """

    def __init__(self):
        self.replays: list[int] = []

    def __call__(self, launch):
        launch()
        made = launch()
        made = made if made is None else made.clone()
        number = len(self.replays)
        self.replays.append(0)

        def replay():
            self.replays[number] += 1
            result = launch()
            if made is not None:
                made.copy_(result)

        return replay, made


def graphs_of(pool, sizes=(1, 2, 4, 8), target=None):
    recorder = Recorder()
    target = torch.zeros(9, H) if target is None else target
    return recorder, Graphs(pool, whole(), sizes, torch.float32, lambda ids: TABLE[ids], target, recorder)


def close(ours, theirs):
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    torch.testing.assert_close(ours.record.action["embedding"], theirs.record.action["embedding"], rtol=0, atol=1e-6)
    # A density in 16 dimensions, with sigma of a third of the table's rms: 1e-6 becomes 1e-4 at most.
    torch.testing.assert_close(ours.record.log_probs, theirs.record.log_probs, rtol=0, atol=1e-4)


def step(graphs, pool, members, where: dict[int, int], t: int):
    """One step of rows in their slots, by graphs where there are some. Returns how many members a graph drew."""
    slots, rows = np.array(list(where.values())), list(where)
    view, drawn = served(rows, t), 0
    for member in members.of(slots, np.ones(len(slots), dtype=bool)).drawn:
        tokens = graphs.draw(view.logits, member, None, None, NEAREST)
        drawn += tokens is not None
        if tokens is None:
            tokens = pool.step(member.number, member.slots, member.index, view[member.rows])
        t_of = pool.columns.t[member.index] - 1
        assert torch.equal(tokens, pool.columns.ids[member.index, t_of])
    return drawn


@pytest.mark.parametrize("settings", THOUGHTS, ids=name)
def test_graphs_draw_what_slots_draw(settings):
    """Rows of two groups in any order. Some leave before the others, so that a graph of four rows draws three, then two."""
    made, other = (
        plan(settings | {"max_answer_length": STEPS}),
        plan({"thinking_top_k": 3, "max_answer_length": STEPS}),
    )
    pool, (number, of_other) = pool_of(made, other, every_row=True)
    recorder, graphs = graphs_of(pool, sizes=(1, 4, 8))
    where = {0: 6, 5: 3, 1: 2, 2: 4}
    pool.admit([6, 2, 4], [number] * 3, [(3, 0, 0), (3, 0, 1), (3, 0, 2)], [2] * 3, [STEPS] * 3)
    pool.admit([3], [of_other], [(3, 0, 5)], [2], [STEPS])
    members, drawn = Members(pool), []
    for t in range(STEPS):
        if t == STEPS - 5:
            before = copy.deepcopy({key: block[[2, 3]] for key, block in pool.blocks.items()})
            del where[1], where[5]
        # The order of a batch changes, as it does when a request leaves.
        order = list(where)[:: 1 if t < STEPS // 2 else -1]
        drawn.append(step(graphs, pool, members, {row: where[row] for row in order}, t))
    assert drawn == [0, 0, *[2] * (STEPS - 7), *[1] * 5]
    # A product with the table rounds otherwise for another number of rows. All else is equal to the last bit.
    same = close if made.thought.mixes_vocabulary else assert_same
    same(read(pool, [6, 4], made), of_slots(made, [0, 2]))
    assert all(torch.equal(block[[2, 3]], before[key]) for key, block in pool.blocks.items())
    assert pool.drawn[[6, 4]].tolist() == [STEPS] * 2 and pool.drawn[[2, 3]].tolist() == [STEPS - 5] * 2
    assert recorder.replays == [STEPS - 2, STEPS - 7]
    assert not pool.blocks["flags"][pool.spare].any() and not pool.blocks["masks"][pool.spare].any()


def test_graphs_feed_what_the_pool_feeds():
    made, other = plan({}), plan({"thought": "gaussian"})
    pool, (number, of_other) = pool_of(made, other)
    pool.admit([6, 2, 4], [number] * 3, [(3, 0, i) for i in range(3)], [2] * 3, [STEPS] * 3)
    pool.admit([3, 5], [of_other] * 2, [(3, 0, 5), (3, 0, 6)], [2] * 2, [STEPS] * 2)
    target, slots = torch.zeros(9, H), np.array([6, 3, 2, 4])
    _, graphs = graphs_of(pool, sizes=(1, 4), target=target)
    members, ids, position = Members(pool), torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long)
    fed = thoughts = 0
    for t in range(STEPS):
        if t == 4:
            slots = np.array([3, 5, 6, 2])  # row 3 is the second of its member, no longer the third
        for member in members.of(slots, np.ones(4, dtype=bool)).drawn:
            pool.step(member.number, member.slots, member.index, served(member.places.tolist(), t))
        ids.copy_(torch.arange(4) + t)
        position.copy_(pool.columns.prompt_length[slots] + pool.columns.t[slots] - 1)
        expected = TABLE[ids].clone()
        target.fill_(torch.nan)
        if not graphs.embed(ids):
            target[:4] = TABLE[ids]
        for member in members.of(slots, np.ones(4, dtype=bool)).fed:
            rows = torch.from_numpy(member.places)
            pool.feed(member.number, member.index, rows, position, whole(), expected)
            if graphs.feed(member, position):
                fed += 1
            else:
                pool.feed(member.number, member.index, rows, position, whole(), target)
        assert torch.equal(target[:4], expected) and target[4:].isnan().all()
        thoughts += int((expected != TABLE[ids]).any(-1).sum())
    assert fed == 2 * (STEPS - 2) - 2  # two rows of the other group are another size
    assert thoughts > STEPS
    moved = TABLE.clone()
    graphs.table.weight = lambda: moved
    assert not graphs.embed(ids) and not any(graphs.feed(member, position) for member in members.fed)


def test_a_batch_of_another_size_is_not_captured():
    pool, (number,) = pool_of(plan({}), every_row=True)
    recorder, graphs = graphs_of(pool, sizes=(2, 4, 64, 128))
    assert graphs.sizes == [2, 4, 64] and len(graphs.logits) == 64  # no batch has more rows than the 8 of the pool
    graphs.sizes = [2]
    pool.admit([0, 1, 2], [number] * 3, [(3, 0, i) for i in range(3)], [2] * 3, [STEPS] * 3)
    for t in range(4):
        assert step(graphs, pool, Members(pool), {0: 0, 1: 1, 2: 2}, t) == 0
    assert not graphs.embed(torch.zeros(1, dtype=torch.long)) and recorder.replays == []


@pytest.mark.parametrize("moves", ["rules", "a repetition penalty", "the table", "the type of the logits"])
def test_memory_that_moves_makes_another_graph(moves):
    """A graph holds addresses. It must not run once what it reads has moved."""
    made = plan({}, repetition_penalty=1.3)
    pool, (number,) = pool_of(made, every_row=True)
    recorder, graphs = graphs_of(pool)
    pool.admit([0], [number], [(3, 0, 0)], [2], [STEPS])
    pool.see(0, [2, 5])
    members, where = Members(pool), {0: 0}
    assert [step(graphs, pool, members, where, t) for t in range(4)] == [0, 0, 1, 1]
    kept, kept_logits = graphs.table.weight(), graphs.logits  # so that nothing else gets their addresses
    if moves == "rules":
        for i in range(4):
            other = plan({"max_thinking_length": 2 + i})
            pool.add(f"other {i}", other, pool.ruled[number].group.layout)
    elif moves == "a repetition penalty":
        pool.seen = pool.seen.clone()
    elif moves == "the table":
        moved = kept.clone()
        graphs.table.weight = lambda: moved
    else:
        graphs.logits = kept_logits.double()
    assert [step(graphs, pool, members, where, t) for t in range(4, 7)] == [0, 0, 1]
    assert len(recorder.replays) == 2


def test_a_step_that_cannot_be_captured():
    def record(launch):
        raise RuntimeError("operation not permitted when stream is capturing")

    pool, _ = pool_of(plan({}))
    graphs = Graphs(pool, whole(), [1], torch.float32, lambda ids: TABLE[ids], torch.zeros(9, H), record)
    ids = torch.zeros(1, dtype=torch.long)
    assert not graphs.embed(ids) and not graphs.embed(ids)
    with pytest.raises(RuntimeError, match=r"cannot be captured in a CUDA graph.*`enforce_eager`"):
        graphs.embed(ids)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({}, None),
        ({"enforce_eager": True}, "enforce_eager"),
        ({"cudagraph_mode": SimpleNamespace(name="NONE")}, "cudagraph_mode"),
        ({"cudagraph_capture_sizes": []}, "cudagraph_capture_sizes"),
        ({"tensor_parallel_size": 2}, "tensor parallelism"),
        ({"lora_config": object()}, "adapter"),
    ],
    ids=lambda value: next(iter(value), "captured") if isinstance(value, dict) else "",
)
def test_where_nothing_is_captured(changes, word):
    of = {
        "enforce_eager": False, "cudagraph_mode": SimpleNamespace(name="FULL_AND_PIECEWISE"), "tensor_parallel_size": 1,
        "cudagraph_capture_sizes": [1, 2, 4], "lora_config": None, **changes,
    }  # fmt: skip
    part = SimpleNamespace(**of)
    config = SimpleNamespace(
        compilation_config=part, model_config=part, parallel_config=part, lora_config=of["lora_config"]
    )
    why = why_not_captured(config)
    assert why is None if word is None else word in why


def test_few_graphs_are_kept(monkeypatch):
    monkeypatch.setattr("trl_soft.rollout.vllm.graphs._MOST", 2)
    pool, _ = pool_of(plan({}))
    _, graphs = graphs_of(pool)
    ids = [torch.full((1,), i, dtype=torch.long) for i in range(3)]
    for some in ids:
        assert [graphs.embed(some) for _ in range(3)] == [False, False, True]
    assert len(graphs._known) == 2
    assert graphs.embed(ids[2]) and not graphs.embed(ids[0])
