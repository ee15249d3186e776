# SPDX-License-Identifier: Apache-2.0
"""Hostile programs, each bounded by its own text, fail alone; what they reach for outside the sandbox is unharmed."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from trl_soft.evaluate import sandbox
from trl_soft.evaluate.sandbox import Result, isolation, run_program


def _missing(kind: str) -> str:
    """Why this machine does not give a kind of isolation, or nothing."""
    try:
        isolation(kind)
    except RuntimeError as error:
        return str(error)
    return ""


def _kinds() -> list:
    missing = {kind: _missing(kind) for kind in ("namespaces", "processes")}
    return [pytest.param(k, marks=pytest.mark.skipif(bool(why), reason=why or "-")) for k, why in missing.items()]


each_kind = pytest.mark.parametrize("kind", _kinds())
DEADLINE = "import time\nend = time.monotonic() + 30\n"  # every program below ends by itself, come what may


def run(source: str, kind: str, **limits) -> Result:
    return run_program(textwrap.dedent(source), isolation=kind, **limits)


@each_kind
def test_a_good_program_passes_and_says_what_held_it(kind):
    result = run("print(sum(range(4)))\nx = 6", kind, tests="assert x == 6")
    assert (result.passed, result.reason, result.stdout, result.stderr) == (True, "passed", "6\n", "")
    assert result.isolation == isolation(kind) and result.isolation.startswith(kind)


@each_kind
def test_what_goes_wrong_is_said(kind):
    failed = run("x = 5", kind, tests="assert x == 6, 'no'")
    assert not failed.passed and failed.reason == "exit status 1: AssertionError: no"
    assert "NameError" in run("x = y", kind).reason and "SyntaxError" in run("x = = 1", kind).reason
    assert run("import os\nos.abort()", kind).reason.startswith("killed by SIG")
    assert "EOFError" in run("input()", kind).reason  # stdin is empty


def test_isolation_is_asked_for_and_never_falls_back(monkeypatch):
    with pytest.raises(ValueError, match="not a kind of isolation"):
        run_program("", isolation="none")
    with pytest.raises(ValueError, match="zero or negative"):
        run_program("", timeout=0)
    monkeypatch.setattr(sandbox, "_supervise", lambda job, patience: {"error": "unshare: not permitted"})
    with pytest.raises(RuntimeError, match=r"not run, because .* unshare: not permitted.* isolation='processes'"):
        run_program("open('/tmp/x', 'w')")


@each_kind
def test_the_program_is_nobody_and_cannot_become_somebody(kind):
    result = run(
        """
        import os
        print(os.getuid(), os.geteuid(), os.getgid(), os.getgroups())
        for become in (os.setuid, os.setgid):
            try:
                become(0)
            except OSError:
                continue
            print("became root")
        """,
        kind,
    )
    assert result.passed and "became" not in result.stdout
    uid, euid, gid = (int(word) for word in result.stdout.split()[:3])
    assert uid == euid and (kind == "processes" or 0 not in (uid, gid))
    if os.getuid() == 0:
        assert uid >= 65534 and gid >= 65534 and result.stdout.strip().endswith("[]")


@each_kind
def test_the_environment_is_empty(kind, monkeypatch):
    monkeypatch.setenv("TRL_SOFT_CANARY_TOKEN", "canary-in-the-environment")
    result = run(
        """
        import os
        seen = dict(os.environ)
        for pid in ("self", os.getppid(), 1):
            try:
                seen[pid] = open(f"/proc/{pid}/environ").read()
            except OSError:
                pass
        print(seen)
        assert "TRL_SOFT_CANARY_TOKEN" in seen
        """,
        kind,
    )
    assert not result.passed and "canary" not in result.stdout and "PATH" not in result.stdout


@each_kind
def test_files_outside_the_folder_are_out_of_reach(kind, tmp_path, monkeypatch):
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
        attempt(lambda: open("/etc/passwd").read())
        open("mine", "w").write("its own folder is writable")
        raise SystemExit("tried all")
        """,
        kind,
    )
    assert not result.passed and "did" not in result.stdout
    assert {p.name: p.read_text() for p in folder.iterdir()} == {name: f"canary {name}" for name in names}
    assert list(temporary.iterdir()) == []  # the sandbox's own folder is gone


@each_kind
def test_no_network(kind):
    """A listener on the loopback of the test hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        result = run(
            f"""
            import socket
            with socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), timeout=2) as s:
                s.sendall(b"secret")
            """,
            kind,
        )
        assert not result.passed and ("OSError" in result.reason or "PermissionError" in result.reason)
        with pytest.raises(BlockingIOError):
            listener.accept()


@each_kind
def test_an_endless_loop_is_stopped(kind):
    result = run(DEADLINE + "while time.monotonic() < end: pass", kind, timeout=1)
    assert result.reason == "ran longer than 1 s" and result.seconds < 15


@each_kind
def test_a_fork_bomb_is_bounded_and_dies(kind):
    """At most 300 forks by its own text, each child asleep for 20 s; the limit lets 8 live, and none survives."""
    source = """
        import os, time
        children = refused = 0
        for _ in range(300):
            try:
                if os.fork() == 0:
                    time.sleep(20)
                    os._exit(0)
                children += 1
            except OSError:
                refused += 1
        print(children, refused, os.getuid(), flush=True)
        """
    result = run(source, kind, processes=8)
    children, refused, uid = (int(word) for word in result.stdout.split())
    assert result.reason == "left a process running" and not result.passed
    assert 1 <= children <= 8 and refused == 300 - children
    assert _alive(uid) == []


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


@each_kind
def test_threads_count_and_a_few_are_fine(kind):
    source = "import threading\nt = [threading.Thread(target=print) for _ in range(4)]\n[x.start() for x in t]\n[x.join() for x in t]"
    assert run(source, kind, processes=8).passed


@each_kind
def test_ten_gigabytes_are_refused(kind):
    assert "MemoryError" in run("x = bytearray(10 * 2**30)", kind).reason


@each_kind
def test_files_are_bounded(kind):
    result = run("with open('a', 'wb') as f:\n    for _ in range(40): f.write(bytes(2**20))", kind, file_kb=4096)
    assert not result.passed and ("No space left" in result.reason or "File too large" in result.reason)


@pytest.mark.parametrize("kind", _kinds()[:1])
def test_many_files_are_bounded_together(kind):
    source = "for i in range(40):\n    with open(str(i), 'wb') as f: f.write(bytes(2**20))"
    assert "No space left" in run(source, kind, file_kb=4096).reason


@each_kind
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_is_cut_off(kind, stream):
    """100 MB by its own text; the parent keeps 4 KB."""
    result = run(f"import sys\nfor _ in range(1600): sys.{stream}.write('x' * 65536)", kind, output_kb=64)
    assert result.reason == "wrote more than 64 KiB of output"
    assert len(result.stdout) + len(result.stderr) <= 8192


FORGERIES = {
    "sys.exit": "import sys; sys.exit(0)",
    "os._exit": "import os; os._exit(0)",
    "exit in a function": "def f(): raise SystemExit(0)",
    "_exit in a function": "import os\ndef f(): os._exit(0)",
    "atexit": "import atexit, os; atexit.register(lambda: os._exit(0))",
    "excepthook": "import os, sys; sys.excepthook = lambda *a: os._exit(0)",
    "patched AssertionError": "import builtins; builtins.AssertionError = type('Quiet', (BaseException,), {})",
    "patched exits": "import os, sys; os._exit = sys.exit = exit = quit = lambda *a: None",
    "patched print and exec": "import builtins\nfor n in ('print', 'exec', 'compile', 'dict'): setattr(builtins, n, lambda *a, **k: 0)",
    "patched all": "import builtins; builtins.all = builtins.bool = lambda *a: True",
    "shadowed all": "def all(*a): return True",
    "patched all, late": "import builtins\ndef f():\n    builtins.all = lambda *a: True\n    return 1",
    "trace": "import sys; sys.settrace(lambda *a: None)",
    "printing": "print('passed', '?', 'ok' * 32)\nraise SystemExit(0)",
    "writing everywhere": "import os\nfor fd in range(64):\n    try: os.write(fd, b'?' + b'0' * 64)\n    except OSError: pass\nos._exit(0)",
    "echoing everything": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'?')\n    except OSError: pass\n"
    "heard = os.read(5, 64)\nfor fd in range(3, 64):\n    try: os.write(fd, heard)\n    except OSError: pass\nos._exit(0)",
    "asking and hanging up": "import os\nos.close(5)\nos.write(4, b'?')\nos._exit(0)",
    "closing the pipes": "import os; os.closerange(3, 64)",
    "a child that passes": "import os\nif os.fork(): os._exit(0)\nos._exit(0)",
}


@each_kind
@pytest.mark.parametrize("name", FORGERIES)
def test_a_pass_cannot_be_forged(kind, name):
    """The tests are wrong about every one of these programs, whatever it does to the machinery."""
    source = textwrap.dedent(FORGERIES[name])
    tests = "value = globals().get('f', int)()\nassert all([value == 6, False])\n"
    assert not run(source, kind, tests=tests).passed


@each_kind
def test_a_program_may_define_a_builtin_that_the_task_asks_for(kind):
    source, tests = "def sum(a, b): return a - b", "assert sum(3, 1) == 2"
    assert run(source, kind, tests=tests, shadows=["sum"]).passed
    assert not run(source, kind, tests=tests).passed


@each_kind
def test_a_grandchild_that_outlives_its_parent_dies_too(kind, tmp_path):
    """Daemonised twice over, it would write to a pipe of the program and a marker file after 1 s, and end."""
    tmp_path.chmod(0o777)
    marker = tmp_path / "marker"
    result = run(
        f"""
        import os, signal, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                time.sleep(1)
                for path in ("survived", {str(marker)!r}):
                    open(path, "w").write("alive")
                os._exit(0)
            os._exit(0)
        print(os.getuid())
        """,
        kind,
    )
    assert result.reason == "left a process running"
    assert _alive(int(result.stdout)) == []
    assert not marker.exists()


@each_kind
def test_signals_reach_nobody_outside(kind):
    """The program signals its parent, process 1 of its world, the test, and all that it may."""
    caught = []
    before = signal.signal(signal.SIGUSR1, lambda *a: caught.append(a))
    try:
        result = run(
            f"""
            import os, signal
            for pid in (os.getppid(), {os.getpid()}):
                try:
                    os.kill(pid, signal.SIGUSR1)
                except OSError as error:
                    print(error)
            raise SystemExit(1)
            """,
            kind,
        )
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not result.passed and not caught and result.reason.startswith("exit status 1")


@each_kind
def test_what_reaches_the_kernel_is_refused(kind):
    result = run(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for flag in (0x10000000, 0x20000000, 0x20000):
            assert libc.unshare(flag) == -1 and ctypes.get_errno() == 1
        assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == -1 and ctypes.get_errno() == 1
        assert libc.ptrace(16, 1, 0, 0) == -1
        """,
        kind,
    )
    assert result.passed, result


@each_kind
def test_the_graders_death_ends_the_program(kind, tmp_path):
    """A grader that is killed by SIGKILL while a program of 20 s runs leaves no process."""
    tmp_path.chmod(0o777)
    script = f"""
from trl_soft.evaluate.sandbox import run_program
run_program("import time\\nprint('up', flush=True)\\ntime.sleep(20)", isolation={kind!r}, timeout=25)
"""
    root = str(Path(__file__).parent.parent)
    grader = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root})
    supervisor = _wait_for(lambda: _children(grader.pid))[0]
    program = _wait_for(lambda: [p for c in _children(supervisor) for p in _children(c)])[0]
    grader.kill()
    grader.wait()
    _wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (supervisor, program)))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _wait_for(what):
    deadline = time.monotonic() + 15
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen within 15 s"
        time.sleep(0.01)
    return found
