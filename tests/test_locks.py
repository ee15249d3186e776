# SPDX-License-Identifier: Apache-2.0
"""What each paper does where thinking ends, locked by name: what is fed, what is scored, what counts as length."""

import pytest
import torch

from tests import tiny
from trl_soft import ThinkingSettings, soft_generate
from trl_soft.forward import soft_tokens_added
from trl_soft.vocabulary.embedding_table import Lookup


END, EOS = tiny.TOKENS.index("</think>"), 1
C = 24
PROMPTS = [f"{a}+{b}=" for a in range(10) for b in range(10)]


def generate(**settings):
    """One completion of each prompt; those that ended their thought themselves, by row."""
    net = tiny.model(seed=0)
    settings = ThinkingSettings(**{"max_thinking_length": 16, "thinking_top_k": 12} | settings)
    out = soft_generate(
        net, tiny.tokenizer(), PROMPTS, settings, max_completion_length=C, progress=False, slots=len(PROMPTS)
    )
    ended = [i for i, n in enumerate(out.thinking_lengths) if out.completion_ids[i][n - 1] == END]
    assert ended and len(ended) < len(PROMPTS)
    return net, out, ended


def steps(net, out, rows):
    """The record, and the logits that the closing steps of some rows were drawn from."""
    record = out.record
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in out.completion_ids], batch_first=True)
    prompt = torch.tensor(tiny.tokenizer()(PROMPTS)["input_ids"])
    with soft_tokens_added(net), torch.no_grad():
        logits = net(input_ids=torch.cat([prompt, ids], 1), soft_tokens=record).logits[:, prompt.size(1) - 1 : -1]
    last = torch.tensor([out.thinking_lengths[row] - 1 for row in rows])
    return record, logits[rows, last], last


def at(record, rows, last):
    return {name: value[rows, last] for name, value in record.action.items()}


@pytest.mark.parametrize("kind", ["gumbel", "soft", "mixture", "multiplex"])
def test_lock_the_closing_step_feeds_the_end_token_alone(kind):
    """SofT-GRPO and Soft Thinking overwrite the step; Mixture of Inputs and Multiplex Thinking likewise."""
    settings = {"thinking_top_k": None} if kind == "multiplex" else {}
    net, out, rows = generate(thought=kind, **settings)
    record, _, last = steps(net, out, rows)
    fed = record.thought.embed(at(record, rows, last), Lookup(net.get_input_embeddings()))
    torch.testing.assert_close(fed, net.get_input_embeddings().weight[END].expand_as(fed))


@pytest.mark.parametrize("settings", [{"thought": "gaussian", "thinking_top_k": None}, {"thought": "dirichlet"}])
def test_lock_the_closing_step_of_soft_tokens_hard_truths_is_a_thought_like_any_other(settings):
    net, out, rows = generate(**settings)
    record, _, last = steps(net, out, rows)
    fed = record.thought.embed(at(record, rows, last), Lookup(net.get_input_embeddings()))
    assert record.thinking_mask[rows, last].all()
    assert ((fed - net.get_input_embeddings().weight[END]).norm(dim=-1) > 1e-3).any()


def test_lock_softgrpo_scores_the_end_token_over_the_whole_vocabulary():
    """The released code has an ordinary token there: no thought in the record, log p of the answer's distribution."""
    net, out, rows = generate(gumbel_density="softgrpo")
    record, logits, last = steps(net, out, rows)
    assert not record.thinking_mask[rows, last].any()
    expected = torch.log_softmax(logits, -1)[:, END]
    torch.testing.assert_close(record.log_probs[rows, last], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("density", ["gumbel", "concrete"])
def test_lock_exact_densities_score_the_end_token_on_the_support_of_the_draw(density):
    net, out, rows = generate(gumbel_density=density)
    record, logits, last = steps(net, out, rows)
    assert record.thinking_mask[rows, last].all()
    action = at(record, rows, last)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, action["ids"], action["kept"])
    expected = torch.log_softmax(logits.masked_fill(~kept, -torch.inf), -1)[:, END]
    torch.testing.assert_close(record.log_probs[rows, last], expected, rtol=0, atol=1e-5)


def test_lock_multiplex_ends_with_its_first_draw_and_scores_that_alone():
    net, out, rows = generate(thought="multiplex", thinking_top_k=None)
    record, logits, last = steps(net, out, rows)
    assert (record.action["ids"][rows, last, 0] == END).all()
    expected = torch.log_softmax(logits, -1)[:, END]
    torch.testing.assert_close(record.log_probs[rows, last], expected, rtol=0, atol=1e-5)
    inside = record.thinking_mask & (record.action["ids"][..., 1:] == END).any(-1)
    assert inside.any()  # a later draw of the end token ends nothing


def test_lock_length_counts_the_closing_step_and_a_cap_counts_thoughts():
    _, out, rows = generate(max_thinking_length=4, answer_prefill=["=a", "=b"])
    record = out.record
    thoughts = record.thinking_mask.sum(-1).tolist()
    assert thoughts == out.thinking_lengths and max(thoughts) == 4
    for row in rows:
        assert out.completion_ids[row].index(END) == out.thinking_lengths[row] - 1
    for row, ids in enumerate(out.completion_ids):
        # A completion's length counts all of it: thoughts, forced tokens and answer, the end of sequence among them.
        answer = len(ids) - thoughts[row] - int(record.forced_mask[row, : len(ids)].sum())
        assert answer > 0 or ids[-1] == EOS
        assert len(ids) == C or ids[-1] == EOS


def test_lock_what_a_cut_forces_is_neither_scored_nor_the_policys():
    """SofT-GRPO's Cold Stop would give the forced `</think>` an ordinary log-prob; here it has none."""
    for settings in ({"max_thinking_length": 3}, {"cold_stop_entropy": 10.0, "cold_stop_length": 2}):
        _, out, _ = generate(**settings)
        record = out.record
        for row in torch.tensor(out.thinking_cut).nonzero().squeeze(-1).tolist():
            n = out.thinking_lengths[row]
            assert out.completion_ids[row][n] == END and record.forced_mask[row, n]
            assert not record.thinking_mask[row, n] and out.log_probs[row][n] == 0


def test_lock_the_end_of_sequence_inside_a_thought_ends_the_completion():
    _, out, _ = generate()
    for ids, n in zip(out.completion_ids, out.thinking_lengths, strict=True):
        if EOS in ids[:n]:
            assert ids.index(EOS) == n - 1 == len(ids) - 1
    assert any(EOS in ids[:n] for ids, n in zip(out.completion_ids, out.thinking_lengths, strict=True))
