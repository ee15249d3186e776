# SPDX-License-Identifier: Apache-2.0
"""Runs of one and of two processes that are interrupted at chosen moments, and end as the run that nobody interrupted.

`make test-kill` is the long form: it kills runs at moments drawn by chance.
"""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.kill.chain import difference, prepare, start


# Two processes leave out the second of three rollouts, because the last process has a bad reward.
TWO = {
    "max_steps": 6, "steps_per_generation": 1, "num_iterations": 2, "logging_steps": 2, "nonfinite": "skip",
    "bad_reward_at": 3,
}  # fmt: skip
SETTINGS = {
    "plain": {"thought": "gumbel", "max_steps": 6},
    "ddp": {"thought": "gaussian", "max_refill_rollouts": 2, **TWO},
    "zero3": {"thought": "gumbel", **TWO},
}


def launch(folder: Path, world: str, **changes) -> list[int]:
    """Start or continue the run in `folder`. Returns the exit code of each process."""
    started, _ = start(folder, world, {**SETTINGS[world], **changes})
    return started.codes()


def log_of(folder: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("log_*")))


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (run / "out").glob("checkpoint-*"))


@pytest.fixture(scope="module", params=SETTINGS)
def whole(request, tmp_path_factory) -> tuple[str, Path]:
    """A world, and the run in it that nobody interrupts, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp(request.param)
    prepare(folder)
    codes = launch(folder / "whole", request.param, save_total_limit=None)
    assert not any(codes), log_of(folder / "whole")
    return request.param, folder / "whole"


def test_an_interrupted_run_ends_as_the_one_that_was_not(whole):
    """
    With two processes too the difference is 0.0: a sum of two numbers has one order. With more it would be that of
    rounding, since DDP and NCCL cut and order their sums by what they saw before.
    """
    world, reference = whole
    run = reference.parent / "interrupted"
    if world == "plain":
        for phase, step, left in (("update", 2, [1]), ("save", 4, [1, 2, 3]), ("rollout", 5, [2, 3, 4])):
            assert launch(run, world, interruption=("kill", phase, step)) == [-9], log_of(run)
            assert steps_of(run) == left
    else:
        a_full_disk_stops_every_process(run, world)
        if world == "ddp":
            # Both end at the same step, though the signal comes to one of them.
            codes = launch(run, world, interruption=("signal", "update", 3))
            assert codes == [143, 143] and steps_of(run) == [1, 2, 3], log_of(run)
        # The other process fails at the next collective and ends by itself.
        codes = launch(run, world, interruption=("kill", "save" if world == "ddp" else "update", 4))
        assert codes[1] == -9 and codes[0] > 0, log_of(run)
        assert steps_of(run) == [1, 2, 3]
    assert not any(launch(run, world)), log_of(run)
    assert difference(reference / "out", run / "out") == 0.0


def a_full_disk_stops_every_process(run: Path, world: str) -> None:
    """Rank 1 cannot write: both end with the same sentence, and neither waits for the other."""
    assert launch(run, world, interruption=("full", "save", 2)) == [1, 1], log_of(run)
    for rank in range(2):
        log = (run / f"log_{rank}").read_text()
        assert "checkpoint-2 could not be saved, and nothing of it was kept. process 1: OSError" in log, log
    assert sorted(os.listdir(run / "out")) == ["README.md", "checkpoint-1", "metrics.jsonl", "thoughts"]


def test_what_one_process_sees_all_leave_out(whole):
    """A NaN in a reward of the last process alone: neither waits, and the sharded weights are those of before."""
    world, run = whole
    if world == "plain":
        pytest.skip("one process has no other to agree with")
    out = run / "out"
    log = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert [row["nonfinite/skipped"] for row in log] == [0.0, 1.0, 0.0]
    # A line has the rate of its last step; the rate moves with each update that was made, so not in steps 3 and 4.
    assert [row["learning_rate"] for row in log] == pytest.approx([1e-3 * (1 - made / 6) for made in (1, 2, 3)])
    weights = [load_file(out / f"checkpoint-{step}" / "model.safetensors") for step in range(1, 7)]
    equal = [all(a[key].equal(b[key]) for key in a) for a, b in pairwise(weights)]
    assert equal == [False, True, True, False, False]
    assert len(list((out / "nonfinite").glob("step-2-rank-*.json"))) == 2
