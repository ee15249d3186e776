# SPDX-License-Identifier: Apache-2.0
"""The sandbox's calls to Linux: namespaces, mounts, and a filter of system calls. The numbers are from the kernel's headers."""

import ctypes
import os
import platform
import struct


CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP = 0x20000000, 0x40000000, 0x2000000
NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_PR_SET_SECCOMP = 22
_MNT_DETACH = 2
_EPERM, _ENOSYS = 1, 38

# Refused calls: they make namespaces and mounts, trace or read another process, load code into the kernel, or open rings
# that would bypass this filter.
_CALLS: dict[str, dict] = {
    "x86_64": {
        "arch": 0xC000003E, "pivot_root": 155, "clone": 56, "clone3": 435, "socket": 41, "socketpair": 53,
        "prlimit": 302,
        "newest": 334,
        "refused": [101, 165, 272, 308, 310, 311, 155, 161, 246, 320, 321, 298, 323, 248, 249, 250, 175, 313, 176,
                    169, 166, 167, 168, 304],
    },
    "aarch64": {
        "arch": 0xC00000B7, "pivot_root": 41, "clone": 220, "clone3": 435, "socket": 198, "socketpair": 199,
        "prlimit": 261,
        "newest": 293,
        "refused": [117, 40, 97, 268, 270, 271, 41, 51, 104, 294, 280, 241, 282, 217, 218, 219, 105, 273, 106,
                    142, 39, 224, 225, 265],
    },
}  # fmt: skip
# Calls from 424 on have the same number everywhere. Of these only the following are allowed. Later kernels add others.
_ALLOWED_OF_THE_LATER = {
    "pidfd_send_signal": 424, "pidfd_open": 434, "close_range": 436, "openat2": 437, "faccessat2": 439,
    "epoll_pwait2": 441, "futex_waitv": 449, "fchmodat2": 452,
}  # fmt: skip
# Other families of sockets, such as AF_VSOCK, are not bound to a network namespace.
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """The result of a call. A negative result raises an `OSError` that says what failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def require_table() -> None:
    """Raise an `OSError` on a processor without a table of system calls here."""
    if platform.machine() not in _CALLS:
        raise OSError(f"there is no table of system calls for {platform.machine()}")


def prctl(option: int, value: int = 0) -> int:
    return libc().prctl(option, *(ctypes.c_ulong(v) for v in (value, 0, 0, 0)))


def unshare(flags: int) -> None:
    check(libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = [value.encode() if value is not None else None for value in (source, target, kind)]
    check(libc().mount(*arguments, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def pivot_here() -> None:
    """Make the current folder the root of the file system, and let go of the old root."""
    check(libc().syscall(_CALLS[platform.machine()]["pivot_root"], b".", b"."), "pivot_root")
    check(libc().umount2(b".", _MNT_DETACH), "umount of the old root")


def filter_calls() -> None:
    """Install the filter: a program in the BPF language that the kernel runs at each system call of this process."""
    calls = _CALLS[platform.machine()]
    load, equal, above, bits, give = 0x20, 0x15, 0x25, 0x45, 0x06  # load a word; jump if =, >, any bit; return
    number, architecture, first_argument = 0, 4, 16
    kill, refuse, absent, allow = 0x80000000, 0x50000 | _EPERM, 0x50000 | _ENOSYS, 0x7FFF0000
    program = [(load, 0, 0, architecture), (equal, 1, 0, calls["arch"]), (give, 0, 0, kill), (load, 0, 0, number)]
    if platform.machine() == "x86_64":
        program += [(bits, 0, 1, 0x40000000), (give, 0, 0, kill)]  # the x32 numbers would bypass the table
    for call in calls["refused"]:
        program += [(equal, 0, 1, call), (give, 0, 0, refuse)]
    # An allow-list for all later calls. `clone3` is absent, because its flags are in memory. glibc then uses `clone`.
    for call in _ALLOWED_OF_THE_LATER.values():
        program += [(equal, 0, 1, call), (give, 0, 0, allow)]
    program += [(above, 0, 1, calls["newest"]), (give, 0, 0, absent)]
    for name in ("socket", "socketpair"):
        # Skip the whole block for another call. Otherwise allow the families on the list and refuse the others.
        program += [(equal, 0, 2 + 2 * len(_FAMILIES), calls[name]), (load, 0, 0, first_argument)]
        for family in _FAMILIES.values():
            program += [(equal, 0, 1, family), (give, 0, 0, allow)]
        program += [(give, 0, 0, refuse)]
    # The limits of another process; 0 means the calling process.
    program += [(equal, 0, 3, calls["prlimit"]), (load, 0, 0, first_argument), (equal, 1, 0, 0), (give, 0, 0, refuse)]
    namespaces = NAMESPACES | CLONE_NEWUSER | CLONE_NEWCGROUP
    program += [(equal, 0, 3, calls["clone"]), (load, 0, 0, first_argument), (bits, 0, 1, namespaces)]
    program += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(header, len(header))
    check(libc().prctl(_PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(holder)), 0, 0), "seccomp")
