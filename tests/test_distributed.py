# SPDX-License-Identifier: Apache-2.0
"""Two processes against one: DDP and ZeRO-3 on CPU give the figures of a single process, to four decimals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.distributed.losses import CASES


HERE = Path(__file__).parent / "distributed"
LAUNCHERS = {
    "plain": [sys.executable],
    "ddp": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "zero3": [
        *(sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"),
        *("--config_file", str(HERE / "zero3.yaml")),
    ],
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[str, list[dict]]:
    """The figures of every case in every world."""
    folder = tmp_path_factory.mktemp("worlds")
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    # DeepSpeed compiles an operator when it is first used. In a cache of this environment's own nobody else compiles, so
    # a lock found there was left by a run that was killed, and waiting for it would never end.
    extensions = Path(sys.prefix) / "torch_extensions"
    for lock in extensions.rglob("lock"):
        lock.unlink()
    results = {}
    for name, launcher in LAUNCHERS.items():
        out = folder / f"{name}.json"
        command = [*launcher, str(HERE / "losses.py"), str(out), str(folder / "model")]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
        environment["TORCH_EXTENSIONS_DIR"] = str(extensions)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        results[name] = json.loads(out.read_text())
    return results


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(map(str, c.values())) for c in CASES])
@pytest.mark.parametrize("world", ["ddp", "zero3"])
def test_two_processes_equal_one(worlds, world, case):
    one, two = worlds["plain"][case], worlds[world][case]
    # accelerate can start one process, or another wrapper, without a word.
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["wrapper"] == {"ddp": "DistributedDataParallel", "zero3": "DeepSpeedEngine"}[world]
    assert (two["zero_stage"], two["sharded"]) == ((3, True) if world == "zero3" else (0, False))
    assert len(one["log"]) == len(two["log"]) >= 1
    for ours, theirs in zip(one["log"], two["log"], strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"entropy", "kl", "thinking/logp_difference/max", "thinking/mean_length"}:
            assert ours[key] == pytest.approx(theirs[key], abs=5e-5, rel=1e-5), key
        # A gaussian log-density is tens of nats, in float32.
        assert theirs["thinking/logp_difference/max"] < (1e-3 if one["case"].get("thought") == "gaussian" else 1e-4)
    assert one["weights"].keys() == two["weights"].keys()
    for name, values in one["weights"].items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(two["weights"][name]), rtol=0, atol=5e-5)


def test_a_model_that_fsdp2_cut_in_two_rolls_out_whole(tmp_path):
    """Ranks that finish at different steps neither wait for each other nor differ from the model that is not cut."""
    out = tmp_path / "fsdp2.json"
    command = [*LAUNCHERS["ddp"], str(HERE / "fsdp2.py"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert found.pop("world_size") == 2 and len(found) == 3
    for thought, row in found.items():
        assert row["same"] and row["sharded"] and row["restored"] and row["shards"] == 3, thought
        assert row["gradient"] < 1e-5, thought
