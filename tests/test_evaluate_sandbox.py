# SPDX-License-Identifier: Apache-2.0
"""The sandbox: what it runs, what it says, and that hostile programs fail alone. `make test-hostile` runs every attack."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.hostile.__main__ import BEGIN, END, faults_unprivileged, unprivileged_interpreter
from tests.hostile.judge import fault
from tests.hostile.programs import ESCAPES, EXHAUSTIONS, FAMILIES, FORGERIES
from trl_soft.evaluate import sandbox
from trl_soft.evaluate.sandbox import Result, inside, isolation, run_program


def _missing() -> str:
    """Why this machine does not give the isolation, or nothing."""
    try:
        isolation()
    except RuntimeError as error:
        return str(error)
    return ""


WHY_NOT = _missing()
isolated = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
ROOT = Path(__file__).parent.parent
# One program of each way of attacking; the rest run in `make test-hostile`.
QUICK = [
    *(FORGERIES[name] for name in ("os._exit", "framing a pass", "equal to everything", "an equal number", "a lie about the class",
      "walking the frames", "asking the garbage collector", "reading every descriptor", "answering for the next question",
      "patched builtins", "a very deep answer", "a keyboard interrupt")),
    *(ESCAPES[name] for name in ("files of the system", "namespaces", "sockets beyond the families", "memory of other processes",
      "later calls", "packages of this machine", "shared memory of others")),
    *(EXHAUSTIONS[name] for name in ("a fork bomb", "ten gigabytes", "many files", "a flood on stdout", "a grandchild that goes on")),
]  # fmt: skip


def run(source: str, timeout: float = 120, **options) -> Result:
    """A program that a busy machine has the time to start; those that run too long are in `tests/hostile/programs.py`."""
    return run_program(textwrap.dedent(source), timeout=timeout, **options)


@isolated
def test_a_good_program_passes_and_says_what_held_it():
    result = run("print(sum(range(4)))\nx = 6", tests="assert x == 6", tested=["x"])
    assert (result.passed, result.reason, result.stdout, result.stderr) == (True, "passed", "6\n", "")
    assert result.isolation == isolation() and result.isolation.startswith("namespaces")


@isolated
def test_what_goes_wrong_is_said():
    assert (
        run("x = 5", tests="assert x == 6, 'no'", tested=["x"]).reason
        == "failed: AssertionError: no at `assert x == 6, 'no'`"
    )
    assert run("def f(): return g()", tests="f()", tested=["f"]).reason.startswith("failed: NameError: name 'g'")
    assert "NameError" in run("x = y").reason and "SyntaxError" in run("x = = 1").reason
    assert run("import os\nos.abort()").reason.startswith("killed by SIG")
    assert "EOFError" in run("input()").reason  # stdin is empty


def test_where_it_cannot_isolate_nothing_runs(monkeypatch):
    with pytest.raises(ValueError, match="zero or negative"):
        run_program("", timeout=0)
    monkeypatch.setattr(sandbox, "_supervise", lambda job, patience: {"error": "unshare: not permitted"})
    with pytest.raises(RuntimeError, match=r"not run, because .* unshare: not permitted.* Allow user namespaces"):
        run_program("open('/tmp/x', 'w')")


VALUES = """
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
Pair = namedtuple("Pair", "a b")
class Colour(IntEnum):
    RED = 3
class Node:
    def __init__(self, value): self.value, self.next = value, None
def back(x): return x
def kinds(): return [Pair(1, 2), Colour.RED, Counter("aab"), defaultdict(int, {1: 2}), OrderedDict([(1, 2)])]
def numbers(): return [1 << 200, -0.0, float("inf"), float("nan"), 1 + 2j, Decimal("1.50"), Fraction(1, 3), True]
def texts(): return ["\\ud800", "\\x00", b"\\xff", bytearray(b"a")]
def sum(a, b): return a - b
def lazily(): yield from (1, 2, 3)
def line(): return deque([1, 2])
def add_all(node):
    total = 0
    while node: total, node = total + node.value, node.next
    return total
"""
CROSSINGS = """
import math
for value in (None, [1, (2, {3: {4}})], frozenset({1}), range(3), {"a": [1.5]}, int, (1 << 99, -7), "é\\ud800"):
    assert back(value) == value and type(back(value)) is type(value), value
assert kinds() == [(1, 2), 3, {"a": 2, "b": 1}, {1: 2}, {1: 2}]
big, zero, infinite, nan, z, d, third, yes = numbers()
assert big == 2 ** 200 and math.copysign(1, zero) == -1 and infinite > 1e308 and nan != nan and z == 1 + 2j
assert str(d) == "1.50" and third * 3 == 1 and yes is True
assert texts() == ["\\ud800", "\\x00", b"\\xff", bytearray(b"a")]
assert list(lazily()) == [1, 2, 3] and lazily() != [1, 2, 3]
assert len(line()) == 2 and line()[1] == 2 and line() != [1, 2]
first = Node(4)
first.next = Node(5)
assert add_all(first) == 9 and first.next.value == 5
assert sum([1, 2]) == 3
try:
    back(lambda: 1)
except TypeError as error:
    assert "no plain data" in str(error)
"""


@isolated
def test_values_cross_as_data_and_objects_as_handles():
    result = run(VALUES, tests=CROSSINGS, tested="back kinds numbers texts lazily line Node add_all".split())
    assert result.passed, result
    assert run(VALUES, tests="assert sum(3, 1) == 2", tested=["sum"]).passed
    assert not run(VALUES, tests="assert sum(3, 1) == 2").passed  # Python's own, which wants a list


@isolated
def test_helpers_of_the_task_are_not_the_programs():
    setup, tests = "def check(x): return x == 6\ndef f(): pass", "assert check(f())"
    assert run("def check(x): return True\ndef f(): return 6", setup=setup, tests=tests, tested=["f"]).passed
    assert not run("def check(x): return True\ndef f(): return 5", setup=setup, tests=tests, tested=["f"]).passed
    assert run("class Node: pass", setup="root = Node()", tests="assert root is root", tested=["Node"]).passed


@isolated
def test_only_what_is_under_test_is_the_programs():
    source = "wanted = 0\ndef f(): return 0\ndef same(a, b): return True"
    reference = "wanted = 5\ndef f(): return 5\ndef same(a, b): return a == b and f() == 5"
    for tests in ("assert f() == wanted", "assert same(f(), 5)"):
        assert not run(source, tests=tests, tested=["f"], reference=reference).passed
        right = run(source.replace("return 0", "return 5"), tests=tests, tested=["f"], reference=reference)
        assert right.passed, right  # a helper of the reference calls the reference's own functions
        assert "is not defined" in run(source, tests=tests, tested=["f"]).reason
    missing = run("x = 1", tests="assert f() == 5", tested=["f"], reference=reference)
    assert missing.reason == "failed: NameError: name 'f' is not defined"
    assert not run("x = 1", tests="assert sum([1]) == 1", tested=["sum"]).passed  # nor is Python's own the program's


@isolated
@pytest.mark.parametrize("attack", QUICK, ids=[n for d in FAMILIES.values() for n, a in d.items() if a in QUICK])
def test_a_hostile_program_fails_alone(attack):
    assert fault(attack) == ""


@isolated
@pytest.mark.skipif(
    os.geteuid() != 0, reason="The tests do not run as root, so every test here is of a user without rights."
)
def test_the_isolation_holds_for_a_user_without_rights():
    interpreter = unprivileged_interpreter()
    if interpreter is None:
        pytest.skip("No Python of 3.11 or later on this machine may be started by another user.")
    try:
        found = faults_unprivileged(interpreter, ["reaching what is not its own"], every=6)
    except RuntimeError as error:
        if "does not give the isolation" not in str(error):
            raise
        pytest.skip(f"This machine gives a user without rights no namespaces: {str(error).splitlines()[-1]}")
    assert not any(found["reaching what is not its own"].values()), found


def test_the_page_lists_every_attack_and_each_held():
    page = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]]
    told = [(row[0].strip("| "), row[1]) for row in rows]
    assert told == [(family, name) for family, attacks in FAMILIES.items() for name in attacks]
    assert all(cell.strip(" |") == "held" for row in rows for cell in row[2:])


@isolated
def test_the_program_is_nobody():
    result = run("import os; print(os.getuid(), os.geteuid(), os.getgid(), len(os.getgroups()), len(os.environ))")
    uid, euid, gid, _, _ = (int(word) for word in result.stdout.split())
    assert uid == euid and 0 not in (uid, gid)
    if os.getuid() == 0:
        assert uid >= 65534 and gid >= 65534 and result.stdout.split()[3] == "0"


@isolated
def test_files_outside_the_folder_are_out_of_reach(tmp_path, monkeypatch):
    """Canaries that anybody may write, in a folder that anybody may change: only the sandbox keeps them."""
    folder, temporary = tmp_path / "canaries", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(temporary))
    for path in (tmp_path, *tmp_path.parents[:2], folder, temporary):
        path.chmod(0o777)
    names = ["delete", "overwrite", "truncate", "rename", "read"]
    for name in names:
        (folder / name).write_text(f"canary {name}")
        (folder / name).chmod(0o666)
    result = run(
        f"""
        import os
        folder = {str(folder)!r}
        def attempt(what, *arguments):
            try:
                print("did", what(*arguments))
            except OSError:
                pass
        attempt(os.remove, folder + "/delete")
        attempt(lambda: open(folder + "/overwrite", "w").write("gone"))
        attempt(os.truncate, folder + "/truncate", 0)
        attempt(os.rename, folder + "/rename", folder + "/renamed")
        attempt(lambda: open(folder + "/read").read())
        attempt(lambda: open(folder + "/new", "w").write("new"))
        attempt(os.listdir, folder)
        open("mine", "w").write("its own folder is writable")
        os.mkdir("closed"), os.chmod("closed", 0)
        raise SystemExit("tried all")
        """
    )
    assert not result.passed and "did" not in result.stdout and result.reason == "exit status 1: tried all"
    assert {p.name: p.read_text() for p in folder.iterdir()} == {name: f"canary {name}" for name in names}
    assert list(temporary.iterdir()) == []  # the sandbox's own folder is gone


@isolated
def test_no_network():
    """A listener on the loopback of the test hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        result = run(
            f"""
            import socket
            with socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), timeout=2) as s:
                s.sendall(b"secret")
            """
        )
        assert not result.passed and "OSError" in result.reason
        with pytest.raises(BlockingIOError):
            listener.accept()


@isolated
def test_shared_memory_of_another_process_is_out_of_reach():
    """A System V segment that anybody may write, by its number: neither read, nor written, nor removed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0, 4096, 0o1666)
    assert segment >= 0
    address = libc.shmat(segment, None, 0)
    try:
        ctypes.memmove(address, b"canary", 6)
        result = run(
            f"""
            import ctypes
            libc = ctypes.CDLL(None)
            libc.shmat.restype = ctypes.c_long
            print("did" if libc.shmat({segment}, None, 0) != -1 else "not", "did" if libc.shmctl({segment}, 0, None) == 0 else "not")
            """
        )
        assert result.passed and result.stdout == "not not\n"
        assert ctypes.string_at(address, 6) == b"canary"
    finally:
        libc.shmdt(ctypes.c_void_p(address))
        libc.shmctl(segment, 0, None)


@isolated
def test_a_few_threads_are_fine():
    source = "import threading\nt = [threading.Thread(target=print) for _ in range(4)]\n[x.start() for x in t]\n[x.join() for x in t]"
    assert run(source, processes=8).passed


@isolated
def test_nothing_of_the_programs_outlives_it():
    result = run(
        """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                os.setsid()
                time.sleep(600)
                os._exit(0)
        print(os.getuid())
        """
    )
    assert result.reason == "left a process running" and _alive(int(result.stdout)) == []


def _alive(uid: int) -> list[str]:
    """Processes of the user that one run of the sandbox had for itself, as it has where the grader is root."""
    found = []
    for entry in Path("/proc").iterdir() if os.getuid() == 0 else ():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                found.append((entry / "stat").read_text())
        except OSError:
            pass
    return found


@isolated
def test_an_interpreter_below_the_temporary_folder_works(tmp_path):
    """The program's /tmp is its own, and an interpreter that lies below it is found there all the same."""
    library = Path(os.__file__).parent
    target = tmp_path / "python"
    binary, stdlib = Path(inside.interpreter()), target / "lib" / library.name
    skipped = (
        "site-packages",
        "dist-packages",
        "test",
        "idlelib",
        "tkinter",
        "__pycache__",
        "ensurepip",
        "config-*",
        "lib2to3",
    )
    shutil.copytree(library, stdlib, ignore=shutil.ignore_patterns(*skipped))
    (target / "bin").mkdir()
    shutil.copy(binary, target / "bin" / binary.name)
    for shared in binary.parent.parent.glob("lib/libpython3*.so*"):
        shutil.copy(shared, target / "lib" / shared.name)
    for path in (*tmp_path.parents[:2], tmp_path, *target.rglob("*")):
        path.chmod(0o755)
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from trl_soft.evaluate.sandbox import inside, run_program
assert inside.interpreter().startswith("/tmp/"), inside.interpreter()
print(run_program("import json, os; x = os.path.dirname(os.__file__)", tests="assert x.startswith('/tmp/')", tested=["x"]))
"""
    if not str(tmp_path.resolve()).startswith("/tmp/"):
        pytest.skip(f"The temporary folder of this machine is {tmp_path.anchor}, not below /tmp.")
    command = [target / "bin" / binary.name, "-I", "-S", "-B", "-c", script]
    environment = {"LD_LIBRARY_PATH": str(target / "lib")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "passed=True" in done.stdout, done.stdout + done.stderr[-2000:]


@isolated
@pytest.mark.parametrize("victim", ["grader", "supervisor"])
def test_a_killed_parent_takes_the_program_with_it(victim, tmp_path):
    """SIGKILL to the grader or the supervisor, while a program of 600 s and its child run, leaves no process."""
    script = """
from trl_soft.evaluate.sandbox import run_program
run_program("import os, time\\nos.fork()\\ntime.sleep(600)", timeout=600)
"""
    grader = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    supervisor = _wait_for(lambda: _children(grader.pid))[0]
    init = _wait_for(lambda: _children(supervisor))[0]
    inner = _wait_for(lambda: len(_descendants(init)) >= 3 and _descendants(init))
    os.kill({"grader": grader.pid, "supervisor": supervisor}[victim], signal.SIGKILL)
    grader.wait()
    _wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (supervisor, init, *inner)))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _descendants(pid: int) -> list[int]:
    found = _children(pid)
    return found + [other for child in found for other in _descendants(child)]


def _wait_for(what):
    deadline = time.monotonic() + 300  # what never happens, not a slow machine
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen within 300 s"
        time.sleep(0.01)
    return found


@isolated
def test_a_reason_commands_no_terminal():
    """A program chooses what it fails with."""
    for source, tests in (("x = 1", r"assert False, '\x1b[2J\x00\x9b'"), (r"raise ValueError('\x1b[2J\x07')", "")):
        reason = run(source, tests=tests).reason
        assert "\ufffd[2J" in reason and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in reason)
