# SPDX-License-Identifier: Apache-2.0
"""One Python program, run where it can hurt nobody, with a proof that its tests ran to their end.

    grader       any process, any thread; starts the supervisor, sends it the job, waits
    supervisor   this file as a script; makes the namespaces, reads what the program writes, holds the clock, kills
    init         process 1 of the namespaces; makes the file system, starts the program, reaps (namespaces only)
    program      an interpreter of its own, unprivileged and limited: harness, then source, then tests

Two kinds of isolation. `namespaces` (user namespaces where the grader is not root): own mounts (the system's libraries
and the interpreter, read-only, and a small temporary folder: nothing else exists), own processes (when init ends the
kernel kills the rest), own network without interfaces. `processes`, for containers that allow no namespaces: Landlock,
which keeps the program from files outside its folder, a seccomp filter that refuses sockets and signals to others, and
a supervisor that inherits and kills what the program leaves. Neither stands in for the other unless it is asked for.

What a pass proves: the source ran, the tests ran to their end, and nothing was left running. The harness shows the end
by a keyed hash of two secrets, one that it read before the source ran and one that it is sent only afterwards, so that
neither an exit, nor output, nor patched builtins can stand for it.

What it does not: the program and its tests share one interpreter, as HumanEval and MBPP want it. A program that is
written against this harness can walk the interpreter's frames to the first secret; a function may return an object that
claims to equal everything, or patch modules that its tests import. Memory is bounded for each process and not for all
together; the kernel is shared.
"""

import ctypes
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import resource
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass


_TAIL_BYTES = 4096
_SETUP_SECONDS = 20.0  # to start, set up and tear down; the program's own clock starts with the program
_SPARE_UIDS = 1 << 30  # ids that no account has: one for each run, so that RLIMIT_NPROC counts this run's processes
_NOBODY = 65534
_KINDS = ("namespaces", "processes")

# What the kernel's headers say, the same on every architecture unless noted.
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SYS_LANDLOCK = 444  # create_ruleset, add_rule, restrict_self

# The harness is handed to the interpreter with -c: there is no file of it. It keeps what it needs under its own names,
# so that a program that patches modules and builtins patches nothing that the harness still uses.
_HARNESS = r"""
def _main(job, proof, challenge):
    import builtins, hashlib, json, os, sys, types
    read, write, leave, digest, settrace, setprofile = (
        os.read, os.write, os._exit, hashlib.sha256, sys.settrace, sys.setprofile)
    with open(job, "rb") as file:
        job = json.load(file)
    key, shadows, original = job["key"].encode(), set(job["shadows"]), dict(vars(builtins))
    module = types.ModuleType("solution")
    names = vars(module)
    sys.modules["solution"] = sys.modules["__main__"] = module
    sys.argv[:] = ["solution.py"]
    tests = compile(job["tests"], "<tests>", "exec", dont_inherit=True)
    program = compile(job["source"], "<solution>", "exec", dont_inherit=True)
    exec(program, names)
    # The tests see the program's names, but the builtins as they were: neither patched nor shadowed.
    settrace(None), setprofile(None)
    vars(builtins).update(original)
    names = {k: v for k, v in names.items() if k not in original or k in shadows or k.startswith("__")}
    names["__builtins__"] = dict(original)
    exec(tests, names)
    try:
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        write(proof, b"?")
        write(proof, digest(key + read(challenge, 64)).hexdigest().encode())
        leave(0)
_main(3, 4, 5)
"""


@dataclass(frozen=True)
class Result:
    """
    How a program fared.

    Args:
        passed (`bool`): the source and the tests ran to their end, in time, and left nothing running.
        reason (`str`): `passed`, or why not, in a few words.
        stdout (`str`), stderr (`str`): the last 4 KB of each.
        isolation (`str`): what was in force.
        seconds (`float`): wall time of the program.
    """

    passed: bool
    reason: str
    stdout: str
    stderr: str
    isolation: str
    seconds: float = 0.0


# --------------------------------------------------------------------------------------------------------- the grader


def run_program(
    source: str,
    *,
    tests: str = "",
    shadows: Sequence[str] = (),
    timeout: float = 10.0,
    memory_mb: int = 1024,
    output_kb: int = 256,
    processes: int = 16,
    file_kb: int = 8192,
    isolation: str = "namespaces",
) -> Result:
    """
    Run one program with the standard library in an empty folder, without network, environment and input.

    Args:
        source (`str`): the program.
        tests (`str`): run after it, in its names, with the builtins as they were before it.
        shadows (sequence of `str`): builtins that `source` may define anew for `tests` too (MBPP asks for a `sum`).
        timeout (`float`): seconds by the clock, and seconds of processor time of each process.
        memory_mb (`int`): address space of each process, in MiB.
        output_kb (`int`): what the program may write to stdout and stderr together, in KiB; more ends it.
        processes (`int`): processes and threads at a time, the program's first one included.
        file_kb (`int`): KiB that all files may hold (`namespaces`), or each of them (`processes`).
        isolation (`str`): `namespaces`, or the weaker `processes` where a container allows no namespaces.

    Raises:
        RuntimeError: where this machine cannot give the isolation asked for. Nothing has run then.
    """
    if isolation not in _KINDS:
        raise ValueError(f"`isolation` is {isolation!r}, which is not a kind of isolation. Use one of {_KINDS}.")
    if min(timeout, memory_mb, output_kb, processes, file_kb) <= 0:
        raise ValueError("A limit of the sandbox is zero or negative, so that nothing could run. Make it positive.")
    job = {
        "source": source, "tests": tests, "shadows": list(shadows), "timeout": timeout, "memory_mb": memory_mb,
        "output_kb": output_kb, "processes": processes, "file_kb": file_kb, "kind": isolation,
    }  # fmt: skip
    answer = _supervise(job, timeout + _SETUP_SECONDS)
    if "error" in answer:
        raise RuntimeError(
            f"The program was not run, because this machine does not give the isolation {isolation!r}: "
            f"{answer['error']}. {_ADVICE[isolation]}"
        )
    return Result(**answer)


_ADVICE = {
    "namespaces": "Allow user namespaces, run as root with CAP_SYS_ADMIN, or accept the weaker isolation='processes'.",
    "processes": "Use isolation='namespaces', or a kernel and container with Landlock, seccomp and a Python that other "
    "users may read.",
}


@functools.cache
def isolation(kind: str = "namespaces") -> str:
    """What is in force here for a kind of isolation, in words; a `RuntimeError` where it cannot be had."""
    return run_program("", isolation=kind).isolation


def _supervise(job: dict, patience: float) -> dict:
    """Hand a job to a supervisor of its own and wait for its word."""
    folder = tempfile.mkdtemp(prefix="trl_soft_sandbox_")
    command = [_interpreter(), "-I", "-S", "-B", os.path.abspath(__file__), folder]
    process = subprocess.Popen(
        command, env={}, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
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
        return {"error": f"the supervisor failed: {process.stderr.read(_TAIL_BYTES).decode(errors='replace')[-600:]}"}
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


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


# ----------------------------------------------------------------------------------------------------- the supervisor


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, value: int = 0) -> int:
    return _libc().prctl(option, *(ctypes.c_ulong(v) for v in (value, 0, 0, 0)))


def _unshare(flags: int) -> None:
    _check(_libc().unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = [value.encode() if value is not None else None for value in (source, target, kind)]
    _check(_libc().mount(*arguments, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def _spare_ids() -> int:
    """An id for this run alone, or `nobody` where this container maps no others."""
    wanted = _SPARE_UIDS + os.getpid()
    with open("/proc/self/uid_map") as lines:
        ranges = [[int(word) for word in line.split()] for line in lines]
    return wanted if any(start <= wanted < start + count for start, _, count in ranges) else _NOBODY


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {uid} 1"),
        ("gid_map", f"{_NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as handle:
            handle.write(text)


def _system_folders() -> list[str]:
    """What an interpreter needs to start: the system's libraries and its own prefix."""
    paths = ["/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    paths += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), _interpreter()]
    libraries = sysconfig.get_config_var("LIBDIR")
    name = sysconfig.get_config_var("INSTSONAME")
    if name:
        paths += [os.path.join(folder, name) for folder in (libraries, f"{sys.base_prefix}/lib") if folder]
    return [path for path in dict.fromkeys(paths) if path and os.path.exists(path)]


def _build_root(root: str, file_kb: int) -> None:
    """A file system with the system's folders read-only, /tmp of `file_kb`, /dev/null and nothing else; no /proc."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID, "mode=755,size=1m,nr_inodes=4096")
    for path in _system_folders():
        target = root + path
        if os.path.exists(target):
            continue  # inside a folder that is there already
        if os.path.islink(path) and os.path.isdir(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(path), target)
            continue
        _bind(path, target)
    for name in ("null", "zero", "urandom"):
        _bind(f"/dev/{name}", f"{root}/dev/{name}", writable=True)
    os.makedirs(f"{root}/tmp")
    size = f"mode=1777,size={file_kb}k,nr_inodes=1024"
    _mount("tmpfs", f"{root}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, size)
    _mount("tmpfs", root, None, _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID, "mode=755,size=1m")
    os.chdir(root)
    _check(_libc().syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/tmp")


def _bind(path: str, target: str, writable: bool = False) -> None:
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    _mount(path, target, None, _MS_BIND | _MS_REC)
    if not writable:
        # A remount in a user namespace must keep the flags the mount had, which are locked.
        locked = os.statvfs(target).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC | 1024 | 2048 | (1 << 21))
        _mount("none", target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | locked)


# Numbers of system calls. Anything that makes namespaces, mounts, traces, loads into the kernel or opens rings that
# would go round this filter is refused; and in `processes`, where they are shared, sockets, signals, System V objects,
# and the scheduling of others.
_CALLS: dict[str, dict] = {
    "x86_64": {
        "arch": 0xC000003E, "pivot_root": 155, "clone": 56, "clone3": 435, "prlimit": 302,
        "kernel": [101, 165, 272, 308, 310, 311, 155, 161, 246, 320, 321, 298, 323, 248, 249, 250, 175, 313, 176,
                   425, 426, 427, 428, 429, 430, 431, 432, 442, 169, 166, 167, 168, 304, 438],
        "shared": [41, 62, 200, 234, 129, 297, 424, 29, 64, 68, 203, 141, 251],
    },
    "aarch64": {
        "arch": 0xC00000B7, "pivot_root": 41, "clone": 220, "clone3": 435, "prlimit": 261,
        "kernel": [117, 40, 97, 268, 270, 271, 41, 51, 104, 294, 280, 241, 282, 217, 218, 219, 105, 273, 106,
                   425, 426, 427, 428, 429, 430, 431, 432, 442, 142, 39, 224, 225, 265, 438],
        "shared": [198, 129, 130, 131, 138, 240, 424, 194, 190, 186, 122, 140, 30],
    },
}  # fmt: skip
_PIVOT_ROOT = _CALLS.get(platform.machine(), {"pivot_root": -1})["pivot_root"]


def _seccomp(shared: bool) -> None:
    """Refuse (EPERM) the calls above; `shared`: network, signals and schedules are those of the machine."""
    calls = _CALLS[platform.machine()]
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06  # BPF: load word, jump if equal, jump if any bit, return
    kill, refuse, absent, allow = 0x80000000, 0x50000 | 1, 0x50000 | 38, 0x7FFF0000
    refused = calls["kernel"] + (calls["shared"] if shared else [])
    program = [(load, 0, 0, 4), (equal, 1, 0, calls["arch"]), (give, 0, 0, kill), (load, 0, 0, 0)]
    if platform.machine() == "x86_64":
        program += [(bits, 0, 1, 0x40000000), (give, 0, 0, kill)]  # the x32 numbers would go round the table
    program += [(equal, 0, 1, calls["clone3"]), (give, 0, 0, absent)]  # its flags are in memory: glibc takes clone
    for number in refused:
        program += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    if shared:  # prlimit of another process
        program += [(equal, 0, 3, calls["prlimit"]), (load, 0, 0, 16), (equal, 1, 0, 0), (give, 0, 0, refuse)]
    # clone with any flag of a new namespace.
    program += [
        (equal, 0, 3, calls["clone"]),
        (load, 0, 0, 16),
        (bits, 0, 1, _NAMESPACES | _CLONE_NEWUSER | 0x2000000),
    ]
    program += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(header, len(header))
    _check(_libc().prctl(_PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(holder)), 0, 0), "seccomp")


def _landlock(folder: str) -> bool:
    """Leave only the system's folders (to read) and `folder`; False where the kernel has no Landlock."""
    syscall = _libc().syscall
    version = syscall(_SYS_LANDLOCK, None, ctypes.c_size_t(0), 1)
    if version < 3:  # the third can refuse truncation
        return False
    everything = (1 << 15) - 1
    read, execute, write_file = 0b1100, 0b1, 0b10
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals
    attribute = struct.pack("QQQ", everything, 0, scoped) if version >= 6 else struct.pack("Q", everything)
    rules = _check(syscall(_SYS_LANDLOCK, attribute, ctypes.c_size_t(len(attribute)), 0), "landlock")
    allowed = [(path, read | execute) for path in _system_folders()]
    allowed += [(folder, everything & ~execute), ("/dev/null", 0b100 | write_file), ("/dev/urandom", 0b100)]
    for path, access in allowed:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        access &= everything if os.path.isdir(path) else 0b100000000000111  # what a file can be allowed
        rule = struct.pack("=Qi", access, fd)
        _check(syscall(_SYS_LANDLOCK + 1, rules, 1, rule, 0), f"landlock rule for {path}")
        os.close(fd)
    _check(syscall(_SYS_LANDLOCK + 2, rules, 0), "landlock restriction")
    os.close(rules)
    return True


def _processes_of(uid: int) -> int:
    """How many processes and threads a user has, which RLIMIT_NPROC counts."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            pass
    return count


def _limit(job: dict, others: int) -> None:
    memory, seconds = job["memory_mb"] << 20, math.ceil(job["timeout"]) + 1
    for name, value in (
        ("CPU", seconds), ("AS", memory), ("NPROC", job["processes"] + others), ("CORE", 0), ("STACK", 16 << 20),
        ("FSIZE", job["file_kb"] << 10), ("NOFILE", 64), ("MSGQUEUE", 0), ("MEMLOCK", 0),
    ):  # fmt: skip
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def _others(job: dict, ids: int | None) -> int:
    """Processes that RLIMIT_NPROC counts and that are not the program's."""
    if ids is not None and ids != _NOBODY:
        return 0
    if ids is None and job["kind"] == "namespaces":
        return 2  # the supervisor and init; a user namespace counts its own (Linux 5.14)
    return _processes_of(os.getuid() if ids is None else ids)


def _become_program(job: dict, ids: int | None, others: int, fds: dict[str, int], folder: str) -> None:
    """The last steps before the interpreter: file descriptors, limits, another user, no way back, execve."""
    os.setsid()
    os.umask(0o077)
    os.chdir(folder)
    for number, name in enumerate(("stdin", "stdout", "stderr", "job", "proof", "challenge")):
        os.dup2(fds[name], number)  # `_pipes` keeps them all above these; what else is open, execve closes
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if job["kind"] == "processes" and not _landlock(folder) and ids is None:
        raise OSError("the kernel has no Landlock of version 3, and only root can become another user instead")
    _limit(job, others)
    for capability in range(64):
        _prctl(_PR_CAPBSET_DROP, capability)
    if ids is not None:
        os.setgroups([])
        os.setresgid(ids, ids, ids)
        os.setresuid(ids, ids, ids)
    _seccomp(shared=job["kind"] == "processes")
    os.execve(_interpreter(), [_interpreter(), "-I", "-B", "-X", "utf8", "-c", _HARNESS], {})


def _guarded(fds: dict[str, int], work, *arguments) -> None:
    """Fork's other half: what goes wrong is written to the `error` pipe, and nothing returns."""
    try:
        work(*arguments)
    except BaseException as error:
        os.write(fds["error"], f"{type(error).__name__}: {error}".encode()[:2000])
    finally:
        os._exit(0)


def _init(job: dict, ids: int | None, fds: dict[str, int], folder: str) -> None:
    """Starts the program and reaps; process 1 of the namespaces, whose end is the end of every process in them."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_DUMPABLE, 0)
    others = _others(job, ids)
    if job["kind"] == "namespaces":
        _unshare(_NAMESPACES & ~_CLONE_NEWPID)
        _build_root(folder, job["file_kb"])
        folder = "/tmp"
    else:
        _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1), "subreaper")
    program = os.fork()
    if program == 0:
        _guarded(fds, _become_program, job, ids, others, fds, folder)
    for name, fd in fds.items():
        if name != "status":
            os.close(fd)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == program:
            break
    os.write(fds["status"], json.dumps({"status": status, "left": _any_left()}).encode())


def _any_left() -> bool:
    """Whether this process has a living child, the dead ones reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _kill_orphans(ids: int | None) -> None:
    """`processes`: kill all that the program started. Orphans become the supervisor's children, so that it finds them."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if ids is not None and ids != _NOBODY:
            _kill_all_of(ids)
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat") as handle:
                    parent = int(handle.read().rpartition(")")[2].split()[1])
                if parent == os.getpid():
                    os.kill(int(name), signal.SIGKILL)
            except (OSError, ValueError):
                pass
        if not _any_left():
            return
        time.sleep(0.002)
    raise OSError("processes of the program outlive SIGKILL")


def _kill_all_of(ids: int) -> None:
    """Every process of a user at once: no fork can outrun it."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(ids, ids, ids)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


class _Watch:
    """Everything the supervisor reads, with its bounds: output, proof, errors, the grader's life, and the clock."""

    def __init__(self, job: dict, fds: dict[str, int], expected, challenge: bytes):
        self.job, self.fds, self.expected, self.challenge = job, fds, expected, challenge
        self.tails = {"stdout": b"", "stderr": b""}
        self.proof, self.error, self.status = b"", b"", b""
        self.written = 0
        self.reason = ""

    def run(self) -> None:
        """Until the program has ended or must."""
        deadline = time.monotonic() + self.job["timeout"]
        names = {self.fds[name]: name for name in ("stdout", "stderr", "proof", "error", "status", "grader")}
        while "status" in names.values() and not self.reason:
            left = deadline - time.monotonic()
            if left <= 0:
                self.reason = f"ran longer than {self.job['timeout']:g} s"
                return
            for fd in select.select(list(names), [], [], left)[0]:
                data = os.read(fd, 65536)
                if not data:
                    del names[fd]
                self._take(names.get(fd, "grader" if fd == self.fds["grader"] else ""), data)

    def _take(self, name: str, data: bytes) -> None:
        if name == "grader":
            self.reason = "the grader ended"
        elif name in self.tails:
            self.tails[name] = (self.tails[name] + data)[-_TAIL_BYTES:]
            self.written += len(data)
            if self.written > self.job["output_kb"] << 10:
                self.reason = f"wrote more than {self.job['output_kb']} KiB of output"
        elif name == "proof":
            if not self.proof and data[:1] == b"?":
                try:
                    os.write(self.fds["answer"], self.challenge)  # once, however often it is asked for
                except BrokenPipeError:
                    pass  # it asked and closed its end: a failure of the program, not of the sandbox
            self.proof = (self.proof + data)[:256]
        elif name:
            setattr(self, name, getattr(self, name) + data)

    def drain(self) -> None:
        """What lies in the pipes after the end, at most their size."""
        for name in ("stdout", "stderr", "proof", "error", "status"):
            os.set_blocking(self.fds[name], False)
            try:
                while not self.reason and (data := os.read(self.fds[name], 65536)):
                    self._take(name, data)
            except BlockingIOError:
                pass

    def verdict(self) -> str:
        if self.reason:
            return self.reason
        ending = json.loads(self.status) if self.status else {"status": signal.SIGKILL, "left": False}
        code = os.waitstatus_to_exitcode(ending["status"])
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            return f"killed by {name}"
        if code != 0:
            lines = self.tails["stderr"].decode("utf-8", "replace").strip().splitlines()
            return f"exit status {code}: {lines[-1][:200]}" if lines else f"exit status {code}"
        if self.proof != b"?" + self.expected.encode():
            return "ended before its tests did"
        return "left a process running" if ending["left"] else "passed"


def _pipes(payload: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """The ends that the supervisor keeps, and the ends for init and the program, numbered 10 and up."""
    ours, theirs = {"grader": 0}, {}
    for name in ("stdout", "stderr", "proof", "error", "status"):
        ours[name], theirs[name] = os.pipe()
    theirs["challenge"], ours["answer"] = os.pipe()
    theirs["stdin"] = os.open("/dev/null", os.O_RDONLY)
    theirs["job"] = os.memfd_create("job")  # memory, so that its size blocks nobody
    os.write(theirs["job"], payload)
    os.lseek(theirs["job"], 0, os.SEEK_SET)
    for name, fd in theirs.items():
        theirs[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(fd)
    return ours, theirs


def _words(job: dict, ids: int | None) -> str:
    if job["kind"] == "namespaces":
        words = ["namespaces (mount, pid, network, ipc, uts" + (", user)" if ids is None else ")")]
        user = str(_NOBODY) if ids is None else "one of its own"
    else:
        landlock = _libc().syscall(_SYS_LANDLOCK, None, ctypes.c_size_t(0), 1) >= 3
        words = ["processes", "landlock" if landlock else "file permissions only"]
        user = "the grader's" if ids is None else "one of its own"
    return "; ".join([*words, "seccomp", "rlimits", f"user {_NOBODY if ids == _NOBODY else user}"])


def _read_job() -> dict:
    data = b""
    while not data.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            raise OSError("the grader ended")
        data += chunk
    return json.loads(data)


def _supervise_here(job: dict, folder: str) -> dict:
    """Start init, watch the program, kill what is left, judge."""
    if platform.machine() not in _CALLS:
        raise OSError(f"there is no table of system calls for {platform.machine()}")
    ids = _spare_ids() if os.geteuid() == 0 else None
    words = _words(job, ids)
    key, challenge = secrets.token_hex(32), secrets.token_hex(32).encode()
    inner = {name: job[name] for name in ("source", "tests", "shadows")} | {"key": key}
    ours, theirs = _pipes(json.dumps(inner).encode())
    if job["kind"] == "namespaces":
        if ids is None:
            _enter_user_namespace()
        _unshare(_CLONE_NEWPID)
    else:
        _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1), "subreaper")
        if ids is not None:
            os.chown(folder, ids, ids)
    watch = _Watch(job, ours, hashlib.sha256(key.encode() + challenge).hexdigest(), challenge)
    started = time.monotonic()
    init = os.fork()
    if init == 0:
        _guarded(theirs, _init, job, ids, theirs, folder)
    for fd in theirs.values():
        os.close(fd)
    try:
        watch.run()
    finally:
        os.kill(init, signal.SIGKILL)
        os.waitpid(init, 0)
        if job["kind"] == "processes":
            _kill_orphans(ids)
    seconds = time.monotonic() - started
    watch.drain()
    if watch.error:
        return {"error": watch.error.decode(errors="replace")}
    reason = watch.verdict()
    tails = {name: tail.decode("utf-8", "replace") for name, tail in watch.tails.items()}
    return {"passed": reason == "passed", "reason": reason, "isolation": words, "seconds": seconds, **tails}


def _main(folder: str) -> None:
    """The supervisor: a job from stdin, its result to stdout."""
    try:
        answer = _supervise_here(_read_job(), folder)
    except OSError as error:
        answer = {"error": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # here too: the grader may have died
    os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    _main(sys.argv[1])
