# SPDX-License-Identifier: Apache-2.0
"""Two updates of both papers' recipes on a real model and GSM8K questions: the recipe as it is, but for its size."""

import json
import sys
from pathlib import Path

import pytest
from trl import ModelConfig

import trl_soft.runs.replay
from tests.real.conftest import DATA
from tests.test_recipes import differing
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.rewards import REWARDS
from trl_soft.runs.replay import tolerance
from trl_soft.scripts.arguments import SoftScriptArguments
from trl_soft.scripts.parser import SoftParser
from trl_soft.scripts.run_training import train


ROOT = Path(__file__).parents[2]
# Recipe, trainer, and what is smaller than in the paper. Soft Tokens keeps its caps, its end text and its prefill; SofT-GRPO
# has 8,192 tokens of thought and answer together, of which there is time for 36 and 12 here.
RUNS = {
    "soft_grpo": (
        "soft_grpo/qwen1.5b_soft.yaml",
        (SoftGRPOTrainer, SoftGRPOConfig),
        {"max_completion_length": 48, "max_thinking_length": 36, "generation_batch_size": 8},
    ),
    "soft_tokens": (
        "soft_tokens/llama3b_gsm8k_soft.yaml",
        (SoftRLOOTrainer, SoftRLOOConfig),
        {"generation_batch_size": 4, "validation_rows": 0, "load_best_model_at_end": "false"},
    ),
}
SMALLER = {
    "dataset_name": "gsm8k_train", "data_dir": DATA, "contamination": "gsm8k", "max_steps": 2, "num_generations": 4,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "completions_per_update": 4,
    "eval_strategy": "no", "save_strategy": "no", "logging_steps": 1, "use_cpu": "true", "disable_tqdm": "true",
    "gradient_checkpointing": "false",
}  # fmt: skip


@pytest.mark.parametrize("precision", ["autocast", "float32"])  # the recipes': float32 weights under bf16 autocast
@pytest.mark.parametrize("paper", RUNS)
def test_two_updates(paper, precision, smollm2, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(trl_soft.runs.replay.logger, "warning", told.append)
    recipe, (trainer_class, config_class), smaller = RUNS[paper]
    flags = {**SMALLER, **smaller, "model_name_or_path": smollm2, "output_dir": tmp_path / "out"}
    if precision == "float32":
        flags["bf16"] = "false"
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    arguments, training, model = SoftParser((SoftScriptArguments, config_class, ModelConfig)).parse_args_and_config(
        ["--config", str(ROOT / "recipes" / recipe), *words]
    )
    (reward,) = arguments.reward_funcs
    # A model of 135M earns nothing on GSM8K, and equal rewards have no gradient.
    monkeypatch.setitem(REWARDS, reward, differing(REWARDS[reward]))
    train(arguments, training, model, trainer_class)

    history = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    steps = [row for row in history if "loss" in row]
    assert len(steps) == 2
    limit = tolerance(training, 576, precision == "float32")
    for row in steps:
        assert 0 < row["grad_norm"] < float("inf")
        assert row["thinking/logp_difference/mean"] <= limit
    for row in steps[:: training.steps_per_generation]:  # those that began with a rollout
        assert 1 <= row["thinking/mean_length"] <= training.max_thinking_length
        if training.max_answer_length is not None:
            assert row["answer/mean_length"] <= training.max_answer_length
    assert told == []
    print(paper, precision, [row["thinking/logp_difference/mean"] for row in steps], limit, file=sys.stderr)
    assert json.loads((tmp_path / "out/thinking_config.json").read_text())["thought"] == training.thought
