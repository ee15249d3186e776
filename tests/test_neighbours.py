# SPDX-License-Identifier: Apache-2.0
"""The neighbours of tokens in the embedding table, and the thought that mixes them."""

import math
from dataclasses import replace

import pytest
import torch
from trl import ModelConfig

from tests import tiny
from tests.test_engine import plan, run
from tests.test_vllm_parts import TABLE
from trl_soft.plan.memory import rollout
from trl_soft.plan.run import run_of
from trl_soft.plan.shape import shape_of
from trl_soft.plan.world import World
from trl_soft.rollout.vllm.served_table import Table
from trl_soft.thoughts import Neighbour
from trl_soft.thoughts.checks import some_logits, some_noise
from trl_soft.vocabulary import neighbours
from trl_soft.vocabulary.dense_logits import DenseLogits
from trl_soft.vocabulary.neighbours import fingerprint, kept_nearest_tokens, nearest_tokens


def table(dtype=torch.float32) -> torch.Tensor:
    """A row of zeros, three equal rows, one of their opposite, and one that is twice another."""
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    rows[3], rows[7], rows[20], rows[21], rows[30] = 0.0, rows[5], rows[5], -rows[5], 2 * rows[31]
    return rows.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("tile", [1, 7 * 40, 2**22])
def test_neighbours_are_the_largest_cosines_and_of_equal_ones_the_lowest_ids(dtype, tile, monkeypatch):
    monkeypatch.setitem(neighbours.TILE_ELEMENTS, "cpu", tile)
    rows = table(dtype).double()
    unit = torch.nn.functional.normalize(rows, dim=-1)
    cosine = (unit @ unit.T).round(decimals=6).fill_diagonal_(2)
    expected = cosine.sort(stable=True, dim=-1, descending=True).indices[:, :6]
    found = nearest_tokens(table(dtype), 6)
    assert found.dtype == torch.int32 and torch.equal(found.long(), expected)
    assert found[5].tolist()[:3] == [5, 7, 20] and found[20].tolist()[:3] == [20, 5, 7] and found[30, 1] == 31


def test_neighbours_are_made_once_for_each_table():
    rows = table()
    first = kept_nearest_tokens(rows, 3)
    assert kept_nearest_tokens(rows.clone(), 3) is first
    rows[9] = rows[5]
    changed = kept_nearest_tokens(rows, 3)
    assert changed is not first and changed[5].tolist() == [5, 7, 9]
    assert kept_nearest_tokens(table(), 3) is first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_hash_of_a_table_knows_every_number_and_its_place(dtype):
    rows = table(dtype)
    hashes = {fingerprint(rows)}
    for i, j in ((0, 0), (39, 7), (3, 2)):
        other = rows.clone()
        other[i, j] = torch.nextafter(other[i, j].float(), torch.tensor(9.0)).to(dtype) + (dtype == torch.bfloat16)
        hashes.add(fingerprint(other))
    hashes |= {fingerprint(rows.flip(0)), fingerprint(rows.flip(1)), fingerprint(rows.roll(1, 0))}
    assert len(hashes) == 7 and fingerprint(rows.clone()) in hashes
    assert fingerprint(rows.T.contiguous().T) == fingerprint(rows)


def test_the_mixture_by_hand():
    """p = (.5, .3, .15, .05); token 0 is nearest to 2, and both to 1: weights .5/.65 and .15/.65."""
    z = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    nearest = torch.tensor([[0, 2], [1, 2], [2, 0], [3, 1]], dtype=torch.int32)
    # A temperature of 1e-4 draws token 0, and one of 1 weighs.
    action, token = Neighbour(1.0, width=2, greedy=True).sample(DenseLogits(z, nearest=nearest), some_noise(1))
    assert token.tolist() == [0] and action["ids"].tolist() == [[0, 2]]
    torch.testing.assert_close(action["weights"], torch.tensor([[0.5 / 0.65, 0.15 / 0.65]]))
    score, entropy = Neighbour(1.0, width=2).score(DenseLogits(z), action)
    assert score.item() == pytest.approx(math.log(0.5)) and entropy.item() == pytest.approx(1.1421, abs=1e-4)
    closed = Neighbour(1.0, width=2).close(action, torch.tensor([True]), token)
    assert closed["weights"].tolist() == [[1.0, 0.0]]
    assert Neighbour(1.0, width=2).score(DenseLogits(z), closed)[0].item() == pytest.approx(math.log(0.5))


def test_weights_are_those_of_the_temperature_and_a_suppressed_neighbour_has_none():
    z = torch.tensor([[2.0, 1.0, -torch.inf]])
    nearest = torch.tensor([[0, 1, 2]] * 3, dtype=torch.int32)
    action, _ = Neighbour(0.5, greedy=True).sample(DenseLogits(z, nearest=nearest), some_noise(1))
    torch.testing.assert_close(action["weights"], torch.tensor([[1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)), 0.0]]))


def test_the_anchor_is_drawn_as_a_hard_token():
    """With one token in the mixture, the thought is the hard token: drawn, scored and fed alike."""
    net = tiny.model()
    for own in ({}, {"thinking_top_k": 5, "thinking_top_p": 0.9, "thinking_temperature": 0.7}):
        hard = run(net, plan(net, {"thought": "hard", **own}))
        one = run(net, plan(net, {"thought": "neighbour", "neighbour_width": 1, **own}))
        assert torch.equal(one.completion_ids, hard.completion_ids)
        torch.testing.assert_close(one.record.log_probs, hard.record.log_probs)
        torch.testing.assert_close(one.entropies, hard.entropies)
    wide = run(net, plan(net, {"thought": "neighbour"}))
    assert not torch.equal(wide.completion_ids, run(net, plan(net, {"thought": "hard"})).completion_ids)


def test_with_one_token_a_run_is_that_of_hard_tokens(tmp_path):
    def weights(**settings):
        trainer = tiny.trainer(tmp_path, **settings)
        trainer.train()
        return trainer.model.state_dict()

    hard, one = weights(thought="hard"), weights(thought="neighbour", neighbour_width=1)
    for name, value in weights(thought="neighbour").items():
        torch.testing.assert_close(one[name], hard[name], rtol=1e-4, atol=1e-6)
        assert value.dim() == 1 or not torch.equal(value, hard[name])


@pytest.mark.parametrize("engine", ["slots", "simple"])
def test_a_rollout_mixes_the_neighbours_in_the_table_that_it_feeds(engine):
    net = tiny.model()
    made = plan(net, {"thought": "neighbour"})
    embedding = net.get_input_embeddings().weight
    before = nearest_tokens(embedding, 3)
    for _ in range(2):
        ids = run(net, made, engine).record.flat_action(run(net, made, engine).record.thinking_mask)["ids"].long()
        assert torch.equal(ids, nearest_tokens(embedding, 3)[ids[:, 0]].long())
        with torch.no_grad():  # as an update does
            embedding.copy_(
                embedding.flip(1) + torch.randn(embedding.shape, generator=torch.Generator().manual_seed(1))
            )
    assert not torch.equal(before, nearest_tokens(embedding, 3))


def test_greedy_evaluation_takes_the_most_likely_token_and_weighs_at_the_temperature_of_training():
    net = tiny.model()
    settings = {"thought": "neighbour", "eval_greedy": True}
    made = plan(net, settings, evaluation=True, answer=Neighbour(0.7).anchor)
    assert made.answer.temperature == 0 and made.thought.anchor.temperature == 0 and made.thought.temperature == 0.7
    z = some_logits(5).float()
    nearest = torch.arange(3, dtype=torch.int32).expand(12, 3)
    _, token = made.thought.sample(DenseLogits(z, nearest=nearest), some_noise(5))
    assert torch.equal(token, z.argmax(-1))


def test_more_neighbours_than_tokens_are_refused():
    net = tiny.model()
    with pytest.raises(ValueError, match="mixes 64 tokens, but the model has only 26"):
        plan(net, {"thought": "neighbour", "neighbour_width": 64})


def test_a_split_table_has_the_neighbours_of_the_whole_one():
    """Two ranks of a group: each adds up what both have."""
    parts, sent = [(0, 9), (9, len(TABLE))], []

    def of(rank):
        start, end = parts[rank]
        padded = torch.cat([TABLE[start:end], torch.full((2, TABLE.size(1)), 7.0)])
        return Table(lambda: padded, start, end, add=lambda own: own + sent.pop(0))

    for rank in (0, 1):
        start, end = parts[1 - rank]
        theirs = torch.zeros_like(TABLE)
        theirs[start:end] = TABLE[start:end]
        sent[:] = [torch.tensor([end - start]), theirs]
        assert torch.equal(of(rank).whole(), TABLE) and sent == []


def test_the_planner_counts_the_neighbours_and_the_tile_they_are_found_in(tmp_path):
    """k int32 numbers for each of V tokens, and V cosines in float32 for each of 2**25 / V tokens."""
    net = tiny.model()
    shape, device = shape_of(net.config), World("single", 1)

    def rolling(**settings):
        args = tiny.config(tmp_path, **settings)
        run = run_of(args, shape, net.config, ModelConfig(dtype="float32"), device, 4, None)
        return rollout(replace(shape, vocab=100_000), run)["neighbours of tokens"]

    assert rolling(thought="neighbour", neighbour_width=5) == 4 * 100_000 * (5 + 335)
    with pytest.raises(KeyError):
        rolling(thought="mixture")
