# SPDX-License-Identifier: Apache-2.0
"""Run one Python program in isolation, and judge it by tests that it cannot reach.

    grader       any process, any thread; starts the supervisor, sends it the job, waits       (this file)
    supervisor   makes the namespaces, reads the output, holds the clock, kills, judges        (supervisor.py)
    init         process 1 of the namespaces: makes the file system, starts the two, reaps     (inside.py, kernel.py)
    program      its own interpreter, without rights: runs the source                          (program.py, wire.py)
    tester       another interpreter: runs the tests, which call the program over a pipe       (tester.py, wire.py)

The namespaces have

- their own mounts: the system's libraries and the interpreter's standard library, read-only, and a small temporary folder.
  Nothing else exists there.
- their own processes: when init ends, the kernel kills the others.
- their own network, without interfaces.

Where the grader is not root, a user namespace gives it these rights over itself. There is no weaker isolation: if the kernel
or a container refuses namespaces, `run_program` raises and nothing runs.

A pass proves that the tests ran to their end in their own process, on data that this process made from the program's
answers, and that nothing was left running. The program never sees the code of the tests, the values that they compare with,
or the pipe of the verdict. An object of the program that claims to equal everything equals nothing in the tests.

A pass does not prove that the program computes more than its tests ask for. Memory is bounded for each process and not for
all processes together. All processes share the kernel.
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
_SETUP_SECONDS = 20.0  # to start, set up and tear down; the program has its own clock, which starts with it
_COMMAND = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from trl_soft.evaluate.sandbox.supervisor import main; main()"
)
_ADVICE = (
    "Allow user namespaces (for a container: a seccomp profile that permits `unshare`), or run as root with "
    "CAP_SYS_ADMIN. There is no other way to judge programs, because a weaker isolation would not hold them."
)


@dataclass(frozen=True)
class Result:
    """
    The result of one program.

    Args:
        passed (`bool`): the source and the tests ran to their end, in time, and left nothing running.
        reason (`str`): `passed`, or why not, in a few words.
        stdout (`str`), stderr (`str`): the last 4 KB of each, of the program.
        isolation (`str`): the isolation that was in force, in words.
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

    A name in `tests` or `setup` belongs to the program if `tested` holds it. Any other name belongs to the setup, to the
    reference or to the built-ins, and never to the program.

    Arguments and results cross as data: `None`, numbers, text, bytes, lists, tuples, sets, dicts, ranges, decimals and
    fractions. A subclass crosses as its base type. Other objects of the program can be called, read, iterated and passed
    back.

    Args:
        source (`str`): the program.
        tests (`str`): run after the program, in their own process.
        setup (`str`): run before the tests, in the same process: imports and helpers of the task.
        reference (`str`): a trusted program, run before the setup in its own namespace. The setup and the tests find there
            the names that they do not define themselves and that are not under test.
        tested (sequence of `str`): names that belong to the program, even if the setup or Python has them too (MBPP asks
            for a `sum`). A test that uses such a name fails if the program does not define it.
        timeout (`float`): seconds by the clock, and seconds of processor time of each process.
        memory_mb (`int`): address space of each process, in MiB.
        output_kb (`int`): most output of the program to stdout and stderr together, in KiB. More output ends it.
        processes (`int`): processes and threads at a time, including the program's first one.
        file_kb (`int`): size of all files together, in KiB.

    Raises:
        RuntimeError: if this machine cannot give the isolation. Nothing has run then.
    """
    if min(timeout, memory_mb, output_kb, processes, file_kb) <= 0:
        raise ValueError("A limit of the sandbox is zero or negative, so nothing could run. Make it positive.")
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
    # A program chooses the text of its error, and a terminal would obey control characters in it.
    return Result(**answer | {"reason": printable(answer["reason"])})


@functools.cache
def isolation() -> str:
    """The isolation of this machine, in words. Raises `RuntimeError` if the machine cannot give it."""
    return run_program("").isolation


def _supervise(job: dict, patience: float) -> dict:
    """Give a job to its own supervisor and wait for the result."""
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
            pass  # it ended at once; its stderr says why
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        line = process.stdout.readline() if poll.poll(1000 * patience) else b""
        if line:
            return json.loads(line)
        process.kill()
        return {"error": f"the supervisor failed: {process.stderr.read(TAIL_BYTES).decode(errors='replace')[-600:]}"}
    finally:
        # When its input ends, the supervisor assumes that the grader has died, and kills the processes that it started.
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
