# SPDX-License-Identifier: Apache-2.0
"""The embedded default: small, reproducible in its data, and able to learn."""

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from trl_soft import SoftGRPOConfig, SoftGRPOTrainer
from trl_soft.data import load_rows, to_prompts
from trl_soft.evaluate.presets import PRESETS
from trl_soft.rewards import REWARDS
from trl_soft.scripts.parser import SoftParser


ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "examples/quickstart"
ALL = sorted((ROOT / "recipes/quickstart").glob("*.yaml"))
EVALUATIONS = [recipe for recipe in ALL if recipe.stem.startswith("evaluate")]
RECIPES = [recipe for recipe in ALL if recipe not in EVALUATIONS]


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ASSETS))
    yield
    for name in ("task", "pretrain", "run"):
        sys.modules.pop(name, None)


def test_the_task_is_rewritten_byte_for_byte(scripts, monkeypatch, tmp_path):
    import task

    shipped = {name: (ASSETS / name).read_bytes() for name in ("train.jsonl", "test.jsonl")}
    monkeypatch.setattr(task, "HERE", tmp_path)
    task.main()
    assert all((tmp_path / name).read_bytes() == content for name, content in shipped.items())
    train, test = ([json.loads(line) for line in shipped[name].splitlines()] for name in shipped)
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    for row in train + test:
        assert eval(row["question"].rstrip("=")) == int(row["answer"])


def test_the_reasoner_is_small_and_plain():
    folder = ASSETS / "reasoner"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 1.5e6
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 200_000 < model.num_parameters() < 300_000
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2="}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|user|>1+2=<|assistant|><think>"
    assert (
        tokenizer.decode(tokenizer("1+2=3</think>3<eos>")["input_ids"], skip_special_tokens=True) == "1+2=3</think>3"
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_recipes_parse_strictly(scripts, recipe):
    from trl_soft.scripts.arguments import SoftScriptArguments

    arguments, training, model = SoftParser((SoftScriptArguments, SoftGRPOConfig, ModelConfig)).parse_args_and_config(
        ["--config", str(recipe), "--use_cpu", "true"]
    )
    assert arguments.dataset_name and model.model_name_or_path and training.thought
    assert set(arguments.reward_funcs) <= set(REWARDS)


@pytest.mark.parametrize("recipe", EVALUATIONS, ids=[recipe.stem for recipe in EVALUATIONS])
def test_evaluation_recipes_parse_strictly(scripts, recipe):
    from trl_soft.scripts.run_evaluation import EvaluationArguments, decodings_of

    (arguments,) = SoftParser((EvaluationArguments,)).parse_args_and_config(["--config", str(recipe)])
    preset = PRESETS[arguments.preset]
    assert arguments.benchmarks and len(decodings_of(arguments)) >= 2
    for decoding in decodings_of(arguments):
        decoding.settings(preset, "math", None)
    flags = ["--benchmarks", "gsm8k", "--seed", "3", "--grid_models", "hard=a", "soft=b", "fuzzy=c"]
    (grid,) = SoftParser((EvaluationArguments,)).parse_args_and_config(flags)
    assert len(decodings_of(grid)) == 18 and {decoding.seed for decoding in decodings_of(grid)} == {3}
    (both,) = SoftParser((EvaluationArguments,)).parse_args_and_config(["--config", str(recipe), *flags])
    with pytest.raises(ValueError, match="Leave one out"):
        decodings_of(both)


def test_there_are_recipes():
    assert len(RECIPES) >= 2 and EVALUATIONS


def test_the_reasoner_learns(tmp_path):
    """Twenty-four updates of 128 samples: the mean reward of the last six is above that of the first six by 0.1.

    The means' standard error is about 0.03, and the rise at these settings about 0.25.
    """
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "reasoner")
    rows = to_prompts(load_rows(str(ASSETS / "train.jsonl")), tokenizer)
    args = SoftGRPOConfig(
        str(tmp_path),
        max_completion_length=48,
        max_steps=24,
        per_device_train_batch_size=128,
        num_generations=8,
        learning_rate=2e-4,
        gumbel_density="concrete",
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SoftGRPOTrainer(str(ASSETS / "reasoner"), REWARDS["exact"], args, rows, processing_class=tokenizer)
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-6:]) / 6 > sum(rewards[:6]) / 6 + 0.1
