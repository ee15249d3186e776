# SPDX-License-Identifier: Apache-2.0
"""What `losses.py` wrote of a run of two processes, against what it wrote of the run of one."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.cases import CASES
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


def check_case(name: str, case: str, one: dict, two: dict) -> None:
    """The figures of a case in the world `name`: the same losses, completions and weights from one and two processes."""
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


def check_saved(folder: Path, trained: dict[str, torch.Tensor], thought: str) -> None:
    """A saved model has the whole trained weights, and its thinking settings beside them."""
    saved = AutoModelForCausalLM.from_pretrained(folder)
    weights = dict(saved.named_parameters())
    assert weights.keys() == trained.keys()
    for parameter, values in trained.items():
        torch.testing.assert_close(weights[parameter].detach(), values, rtol=0, atol=5e-5)
    assert ThinkingSettings.load_thinking(folder).thought == thought
