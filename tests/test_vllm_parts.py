# SPDX-License-Identifier: Apache-2.0
"""The plugin's arithmetic without vLLM: a pool of requests against the slots of a rollout, records, requests, refusals."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import tiny
from trl_soft import ThinkingSettings
from trl_soft.gates import gate_options
from trl_soft.rollout import Key
from trl_soft.rollout.make_plan import make_plan
from trl_soft.rollout.matcher import EndMatcher, table_of
from trl_soft.rollout.pieces import Pieces
from trl_soft.rollout.slots import Slots
from trl_soft.rollout.stop import EndOfThinking
from trl_soft.rollout.vllm import engine_support, frontend, request
from trl_soft.rollout.vllm.client import Ask, ServerLost, same_text
from trl_soft.rollout.vllm.layout import Layout, layout_of
from trl_soft.rollout.vllm.pool import UNDO, Pool
from trl_soft.rollout.vllm.records import bulks, rollout_of
from trl_soft.rollout.vllm.request import SPEC, plan_of, settings_of, spec_of, wants
from trl_soft.rollout.vllm.served_table import ServedLogits, Table
from trl_soft.thoughts import Hard, token_class
from trl_soft.vocabulary.neighbours import nearest_tokens


V, H, C, STEPS = len(tiny.TOKENS), 16, 24, 16
TABLE = torch.randn(V, H, generator=torch.Generator().manual_seed(1))
THOUGHTS = [
    {"thought": "hard"},
    {"thought": "gumbel", "gumbel_temperature": 0.5},
    {"thought": "gumbel", "gumbel_density": "softgrpo"},
    {"thought": "gaussian"},
    {"thought": "gaussian", "noise_placement": "probabilities"},
    {"thought": "dirichlet"},
    {"thought": "mixture", "thinking_top_k": 8},
    {"thought": "multiplex"},
    {"thought": "neighbour"},
    {"thought": "dirichlet", "hard_token_pattern": "[0-4]"},
    {"answer_prefill": ["=a", "b+"], "max_thinking_length": 4},
    {"cold_stop_entropy": 2.0, "cold_stop_length": 2, "thinking_temperature": 1.0},
]


def name(settings: dict) -> str:
    return "-".join(str(value) for value in settings.values())


def plan(settings: dict, **changes):
    settings = ThinkingSettings(**{"max_thinking_length": 7} | settings)
    options = {"vocab_size": V, "max_completion_length": C, "eos_token_ids": [1], "rms": 1.0}
    return make_plan(settings, tiny.tokenizer(), changes.pop("answer", Hard()), **{**options, **changes})


def whole() -> Table:
    return Table(lambda: TABLE, 0, V)


def logits(row: int, t: int) -> torch.Tensor:
    """Next-token logits (V,) that depend on the row and the step alone."""
    return 3 * torch.randn(V, generator=torch.Generator().manual_seed(1000 * row + t))


def served(rows: list[int], t: int) -> ServedLogits:
    z = torch.stack([logits(row, t) for row in rows])
    return ServedLogits(z, whole(), torch.float32, nearest=nearest_tokens(TABLE, 3))


def of_slots(made, rows: list[int], seed: int = 3):
    """What the slots of a rollout draw from those logits; row r is sample r."""
    slots = Slots(len(rows), made, Key(seed, 0, torch.tensor(rows)), V, torch.device("cpu"))
    slots.admit(list(range(len(rows))), list(range(len(rows))), [[2, 5]] * len(rows), [STEPS] * len(rows))
    for t in range(STEPS):
        slots.advance(len(rows), served(rows, t), every_row=False)
    return slots.result(list(range(len(rows))))


def pool_of(*plans, count: int = 8, every_row: bool = False) -> tuple[Pool, list[int]]:
    pool = Pool(count, C, 256, V, "cpu")
    pool.every_row = every_row
    layouts = [layout_of(made.thought, V, H, torch.float32) for made in plans]
    return pool, [pool.add(str(i), made, layout) for i, (made, layout) in enumerate(zip(plans, layouts, strict=True))]


def draw(pool: Pool, number: int, slots: dict[int, int], t: int) -> None:
    """One step of some rows, in the slots they are in."""
    where = np.array(list(slots.values()))
    pool.step(number, where, torch.from_numpy(where), served(list(slots), t))


def assert_same(ours, theirs):
    assert torch.equal(ours.completion_mask, theirs.completion_mask)
    mask = theirs.completion_mask
    assert torch.equal(ours.completion_ids[mask], theirs.completion_ids[mask])
    for ids in ("thinking_mask", "forced_mask", "log_probs"):
        assert torch.equal(getattr(ours.record, ids), getattr(theirs.record, ids))
    assert torch.equal(ours.entropies, theirs.entropies)
    assert torch.equal(ours.thinking_length, theirs.thinking_length)
    assert torch.equal(ours.thinking_cut, theirs.thinking_cut)
    thoughts = theirs.record.thinking_mask
    assert ours.record.action.keys() == theirs.record.action.keys()
    for key, value in theirs.record.flat_action(thoughts).items():
        assert torch.equal(ours.record.flat_action(thoughts)[key], value)


def read(pool: Pool, slots: list[int], made, as_text: bool = False):
    records = [("r", slot, pool.park(slot)) for slot in slots]
    (bulk,) = bulks(records, as_text)
    bulk = json.loads(json.dumps(bulk)) if as_text else bulk
    return rollout_of(bulk, made, [("r", slot) for slot in slots])


@pytest.mark.parametrize("every_row", [False, True])
@pytest.mark.parametrize("settings", THOUGHTS, ids=name)
def test_a_pool_draws_what_slots_draw(settings, every_row):
    """Slots in any order, another plan's among them, some rows a step later than others; records survive any transport."""
    made, other = plan(settings), plan({"thinking_top_k": 3})
    theirs, of_other = of_slots(made, [0, 1, 2]), of_slots(other, [5])
    pool, (number, number_of_other) = pool_of(made, other, every_row=every_row)
    where = {0: 6, 1: 2, 2: 4}
    pool.admit([2, 6, 4], [number] * 3, [(3, 0, 1), (3, 0, 0), (3, 0, 2)], [2] * 3, [STEPS] * 3)
    pool.admit([3], [number_of_other], [(3, 0, 5)], [2], [STEPS])
    for t in range(STEPS + 1):
        if t < STEPS:
            draw(pool, number, {row: where[row] for row in (1, 0)}, t)
            draw(pool, number_of_other, {5: 3}, t)
        if t:
            draw(pool, number, {2: 4}, t - 1)
    for as_text in (False, True):
        assert_same(read(pool, [6, 2, 4], made, as_text), theirs)
    assert_same(read(pool, [3], other), of_other)


def test_a_thought_that_is_open_at_the_end_was_cut():
    made, rows = plan({"max_thinking_length": None}), np.arange(6)
    theirs = of_slots(made, rows.tolist())
    assert theirs.thinking_cut.any() and not theirs.thinking_cut.all()
    pool, (number,) = pool_of(made)
    pool.admit(rows.tolist(), [number] * 6, [(3, 0, row) for row in rows], [2] * 6, [STEPS] * 6)
    for t in range(STEPS):
        pool.step(number, rows, torch.from_numpy(rows), served(rows.tolist(), t))
    assert_same(read(pool, rows.tolist(), made), theirs)


def test_seeds_and_generations_are_the_requests_own():
    made = plan({})
    pool, (number,) = pool_of(made)
    pool.admit([0, 1], [number] * 2, [(3, 0, 0), (8, 0, 0)], [2] * 2, [STEPS] * 2)
    for t in range(STEPS):
        where = np.array([0, 1])
        pool.step(number, where, torch.from_numpy(where), served([0, 0], t))
    assert_same(read(pool, [0], made), of_slots(made, [0]))
    assert_same(read(pool, [1], made), of_slots(made, [0], seed=8))


@pytest.mark.parametrize("taken_back", range(UNDO))
@pytest.mark.parametrize("settings", [{}, THOUGHTS[8], THOUGHTS[9], {"thought": "hard"}], ids=name)
def test_a_request_that_comes_back(settings, taken_back):
    """In another slot, some steps behind what its record had drawn, as if it had never left; at any time of its life."""
    made = plan(settings, repetition_penalty=1.3)
    for left_at in range(UNDO, STEPS):
        pool, (number,) = pool_of(made)
        pool.admit([1], [number], [(3, 0, 0)], [2], [STEPS])
        pool.see(1, [2, 5])
        for t in range(left_at):
            draw(pool, number, {0: 1}, t)
        parked = pool.park(1)
        pool.clear(1)
        for name_ in ("masks", "values", "ids", "numbers", "flags"):  # whatever came after it
            pool.blocks[name_][5] = 1
        drawn = min(left_at, int(pool.columns.t[1])) - taken_back
        if drawn + taken_back < left_at:
            break  # it had ended by itself
        pool.restore(5, number, parked, drawn)
        pool.see(5, [2, 5, *parked.rows["ids"][:drawn].tolist()])
        for t in range(drawn, STEPS):
            draw(pool, number, {0: 5}, t)
        assert_same(read(pool, [5], made), of_slots(made, [0]))


def test_more_steps_than_can_be_taken_back():
    made = plan({})
    pool, (number,) = pool_of(made)
    pool.admit([1], [number], [(3, 0, 0)], [2], [STEPS])
    for t in range(8):
        draw(pool, number, {0: 1}, t)
    parked = pool.park(1)
    with pytest.raises(RuntimeError, match=r"comes back with 4 tokens, and its record has 8"):
        pool.restore(2, number, parked, 8 - UNDO)


@pytest.mark.parametrize("settings", THOUGHTS[1:8], ids=name)
def test_what_is_fed(settings):
    """Each position of a thought as the record has it; prompt, answer and what is not yet drawn as tokens."""
    made = plan(settings)
    pool, (number,) = pool_of(made)
    pool.arena.fill_(255)  # no ids, no numbers: what another plan may have left there
    pool.admit([4], [number], [(3, 0, 0)], [2], [STEPS])
    for t in range(STEPS):
        draw(pool, number, {0: 4}, t)
    theirs = of_slots(made, [0])
    positions = torch.arange(0, 2 + STEPS + 3)
    fed, rows = torch.full((len(positions) + 1, H), torch.nan), torch.randperm(len(positions))
    pool.feed(number, torch.full_like(positions, 4), rows, positions, whole(), fed)
    mixed, mask = fed[:-1], ~fed[:-1].isnan().any(-1)
    thoughts = torch.zeros(len(positions), dtype=torch.bool)
    thoughts[2 : 2 + theirs.record.shape[1]] = theirs.record.thinking_mask[0]
    assert torch.equal(mask, thoughts) and mask.any() and fed[-1].isnan().all()
    expected = made.thought.embed(theirs.record.flat_action(theirs.record.thinking_mask), whole())
    torch.testing.assert_close(mixed[mask], expected, rtol=0, atol=0)


def test_after_its_end_a_completion_goes_on_with_the_end_of_sequence():
    made = plan({"max_thinking_length": 3, "max_answer_length": 2})
    pool, (number,) = pool_of(made)
    pool.admit([0], [number], [(3, 0, 0)], [2], [STEPS])
    tokens = [pool.step(number, np.array([0]), torch.tensor([0]), served([0], t)).item() for t in range(STEPS)]
    length = int(pool.columns.t[0])
    assert length < STEPS and tokens[length:] == [1] * (STEPS - length)


def test_a_layout_lies_on_its_boundaries():
    for settings in THOUGHTS:
        thought = plan(settings).thought
        layout = layout_of(thought, V, H, torch.bfloat16)
        assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
        assert layout.width % 8 == 0 and all(field.offset % 8 == 0 for field in layout.fields)
        views = layout.views(torch.zeros(2, 3, layout.width, dtype=torch.uint8))
        for field in layout.fields:
            assert views[field.name].shape == (2, 3, *field.shape) and views[field.name].dtype == field.type
    assert layout_of(plan({"thought": "gaussian"}).thought, V, H, torch.bfloat16).width == 2 * H


def test_records_that_are_not_there():
    made = plan({})
    pool, (number,) = pool_of(made)
    pool.admit([0], [number], [(3, 0, 0)], [2], [STEPS])
    draw(pool, number, {0: 0}, 0)
    (bulk,) = bulks([("a", 0, pool.park(0))])
    with pytest.raises(
        ValueError, match="1 of 2 records did not come back, for example that of request 'a', completion 1"
    ):
        rollout_of(bulk, made, [("a", 0), ("a", 1)])
    with pytest.raises(ValueError, match="records are of gumbel thoughts, and the plan's are dirichlet"):
        rollout_of(bulk, plan({"thought": "dirichlet"}), [("a", 0)])


def test_plans_that_nobody_is_under_are_forgotten():
    pool, _ = pool_of()
    layout = layout_of(plan({}).thought, V, H, torch.float32)
    first = pool.add("first", plan({}), layout)
    pool.number[3] = first
    for i in range(1000):
        pool.add(str(i), plan({}), layout)
    assert len(pool.ruled) < 300 and pool.known("first") == first and pool.known("0") is None


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_table_in_parts(parts):
    """Each rank mixes what it holds, and the sum over ranks is the mixture."""
    weights, ids = torch.rand(5, 4), torch.randint(0, V, (5, 4))
    p = torch.softmax(torch.randn(5, V), -1)
    edges = [V * i // parts for i in range(parts + 1)]
    tables = [
        Table(lambda a=a, b=b: torch.cat([TABLE[a:b], torch.full((3, H), 99.0)]), a, b, 2.0, lambda part: part)
        for a, b in pairwise(edges)
    ]
    torch.testing.assert_close(
        sum(t.mix(weights, ids) for t in tables), 2 * torch.einsum("nk,nkh->nh", weights, TABLE[ids])
    )
    torch.testing.assert_close(sum(t.mix_all(p) for t in tables), 2 * p @ TABLE)
    torch.testing.assert_close(sum(t(ids[:, 0]) for t in tables), 2 * TABLE[ids[:, 0]])
    if parts == 1:
        assert tables[0].rms() == pytest.approx(2 * TABLE.square().mean().sqrt().item())


# Texts that end thoughts

PIECES = [b"", b"a", b"b", b"ab", b"aba", b"abab", b"xaba", b"c", b"babaab", b" ", b"aab"]


@pytest.mark.parametrize("text", [b"abab", b"a", b"aab", b"abcab", b"ab ab"])
def test_a_text_as_a_table(text):
    """Against `find`, however the text is cut into tokens; before the first match a state is the longest prefix at the end."""
    classes, table = table_of(text, Pieces(PIECES), lambda tokens, lengths: lengths)
    table, m, inside = table[:, classes], len(text), 0
    for seed in range(300):
        draw, shadow, state = random.Random(seed), b"", 0
        for _ in range(12):
            token = draw.randrange(len(PIECES))
            shadow, state = shadow + PIECES[token], int(table[state, token])
            place = shadow.find(text)
            if place >= 0:
                assert state - m == len(shadow) - place - m
                inside += state > m
                break
            assert state == max(k for k in range(m) if shadow.endswith(text[:k]))
    assert inside > 20


def after(state: int, piece: bytes, text: bytes) -> int:
    """The state after a piece, by looking at every byte: m plus what the piece writes behind the text, if it ends there."""
    shadow = text[:state] + piece
    for n in range(state, len(shadow) + 1):
        if shadow[:n].endswith(text):
            return len(text) + len(shadow) - n
    return max(k for k in range(len(text)) if shadow.endswith(text[:k]))


def test_a_table_over_every_piece():
    """From every state of every text of up to five letters of two, through every piece of up to six, and pieces with others."""
    letters = ["".join(of).encode() for n in range(7) for of in product("ab", repeat=n)]
    others = [other.encode() for other in ("c", "\u00e9", "\U0001f600")]
    pieces = letters + [a + other + b for a in letters[:15] for b in letters[:15] for other in others]
    ordered = Pieces(pieces)
    for text in letters[1:63]:
        classes, table = table_of(text, ordered, lambda tokens, lengths: lengths)
        wanted = [[after(state, piece, text) for piece in pieces] for state in range(len(text))]
        assert table[:, classes].tolist() == wanted


@pytest.mark.parametrize("text", ["1;", "=", "12-"])
def test_a_text_ends_thoughts_as_decoding_does(text):
    """A token whose text has it is enough, in the pool and in slots; what was drawn before does not hold it."""
    made = plan({"end_of_thinking": text, "thinking_top_k": 20, "thinking_top_p": 1.0, "max_thinking_length": 12})
    theirs = Slots(6, made, Key(3, 0, torch.arange(6)), V, torch.device("cpu"))
    theirs.admit(list(range(6)), list(range(6)), [[2, 5]] * 6, [STEPS] * 6)
    rules = json.loads(spec({"soft_thought": "gumbel", "soft_end_of_thinking": text, "soft_thinking_top_k": 20,
                             "soft_thinking_top_p": 1.0, "soft_max_thinking_length": 12})[0]["rules"])  # fmt: skip
    served_plan = plan_of(json.dumps(rules), vocab_size=V, max_length=C, tokenizer=tiny.tokenizer)
    pool, (number,) = pool_of(served_plan)
    pool.admit(list(range(6)), [number] * 6, [(3, 0, i) for i in range(6)], [2] * 6, [STEPS] * 6)
    likelier = torch.zeros(V).index_fill_(0, torch.tensor(made.stop.end.ids), 5.0)
    for t in range(STEPS):
        view = ServedLogits(served(list(range(6)), t).logits + likelier, whole(), torch.float32)
        theirs.advance(6, view, every_row=False)
        pool.step(number, np.arange(6), torch.arange(6), view)
    result = theirs.result(list(range(6)))
    assert_same(read(pool, list(range(6)), made), result)
    closed = 0
    for ids, n, cut in zip(result.completion_ids.tolist(), result.thinking_length, result.thinking_cut, strict=True):
        thought, before = (tiny.tokenizer().decode(ids[:upto]) for upto in (n, n - 1))
        assert text not in before and (text in thought) == (not cut and ids[n - 1] != 1)
        closed += text in thought
    assert closed


def test_texts_that_no_table_can_have():
    class Reversing:
        """Writes its tokens backwards."""

        tokenizer = tiny.tokenizer()

        def __len__(self):
            return len(self.tokenizer)

        def __call__(self, text, **kwargs):
            return {"input_ids": self.tokenizer(text, **kwargs)["input_ids"][::-1]}

        def decode(self, ids, **kwargs):
            return self.tokenizer.decode(ids[::-1], **kwargs)

        def batch_decode(self, rows, **kwargs):
            return [self.decode(row, **kwargs) for row in rows]

    end = EndOfThinking(tiny.tokenizer(), "1;")
    end.tokenizer, end.ids = Reversing(), end.ids[::-1]
    with pytest.raises(ValueError, match="do not write their characters one after the other"):
        EndMatcher(end, V)


# Requests


def params(**changes):
    """Sampling parameters as vLLM hands them on."""
    given = {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "min_tokens": 0, "logit_bias": None, "allowed_token_ids": None, "bad_words": [],
        "structured_outputs": None, "thinking_token_budget": None, "seed": None, "max_tokens": C, "n": 1,
        "all_stop_token_ids": {1}, "eos_token_id": 1, "extra_args": {},
    }  # fmt: skip
    return SimpleNamespace(**{**given, **changes})


def spec(extra: dict, stored=None, **changes):
    extra = {"soft_thinking": True, **extra}
    return spec_of(
        params(extra_args=extra, **changes), "id", tiny.tokenizer(), stored, vocab_size=V, max_length=C
    )  # fmt: skip


def test_requests_that_differ_in_their_noise_share_a_plan(monkeypatch):
    """A plan takes two milliseconds, which 256 requests of one rollout would pay one after the other."""
    made = []
    monkeypatch.setattr(request, "make_plan", lambda *a, **k: made.append(1) or make_plan(*a, **k))
    request._PLANS.made.clear()
    tokenizer = tiny.tokenizer()

    def ask(extra: dict, stored=None, **changes):
        asked = params(extra_args={"soft_thinking": True, **extra}, **changes)
        return spec_of(asked, "id", tokenizer, stored, vocab_size=V, max_length=C)

    first, plan_of_first = ask({"soft_thought": "gumbel", "soft_sample": 1, "soft_record": "a"})
    again, plan_again = ask({"soft_thought": "gumbel", "soft_sample": 2, "soft_seed": 9, "soft_record": "b"})
    assert plan_again is plan_of_first and len(made) == 1
    assert again["rules"] == first["rules"] and again["key"] != first["key"] and again["name"] == "b"
    others = [
        ({"soft_thought": "gumbel", "soft_thinking_top_k": 3}, {}),
        ({"soft_thought": "gumbel"}, {"temperature": 0.5}),
        ({"soft_thought": "gumbel"}, {"max_tokens": 7}),
        ({"soft_thought": "gumbel", "soft_evaluation": True}, {}),
    ]
    rules = {first["rules"]} | {ask(extra, **changes)[0]["rules"] for extra, changes in others}
    assert len(made) == 5 and len(rules) == 4  # the cap is each request's own
    stored = ThinkingSettings(thought="gumbel", thinking_top_p=0.5).thinking_dict()
    assert ask({}, stored)[0]["rules"] != first["rules"]
    with pytest.raises(ValueError, match="nothing reads"):
        ask({"soft_thought": "gumbel", "soft_thinking_topk": 3})
    for top_k in range(1, 70):
        ask({"soft_thought": "gumbel", "soft_gumbel_temperature": top_k / 70})
    assert len(request._PLANS.made) == request._PLANS.MOST


def test_half_a_record_is_no_record():
    made = plan({"thought": "gumbel"})
    pool, (number,) = pool_of(made)
    pool.admit([0], [number], [(3, 0, 0)], [2], [STEPS])
    for t in range(STEPS):
        (bulk,) = bulks([("a", 0, pool.park(0))])
        if not bulk["finished"][0]:
            with pytest.raises(ServerLost, match="1 completions are not finished"):
                Ask(made, ThinkingSettings(), 3, 0, 0).rollouts([bulk], [("a", 0)])
        pool.step(number, np.array([0]), torch.tensor([0]), served([0], t))
    (bulk,) = bulks([("a", 0, pool.park(0))])
    assert bulk["finished"] == [True]
    (whole,) = Ask(made, ThinkingSettings(), 3, 0, 0).rollouts([bulk], [("a", 0)])
    ids = whole.completion_ids[0].tolist()
    assert (
        same_text(ids, whole, made) and not same_text([*ids, 1], whole, made) and not same_text(ids[:-1], whole, made)
    )
    capped = plan({"thought": "gumbel", "max_answer_length": 3})
    assert same_text([*ids, 1], whole, capped) and not same_text([*ids, 1, 1], whole, capped)


@pytest.mark.parametrize("text", ["nope", "[1]", "3", 3, '{"x": 1}', None])
def test_settings_that_are_no_object_are_named(text):
    with pytest.raises(ValueError, match=r"`soft_settings` (is|holds)"):
        spec({"soft_settings": text})


def test_the_spec_is_not_the_clients_to_write():
    with pytest.raises(ValueError, match=f"has the key `{SPEC}`"):
        frontend._refuse_spec(SimpleNamespace(extra_args={SPEC: "x"}))
    frontend._refuse_spec(SimpleNamespace(extra_args=None))


def test_who_asks_for_thoughts():
    assert not wants(None) and not wants({}) and not wants({"session_id": "x"})
    for yes in (True, 1, "true", "1"):
        assert wants({"soft_thinking": yes})
    assert wants({"soft_thought": "gumbel"})
    assert not wants({"soft_thinking": False, "soft_thought": "gumbel"})
    with pytest.raises(ValueError, match="`soft_seed` is set but `soft_thinking` is not"):
        wants({"soft_seed": 3})
    with pytest.raises(ValueError, match=r"`soft_thinking` is 'yes'\. It is true or false"):
        wants({"soft_thinking": "yes"})


def test_a_spec_makes_the_plan_it_was_made_of():
    extra = {"soft_thought": "gaussian", "soft_max_thinking_length": 5, "soft_answer_prefill": ["=a", "b+"],
             "soft_noise_rms": 0.5, "soft_seed": 9, "soft_generation": 2, "soft_sample": 4}  # fmt: skip
    made, here = spec(extra, temperature=0.7, top_k=-1, top_p=0.9)
    assert json.loads(json.dumps(made)) == made and made["key"] == [9, 2, 4] and made["limit"] == C
    there = plan_of(made["rules"], vocab_size=V, max_length=99)
    assert tuple(map(list, there.forced)) == tuple(map(list, here.forced)) != ([], [])
    assert there.thought.sigma == here.thought.sigma == pytest.approx(0.33 * 0.5)
    assert there.answer.same_as(here.answer) and there.answer.top_k == 0 and there.answer.temperature == 0.7
    assert (there.stop.cap, there.stop.end.ids, there.eos_token_ids) == (5, [3], [1])
    del extra["soft_noise_rms"]
    assert plan_of(spec(extra)[0]["rules"], vocab_size=V, max_length=99, rms=lambda: 2.0).thought.sigma == 0.66


def test_requests_of_the_same_rules_share_a_plan():
    assert spec({"soft_thought": "gumbel"})[0]["rules"] == spec({"soft_thought": "gumbel", "soft_seed": 5})[0]["rules"]
    assert spec({"soft_thought": "gumbel"})[0]["rules"] != spec({"soft_thought": "gumbel"}, top_p=0.9)[0]["rules"]
    # Who names no seed gets one that nobody else has.
    assert spec({"soft_thought": "gumbel"})[0]["key"] != spec({"soft_thought": "gumbel"})[0]["key"]
    assert spec({"soft_thought": "gumbel"}, seed=6)[0]["key"] == [6, 0, 0]


def test_settings_saved_with_the_weights():
    settings = ThinkingSettings(thought="dirichlet", max_thinking_length=6, dirichlet_concentration=2.0)
    stored = settings.thinking_dict()
    _, made = spec({}, stored)
    assert made.thought.name == "dirichlet" and made.thought.concentration == 2.0 and made.stop.cap == 6
    _, made = spec({"soft_thought": "mixture"}, stored)
    assert made.thought.name == "mixture" and made.stop.cap == 6
    gated = ThinkingSettings(thinking_gate="entropy", gate_entropy=0.5, hard_tokens=["+"]).thinking_dict()
    assert settings_of({}, gated).gate_entropy == 0.5
    chosen = settings_of({"soft_thinking_gate": "first", "soft_gate_length": 3, "soft_hard_tokens": ["=", "1"]}, gated)
    assert (chosen.thinking_gate, chosen.gate_length, chosen.gate_entropy) == ("first", 3, None)
    assert chosen.hard_tokens == ["=", "1"]
    assert settings_of({"soft_thinking_gate": "always"}, gated) == ThinkingSettings(hard_tokens=["+"])
    with pytest.raises(ValueError, match=r"without a `soft_thought`, and no thinking settings were saved with"):
        spec({})


def test_the_docs_say_how_a_request_sets_gates_and_hard_tokens():
    text = (Path(__file__).parent.parent / "docs" / "vllm.md").read_text()
    section = text[text.index("## Serve a trained policy") :].split("\n## ")[0]
    names = {"thinking_gate", *gate_options(), *token_class.SETTINGS}
    assert all(f"`soft_{name}`" in section for name in names)
    stored = ThinkingSettings().thinking_dict()
    given = [json.loads(found) for found in re.findall(r'"vllm_xargs": ({[^{}]*})', section)]
    assert any("soft_thinking_gate" in extra and "soft_hard_tokens" in extra for extra in given)
    for extra in given:
        assert wants(extra) and settings_of(extra, stored)


def test_names_of_records():
    assert (spec({"soft_thought": "soft"})[0]["name"], spec({"soft_thought": "soft"})[0]["keep"]) == ("id", False)
    for value, expected in (
        (True, ("id", True)),
        ("true", ("id", True)),
        ("mine", ("mine", True)),
        (0, ("id", False)),
    ):
        made = spec({"soft_thought": "soft", "soft_record": value})[0]
        assert (made["name"], made["keep"]) == expected


@pytest.mark.parametrize(
    "extra, changes, sentence",
    [
        ({"soft_thougth": "soft"}, {}, "nearest known is `soft_thought`"),
        ({"soft_thinking_top_k": 99}, {}, "only 26 tokens"),
        ({"soft_max_thinking_length": C}, {}, "no room is left for an answer"),
        ({"soft_seed": 1.5}, {}, "`soft_seed` is 1.5, but it must be a finite whole number"),
        ({"soft_sample": -1}, {}, "`soft_sample` is -1, but it must be at least 0"),
        ({"soft_evaluation": "maybe"}, {}, "`soft_evaluation` is 'maybe'"),
        ({}, {"max_tokens": C + 1}, "have room for 24 tokens"),
        ({}, {"presence_penalty": -0.5}, "`presence_penalty` is -0.5"),
        ({}, {"min_tokens": 2}, "`min_tokens` is 2"),
        ({}, {"logit_bias": {3: 1.0}}, "`logit_bias`"),
        ({}, {"allowed_token_ids": [3]}, "`allowed_token_ids`"),
        ({}, {"bad_words": ["a"]}, "`bad_words`"),
        ({}, {"structured_outputs": object()}, "asks for structured output"),
        ({}, {"all_stop_token_ids": {1, 3}}, "`end_of_thinking` holds .*, which ends the whole completion"),
        (
            {"soft_max_answer_length": 3},
            {"all_stop_token_ids": set(), "eos_token_id": None},
            "no token ends a completion",
        ),
    ],
)
def test_requests_that_are_refused(extra, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        spec({"soft_thought": "gumbel", **extra}, **changes)


def config(**changes):
    """An engine's configuration, as far as it matters."""
    parts: dict = {
        "model_config": {"architecture": "Qwen3ForCausalLM", "enable_prompt_embeds": False, "logits_processors": None,
                         "quantization": None},
        "parallel_config": {"pipeline_parallel_size": 1, "prefill_context_parallel_size": 1, "use_ubatching": False,
                            "enable_batch_sharded_sampling": False},
        "scheduler_config": {"policy": "fcfs"},
    }  # fmt: skip
    own = {
        "use_v2_model_runner": True,
        "speculative_config": None,
        "watermark_config": None,
        "kv_transfer_config": None,
    }
    for key, value in changes.items():
        group = next((part for part in parts.values() if key in part), own)
        group[key] = value
    return SimpleNamespace(**own, **{part: SimpleNamespace(**values) for part, values in parts.items()})


@pytest.mark.parametrize(
    "change, word",
    [
        ({"architecture": "BloomForCausalLM"}, "BloomForCausalLM"),
        ({"use_v2_model_runner": False}, "VLLM_USE_V2_MODEL_RUNNER=1"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"speculative_config": object()}, "speculative_config"),
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size"),
        ({"use_ubatching": True}, "enable_dbo"),
        ({"enable_batch_sharded_sampling": True}, "enable_batch_sharded_sampling"),
        ({"enable_prompt_embeds": True}, "enable_prompt_embeds"),
        ({"watermark_config": object()}, "watermark"),
        ({"kv_transfer_config": object()}, "kv_transfer_config"),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"quantization": "gguf"}, "GGUF"),
        ({"policy": "priority"}, "fcfs"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_engines_that_cannot_think_softly(change, word):
    assert engine_support.why_off(config()) is None
    assert word in engine_support.why_off(config(**change))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_trainer_without_vllm_says_what_to_install(tmp_path):
    with pytest.raises(ImportError, match=r"pip install trl_soft\[vllm\]"):
        tiny.trainer(tmp_path, use_vllm=True)


def test_nothing_of_vllm_is_imported():
    """Trainers and rollouts import where vLLM is not installed, and do not load it where it is."""
    code = "import sys, trl_soft.rollout.vllm.plugin, trl_soft.rollout.vllm.records; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert SPEC == "trl_soft"
