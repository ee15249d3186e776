# SPDX-License-Identifier: Apache-2.0
"""Two processes against one, under every backend: three steps end with the losses and weights of a single process.

`tests/test_processes.py` is the short form, which `make test` runs. The worlds are the ones of `recipes/accelerate`, launched on CPU over gloo. FSDP2 needs one switch there
(`distributed/fsdp_on_cpu.py`); what it shards and steps with is accelerate's own.
"""

import functools
import json
import math
import subprocess
import sys

import pytest
import torch

from tests.distributed.cases import CASES, WORLDS, cases_of
from tests.distributed.compare import BF16, check_case, check_saved, check_world
from tests.distributed.launch import HERE, LAUNCH, RECIPES, environment
from tests.distributed.models import save_models


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`world(name)`: the figures of every case in that world, which is launched once."""
    folder = tmp_path_factory.mktemp("worlds")
    save_models(folder)

    @functools.cache
    def launch(name: str) -> dict | str:
        if name != "plain":
            launch("plain")  # whose rollouts are replayed
        recipe = RECIPES / ("single.yaml" if name == "plain" else f"{name}.yaml")
        command = [*LAUNCH, "--config_file", str(recipe), "--num_processes", "1" if name == "plain" else "2"]
        command += ["--mixed_precision", "no", "--main_process_port", "0", str(HERE / "losses.py"), name, str(folder)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
        if done.returncode:
            return f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return torch.load(folder / f"{name}.pt", weights_only=False)

    def figures(name: str) -> dict:
        found = launch(name)
        assert not isinstance(found, str), found
        return found

    figures.folder = folder
    return figures


PAIRS = [(name, case) for name in WORLDS for case in cases_of(name)]


@pytest.mark.parametrize("name, case", [pair for pair in PAIRS if "bf16" not in pair[1]])
def test_two_processes_equal_one(world, name, case):
    check_case(name, case, world("plain")[case], world(name)[case])


@pytest.mark.parametrize("name, case", [pair for pair in PAIRS if "bf16" in pair[1]])
def test_bf16_rounds_and_no_more(world, name, case):
    """The updates of three bf16 steps against float32's, on the same rollouts."""
    exact, start, two = world("plain")[CASES[case]["replay"]], world("plain")[case]["before"], world(name)[case]
    check_world(name, case, two["world"])
    assert two["completions"] == exact["completions"]
    difference = size = 0.0
    for parameter, before in exact["before"].items():
        # Where the weights are bf16, they began rounded.
        began = start[parameter].to(getattr(torch, two["dtypes"][parameter])).float()
        update = exact["weights"][parameter] - before
        difference += (two["weights"][parameter] - began - update).square().sum().item()
        size += update.square().sum().item()
    assert size > 0 and math.sqrt(difference / size) < BF16


def test_one_rank_ends_its_samples_at_once(world):
    """The ragged cases are what they say: else ranks that wait for each other would not be noticed."""
    for case, least in (("ragged", 4), ("ragged-gaussian", 2), ("adamw-ragged", 4)):
        for call in world("plain")[case]["completions"]:
            first, second = call[:4], call[4:]
            assert all(len(ids) == 1 for ids in second)
            assert min(map(len, first)) >= 2 and sum(map(len, first)) / 4 >= least


@pytest.mark.parametrize("name, case", [(n, "adamw" if n == "zero3_offload" else "gumbel") for n in WORLDS])
def test_what_is_saved_is_the_whole_model(world, name, case):
    trained = world("plain")[case]["weights"]
    world(name)
    check_saved(world.folder / f"{name}-{case}", trained, "gumbel")


def test_a_model_that_fsdp2_cut_in_two_rolls_out_whole(tmp_path):
    """Ranks that finish at different steps neither wait for each other nor differ from the model that is not cut."""
    out = tmp_path / "fsdp2.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(HERE / "fsdp2.py"), str(out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert found.pop("world_size") == 2 and len(found) == 3
    for thought, row in found.items():
        assert row["same"] and row["sharded"] and row["restored"] and row["shards"] == 3, thought
        assert row["gradient"] < 1e-5, thought
