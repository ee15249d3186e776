# SPDX-License-Identifier: Apache-2.0
"""Greedy evaluation during training, and answers with a cap of their own."""

import math

import pytest
import torch

from tests import tiny
from trl_soft import SoftRLOOConfig, SoftRLOOTrainer, ThinkingSettings
from trl_soft.evaluate.decoding import Decoding
from trl_soft.evaluate.presets import PRESETS
from trl_soft.vocabulary.head_logits import HeadLogits


def rloo(tmp_path, **changes):
    settings = {**tiny.config(tmp_path).to_dict(), **changes, "beta": 0.0}
    keep = ("bf16", "use_cpu", "max_completion_length", "max_thinking_length", "per_device_train_batch_size")
    keep += ("num_generations", "max_steps", "learning_rate", "logging_steps", "report_to", "save_strategy", "seed")
    keep += ("disable_tqdm", "gradient_checkpointing", "beta", *changes)
    args = SoftRLOOConfig(str(tmp_path), **{name: settings[name] for name in keep})
    return SoftRLOOTrainer(
        tiny.model(), tiny.reward, args, tiny.prompts(), eval_dataset=tiny.prompts(), processing_class=tiny.tokenizer()
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"thought": "hard"},
        {"thought": "gaussian"},
        {"thought": "gaussian", "thinking_temperature": 1e-4},
        {"thought": "gaussian", "eval_thought": "hard"},
        {"thought": "gumbel"},
    ],
    ids=str,
)
def test_greedy_evaluation_draws_nothing_and_logs_as_trl_does(tmp_path, settings):
    """The same completion for every copy of a prompt, whatever the seed; training still draws."""
    trainer = rloo(tmp_path, eval_greedy=True, num_generations_eval=1, eval_strategy="steps", eval_steps=2, **settings)
    trainer.train()
    drawn = {}
    for seed in (0, 1):
        trainer.args.seed = seed
        trainer.model.eval()
        inputs = [trainer.eval_dataset[i] for i in (0, 1, 4, 5)]
        ids = trainer._generate_and_score_completions(inputs)["completion_ids"]
        assert torch.equal(ids[:2], ids[2:])
        drawn[seed] = ids
    assert torch.equal(drawn[0], drawn[1])
    steps = [row for row in trainer.state.log_history if "loss" in row]
    evaluation = next(row for row in trainer.state.log_history if "eval_loss" in row)
    names = (
        "reward",
        "reward_std",
        "entropy",
        "completions/mean_length",
        "clip_ratio/region_mean",
        "thinking/mean_length",
    )
    for row, prefix in ((steps[0], ""), (evaluation, "eval_")):
        assert all(math.isfinite(row[prefix + name]) for name in ("loss", *names))
    assert evaluation["eval_thinking/logp_difference/max"] < 1e-4 or "hard" not in settings.values()


def test_a_thought_that_is_a_draw_cannot_be_greedy():
    with pytest.raises(ValueError, match="a multiplex thought is a draw"):
        ThinkingSettings(thought="multiplex", eval_greedy=True)
    ThinkingSettings(thought="multiplex", eval_thought="hard", eval_greedy=True)


@pytest.mark.parametrize("thought", ["hard", "gaussian"])
def test_an_answer_is_capped_in_training(tmp_path, thought):
    trainer = rloo(tmp_path, thought=thought, answer_prefill=["=a", "=b"], max_answer_length=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "answer/mean_length" in row]
    assert rows and all(0 < row["answer/mean_length"] <= 2 for row in rows)


def test_an_answer_cap_is_checked_and_saved(tmp_path):
    with pytest.raises(ValueError, match="`max_answer_length` is 0"):
        ThinkingSettings(max_answer_length=0)
    ThinkingSettings(max_answer_length=5).save_thinking(tmp_path)
    assert ThinkingSettings.load_thinking(tmp_path).max_answer_length == 5


def test_whose_answer_cap_it_is_in_an_evaluation():
    """The decoding's, else the preset's, else the one saved beside the model."""
    saved = ThinkingSettings(max_answer_length=5)

    def cap(preset: str, **entry):
        return Decoding.parse({"name": "x", **entry}).settings(PRESETS[preset], "math", saved).max_answer_length

    assert cap("soft_tokens") == cap("soft_tokens", thought="hard") == 32
    assert cap("plain") == 5 and cap("plain", thought="hard") is None
    assert cap("soft_tokens", max_answer_length=7) == 7


def test_logits_of_many_candidates_are_those_of_few():
    """More than 1,024 candidates take another way to the same numbers and gradients, to the rounding of float32."""
    head, table = torch.nn.Linear(8, 1500, bias=False), torch.nn.Embedding(1500, 8)
    hidden, ids = torch.randn(3, 8, requires_grad=True), torch.stack([torch.randperm(1500) for _ in "123"])
    weights = torch.randn(3, 1500)

    def of(parts):
        z = torch.cat([HeadLogits(hidden, head, table).at(part) for part in parts], -1)
        return z, torch.autograd.grad((z * weights).sum(), (hidden, head.weight))

    many, few = of([ids]), of(ids.split(500, -1))
    torch.testing.assert_close(many, few, rtol=1e-4, atol=1e-5)
