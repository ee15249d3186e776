# SPDX-License-Identifier: Apache-2.0
"""One Python program, run where it can hurt nobody, and judged by tests that it cannot reach.

    grader       any process, any thread; starts the supervisor, sends it the job, waits       (this file)
    supervisor   makes the namespaces, reads what comes out, holds the clock, kills, judges    (supervisor.py)
    init         process 1 of the namespaces: makes the file system, starts the two, reaps     (inside.py, kernel.py)
    program      an interpreter of its own, without rights: the source                         (program.py, wire.py)
    tester       another one: the tests, which call the program over a pipe                    (tester.py, wire.py)

Namespaces give own mounts (the system's libraries and the interpreter's standard library, read-only, and a small
temporary folder: nothing else exists), own processes (when init ends the kernel kills the rest) and an own network without
interfaces. Where the grader is not root, a user namespace gives it these rights over itself. There is no weaker kind to
fall back on: where the kernel or a container refuses namespaces, `run_program` raises and nothing runs.

What a pass proves: the tests ran to their end in a process of their own, on data that they made themselves out of the
program's answers, and nothing was left running. The program never sees the tests' code, the values they compare with, or
the pipe that the verdict goes through; an object of the program's that claims to equal everything equals nothing there.
What it does not prove: that the program computes more than its tests ask for. Memory is bounded for each process and not
for all together; the kernel is shared.
"""

import functools
import json
import select
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files import printable
from .inside import interpreter
from .supervisor import TAIL_BYTES


_ROOT = str(Path(__file__).parents[3])
_SETUP_SECONDS = 20.0  # to start, set up and tear down; the program's own clock starts with the program
_COMMAND = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from trl_soft.evaluate.sandbox.supervisor import main; main()"
)
_ADVICE = (
    "Allow user namespaces (for a container: a seccomp profile that permits `unshare`), or run as root with "
    "CAP_SYS_ADMIN. Programs are judged nowhere else, because a weaker isolation would not hold them."
)


@dataclass(frozen=True)
class Result:
    """
    How a program fared.

    Args:
        passed (`bool`): the source and the tests ran to their end, in time, and left nothing running.
        reason (`str`): `passed`, or why not, in a few words.
        stdout (`str`), stderr (`str`): the last 4 KB of each, of the program.
        isolation (`str`): what was in force.
        seconds (`float`): wall time of program and tests.
    """

    passed: bool
    reason: str
    stdout: str
    stderr: str
    isolation: str
    seconds: float = 0.0


def run_program(
    source: str,
    *,
    tests: str = "",
    setup: str = "",
    reference: str = "",
    tested: Sequence[str] = (),
    timeout: float = 10.0,
    memory_mb: int = 1024,
    output_kb: int = 256,
    processes: int = 16,
    file_kb: int = 8192,
) -> Result:
    """
    Run one program with the standard library in an empty folder, without network, environment and input.

    A name in `tests` or `setup` is the program's if `tested` holds it. Any other is the setup's, the reference's or a built-in,
    and never the program's. Arguments and results cross as data: `None`, numbers, text, bytes, lists, tuples, sets, dicts, ranges, decimals and fractions,
    subclasses as what they derive from. Other objects of the program can be called, read, iterated and passed back.

    Args:
        source (`str`): the program.
        tests (`str`): run after it, in a process of their own.
        setup (`str`): run before the tests, in their process: imports and helpers that the task gives.
        reference (`str`): a trusted program, run before the setup in names of its own; the setup and the tests find there what
            they define neither themselves nor have under test.
        tested (sequence of `str`): names that are the program's, even where the setup or Python has them too (MBPP asks for
            a `sum`). Tests that use one which the program does not define fail.
        timeout (`float`): seconds by the clock, and seconds of processor time of each process.
        memory_mb (`int`): address space of each process, in MiB.
        output_kb (`int`): what the program may write to stdout and stderr together, in KiB; more ends it.
        processes (`int`): processes and threads at a time, the program's first one included.
        file_kb (`int`): KiB that all files may hold.

    Raises:
        RuntimeError: where this machine cannot give the isolation. Nothing has run then.
    """
    if min(timeout, memory_mb, output_kb, processes, file_kb) <= 0:
        raise ValueError("A limit of the sandbox is zero or negative, so that nothing could run. Make it positive.")
    job = {
        "source": source, "tests": tests, "setup": setup, "reference": reference, "tested": list(tested), "timeout": timeout,
        "memory_mb": memory_mb, "output_kb": output_kb, "processes": processes, "file_kb": file_kb,
    }  # fmt: skip
    answer = _supervise(job, timeout + _SETUP_SECONDS)
    if "error" in answer:
        raise RuntimeError(
            f"The program was not run, because this machine does not give the isolation that it needs: "
            f"{answer['error']}. {_ADVICE}"
        )
    # A program chooses what it fails with, and a terminal would obey its control characters.
    return Result(**answer | {"reason": printable(answer["reason"])})


@functools.cache
def isolation() -> str:
    """What is in force here, in words; a `RuntimeError` where it cannot be had."""
    return run_program("").isolation


def _supervise(job: dict, patience: float) -> dict:
    """Hand a job to a supervisor of its own and wait for its word."""
    folder = tempfile.mkdtemp(prefix="trl_soft_sandbox_")
    process = subprocess.Popen(
        [interpreter(), "-I", "-S", "-B", "-c", _COMMAND, _ROOT, folder], env={}, cwd="/", stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended at once; why is on its stderr
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        line = process.stdout.readline() if poll.poll(1000 * patience) else b""
        if line:
            return json.loads(line)
        process.kill()
        return {"error": f"the supervisor failed: {process.stderr.read(TAIL_BYTES).decode(errors='replace')[-600:]}"}
    finally:
        # The supervisor takes the end of its input for the grader's death, and then kills what it started.
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()
        shutil.rmtree(folder, ignore_errors=True)
