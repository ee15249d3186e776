# SPDX-License-Identifier: Apache-2.0
"""Tokens that stay hard in any mixture: what is fed, how it is scored, and which tokens they are."""

import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.test_engine import plan, run
from trl_soft import ThinkingSettings
from trl_soft.rollout import hard_members as resolved
from trl_soft.rollout.hard_members import hard_members
from trl_soft.scripts.parser import SoftParser
from trl_soft.thoughts import Dirichlet, Gumbel, Hard, Mixture, Multiplex, Neighbour, Soft
from trl_soft.thoughts.checks import VOCAB as V
from trl_soft.thoughts.checks import (
    check_density,
    drawn_from,
    score_of_mean_zero,
    some_logits,
    some_noise,
)
from trl_soft.thoughts.gaussian import LogitsGaussian, ProbabilitiesGaussian
from trl_soft.thoughts.token_class import HardTokens
from trl_soft.training.config import SoftGRPOConfig
from trl_soft.vocabulary.dense_logits import DenseLogits


MEMBERS = torch.zeros(V, dtype=torch.bool).index_fill_(0, torch.tensor([1, 2, 6, 9]), True)
EXACT = {
    "gumbel": lambda: Gumbel(top_p=1.0),
    "concrete": lambda: Gumbel(density="concrete", noise_scale=0.7, top_p=1.0),
    "dirichlet": lambda: Dirichlet(concentration=2.0),
    "logits": lambda: LogitsGaussian(0.5, 0.7, top_k=5),
    "probabilities": lambda: ProbabilitiesGaussian(1.0, 0.05),
    "mixture": lambda: Mixture(0.9, top_k=6, beta=1.5),
    "multiplex": lambda: Multiplex(0.8, width=3),
    "multiplex-draw": lambda: Multiplex(0.8, width=3, ratio="draw"),
    "neighbour": lambda: Neighbour(0.8),
}
MIXED = {**EXACT, "softgrpo": lambda: Gumbel(density="softgrpo"), "soft": lambda: Soft(1.0, 6)}


def drawn(thought, n=2_000):
    z = (some_logits(1) / 2).float().expand(n, V)
    action, token = thought.sample(drawn_from(z, thought), some_noise(n))
    return z, action, token


@pytest.mark.parametrize("name", EXACT)
def test_the_score_is_the_density_of_the_draw(name):
    """Finite differences, and a score of mean zero: for steps that are hard, for others, and where the thought ends."""
    check_density(HardTokens(EXACT[name](), MEMBERS))


def test_a_score_that_forgets_which_steps_are_hard_is_found():
    class Forgets(HardTokens):
        def score(self, logits, action):
            closed = torch.zeros_like(action["closed"])
            perturbed = action["perturbed"].clamp(min=-9.0)
            return super().score(logits, {**action, "closed": closed, "perturbed": perturbed})

    with pytest.raises(AssertionError, match="is not the density of `sample`"):
        score_of_mean_zero(Forgets(Gumbel(top_p=1.0), MEMBERS))


@pytest.mark.parametrize("name", MIXED)
def test_a_step_is_its_token_alone_or_holds_none_of_the_class(name):
    thought = HardTokens(MIXED[name](), MEMBERS)
    _, action, token = drawn(thought)
    weights, hard = thought.weights(action), MEMBERS[token]
    # What has hardly any noise, or none, has one shadow token.
    assert (0.05 < hard.float().mean() < 0.95) or name in ("soft", "probabilities")
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(token)))
    of_token = weights.where(action["ids"] == token.unsqueeze(-1), 0.0).sum(-1)
    assert (of_token[hard] == 1).all()
    assert (weights[~hard][MEMBERS[action["ids"][~hard]]] == 0).all()
    # What is left has the proportions that it had.
    inner = MIXED[name]()
    _, plain, same = drawn(inner)
    assert torch.equal(same, token)
    left = inner.weights(plain)[~hard].masked_fill(MEMBERS[action["ids"][~hard]], 0.0)
    if name != "probabilities":  # whose sums are held at 0.1
        torch.testing.assert_close(weights[~hard], left / left.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", ["gumbel", "concrete"])
def test_a_hard_step_has_the_probability_of_its_token(name):
    """P(argmax g' = x) = softmax(log p / s)_x on the support; other steps keep the density of their g'."""
    thought = HardTokens(EXACT[name](), MEMBERS)
    z, action, token = drawn(thought)
    hard, inner = MEMBERS[token], EXACT[name]()
    score = thought.score(DenseLogits(z), action)[0]
    log_p = torch.log_softmax(inner.log_p(DenseLogits(z), action) / inner.noise_scale, -1)
    expected = log_p.gather(-1, (action["ids"] == token.unsqueeze(-1)).long().argmax(-1, keepdim=True)).squeeze(-1)
    torch.testing.assert_close(score[hard], expected[hard])
    _, plain, _ = drawn(inner)
    assert torch.equal(score[~hard], inner.score(DenseLogits(z), plain)[0][~hard])


@pytest.mark.parametrize("name", ["dirichlet", "logits", "probabilities", "softgrpo"])
def test_without_a_closed_form_the_score_is_that_of_the_whole_draw(name):
    thought = HardTokens(MIXED[name](), MEMBERS)
    z, action, _ = drawn(thought)
    _, plain, _ = drawn(MIXED[name]())
    assert torch.equal(thought.score(DenseLogits(z), action)[0], MIXED[name]().score(DenseLogits(z), plain)[0])


def test_only_the_first_of_several_draws_counts_in_a_hard_step():
    thought = HardTokens(EXACT["multiplex-draw"](), MEMBERS)
    z, action, token = drawn(thought)
    hard = MEMBERS[token]
    assert torch.equal(thought.draw_mask(action)[:, 1:].any(-1), ~hard) and thought.draw_mask(action)[:, 0].all()
    log_probs, _ = thought.score_draws(DenseLogits(z), action)
    assert (log_probs[hard, 1:] == 0).all() and (log_probs[~hard, 1:] < 0).all()


def test_the_end_of_a_thought_beside_hard_steps():
    """A step that ends the thought closes those of the class too, and they stay closed."""
    thought = HardTokens(Gumbel(top_p=1.0), MEMBERS)
    _, action, token = drawn(thought)
    ends = token == 0
    closed = thought.close(action, ends, token)
    assert torch.equal(closed["closed"], ends | MEMBERS[token]) and ends.any() and not MEMBERS[0]
    weights = thought.weights(closed)
    assert (weights[closed["closed"]].max(-1).values == 1).all()


SETTINGS = [
    {"thought": "gumbel", "hard_tokens": ["1", "+"]},
    {"thought": "gumbel", "gumbel_density": "softgrpo", "hard_token_pattern": r"\d"},
    {"thought": "dirichlet", "hard_token_pattern": r"\d"},
    {"thought": "multiplex", "hard_token_pattern": r"\d"},
    {"thought": "neighbour", "hard_token_pattern": r"\d"},
    {"thought": "gaussian", "noise_placement": "probabilities", "hard_token_pattern": r"\d"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=tiny.name)
def test_a_rollout_mixes_no_digit_with_anything(settings):
    net = tiny.model()
    made = plan(net, settings)
    out = run(net, made)
    theirs = run(net, made, "naive")
    assert torch.equal(out.completion_ids, theirs.completion_ids)
    torch.testing.assert_close(out.record.log_probs, theirs.record.log_probs, rtol=1e-5, atol=1e-5)
    thoughts = out.record.thinking_mask
    token, action = out.completion_ids[thoughts], out.record.flat_action(thoughts)
    wanted = settings.get("hard_tokens", list("0123456789"))
    members = torch.tensor([text in wanted for text in tiny.TOKENS])
    weights, hard = made.thought.weights(action), members[token]
    assert 0 < hard.sum() < len(hard)
    torch.testing.assert_close(weights[hard].max(-1).values, torch.ones(int(hard.sum())))
    assert (weights[~hard][members[action["ids"][~hard].long()]] == 0).all()
    assert (weights[~hard].max(-1).values < 1).any()


# Which tokens they are


def names(members) -> list[str]:
    return [text for text, member in zip(tiny.TOKENS, members.tolist(), strict=True) if member]


def test_tokens_are_found_by_their_texts():
    def found(tokens=None, pattern=None):
        return names(hard_members(tiny.tokenizer(), len(tiny.TOKENS), tokens, pattern))

    assert found(["7", "+"]) == ["7", "+"]
    assert found(None, "[0-2=]") == ["0", "1", "2", "="]
    assert found(["a"], "think") == ["<think>", "</think>", "a"]
    assert found(None, "^<") == ["<pad>", "<eos>", "<think>", "</think>"]
    members = hard_members(tiny.tokenizer(), 40, ["7"], None)  # rows of the table without a token
    assert members.shape == (40,) and members.sum() == 1


def test_a_token_is_found_by_its_blanks(words):
    """A byte-level vocabulary: ` 12` is not `12`, and a pattern sees the blank."""
    vocab = words.get_vocab()
    found = hard_members(words, len(words), [" 12"], None).nonzero().squeeze(-1).tolist()
    assert found == [vocab["\u012012"]]
    found = hard_members(words, len(words), None, r"^ ?\d+$").nonzero().squeeze(-1).tolist()
    assert sorted(found) == sorted(vocab[name] for name in ("\u01201", "\u012012", "12", *"0123456789"))


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*alphabet, "\u01201", "\u012012", "12"])}
    core = Tokenizer(models.BPE(vocab, [("\u0120", "1"), ("\u01201", "2"), ("1", "2")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize(
    "tokens, pattern, sentence",
    [
        (["12"], None, "`hard_tokens` holds '12', but no token of this tokenizer writes exactly this text"),
        ([" 1"], None, "holds ' 1', but no token"),
        (None, "xyz", "`hard_token_pattern` is 'xyz', but it is found in no token"),
        (None, ".", "name every token of this tokenizer"),
        (["<pad>"], "[^p]", "name every token of this tokenizer"),
    ],
)
def test_what_names_no_token_or_all_is_refused(tokens, pattern, sentence):
    with pytest.raises(ValueError, match=sentence):
        hard_members(tiny.tokenizer(), len(tiny.TOKENS), tokens, pattern)


def test_a_pattern_that_takes_for_ever_is_refused(monkeypatch):
    """2^40 ways to read a token of 40 letters. A server takes patterns from clients."""
    monkeypatch.setattr(resolved, "SECONDS", 0.0)
    with pytest.raises(ValueError, match="takes more than 0 seconds over the vocabulary"):
        resolved._matches(["a" * 40 + "!"], "^(a|a)+$")


@pytest.mark.parametrize(
    "settings, sentence",
    [
        (
            {"thought": "gaussian", "hard_tokens": ["1"]},
            "set with a gaussian thought, which feeds an embedding",
        ),
        ({"thought": "gaussian", "noise_placement": "hidden", "hard_token_pattern": "1"}, "which feeds an embedding"),
        ({"thought": "gumbel", "eval_thought": "latent", "hard_token_pattern": "1"}, "with a latent thought"),
        ({"thought": "hard", "hard_token_pattern": "1"}, "every step of a hard thought is a hard token"),
        ({"hard_tokens": "1"}, "must be a list of 1 to 256 texts"),
        ({"hard_tokens": []}, "must be a list of 1 to 256 texts"),
        ({"hard_tokens": ["1"] * 257}, "must be a list of 1 to 256 texts"),
        ({"hard_tokens": [7]}, "`hard_tokens` is 7, but it must be a text"),
        ({"hard_tokens": ["x" * 65]}, "at most 64"),
        ({"hard_token_pattern": "(1"}, "`hard_token_pattern` is '\\(1', which is no regular expression: missing"),
        ({"hard_token_pattern": "x" * 257}, "at most 256"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ThinkingSettings(**settings)


def test_hard_evaluation_of_a_mixture_is_no_mistake():
    ThinkingSettings(thought="gumbel", eval_thought="hard", hard_tokens=["1"])
    settings = ThinkingSettings(thought="hard", eval_thought="soft", hard_tokens=["1"])
    assert settings.make_thought(Hard()).is_token
    assert isinstance(settings.make_thought(Hard(), evaluation=True), HardTokens)


def test_saved_settings_keep_them_where_a_thought_can(tmp_path):
    saved = ThinkingSettings(hard_tokens=["1", "+"], hard_token_pattern="[a-c]")
    saved.save_thinking(tmp_path)
    assert ThinkingSettings.load_thinking(tmp_path) == saved
    assert saved.resolved()["hard_tokens"] == ["1", "+"] and "hard_tokens" not in ThinkingSettings().resolved()
    assert ThinkingSettings.load_thinking(tmp_path, thought="mixture").hard_token_pattern == "[a-c]"
    for kind in ("hard", "gaussian"):
        assert not ThinkingSettings.load_thinking(tmp_path, thought=kind).keeps_tokens_hard


def test_another_thought_on_the_command_line_takes_them_if_it_can(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("thought: gumbel\nhard_token_pattern: '[0-9]'\n")

    def parsed(*flags):
        words = [
            "--config",
            str(recipe),
            "--output_dir",
            str(tmp_path),
            "--report_to",
            "none",
            "--bf16",
            "false",
            *flags,
        ]
        return SoftParser((SoftGRPOConfig,)).parse_args_and_config(words)[0]

    assert parsed().hard_token_pattern == parsed("--thought", "mixture").hard_token_pattern == "[0-9]"
    assert parsed("--thought", "hard").hard_token_pattern is None
    assert parsed("--hard_tokens", "+", "=").hard_tokens == ["+", "="]


def test_the_log_of_a_hard_step_by_hand():
    """p = (.5, .3, .2) with token 1 drawn as a hard step: log .3, fed alone, whatever the noise was."""
    z = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(500, 3)
    thought = HardTokens(Gumbel(top_k=3, top_p=1.0), torch.tensor([False, True, False]))
    action, token = thought.sample(DenseLogits(z), some_noise(500))
    hard = token == 1
    score = thought.score(DenseLogits(z), action)[0]
    torch.testing.assert_close(score[hard], torch.full((int(hard.sum()),), math.log(0.3)))
    assert hard.float().mean() == pytest.approx(0.3, abs=0.1)
