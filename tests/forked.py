# SPDX-License-Identifier: Apache-2.0
"""Processes that a server forks. The server has imported everything, so that a process begins to work at once.

`accelerate launch` and `torchrun` start an interpreter for each process, which imports for longer than a tiny model trains.
What they tell their processes, a forked process is told too.
"""

import fcntl
import functools
import gc
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed import TCPStore


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])
# A hang, not a slow machine: a run takes seconds.
PATIENCE = 300


class Started:
    """
    Processes that have been started.

    Args:
        processes (`list`): one for each rank.
        store (`TCPStore`): where they find each other. It is served from here, at a port that the system chose.
        logs (`list` of `Path`): what each has written.
    """

    def __init__(self, processes: list, store: TCPStore, logs: list[Path]):
        self.processes, self.store, self.logs = processes, store, logs

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Whether all have ended within so many seconds."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        return not any(process.is_alive() for process in self.processes)

    def codes(self) -> list[int]:
        """The exit codes, after the end. Raises `AssertionError` if a process does not end."""
        if not self.wait():
            self.kill()
            raise AssertionError(f"a process waits for another\n{self.text()}")
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        assert self.wait()

    def text(self) -> str:
        """The end of each log."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-4000:]}" for path in self.logs if path.exists())


def start(target: Callable, *arguments, processes: int = 1, folder: Path, environment: dict | None = None) -> Started:
    """
    Start processes that call `target(*arguments)`.

    Args:
        target: a function of a module.
        processes (`int`): how many. Several are told their ranks, as `torchrun` does.
        folder (`Path`): where their logs go, `log_0` and so on, each behind what was there before.
        environment (`dict`, *optional*): further variables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs, started = [folder / f"log_{rank}" for rank in range(processes)], []
    for rank in range(processes):
        variables = dict(environment or {})
        if processes > 1:
            variables |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }  # fmt: skip
        started.append(CONTEXT.Process(target=_begin, args=(variables, str(logs[rank]), target, arguments)))
    for process in started:
        process.start()
    return Started(started, store, logs)


def run(target: Callable, *arguments, **options) -> None:
    """`start`, and wait for the end. Raises `AssertionError` with the logs if a process fails."""
    started = start(target, *arguments, **options)
    codes = started.codes()
    assert not any(codes), f"exit codes {codes}\n{started.text()}"


@functools.cache
def operators() -> dict[str, str]:
    """The variable that says where DeepSpeed's operators for CPUs lie. They are built at the first call."""
    extensions = Path(sys.prefix) / "test_operators"
    variables = {"TORCH_EXTENSIONS_DIR": str(extensions)}
    extensions.mkdir(exist_ok=True)
    # torch marks a build by a file, and waits for ever for one that a killed run has left. This lock ends with its process,
    # so whoever holds it knows that nobody builds, and may take such files away.
    with open(extensions / "tests.lock", "w", encoding="utf-8") as held, tempfile.TemporaryDirectory() as folder:
        fcntl.flock(held, fcntl.LOCK_EX)
        for left in extensions.glob("*/lock"):
            left.unlink()
        run(_build, folder=Path(folder), environment=variables)
    return variables


def _build() -> None:
    """Needs a C++ compiler."""
    from deepspeed.accelerator import get_accelerator

    for name in ("ShareMemCommBuilder", "CPUAdamBuilder"):
        get_accelerator().create_op_builder(name).load()


def _begin(variables: dict, log: str, target: Callable, arguments: tuple) -> None:
    """In a process: its variables, its log, its work."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(variables)
    torch.set_num_threads(1)
    gc.freeze()  # see tests/conftest.py
    code = 1
    try:
        target(*arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # tearing a group down is nobody's test here
