# SPDX-License-Identifier: Apache-2.0
"""`recipes/accelerate/multi_node.yaml` between two hosts of the test's own, against two processes on one host."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launch import HERE, LAUNCH, RECIPES, ROOT, environment


PRIVATE = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
TRAINING = ["--config", "recipes/quickstart/gumbel.yaml", "--use_cpu", "true", "--max_steps", "2"]
TRAINING += ["--per_device_train_batch_size", "16", "--disable_tqdm", "true"]


def unshare() -> list[str]:
    """The command that gives a script namespaces of its own, or a skip that says why there are none."""
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(
                f"`{tool}` is not installed, so there are no network namespaces to be hosts (iproute2, util-linux)"
            )
    refused = []
    for rights in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *rights, *PRIVATE]
        done = subprocess.run([*command, "bash", str(HERE / "hosts.sh")], capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return command
        refused.append(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    pytest.skip(f"network namespaces are not allowed here: {'; '.join(refused)}")


def training(folder: Path, recipe: str, *flags: str) -> list[str]:
    """The quickstart under a recipe, on two CPU processes."""
    folder.mkdir()
    command = [
        *LAUNCH,
        "--config_file",
        str(RECIPES / recipe),
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
        *flags,
    ]
    return [
        *command,
        str(HERE / "witness.py"),
        str(folder),
        "examples/grpo_soft.py",
        *TRAINING,
        "--output_dir",
        str(folder),
    ]


def test_two_hosts_equal_one(tmp_path):
    isolated = unshare()
    flags = ["--main_process_ip", "10.77.0.1", "--main_process_port", "29511", "--machine_rank", "RANK"]
    two, one = tmp_path / "two", tmp_path / "one"
    command = training(two, "multi_node.yaml", *flags)
    commands = [shlex.join([part if part != "RANK" else str(rank) for part in command]) for rank in (0, 1)]
    done = subprocess.run(
        [*isolated, "bash", str(HERE / "hosts.sh"), str(tmp_path), *commands],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    logs = "\n".join((tmp_path / f"host{rank}.log").read_text()[-4000:] for rank in (0, 1))
    assert done.returncode == 0, done.stderr[-2000:] + logs
    done = subprocess.run(
        training(one, "zero3.yaml", "--main_process_port", "0"),
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]

    for folder, here in ((two, 1), (one, 2)):
        for rank in (0, 1):
            world = json.loads((folder / f"rank{rank}.json").read_text())
            assert (world["world_size"], world["local_world_size"], world["zero_stage"]) == (2, here, 3)
            assert world["weights_here"] == pytest.approx(0.5, abs=0.01)
            assert (f"10.77.0.{rank + 1}/24" in world["addresses"]) == (folder is two)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (two, one))
    began = load_file(ROOT / "examples/quickstart/reasoner/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values, rtol=0, atol=5e-5)
    assert any(not torch.equal(ours[name], began[name]) for name in ours)
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (two, one)]
    *steps, _ = zip(*histories, strict=True)  # the last row is the run's times
    assert len(steps) == 2
    for ours, theirs in steps:
        for key in ("loss", "grad_norm", "reward", "thinking/mean_length"):
            assert ours[key] == pytest.approx(theirs[key], abs=5e-5, rel=2e-5)
