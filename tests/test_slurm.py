# SPDX-License-Identifier: Apache-2.0
"""`examples/slurm/train.sbatch`, run with stand-ins for SLURM's commands and for the launcher."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trl_soft import SoftGRPOConfig
from trl_soft.scripts.parser import SoftParser


ROOT = Path(__file__).parent.parent
SBATCH = ROOT / "examples" / "slurm" / "train.sbatch"
STUBS = {
    "scontrol": """#!/usr/bin/env bash
        if [ "$1" = show ]; then printf 'first\\nsecond\\n'; else echo "$@" >>"$STUBS/requeued"; fi""",
    # Two tasks in groups of their own; a signal reaches every process of a task, as it may under SLURM.
    "srun": f"""#!{sys.executable}
import os, signal, subprocess, sys

command = [word for word in sys.argv[1:] if word != "--kill-on-bad-exit=1"]
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(rank)}}, start_new_session=True) for rank in (0, 1)
]
signal.signal(signal.SIGUSR1, lambda *_: [os.killpg(task.pid, signal.SIGUSR1) for task in tasks])
with open(os.environ["STUBS"] + "/step", "w") as file:
    file.write(" ".join(str(pid) for pid in (os.getpid(), *(task.pid for task in tasks))))
sys.exit(max(task.wait() for task in tasks))
""",
    "accelerate": """#!/usr/bin/env bash
        while [ ! -s "$STUBS/step" ]; do :; done
        printf '%s\\n' "$@" >"$STUBS/arguments-$SLURM_NODEID"
        "$PYTHON" "$STUBS/trainer.py" &
        wait $!""",
    "trainer.py": """
import os, signal, sys

def save(*_):
    if os.environ["TRAINER"] != "cannot save":
        os.makedirs(os.environ["OUTPUT_DIR"] + "/checkpoint-5", exist_ok=True)
        sys.exit(143)
    sys.exit(1)

signal.signal(signal.SIGTERM, save)
if os.environ["TRAINER"] in ("runs", "cannot save"):
    with open(os.environ["STUBS"] + "/ready", "w") as fifo:
        fifo.write("x")
    signal.pause()
sys.exit(os.environ["TRAINER"] == "fails")
""",
}


@pytest.fixture
def cluster(tmp_path):
    """`cluster(what the trainers do)`: the batch script's process, in a cluster of two."""
    for tool in ("bash", "pkill"):
        if shutil.which(tool) is None:
            pytest.skip(f"`{tool}` is not installed")
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    os.mkfifo(tmp_path / "ready")
    started = []

    def start(trainer: str, *flags: str, recipe="recipe.yaml", **settings: str) -> subprocess.Popen:
        environment = {
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STUBS": str(tmp_path), "PYTHON": sys.executable,
            "TRAINER": trainer, "OUTPUT_DIR": str(tmp_path / "out"), "SLURM_JOB_ID": "41234", "SLURM_NNODES": "2",
            "SLURM_JOB_NODELIST": "first,second",
            **settings,
        }  # fmt: skip
        command = ["bash", str(SBATCH), recipe, "--seed", "1", *flags]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            for pid in [process.pid, *map(int, (tmp_path / "step").read_text().split()[1:])]:
                os.killpg(pid, signal.SIGKILL)


def arguments(tmp_path, rank: int) -> list[str]:
    return (tmp_path / f"arguments-{rank}").read_text().splitlines()


def test_it_is_a_script():
    assert subprocess.run(["bash", "-n", str(SBATCH)]).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(SBATCH)]).returncode == 0


def test_every_machine_gets_its_rank_and_the_first_ones_address(cluster, tmp_path):
    assert cluster("finishes").wait(300) == 0
    for rank in (0, 1):
        launch = arguments(tmp_path, rank)
        flags = dict(zip(launch[1::2], launch[2::2], strict=False))
        assert launch[0] == "launch" and flags["--machine_rank"] == str(rank)
        assert flags["--main_process_ip"] == "first" and flags["--main_process_port"] == "21234"
        assert (flags["--num_machines"], flags["--num_processes"]) == ("2", "16")
        assert (ROOT / flags["--config_file"]).is_file()
        script = launch.index("examples/grpo_soft.py")
        assert launch[script + 1 : script + 5] == ["--config", "recipe.yaml", "--seed", "1"]
        assert "--resume_from_checkpoint" not in launch
    assert not (tmp_path / "requeued").exists()


def test_near_the_limit_the_trainers_save_and_the_job_goes_on(cluster, tmp_path):
    job = cluster("runs")
    ready = ""
    while len(ready) < 2:
        ready += (tmp_path / "ready").read_text()
    os.kill(int((tmp_path / "step").read_text().split()[0]), signal.SIGUSR1)
    assert job.wait(300) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 41234\n"
    assert cluster("finishes").wait(300) == 0
    launch = arguments(tmp_path, 1)
    assert launch[launch.index("--resume_from_checkpoint") + 1] == "true"
    assert (tmp_path / "requeued").read_text() == "requeue 41234\n"


def test_a_save_that_fails_is_not_queued_again(cluster, tmp_path):
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    job = cluster("cannot save")
    ready = ""
    while len(ready) < 2:
        ready += (tmp_path / "ready").read_text()
    os.kill(int((tmp_path / "step").read_text().split()[0]), signal.SIGUSR1)
    assert job.wait(300) != 0
    assert not (tmp_path / "requeued").exists()


def test_another_script_and_the_recipes_own_folder(cluster, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path}/own/seed{{seed}}\nseed: 0\n")
    settings = {"OUTPUT_DIR": "", "SCRIPT": "examples/rloo_soft.py"}
    assert cluster("finishes", recipe=str(recipe), **settings).wait(300) == 0
    launch = arguments(tmp_path, 0)
    assert "examples/rloo_soft.py" in launch and "examples/grpo_soft.py" not in launch
    assert launch[launch.index("--output_dir") + 1] == f"{tmp_path}/own/seed1"


def test_a_failure_is_a_failure(cluster, tmp_path):
    assert cluster("fails").wait(300) == 1
    assert not (tmp_path / "requeued").exists()


def test_the_flags_are_the_examples(tmp_path):
    """What the script passes is what `examples/grpo_soft.py` reads."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("thought: gumbel\n")
    flags = ["--config", str(recipe), "--output_dir", str(tmp_path), "--resume_from_checkpoint", "true"]
    (parsed,) = SoftParser((SoftGRPOConfig,)).parse_args_and_config([*flags, "--bf16", "false", "--use_cpu", "true"])
    assert parsed.resume_from_checkpoint == "true" and parsed.output_dir == str(tmp_path)
