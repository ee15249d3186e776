# SPDX-License-Identifier: Apache-2.0
"""What the training script does with its data settings before anything is trained."""

import json
import logging
import runpy
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from trl import ModelConfig

import trl_soft
from tests import tiny
from trl_soft import SoftGRPOTrainer
from trl_soft.scripts import run_training
from trl_soft.scripts.arguments import SoftScriptArguments, check_update
from trl_soft.scripts.parser import SoftParser
from trl_soft.scripts.run_training import check_rows, load_prompts, questions, split_off, train


ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(tmp_path):
    """Four DeepScaleR rows, of which the third is also the second of MATH-500."""

    def write(name: str, rows: list[dict]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("deepscaler_subset.jsonl", [{"problem": f"What is {i}?", "answer": str(i)} for i in range(4)])
    tests = ["Another.", "What  is $2$ ?"]
    write("math500.jsonl", [{"problem": p, "answer": "2", "unique_id": f"u{i}"} for i, p in enumerate(tests)])
    return str(tmp_path)


def arguments(**changes):
    settings = {"dataset_name": "deepscaler", "contamination": ["math500"], **changes}
    return SoftScriptArguments(**settings)


@pytest.mark.parametrize(("drop", "left"), [(False, ["0", "1", "2", "3"]), (True, ["0", "1", "3"])])
def test_contamination_is_counted_named_and_dropped_if_wanted(data, caplog, drop, left):
    given = arguments(data_dir=data, drop_contaminated=drop)
    with caplog.at_level(logging.WARNING, run_training.__name__):
        prompts = load_prompts(given, "deepscaler", "train", tiny.tokenizer(), 100, True)
    assert prompts["answer"] == left
    assert "1 questions of math500 are among its 4: ['u1']" in caplog.text
    assert ("1 rows dropped because a benchmark asks them" in caplog.text) is drop


def test_evaluation_rows_are_not_compared_with_themselves(data):
    given = arguments(data_dir=data, drop_contaminated=True)
    assert len(load_prompts(given, "math500", "test", tiny.tokenizer(), 100, False)) == 2


def test_a_benchmark_brings_its_answers(data, caplog):
    """A recipe for a hub's data set names a marker, and the command line another data set."""
    with caplog.at_level(logging.WARNING, run_training.__name__):
        rows = questions(arguments(data_dir=data, answer_marker="####"), "deepscaler", "train")
    assert rows["answer"] == ["0", "1", "2", "3"] and "`answer_marker` ('####') is for no row" in caplog.text


def test_validation_rows_are_the_same_for_every_seed():
    prompts = Dataset.from_dict({"prompt": [str(i) for i in range(10)], "answer": ["a"] * 10})
    train, validation = split_off(prompts, 3)
    assert len(validation) == 3 and not set(train["prompt"]) & set(validation["prompt"])
    assert validation["prompt"] == split_off(prompts, 3)[1]["prompt"]
    with pytest.raises(ValueError, match="between 1 and 9"):
        split_off(prompts, 10)


def test_an_update_of_another_size_is_refused(tmp_path):
    training = tiny.config(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    check_update(arguments(completions_per_update=16), training)
    with pytest.raises(ValueError, match="Set `gradient_accumulation_steps: 8`"):
        check_update(arguments(completions_per_update=64), training)
    with pytest.raises(ValueError, match="another number of processes"):
        check_update(arguments(completions_per_update=4), training)


def test_rows_that_fill_no_rollout_are_refused(tmp_path):
    training = tiny.config(tmp_path, num_generations=4, generation_batch_size=16)
    rows = Dataset.from_dict({"prompt": ["a"] * 4})
    check_rows(rows, training)
    with pytest.raises(ValueError, match=r"3 prompts are left .* a rollout takes 4"):
        check_rows(rows.select(range(3)), training)


@pytest.mark.parametrize(
    "config, key, other",
    [("SoftGRPOConfig", "normalize_advantages", "rloo_soft.py"), ("SoftRLOOConfig", "loss_type", "grpo_soft.py")],
)
def test_a_key_of_the_other_algorithm_names_its_script(tmp_path, config, key, other):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{key}: x\n")
    with pytest.raises(ValueError, match=rf"`{key}`.*Run `examples/{other}`"):
        SoftParser((getattr(trl_soft, config),)).parse_args_and_config(["--config", str(recipe)])


def test_validation_rows_without_evaluation_says_how_to_do_without(tmp_path):
    given = arguments(validation_rows=4)
    with pytest.raises(ValueError, match="Pass `--validation_rows 0`"):
        train(given, tiny.config(tmp_path, eval_strategy="no"), ModelConfig(model_name_or_path="m"), SoftGRPOTrainer)


def run_example(monkeypatch, *flags) -> None:
    """`examples/grpo_soft.py`, as `accelerate launch` runs it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["grpo_soft.py", *map(str, flags)])
    runpy.run_path(str(ROOT / "examples/grpo_soft.py"), run_name="__main__")


def test_the_example_trains_evaluates_and_saves(monkeypatch, tmp_path):
    flags = ["--config", "recipes/quickstart/gumbel.yaml", "--output_dir", tmp_path / "out", "--use_cpu", "true"]
    flags += ["--max_steps", 1, "--per_device_train_batch_size", 8, "--disable_tqdm", "true"]
    run_example(monkeypatch, *flags)
    (step, _) = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    assert step["thinking/mean_length"] > 1 and step["thinking/logp_difference/max"] < 1e-4
    assert (tmp_path / "out/model.safetensors").is_file()
    assert json.loads((tmp_path / "out/thinking_config.json").read_text())["thought"] == "gumbel"


def test_a_typo_in_a_recipe_stops_the_example(monkeypatch, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    text = (ROOT / "recipes/quickstart/gumbel.yaml").read_text()
    recipe.write_text(text.replace("thinking_top_k:", "thinking_topk:"))
    with pytest.raises(SystemExit) as ended:
        run_example(monkeypatch, "--config", recipe, "--output_dir", tmp_path / "out")
    assert ended.value.code == 2 and "nearest known name is `thinking_top_k`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
