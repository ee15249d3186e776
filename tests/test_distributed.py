# SPDX-License-Identifier: Apache-2.0
"""Two processes against one, under every backend: three steps end with the losses and weights of a single process.

The worlds are the ones of `recipes/accelerate`, launched on CPU over gloo. FSDP2 needs one switch there
(`distributed/fsdp_on_cpu.py`); what it shards and steps with is accelerate's own.
"""

import functools
import json
import math
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.cases import CASES, WORLDS, cases_of
from tests.distributed.launch import HERE, LAUNCH, RECIPES, environment
from tests.distributed.models import save_models
from trl_soft import ThinkingSettings


# What a wrapper says of itself. accelerate can start one process, or another wrapper, without a word.
EXPECTED: dict[str, dict] = {
    "ddp": {"wrapper": "DistributedDataParallel", "zero_stage": 0, "weights_here": 1.0, "offload": []},
    "zero2": {"wrapper": "DeepSpeedEngine", "zero_stage": 2, "weights_here": 1.0, "offload": []},
    "zero3": {"wrapper": "DeepSpeedEngine", "zero_stage": 3, "weights_here": 0.5, "offload": []},
    "zero3_offload": {"wrapper": "DeepSpeedEngine", "zero_stage": 3, "weights_here": 0.5, "offload": ["optimizer", "param"]},
    "fsdp2": {"wrapper": "FSDPModule", "zero_stage": 0, "weights_here": 0.5, "offload": []},
}  # fmt: skip
# bf16 keeps 8 bits: each rounding is off by up to 2^-9, and a gradient passes a dozen of them in series. The largest
# difference seen is 1.5 % of the update; twenty roundings are 4 %.
BF16 = 20 * 2**-9


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


def check_world(name: str, case: str, found: dict) -> None:
    """The group was of two, and the wrapper the one that was asked for."""
    expected = EXPECTED[name]
    assert (found["world_size"], found["processes"], found["backend"]) == (2, 2, "gloo")
    assert (found["wrapper"], found["zero_stage"]) == (expected["wrapper"], expected["zero_stage"])
    assert sorted(found["offload"]) == expected["offload"]
    # LoRA's matrices of rank four are small enough for ZeRO-3 to pad.
    assert found["weights_here"] == pytest.approx(expected["weights_here"], abs=0.02)
    # transformers lets a sharded model generate; rollouts leave that as they find it.
    assert found["own_generate"] == (name == "fsdp2")
    if name == "zero2":
        assert found["optimizer_here"] == pytest.approx(0.5, abs=0.01)
    optimizer = "AdamW" if CASES[case].get("optim") else "SGD"
    assert found["optimizer"] == ("DeepSpeedCPUAdam" if name == "zero3_offload" else optimizer)
    if CASES[case].get("bf16") and name.startswith("zero"):
        assert found["dtype"] == "bfloat16"


PAIRS = [(name, case) for name in WORLDS for case in cases_of(name)]


@pytest.mark.parametrize("name, case", [pair for pair in PAIRS if "bf16" not in pair[1]])
def test_two_processes_equal_one(world, name, case):
    one, two = world("plain")[case], world(name)[case]
    assert (one["world"]["world_size"], one["world"]["processes"]) == (1, 1)
    check_world(name, case, two["world"])
    for ours, theirs in zip(one["log"], two["log"], strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"thinking/logp_difference/max"}:
            assert theirs[key] == pytest.approx(ours[key], abs=5e-5, rel=2e-5), key
        # A gaussian log-density is tens of nats, in float32. What a bf16 copy has drawn is re-scored in float32.
        limit = 1e-3 if "gaussian" in case or case == "rloo" else 1e-4
        assert theirs["thinking/logp_difference/max"] < (BF16 if "rollout_dtype" in CASES[case] else limit)
    drawn, expected = two["completions"], one["completions"]
    if case == "odd":
        # One prompt is left for two ranks, and accelerate gives the second rank the first prompt again.
        drawn = [*drawn[:-1], drawn[-1][: len(expected[-1])]]
    if "resume" in CASES[case]:
        expected = expected[CASES[case]["resume"] :]
    assert drawn == expected
    assert two["weights"].keys() == one["weights"].keys()
    for parameter, values in one["weights"].items():
        torch.testing.assert_close(two["weights"][parameter], values, rtol=0, atol=5e-5)
    assert any(not torch.allclose(one["weights"][n], before, atol=1e-3) for n, before in one["before"].items())


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
    saved = AutoModelForCausalLM.from_pretrained(world.folder / f"{name}-{case}")
    weights = dict(saved.named_parameters())
    assert weights.keys() == trained.keys()
    for parameter, values in trained.items():
        torch.testing.assert_close(weights[parameter].detach(), values, rtol=0, atol=5e-5)
    assert ThinkingSettings.load_thinking(world.folder / f"{name}-{case}").thought == "gumbel"


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
