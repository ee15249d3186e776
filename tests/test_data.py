# SPDX-License-Identifier: Apache-2.0
"""Questions from files of every kind, prompts with and without a chat, rewards, and real GSM8K where it is at hand."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests import tiny
from trl_soft.data import drop_long_prompts, load_rows, to_prompts
from trl_soft.rewards import exact_answer_reward, math_reward


ROOT = Path(__file__).parent.parent
ROWS = [{"question": f"{i}+{i}=", "answer": f"so\n#### {1000 + i:,}"} for i in range(5)]
# Real data and a real pretrained model, where a developer has them.
SHARED = Path(os.environ.get("TRL_SOFT_SHARED", ROOT.parent / "shared"))


def write(path: Path) -> str:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if path.suffix == ".parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif path.name.endswith(".json.gz"):
        path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"])
def test_every_kind_of_file(tmp_path, name):
    assert load_rows(write(tmp_path / name)).to_list() == ROWS


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_rows(str(tmp_path / "missing.jsonl"))
    (tmp_path / "a.csvx").write_text("x")
    with pytest.raises(ValueError, match="Rename or convert"):
        load_rows(str(tmp_path / "a.csvx"))


def test_prompts_are_text_or_a_chat():
    tokenizer, rows = tiny.tokenizer(), Dataset.from_list(ROWS)
    text = to_prompts(rows, tokenizer, prompt_template="a{question}b", answer_marker="####")
    assert text[2] == {"prompt": "a2+2=b", "answer": "1002"}
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert to_prompts(rows, tokenizer)[2]["prompt"] == [{"role": "user", "content": "2+2="}]


def test_columns_and_marks_that_are_not_there():
    tokenizer, rows = tiny.tokenizer(), Dataset.from_list(ROWS)
    with pytest.raises(ValueError, match=r"`question_column` is 'q'.*\['question', 'answer'\]"):
        to_prompts(rows, tokenizer, question_column="q")
    with pytest.raises(ValueError, match="is not in the answer"):
        to_prompts(rows, tokenizer, answer_marker="@@")
    with pytest.raises(ValueError, match="holds no"):
        to_prompts(rows, tokenizer, prompt_template="solve:")
    with pytest.raises(ValueError, match="is empty"):
        to_prompts(rows.select([]), tokenizer)


def test_long_prompts_are_dropped_with_a_count():
    tokenizer = tiny.tokenizer()
    prompts = Dataset.from_dict({"prompt": ["1", "1+1", "1+1+1"], "answer": ["a", "b", "c"]})
    kept, dropped = drop_long_prompts(prompts, tokenizer, 3)
    assert (kept["answer"], dropped) == (["a", "b"], 1)
    with pytest.raises(ValueError, match="All 3 prompts are longer than 0"):
        drop_long_prompts(prompts, tokenizer, 0)


def test_exact_reward():
    completions = ["1+1=2</think>2", "</think> 2 ", "2", [{"role": "assistant", "content": "x</think>3"}]]
    assert exact_answer_reward(completions, ["2"] * 4) == [1.0, 1.0, 1.0, 0.0]


def test_math_reward():
    completions = [r"So \boxed{1,080}.", "The answer is 1080.", r"\boxed{\frac{1}{2}}", "no idea", r"\boxed{0.5}"]
    assert math_reward(completions, ["1080", "1080", r"\frac{1}{2}", "7", "1/2"]) == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert math_reward(["1"], [""]) == [None]


def run_script(tmp_path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "examples/grpo_soft.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real GSM8K and the stories260K model (TRL_SOFT_SHARED)")
def test_real_questions_on_a_real_model(tmp_path):
    """GSM8K with a pretrained Llama: log, checkpoint, resume, and plain transformers reads the result."""
    out = tmp_path / "out"
    flags = ["--config", "recipes/quickstart/gsm8k.yaml", "--model_name_or_path", str(SHARED / "models/stories260K")]
    flags += ["--dataset_name", str(SHARED / "data/gsm8k_train.jsonl.gz"), "--output_dir", str(out)]
    flags += ["--per_device_train_batch_size", "8", "--max_completion_length", "48", "--max_thinking_length", "24"]
    flags += ["--bf16", "false", "--use_cpu", "true", "--save_steps", "1", "--dtype", "float32"]
    done = run_script(tmp_path, *flags, "--max_steps", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "dropped because they are longer than 464 tokens" in done.stderr
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    steps = [row for row in history if "loss" in row]
    assert len(steps) == 2 and steps[0]["thinking/logp_difference/max"] < 1e-4
    assert steps[0]["thinking/mean_length"] > 1
    done = run_script(tmp_path, *flags, "--max_steps", "3", "--resume_from_checkpoint", str(out / "checkpoint-2"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 3
    assert json.loads((out / "thinking_config.json").read_text())["thought"] == "gumbel"
    AutoModelForCausalLM.from_pretrained(out)


def test_a_typo_in_a_recipe_stops_the_script(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        (ROOT / "recipes/quickstart/gumbel.yaml").read_text().replace("thinking_top_k:", "thinking_topk:")
    )
    done = run_script(tmp_path, "--config", str(recipe), "--output_dir", str(tmp_path / "out"))
    assert done.returncode != 0 and "nearest known name is `thinking_top_k`" in done.stderr
    assert not (tmp_path / "out").exists()
