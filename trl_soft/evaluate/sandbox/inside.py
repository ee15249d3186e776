# SPDX-License-Identifier: Apache-2.0
"""Process 1 of the namespaces. It makes the file system, starts program and tester without any rights, and reaps."""

import glob
import json
import math
import os
import resource
import signal
import sys
import sysconfig
from pathlib import Path

from . import kernel


NOBODY = 65534
_HERE = Path(__file__).parent
# Descriptors of each process, in the order of their numbers there.
_DESCRIPTORS = {
    "program": ("null", "stdout", "stderr", "source", "requests_in", "replies_out"),
    "tester": ("null", "null", "null", "tests", "replies_in", "requests_out", "verdict"),
}


def interpreter() -> str:
    """The interpreter itself, not a link in a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def run_inside(job: dict, users: dict[str, int] | None, fds: dict[str, int], folder: str) -> None:
    """
    Start program and tester, and report how they ended. When this process ends, all others in its namespaces end.

    Args:
        users: the user of each process. `None` if the grader is not root: both are then `nobody` of a user namespace.
        fds: this side's ends of the pipes, by name.
        folder: the place of the file system.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.unshare(kernel.NAMESPACES & ~kernel.CLONE_NEWPID)
    _build_root(folder, job["file_kb"])
    running = {}
    for name in _DESCRIPTORS:
        pid = os.fork()
        if pid == 0:
            guarded(fds, _become, job, name, users, fds)
        running[pid] = name
    for name, fd in fds.items():
        if name != "status":
            os.close(fd)
    statuses: dict[str, int] = {}
    while len(statuses) < len(running):
        pid, status = os.waitpid(-1, 0)
        if pid in running:
            statuses[running[pid]] = status
    os.write(fds["status"], json.dumps({**statuses, "left": _any_left()}).encode())


def guarded(fds: dict[str, int], work, *arguments) -> None:
    """The child's side of a fork. It writes an error to the `error` pipe, and never returns."""
    try:
        work(*arguments)
    except BaseException as error:
        os.write(fds["error"], f"{type(error).__name__}: {error}".encode()[:2000])
    finally:
        os._exit(0)


def _any_left() -> bool:
    """Whether this process has a living child. Reaps the dead ones."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _become(job: dict, name: str, users: dict[str, int] | None, fds: dict[str, int]) -> None:
    """The last steps before the interpreter: file descriptors, limits, another user, no new rights, execve."""
    os.setsid()
    os.umask(0o077)
    for number, fd in enumerate(_DESCRIPTORS[name]):
        os.dup2(fds[fd], number)  # the supervisor's numbers are all above these; execve closes every other descriptor
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    # A user namespace counts all processes of its one user: supervisor, this one's parent, tester and program.
    shared = users is None or users[name] == NOBODY
    _limit(job, others=3 if shared else 0)
    for capability in range(64):
        kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
    if users is not None:
        os.setgroups([])
        os.setresgid(users[name], users[name], users[name])
        os.setresuid(users[name], users[name], users[name])
    kernel.filter_calls()
    # The text travels as an argument, because inside there is no file of it. -S leaves out the installed packages.
    text = _TEXTS[name]
    os.execve(interpreter(), [interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", text], {})


# Inside there are no files of this package, so `wire` is a module made from its text. All are read before the file
# system changes.
_WIRE = "trl_soft.evaluate.sandbox.wire"
_BEGIN = f"""import sys, types
sys.modules[{_WIRE!r}] = module = types.ModuleType({_WIRE!r})
exec({(_HERE / "wire.py").read_text()!r}, vars(module))
"""
_TEXTS = {name: _BEGIN + (_HERE / f"{name}.py").read_text() for name in _DESCRIPTORS}


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


def _system_folders() -> list[str]:
    """The folders that an interpreter needs to start: the system's libraries, its standard library and itself."""
    paths = ["/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    paths += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), interpreter()]
    libraries = sysconfig.get_config_var("LIBDIR")
    name = sysconfig.get_config_var("INSTSONAME")
    if name:
        paths += [os.path.join(folder, name) for folder in (libraries, f"{sys.base_prefix}/lib") if folder]
    return [path for path in dict.fromkeys(paths) if path and os.path.exists(path)]


def _build_root(root: str, file_kb: int) -> None:
    """A file system with the system's folders read-only, /tmp of `file_kb`, /dev/null and nothing else; no /proc."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    folders = [(path, os.path.isdir(path), os.path.realpath(path)) for path in _system_folders()]
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID, "mode=755,size=1m,nr_inodes=4096")
    # /tmp comes first: an interpreter may be installed below it, and is then mounted into it.
    os.makedirs(f"{root}/tmp")
    size = f"mode=1777,size={file_kb}k,nr_inodes=1024"
    kernel.mount(
        "tmpfs", f"{root}/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, size
    )  # fmt: skip
    for path, is_folder, real in folders:
        target = root + path
        if os.path.lexists(target):
            continue  # inside a folder that is mounted already
        if os.path.islink(path) and is_folder:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(path), target)
            continue
        _bind(real, target)
    for path, is_folder, _ in folders:
        # No installed package: one may hold a data set of tests, and a verdict must not depend on the machine.
        for packages in _packages(root + path) if is_folder and not os.path.islink(path) else ():
            kernel.mount("tmpfs", packages, "tmpfs", kernel.MS_NOSUID | kernel.MS_RDONLY, "mode=755,size=4k")
    for name in ("null", "zero", "urandom"):
        _bind(f"/dev/{name}", f"{root}/dev/{name}", writable=True)
    kernel.mount(
        "tmpfs", root, None, kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID, "mode=755,size=1m"
    )  # fmt: skip
    os.chdir(root)
    kernel.pivot_here()
    os.chdir("/tmp")


def _packages(folder: str) -> list[str]:
    """The folders of installed packages, in a standard library or in a folder of several."""
    patterns = [
        f"{glob.escape(folder)}/{below}{kind}-packages" for below in ("", "python*/") for kind in ("site", "dist")
    ]
    return [path for pattern in patterns for path in glob.glob(pattern) if not os.path.islink(path)]


def _bind(path: str, target: str, writable: bool = False) -> None:
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    kernel.mount(path, target, None, kernel.MS_BIND | kernel.MS_REC)
    if not writable:
        # A remount in a user namespace must keep the flags of the mount, which are locked.
        keep = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC | 1024 | 2048 | (1 << 21)
        locked = os.statvfs(target).f_flag & keep
        flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | locked
        kernel.mount("none", target, None, flags)
