# SPDX-License-Identifier: Apache-2.0
"""The rollout: the same thoughts in any batch, the right phase at every step, and a model left as it was found."""

import subprocess
import sys

import pytest
import torch

from tests import tiny
from trl_soft import SoftTokens, ThinkingSettings, add_soft_tokens, soft_generate
from trl_soft.forward import remove_soft_tokens, soft_tokens_added
from trl_soft.rollout import EndOfThinking
from trl_soft.thoughts import Gumbel
from trl_soft.vocabulary.embedding_table import Lookup


PROMPTS = ["1+2=", "3+44=", "5-6=", "7777-8="]
KINDS = ["hard", "soft", "gumbel", "gaussian"]


def generate(settings=None, prompts=PROMPTS, net=None, **options):
    settings = settings or ThinkingSettings(max_thinking_length=8)
    options = {"num_generations": 4, "max_completion_length": 16, "progress": False, "seed": 3} | options
    return soft_generate(net or tiny.model(), tiny.tokenizer(), prompts, settings, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing(kind):
    """One row at a time, three at a time or all at once: the same completions; log-probs to float32's rounding."""
    settings = ThinkingSettings(thought=kind, max_thinking_length=8)
    all_at_once = generate(settings, slots=16)
    assert len(set(map(len, all_at_once.completion_ids))) > 1
    for batch_size in (1, 3):
        other = generate(settings, slots=batch_size)
        assert other.completion_ids == all_at_once.completion_ids
        assert other.thinking_lengths == all_at_once.thinking_lengths
        # A gaussian score multiplies the rounding of the mixture by 1/sigma^2.
        for ours, theirs in zip(other.log_probs, all_at_once.log_probs, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-3, atol=2e-5)


def test_seed_and_generation_matter():
    first = generate()
    assert generate().completion_ids == first.completion_ids
    assert generate(seed=4).completion_ids != first.completion_ids
    assert generate(generation=1).completion_ids != first.completion_ids


@pytest.mark.parametrize("kind", ["gumbel", "gaussian", "soft"])
def test_the_loop_equals_one_forward(kind):
    """Teacher forcing: the record fed to one uncached forward gives the log-probabilities that were drawn."""
    net, tokenizer = tiny.model(), tiny.tokenizer()
    own = {"gumbel_temperature": 1.0} if kind == "gumbel" else {}
    settings = ThinkingSettings(thought=kind, max_thinking_length=8, **own)
    out = generate(settings, prompts=["3+44="], net=net)
    record = out.record
    prompt = torch.tensor(tokenizer("3+44=")["input_ids"]).expand(4, -1)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in out.completion_ids], batch_first=True)
    with soft_tokens_added(net), torch.no_grad():
        logits = net(input_ids=torch.cat([prompt, ids], 1), soft_tokens=record).logits[:, prompt.size(1) - 1 : -1]
    for row, length in enumerate(map(len, out.completion_ids)):
        for t in range(length):
            if not record.thinking_mask[row, t] and out.log_probs[row][t] != 0:
                expected = torch.log_softmax(logits[row, t], -1)[ids[row, t]].item()
                assert out.log_probs[row][t] == pytest.approx(expected, abs=1e-5)


def test_phases_follow_each_other():
    """Thoughts, then forced tokens, then an answer; the closing token stands where thinking ends."""
    out = generate(ThinkingSettings(max_thinking_length=4))
    end = tiny.TOKENS.index("</think>")
    start = 0
    for record in out.records:
        for row in range(record.shape[0]):
            ids, thoughts = out.completion_ids[start + row], record.thinking_mask[row]
            length = out.thinking_lengths[start + row]
            assert thoughts[:length].all() and not thoughts[length:].any()
            if out.thinking_cut[start + row]:
                assert length == 4 and (len(ids) == 4 or ids[4] == end)
            else:
                assert ids[length - 1] in (end, 1)
        start += record.shape[0]
    assert any(out.thinking_cut) and not all(out.thinking_cut)


def test_prefill_for_both_endings():
    out = generate(ThinkingSettings(max_thinking_length=4, answer_prefill=["=a", "=b"]))
    tokenizer, eos = tiny.tokenizer(), 1
    for length, cut, ids in zip(out.thinking_lengths, out.thinking_cut, out.completion_ids, strict=True):
        if ids[length - 1] != eos:
            assert tokenizer.decode(ids[length : length + 2]) == ("=b" if cut else "=a")


def test_a_text_ends_the_thought():
    """`1` or `=` alone are common; together, cut into tokens in any way, they end the thought."""
    settings = ThinkingSettings(end_of_thinking="1;", max_thinking_length=12, thinking_top_k=20, thinking_top_p=1.0)
    out = generate(settings, num_generations=64, max_completion_length=16)
    ended = [i for i, cut in enumerate(out.thinking_cut) if not cut and out.completion_ids[i][-1] != 1]
    for i in ended:
        shadow = tiny.tokenizer().decode(out.completion_ids[i][: out.thinking_lengths[i]])
        assert shadow.endswith("1;") and "1;" not in shadow[:-1]
    assert ended


def test_cold_stop():
    """Every entropy is below 10 nats, so the thought is closed after two steps."""
    out = generate(ThinkingSettings(cold_stop_entropy=10.0, cold_stop_length=2, max_thinking_length=8))
    end = tiny.TOKENS.index("</think>")
    for length, cut, ids in zip(out.thinking_lengths, out.thinking_cut, out.completion_ids, strict=True):
        assert length <= 2 and (not cut or ids[2] == end)
    assert any(out.thinking_cut)


def test_greedy_needs_no_noise():
    settings = ThinkingSettings(noise_scale=0.0, max_thinking_length=8)
    assert (
        generate(settings, temperature=0.0).completion_ids
        == generate(settings, temperature=0.0, seed=9).completion_ids
    )


def test_top_one_thoughts_are_greedy_tokens():
    one = generate(ThinkingSettings(thinking_top_k=1, max_thinking_length=8), temperature=0.0)
    hard = generate(ThinkingSettings(thought="hard", max_thinking_length=8), temperature=0.0)
    assert one.completion_ids == hard.completion_ids


def test_a_cold_gumbel_mixture_is_its_top_embedding():
    thought, embedding = Gumbel(gumbel_temperature=1e-4), torch.nn.Embedding(9, 4)
    action = {"ids": torch.tensor([[3, 5]]), "perturbed": torch.tensor([[0.2, 1.0]])}
    torch.testing.assert_close(thought.embed(action, Lookup(embedding))[0], embedding.weight[5])


def test_hard_follows_generate():
    """Greedy hard tokens are those of transformers' own `generate`."""
    net, tokenizer = tiny.model(), tiny.tokenizer()
    ours = generate(ThinkingSettings(thought="hard"), net=net, num_generations=1, temperature=0.0)
    for prompt, ids in zip(PROMPTS, ours.completion_ids, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        theirs = net.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].size(1) :]
        assert ids == theirs.tolist()


def test_repetition_penalty_acts_on_the_answer():
    settings = ThinkingSettings(thought="hard", max_thinking_length=1)
    assert (
        generate(settings, temperature=0.0).completion_ids
        != generate(settings, temperature=0.0, repetition_penalty=3.0).completion_ids
    )


def test_the_model_is_left_as_found():
    net = tiny.model()
    before, state = dict(vars(net)), torch.get_rng_state()
    embedding = dict(vars(net.get_input_embeddings()))
    generate(net=net)
    assert vars(net) == before and vars(net.get_input_embeddings()) == embedding
    assert torch.equal(state, torch.get_rng_state())


def test_adding_twice_and_removing():
    net = tiny.model()
    ids = torch.tensor([[4, 5, 6]])
    expected = net(input_ids=ids).logits
    add_soft_tokens(net)
    forward = net.forward
    add_soft_tokens(net)
    assert net.forward is forward or net.forward == forward
    assert torch.equal(net(input_ids=ids).logits, expected)
    remove_soft_tokens(net)
    assert "forward" not in vars(net) and torch.equal(net(input_ids=ids).logits, expected)


def test_a_record_of_another_shape_is_refused():
    net = tiny.model()
    record = SoftTokens(Gumbel(), torch.zeros(2, 9, dtype=torch.bool), {}, torch.zeros(2, 9))
    with soft_tokens_added(net), pytest.raises(ValueError, match="slice them together"):
        net(input_ids=torch.zeros(2, 3, dtype=torch.long), soft_tokens=record)
    with pytest.raises(ValueError, match="Every tensor of a record"):
        SoftTokens(Gumbel(), torch.zeros(2, 9, dtype=torch.bool), {"x": torch.zeros(2, 8)}, torch.zeros(2, 9))


def test_a_record_survives_the_batch():
    record = generate(slots=16).record
    again = SoftTokens.from_batch(record.to_batch(), record.thought)
    assert again.action.keys() == record.action.keys() and torch.equal(again.thinking_mask, record.thinking_mask)
    longer = record.to_length(record.shape[1] + 3)
    assert not longer.thinking_mask[:, -3:].any() and longer.to_length(record.shape[1]).shape == record.shape
    assert record[2:5].shape == (3, record.shape[1])


def test_settings_beside_the_weights_are_found(tmp_path):
    net = tiny.model()
    net.save_pretrained(tmp_path)
    ThinkingSettings(thought="hard", max_thinking_length=4).save_thinking(tmp_path)
    loaded = type(net).from_pretrained(tmp_path)
    out = soft_generate(loaded, tiny.tokenizer(), PROMPTS, max_completion_length=8, progress=False)
    assert out.record.thought.name == "hard" and max(out.thinking_lengths) <= 4
    with pytest.raises(ValueError, match="Pass `settings"):
        soft_generate(net, tiny.tokenizer(), PROMPTS)


def test_end_of_thinking_is_resolved_once():
    tokenizer = tiny.tokenizer()
    assert EndOfThinking(tokenizer, "</think>").is_token and not EndOfThinking(tokenizer, "1;").is_token
    with pytest.raises(ValueError, match="cannot produce"):
        EndOfThinking(tokenizer, "Final answer")
    with pytest.raises(ValueError, match="empty"):
        EndOfThinking(tokenizer, "")


def test_imports_without_trl():
    """Where only torch and transformers are installed, generation works."""
    code = (
        "import sys\n"
        "for name in ('trl', 'datasets', 'accelerate', 'peft', 'deepspeed', 'math_verify', 'wandb'):\n"
        "    sys.modules[name] = None\n"
        "from trl_soft import THOUGHTS, KeyedNoise, SoftTokens, ThinkingSettings, Thought, add_soft_tokens, soft_generate\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_repetition_penalty_acts_on_hard_thoughts():
    settings = ThinkingSettings(thought="hard")
    plain, penalised = (generate(settings, temperature=0.0, repetition_penalty=p) for p in (1.0, 5.0))
    assert plain.completion_ids != penalised.completion_ids


def test_a_text_of_one_token_is_found_however_it_is_written():
    """`;` is an ordinary token here, so it is matched as text; `</think>` is an added token, matched by id."""
    tokenizer = tiny.tokenizer()
    end = EndOfThinking(tokenizer, ";")
    assert not end.is_token and end.rests([tokenizer(text)["input_ids"] for text in ("1;", ";1")]) == ["", None]
