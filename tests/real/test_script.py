# SPDX-License-Identifier: Apache-2.0
"""`accelerate launch examples/grpo_soft.py` on real questions and a pretrained model of 260k parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.standins import SHARED


ROOT = Path(__file__).parents[2]


def run_script(tmp_path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "examples/grpo_soft.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


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
