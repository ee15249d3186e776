# SPDX-License-Identifier: Apache-2.0
"""Kill a run again and again, let it continue each time, and compare it with one that nobody killed."""

import json
import os
import random
import signal
import time
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests import tiny
from tests.forked import CONTEXT, PATIENCE, Started, operators
from tests.forked import start as fork
from tests.kill.world import WORLDS, ZERO3, phase_of, train


def start(folder: Path, world: str, changes: dict) -> tuple[Started, Connection]:
    """The processes of a run, and what says that the first of them has begun to work."""
    reader, writer = CONTEXT.Pipe(duplex=False)
    variables = ZERO3 | operators() if world == "zero3" else {}
    arguments = (str(folder), world, changes, writer)
    started = fork(train, *arguments, processes=WORLDS[world], folder=folder, environment=variables)
    writer.close()
    return started, reader


def finish(folder: Path, world: str, changes: dict) -> tuple[float, float]:
    """Let a run go to its end; seconds until it began to work, and from then on."""
    began = time.monotonic()
    started, begun = start(folder, world, changes)
    wait_for([begun, *(process.sentinel for process in started.processes)], PATIENCE)
    working = time.monotonic()
    codes = started.codes()
    assert not any(codes), f"{codes}\n{started.text()}"
    return working - began, time.monotonic() - working


def prepare(folder: Path) -> None:
    """The model that every run under `folder` starts from, and a server that has imported what runs need."""
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    fork(os.getpid, folder=folder / "warm").codes()


def chain(folder: Path, world: str, changes: dict, kills: int, seed: int) -> dict:
    """
    Kill one run `kills` times in a row, then let it finish, and compare it with one that nobody killed.

    One kill in five falls while the run starts, uniformly over the time that takes; the others into its work, at moments
    uniform over twice the work's share of one kill, so that they are spread over the whole of it. In a world of two, half of
    the kills take one process alone, and the other must end by itself. A run that reaches its end before its last kill is
    compared, and another is begun.

    Returns figures; raises `AssertionError` where a process hangs or a log line differs.
    """
    rng = random.Random(seed)
    starting, working = finish(folder / "whole", world, changes)
    phases: Counter = Counter()
    alone, runs, worst, moments, began = 0, 0, 0.0, [], time.monotonic()
    while len(moments) < kills:
        run, ended = folder / f"killed-{runs}", False
        while len(moments) < kills and not ended:
            at_start = rng.random() < 0.2
            delay = rng.uniform(0, starting if at_start else 2 * working / kills)
            victim = rng.randrange(WORLDS[world]) if WORLDS[world] > 1 and rng.random() < 0.5 else None
            started, begun = start(run, world, changes)
            processes = started.processes
            if not at_start:
                wait_for([begun, *(process.sentinel for process in processes)], PATIENCE)
            ended = started.wait(delay)
            if ended:
                assert not any(started.codes()), started.text()
                break
            phase, step = phase_of(run, victim or 0)
            for process in processes if victim is None else [processes[victim]]:
                os.kill(process.pid, signal.SIGKILL)
            # One that loses its partner fails at the next collective.
            assert started.wait(), f"a process waits for one that was killed\n{started.text()}"
            alone += victim is not None
            phases[phase] += 1
            moments.append({"phase": phase, "step": step, "after": round(delay, 2), "at_start": at_start})
        if not ended:
            finish(run, world, changes)
        worst = max(worst, difference(folder / "whole" / "out", run / "out"))
        runs += 1
    return {
        "world": world, "settings": changes, "seed": seed, "kills": kills, "one_process_killed": alone, "runs": runs,
        "phases": dict(phases), "whole_run_s": round(starting + working, 1),
        "wall_s": round(time.monotonic() - began, 1), "largest_difference": worst, "moments": moments,
    }  # fmt: skip


# What says how long something took.
_TIMES = ("step_time", "runtime", "per_second", "seconds")


def difference(whole: Path, killed: Path) -> float:
    """Largest difference of weights, optimiser and RNG states in the last checkpoints; log lines must be equal."""
    ours, theirs = (max(out.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1])) for out in (whole, killed))
    assert ours.name == theirs.name
    names = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    assert names == {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (ours, theirs)]
    assert len(histories[0]) == len(histories[1])
    for row, other in zip(*histories, strict=True):
        assert row.keys() == other.keys()
        # As text, since the gradient's norm is NaN in an update that was left out, and a NaN differs from itself.
        unequal = [key for key in row if not key.endswith(_TIMES) and repr(row[key]) != repr(other[key])]
        assert not unequal, (row["step"], {key: (row[key], other[key]) for key in unequal})
    worst, seen = 0.0, 0
    for name in sorted(names):
        if name.suffix == ".safetensors":
            read = load_file
        elif name.suffix in (".pt", ".pth"):
            read = lambda path: torch.load(path, weights_only=False)  # noqa: E731
        else:
            continue
        seen += 1
        worst = max(worst, _distance(read(ours / name), read(theirs / name), str(name)))
    assert seen >= 4, names
    return worst


def _distance(a, b, where: str) -> float:
    """Largest difference of two nested values; what is no number must be equal."""
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape and a.dtype == b.dtype, where
        return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
    if isinstance(a, dict):
        # DeepSpeed stores its own configuration, folders and ports among it.
        keys = [key for key in a if key not in ("ds_config", "ds_version")]
        assert a.keys() == b.keys(), where
        return max((_distance(a[key], b[key], f"{where}/{key}") for key in keys), default=0.0)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        return max((_distance(x, y, f"{where}/{i}") for i, (x, y) in enumerate(zip(a, b, strict=True))), default=0.0)
    if isinstance(a, float):
        return abs(a - b)
    if hasattr(a, "tolist"):
        return _distance(a.tolist(), b.tolist(), where)
    if hasattr(a, "__dict__"):
        return _distance(vars(a), vars(b), where)
    assert a == b, f"{where}: {a} and {b}"
    return 0.0
