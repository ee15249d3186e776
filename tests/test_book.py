# SPDX-License-Identifier: Apache-2.0
"""The bookkeeping of a step: kernels against plain torch, and plans that are drawn together against each by itself."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests import tiny
from tests.test_vllm_parts import STEPS, C, H, V, assert_same, of_slots, plan, pool_of, read, served, whole
from trl_soft import kernels
from trl_soft.rollout import book
from trl_soft.rollout.columns import FLAGS, NUMBERS, Rows, block_shapes
from trl_soft.rollout.matcher import EndMatcher
from trl_soft.rollout.rules import RULES, Rules
from trl_soft.rollout.stop import EndOfThinking
from trl_soft.rollout.vllm.members import Members
from trl_soft.rollout.vllm.pool import UNDO


S = 37


def text_plan(text: str, **settings):
    made = plan({"thinking_top_k": 20, "thinking_top_p": 1.0, **settings})
    made.stop.end = EndMatcher(EndOfThinking(tiny.tokenizer(), text), V, made.prefill)
    return made


def different_plans() -> list:
    """Of one thought and one way to answer, and different in all else that a request may set."""
    return [
        plan({}),
        plan({"max_thinking_length": 2}),
        plan({"max_thinking_length": 5, "answer_prefill": ["=a", "b+"]}),
        plan({"max_thinking_length": 4, "max_answer_length": 2}),
        plan({}, eos_token_ids=[7, 1, 9]),
        plan({}, eos_token_ids=[]),
        plan({"end_of_thinking": "="}),
    ]


def random_rows(plans: list, undo: bool, seed: int) -> tuple[dict, Rows]:
    """Rows in any state, of which some are over."""
    draw = torch.Generator().manual_seed(seed)

    def number(high, low=0):
        return torch.randint(low, high, (S,), generator=draw)

    blocks = {name: torch.zeros(shape, dtype=kind) for name, (shape, kind) in block_shapes(S, C).items()}
    rule = number(len(plans))
    longest = torch.tensor([len(made.forced) for made in plans])[rule]
    values = {
        "rule": rule, "t": number(C + 3), "limit": number(C + 1, 1), "cursor": number(4), "answered": number(4),
        "calm": number(3), "thinking_length": number(6), "matched": number(3),
        "script": (torch.rand(S, generator=draw) * longest).long(), "sample": number(9), "prompt_length": number(5, 1),
    }  # fmt: skip
    for name, value in values.items():
        blocks["numbers"][:, NUMBERS.index(name)] = value
    blocks["flags"] = torch.rand(S, len(FLAGS), generator=draw) < 0.6
    for name in ("masks", "ids"):
        blocks[name] = torch.randint(0, 2, blocks[name].shape, generator=draw).to(blocks[name].dtype)
    index = torch.randperm(S, generator=draw)[:33]
    kept = {
        name: torch.zeros(S, UNDO, blocks[name].size(1), dtype=blocks[name].dtype) for name in ("numbers", "flags")
    }
    return blocks, Rows(blocks, index, kept if undo else None)


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("cold", [False, True])
def test_what_a_token_makes_of_a_row(texts, cold):
    plans = different_plans()
    plans += [text_plan("1;"), text_plan("12-", answer_prefill=["=a", ""])] if texts else []
    if cold:
        plans += [plan({"cold_stop_entropy": 2.0, "cold_stop_length": 2, "thinking_temperature": 1.0})]
    rules = Rules("cpu")
    for made in plans:
        rules.add(made)
    seen = dict.fromkeys(("closed", "answers", "thinks", "active"), False)
    for seed in range(6):
        drawn = torch.randint(0, V, (33, 2)).unbind(-1)  # as columns of candidates are
        entropy = torch.rand(33) * 4 if cold else None
        soft = torch.rand(33) < 0.5 if seed > 2 else None
        states = []
        for context in (kernels.plain, kernels.interpreted):
            blocks, rows = random_rows(plans, undo=bool(seed % 2), seed=seed)
            with context():
                turn = book.decide(rows, rules, *drawn, entropy, closes_as_token=bool(seed % 3), soft=soft)
            states.append((blocks, rows.undo or {}, vars(turn)))
        for ours, theirs in zip(*states, strict=True):
            for name in theirs:
                assert torch.equal(ours[name], theirs[name]), name
        seen = {name: was or bool(vars(turn)[name].any()) for name, was in seen.items()}
    assert all(seen.values())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (3,), (1030,)])
def test_rows_are_put_and_taken(shape, dtype):
    n = 33
    index, t, mask = torch.randperm(S)[:n], torch.randint(0, C, (n,)), torch.rand(n) < 0.5
    value = torch.randint(0, 2, (n, *shape)) if dtype != torch.bfloat16 else torch.randn(n, *shape)
    value = value.bool() if dtype == torch.bool else value
    found = []
    for context in (kernels.plain, kernels.interpreted):
        other = torch.zeros(S, C, dtype=torch.int32)
        target = torch.zeros(S, C, *shape, 2).to(dtype)[..., 0] if not shape else torch.zeros(S, C, *shape).to(dtype)
        with context():
            # Together with one of another shape and type.
            book.put([target, other], [value, index], index, t, mask)
            taken = [x for some in (~mask, mask) for x in book.take([target, other], index, t, some)]
            found.append((target, other, *taken))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    _, _, _, _, ours, others = found[0]
    assert torch.equal(ours[mask], value[mask].to(dtype)) and not ours[~mask].any()
    assert torch.equal(others[mask].long(), index[mask])


def test_scores_are_put():
    n, found = 33, []
    index, t, scores = torch.randperm(S)[:n], torch.randint(0, C, (n,)), torch.randn(2, 2, n)
    masks = torch.arange(n) % 3 == torch.arange(2).unsqueeze(-1)  # thinks, answers
    for context in (kernels.plain, kernels.interpreted):
        values = torch.zeros(S, C, 2)
        with context():
            book.put_scores(values, *map(tuple, scores), index, t, *masks)
        found.append(values)
    assert torch.equal(*found)
    for score, mask in zip(scores, masks, strict=True):
        assert torch.equal(found[0][index[mask], t[mask]], score[:, mask].T)
    assert not found[0][index[~masks.any(0)]].any()


def test_where_thoughts_stand():
    found = []
    for context in (kernels.plain, kernels.interpreted):
        blocks, rows = random_rows([plan({})], False, 3)
        target, value = torch.zeros(70, 5, dtype=torch.bfloat16), torch.rand(33, 5, generator=torch.manual_seed(1))
        with context():
            position = torch.arange(33) - 2
            column, mask = book.thoughts_at(blocks, rows.index, position)
            book.feed(target, value, 2 * torch.arange(33), mask)
        found.append((column, mask, target))
    assert found[0][1].any() and not found[0][1][:2].any()
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_kernels_compile_for_devices_that_are_not_here():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compiled_book", "80", "90"]
    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(made) == 18 and all(int(line.split()[-1]) > 0 for line in made)


# Plans that are drawn together


@pytest.mark.parametrize("how", ["some rows", "every row", "kernels"])
def test_plans_of_a_thought_are_drawn_in_one_call(how):
    """And each as if it were alone, whatever else differs: ends, caps, forced texts, ends of sequence, texts that end thoughts."""
    plans = different_plans()
    pool, numbers = pool_of(*plans, every_row=how != "some rows")
    count = len(plans)
    pool.admit(range(count), numbers, [(3, 0, i) for i in range(count)], [2] * count, [STEPS] * count)
    slots = np.arange(count)
    with kernels.interpreted() if how == "kernels" else kernels.plain():
        (member,) = Members(pool).of(slots, np.ones(count, dtype=bool)).drawn
        for t in range(STEPS):
            pool.step(member.number, member.slots, member.index, served(list(range(count)), t))
        # The interpreter takes its time; what a kernel makes of any row is held above.
        chosen = (2, 4, 6) if how == "kernels" else range(count)
        alone = {slot: of_slots(plans[slot], [slot]) for slot in chosen}
    for slot, rollout in alone.items():
        assert_same(read(pool, [slot], plans[slot]), rollout)
    lengths = {int(rollout.thinking_length) for rollout in alone.values()}
    assert len(lengths) > (1 if how == "kernels" else 2)


def test_who_is_drawn_together():
    """Members are what a thought and an answer say, and are found again only when the batch differs."""
    plans = [
        plan({}),
        plan({"max_thinking_length": 3}),
        plan({"thought": "hard"}),
        plan({"thinking_temperature": 0.7}),
    ]
    pool, numbers = pool_of(*plans)
    pool.admit(range(4), numbers, [(3, 0, 0)] * 4, [2] * 4, [STEPS] * 4)
    members, slots = Members(pool), np.array([5, 3, 1, 2, 0])
    draws = np.array([True, True, True, True, False])
    found = members.of(slots, draws)
    assert [(m.places.tolist(), m.slots.tolist()) for m in found.drawn] == [([1], [3]), ([2], [1]), ([3], [2])]
    assert found.softs and found.hards
    # Hard thoughts are their tokens; what is fed is fed whether the row draws or not.
    assert [m.slots.tolist() for m in found.fed] == [[3], [1, 0]]
    before = found.drawn
    assert members.of(slots.copy(), draws.copy()).drawn is before
    assert [m.slots.tolist() for m in members.of(slots, ~draws).drawn] == [[0]]
    members.of(slots, draws)
    pool.clear(3)
    assert [m.slots.tolist() for m in members.of(slots, draws).drawn] == [[1], [2]]


def test_rules_say_what_plans_say():
    plans = [*different_plans(), text_plan("1;")]
    rules = Rules("cpu")
    for row, made in enumerate(plans):
        assert rules.add(made) == row
    for row, made in enumerate(plans):
        of = dict(zip(RULES, rules.numbers[row].tolist(), strict=True))
        assert [i for i in rules.eos[row].tolist() if i >= 0] == made.eos_token_ids
        assert of["filler"] == (made.eos_token_ids or [made.pad_token_id])[0] and of["cap"] == made.stop.cap
        assert of["answer_cap"] == (made.max_answer_length or of["answer_cap"]) and of["answer_cap"] > 1
        end = made.stop.end
        assert of["end"] == (end.ids[0] if end.is_token else -1)
        assert of["text_length"] == (len(end.table) if isinstance(end, EndMatcher) else 0)
        for i, ids in enumerate(made.forced):
            begin, length = rules.scripts[of["script"] + i].tolist()
            assert rules.script_ids[begin : begin + length].tolist() == list(ids)


def test_rules_are_forgotten_and_their_rows_used_again():
    rules = Rules("cpu")
    plans = [plan({"answer_prefill": ["=a", "b+"]}), plan({"max_thinking_length": 3})]
    rows = [rules.add(made) for made in plans]
    for _ in range(1000):
        rules.drop(rows[0])
        assert rules.add(plans[0]) == rows[0]
    assert len(rules.numbers) == 2 and len(rules.scripts) < 3000
    script = rules.scripts[rules.numbers[rows[0], RULES.index("script")] + 1].tolist()
    assert rules.script_ids[script[0] : sum(script)].tolist() == list(plans[0].forced[1])


def test_a_row_of_another_plan_is_fed_by_its_own_layout():
    """Plans that are fed alike are fed in one call, though their answers are drawn apart."""
    from trl_soft.thoughts import Hard

    plans = [plan({}), plan({}, answer=Hard(0.5))]
    pool, numbers = pool_of(*plans)
    pool.admit([0, 1], numbers, [(3, 0, 0), (3, 0, 1)], [2, 2], [STEPS] * 2)
    for row, number in enumerate(numbers):
        pool.step(number, np.array([row]), torch.tensor([row]), served([row], 0))
    (member,) = Members(pool).of(np.arange(2), np.ones(2, dtype=bool)).fed
    together, alone = (torch.full((2, H), torch.nan) for _ in "ta")
    position, rows = torch.tensor([2, 2]), torch.arange(2)
    pool.feed(member.number, member.index, rows, position, whole(), together)
    for i, n in enumerate(numbers):
        pool.feed(n, torch.tensor([i]), rows[i : i + 1], position, whole(), alone)
    assert together.isfinite().all() and torch.equal(together, alone)
