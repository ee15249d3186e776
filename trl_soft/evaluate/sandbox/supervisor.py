# SPDX-License-Identifier: Apache-2.0
"""The supervisor: a separate process that makes the namespaces, reads the output, holds the clock, and judges."""

import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time

from . import kernel
from .inside import NOBODY, guarded, run_inside


TAIL_BYTES = 4096
_VERDICT_BYTES = 4096
_SPARE_USERS = (
    1 << 30
)  # ids without an account: two for each run, so that RLIMIT_NPROC counts only this run's processes
_PIPES = ("stdout", "stderr", "verdict", "error", "status")


def _spare_users() -> dict[str, int]:
    """User ids for program and tester of this run only, or `nobody` if this container maps no other ids."""
    first = _SPARE_USERS + 2 * os.getpid()
    with open("/proc/self/uid_map") as lines:
        ranges = [[int(word) for word in line.split()] for line in lines]
    mapped = any(start <= first and first + 1 < start + count for start, _, count in ranges)
    return {"program": first, "tester": first + 1} if mapped else {"program": NOBODY, "tester": NOBODY}


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as handle:
            handle.write(text)


def _memory_file(content: dict) -> int:
    """A file in memory, which takes any size without waiting for a reader."""
    fd = os.memfd_create("job")
    data = memoryview(json.dumps(content).encode())
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _descriptors(job: dict) -> tuple[dict[str, int], dict[str, int]]:
    """The ends that the supervisor keeps, and the ends for the processes inside, numbered 10 and up."""
    ours, theirs = {"grader": 0}, {}
    for name in _PIPES:
        ours[name], theirs[name] = os.pipe()
    theirs["requests_in"], theirs["requests_out"] = os.pipe()
    theirs["replies_in"], theirs["replies_out"] = os.pipe()
    theirs["null"] = os.open("/dev/null", os.O_RDWR)
    theirs["source"] = _memory_file({"source": job["source"]})
    theirs["tests"] = _memory_file({name: job[name] for name in ("reference", "setup", "tests", "tested")})
    for name, fd in theirs.items():
        theirs[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(fd)
    return ours, theirs


class _Watch:
    """All inputs of the supervisor, with their bounds: output, verdict, errors, whether the grader lives, and the clock."""

    def __init__(self, job: dict, fds: dict[str, int]):
        self.job, self.fds = job, fds
        self.tails = {"stdout": b"", "stderr": b""}
        self.verdict, self.error, self.status = b"", b"", b""
        self.written = 0
        self.reason = ""

    def run(self) -> None:
        """Watch until program and tester have ended or must end."""
        deadline = time.monotonic() + self.job["timeout"]
        names = {self.fds[name]: name for name in (*_PIPES, "grader")}
        while "status" in names.values() and not self.reason:
            left = deadline - time.monotonic()
            if left <= 0:
                self.reason = f"ran longer than {self.job['timeout']:g} s"
                return
            for fd in select.select(list(names), [], [], left)[0]:
                data = os.read(fd, 65536)
                name = names[fd]
                if not data:
                    del names[fd]
                self._take(name, data)

    def _take(self, name: str, data: bytes) -> None:
        if name == "grader":
            self.reason = "the grader ended"
        elif name in self.tails:
            self.tails[name] = (self.tails[name] + data)[-TAIL_BYTES:]
            self.written += len(data)
            if self.written > self.job["output_kb"] << 10:
                self.reason = f"wrote more than {self.job['output_kb']} KiB of output"
        else:
            setattr(self, name, (getattr(self, name) + data)[:_VERDICT_BYTES])

    def drain(self) -> None:
        """Read what is left in the pipes after the end, at most their size."""
        for name in _PIPES:
            os.set_blocking(self.fds[name], False)
            try:
                while not self.reason and (data := os.read(self.fds[name], 65536)):
                    self._take(name, data)
            except BlockingIOError:
                pass

    def judge(self) -> str:
        """`passed`, or the reason of a failure. Only the tester holds the pipe of the verdict."""
        if self.reason:
            return self.reason
        killed = {"program": signal.SIGKILL, "tester": signal.SIGKILL, "left": False}
        ending = json.loads(self.status) if self.status else killed
        program, tester = (os.waitstatus_to_exitcode(ending[name]) for name in ("program", "tester"))
        verdict = json.loads(self.verdict) if self.verdict else {}
        if "failed" in verdict:
            return f"failed: {verdict['failed']}"
        if program < 0:
            return f"killed by {_signal_name(-program)}"
        if program != 0:
            lines = self.tails["stderr"].decode("utf-8", "replace").strip().splitlines()
            return f"exit status {program}: {lines[-1][:200]}" if lines else f"exit status {program}"
        if tester < 0:
            return f"its tests were killed by {_signal_name(-tester)}"
        if not verdict.get("passed"):
            return "ended before its tests did"
        return "left a process running" if ending["left"] else "passed"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)


def _words(users: dict[str, int] | None) -> str:
    names = "namespaces (mount, pid, network, ipc, uts" + (", user)" if users is None else ")")
    own = users is not None and users["program"] != NOBODY
    return "; ".join([names, "seccomp", "rlimits", "user one of its own" if own else f"user {NOBODY}"])


def _supervise(job: dict, folder: str) -> dict:
    """Start the processes inside, watch them, kill those that are left, and judge."""
    kernel.require_table()
    users = _spare_users() if os.geteuid() == 0 else None
    ours, theirs = _descriptors(job)
    if users is None:
        _enter_user_namespace()
    kernel.unshare(kernel.CLONE_NEWPID)
    watch = _Watch(job, ours)
    started = time.monotonic()
    init = os.fork()
    if init == 0:
        guarded(theirs, run_inside, job, users, theirs, folder)
    for fd in theirs.values():
        os.close(fd)
    try:
        watch.run()
    finally:
        os.kill(init, signal.SIGKILL)  # the kernel then kills all others in its namespace
        os.waitpid(init, 0)
    seconds = time.monotonic() - started
    watch.drain()
    if watch.error:
        return {"error": watch.error.decode(errors="replace")}
    reason = watch.judge()
    tails = {name: tail.decode("utf-8", "replace") for name, tail in watch.tails.items()}
    return {"passed": reason == "passed", "reason": reason, "isolation": _words(users), "seconds": seconds, **tails}


def _read_job() -> dict:
    data = b""
    while not data.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            raise OSError("the grader ended")
        data += chunk
    return json.loads(data)


def main() -> None:
    """Read a job from stdin and write its result to stdout."""
    folder = sys.argv[1]
    try:
        answer = _supervise(_read_job(), folder)
    except OSError as error:
        answer = {"error": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # also here: the grader may have died
    os.write(1, json.dumps(answer).encode() + b"\n")
