# SPDX-License-Identifier: Apache-2.0
"""Hostile programs by what they try. Each is bounded by its own text: it ends by itself, come what may.

`FORGERIES` try to pass tests that are wrong about every one of them. `ESCAPES` print `did` where they reach something that
is not theirs. `EXHAUSTIONS` try to use more than they may. None of them may pass, and none may leave anything behind.
"""

import textwrap
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Attack:
    """
    One program.

    Args:
        source (`str`): the program.
        tests (`str`): what judges it.
        reason (`str`): a pattern for why it does not pass.
        limits: for `run_program`.
    """

    source: str
    tests: str = ""
    reason: str = ""
    limits: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "source", textwrap.dedent(self.source))


# No result of `f` makes these pass: 7 is wrong, and so is a list that holds it.
WRONG = "assert f() == 7, 'forged'\nassert f() == [7], 'forged'\n"
EXIT_IN_TESTS = "f()\nassert False\n"


def _forgery(source: str, tests: str = WRONG, reason: str = "") -> Attack:
    return Attack(source, tests, reason)


FORGERIES: dict[str, Attack] = {
    "sys.exit": _forgery("import sys; sys.exit(0)", reason="ended before"),
    "os._exit": _forgery("import os; os._exit(0)", reason="ended before"),
    "exit in a function": _forgery("def f(): raise SystemExit(0)", EXIT_IN_TESTS),
    "_exit in a function": _forgery("import os\ndef f(): os._exit(0)", EXIT_IN_TESTS, "ended before"),
    "atexit": _forgery("import atexit, os; atexit.register(lambda: os._exit(0))"),
    "excepthook": _forgery("import os, sys; sys.excepthook = lambda *a: os._exit(0)"),
    "patched AssertionError": _forgery(
        "import builtins; builtins.AssertionError = type('Quiet', (BaseException,), {})\ndef f(): return 7"
    ),
    "patched exits": _forgery(
        "import os, sys; os._exit = sys.exit = exit = quit = lambda *a: None\ndef f(): return 7"
    ),
    "patched builtins": _forgery(
        """
        import builtins
        for name in ("print", "exec", "compile", "dict", "isinstance", "getattr", "str", "len", "type"):
            setattr(builtins, name, lambda *a, **k: 0)
        def f(): return 7
        """
    ),
    "patched json": _forgery(
        """
        import json
        json.dumps = json.loads = lambda *a, **k: {"passed": True, "names": ["f"], "value": 7}
        def f(): return 7
        """
    ),
    "shadowed all": _forgery("def all(*a): return True\ndef f(): return 0", "assert all([f(), False])"),
    "patched all, late": _forgery(
        "import builtins\ndef f():\n    builtins.all = lambda *a: True\n    return 1", "assert all([f(), False])"
    ),
    "trace": _forgery("import sys; sys.settrace(lambda *a: None)\ndef f(): return 7"),
    "printing a pass": _forgery("print('passed', '{\"passed\": true}')\nraise SystemExit(0)"),
    "writing a pass everywhere": _forgery(
        """
        import os
        for fd in range(64):
            try: os.write(fd, b'{"passed": true}')
            except OSError: pass
        os._exit(0)
        """
    ),
    "framing a pass": _forgery(
        """
        import os
        for text in (b'{"names": ["f"]}', b'{"passed": true}', b'{"value": true}'):
            os.write(5, len(text).to_bytes(8, "big") + text)
        os._exit(0)
        """,
        reason="failed|ended before",
    ),
    "a child that passes": _forgery("import os\nif os.fork(): os._exit(0)\nos._exit(0)"),
    "closing the pipes": _forgery("import os; os.closerange(3, 64)"),
    "echoing the requests": _forgery(
        """
        import os
        text = b'{"names": ["f"]}'
        os.write(5, len(text).to_bytes(8, "big") + text)
        for _ in range(100):
            heard = os.read(4, 65536)
            if not heard: break
            os.write(5, heard)
        os._exit(0)
        """
    ),
    "equal to everything": _forgery(
        """
        class Equal:
            __eq__ = __ge__ = __le__ = __contains__ = lambda *a: True
            __ne__ = __gt__ = __lt__ = lambda *a: False
            __hash__ = lambda self: hash(7)
            __bool__ = lambda self: True
        def f(): return Equal()
        """,
        "assert f() == 7",
        "failed: AssertionError",
    ),
    "an equal number": _forgery(
        "class Seven(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\ndef f(): return Seven(3)",
        "assert f() == 7",
    ),
    "an equal text": _forgery(
        "class Text(str):\n    __eq__ = lambda *a: True\n    __hash__ = str.__hash__\ndef f(): return Text('no')",
        "assert f() == 'yes'",
    ),
    "an equal list": _forgery(
        "class List(list):\n    __eq__ = lambda *a: True\ndef f(): return List([1])", "assert f() == [7]"
    ),
    "an equal object in a list": _forgery(
        "class Equal:\n    __eq__ = lambda *a: True\n    __hash__ = lambda self: 7\ndef f(): return [Equal()]",
        "assert f() == [7]",
    ),
    "an equal object in a set": _forgery(
        "class Equal:\n    __eq__ = lambda *a: True\n    __hash__ = lambda self: 7\ndef f(): return {Equal()}",
        "assert f() == {7}",
    ),
    "a lie about the class": _forgery(
        "class Liar:\n    __class__ = int\n    __eq__ = lambda *a: True\n    __index__ = lambda self: 7\ndef f(): return Liar()",
        "assert f() == 7",
    ),
    "reflected operators": _forgery(
        "class R:\n    __rsub__ = __sub__ = lambda *a: 0\n    __abs__ = lambda self: 0\n    __float__ = lambda self: 7.0\ndef f(): return R()",
        "assert abs(f() - 7) < 1e-6",
        "TypeError",
    ),
    "walking the frames": _forgery(
        """
        import re, sys
        def f():
            frame, texts = sys._getframe(), []
            while frame:
                texts += [repr(v)[:100000] for v in [*frame.f_locals.values(), *frame.f_globals.values()]]
                frame = frame.f_back
            found = [m for text in texts for m in re.findall(r"assert f[(][)] == (. [*] .)", text)]
            return eval(found[0]) if found else 0
        """,
        "assert f() == 6 * 7",
        "failed: AssertionError",
    ),
    "asking the garbage collector": _forgery(
        """
        import gc, re
        def f():
            texts = [repr(o)[:100000] for o in gc.get_objects()] + [repr(r)[:1000] for o in gc.get_objects()[:20000] for r in gc.get_referents(o) if isinstance(r, (str, bytes))]
            found = [m for text in texts for m in re.findall(r"assert f[(][)] == (. [*] .)", text)]
            return eval(found[0]) if found else 0
        """,
        "assert f() == 6 * 7",
        "failed: AssertionError",
    ),
    "reading every descriptor": _forgery(
        """
        import os, re
        def f():
            for fd in range(64):
                try:
                    data = os.pread(fd, 65536, 0)
                except OSError:
                    continue
                found = re.findall(rb"assert f[(][)] == (. [*] .)", data)
                if found:
                    return eval(found[0])
            return 0
        """,
        "assert f() == 6 * 7",
        "failed: AssertionError",
    ),
    "an exception that the tests wait for": _forgery(
        "class StopTests(BaseException): pass\ndef f(): raise StopTests", "f()\nassert False", "exit status 1"
    ),
    "an end of iteration": _forgery("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == x, [1, 2]))"),
    "a long error beyond ASCII": _forgery(
        "def f(): raise ValueError('\\U0001f600' * 500)", "f()", "failed: ValueError"
    ),
    "a keyboard interrupt": _forgery("def f(): raise KeyboardInterrupt", "f()\nassert False"),
    "a very long answer": _forgery(
        "import os\ndef f():\n    os.write(5, (1 << 62).to_bytes(8, 'big') + b'{')\n    os._exit(0)",
        "f()\nassert False",
    ),
    "a very deep answer": _forgery(
        "def f():\n    x = []\n    for _ in range(100000): x = [x]\n    return x", "assert f() == 7"
    ),
    "an answer that is no JSON": _forgery(
        "import os\ndef f():\n    os.write(5, (4).to_bytes(8, 'big') + b'!!!!')\n    os._exit(0)", "f()\nassert False"
    ),
    "a handle that is not there": _forgery(
        'import os\nt = b\'{"value": {"handle": 99999}}\'\n'
        "def f():\n    os.write(5, len(t).to_bytes(8, 'big') + t)\n    return 7",
        "assert f() == 7",
    ),
    "answering for the next question": _forgery(
        """
        import os
        def f():
            for text in (b'{"value": {"int": "0x7"}}', b'{"value": {"int": "0x7"}}'):
                os.write(5, len(text).to_bytes(8, "big") + text)
            return 0
        """,
        "assert f() == 7\nassert f() == 8",
    ),
}


def _escape(attempts: str, before: str = "") -> Attack:
    """`attempts` are lines `attempt(function, arguments...)`, which print `did` where a call raises nothing."""
    head = """
import ctypes, os, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, *arguments):
    try:
        print("did", what, what(*arguments))
    except (OSError, AttributeError, ProcessLookupError):
        pass
def call(*arguments):
    result = libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"""
    text = head + textwrap.dedent(before) + textwrap.dedent(attempts) + "\nraise SystemExit('tried all')\n"
    return Attack(text, reason="exit status 1: tried all")


# Numbers of calls on x86_64 and aarch64.
_NUMBER = "import platform\nhere = 0 if platform.machine() == 'x86_64' else 1\n"

ESCAPES: dict[str, Attack] = {
    "files of the system": _escape(
        "for path in ('/etc/passwd', '/etc/shadow', '/etc/hostname', '/home', '/var', '/sys', '/proc'):\n"
        "    attempt(os.stat, path)"
    ),
    "writing to the interpreter": _escape(
        "attempt(open, os.__file__, 'a')\nattempt(os.unlink, os.__file__)\nattempt(os.mkdir, '/new')\nattempt(open, '/usr/lib/x', 'w')"
    ),
    "becoming root": _escape(
        "for become in (os.setuid, os.setgid, os.seteuid, os.setegid): attempt(become, 0)\nattempt(os.setgroups, [0])"
    ),
    "setuid programs": _escape(
        "open('x', 'w').write('#!')\nos.chmod('x', 0o4755)\nattempt(os.execv, 'x', ['x'])\nattempt(os.execv, '/bin/su', ['su'])"
    ),
    "device files": _escape(
        "attempt(os.mknod, 'd', 0o60666, os.makedev(8, 0))\nattempt(open, '/dev/mem')\nattempt(open, '/dev/sda')\nattempt(open, '/dev/vda')"
    ),
    "namespaces": _escape("for flag in (0x10000000, 0x20000000, 0x20000, 0x40000000): attempt(call, (272, 97)[here], flag)", _NUMBER),
    "a clone with namespaces": _escape("attempt(call, (56, 220)[here], 0x10000000 | 17, 0, 0, 0, 0)", _NUMBER),
    "mounts": _escape(
        "attempt(call, (165, 40)[here], b'none', b'/tmp', b'tmpfs', 0, None)\nattempt(call, 429, 0, 0)\nattempt(call, 428, -100, b'/', 0)",
        _NUMBER,
    ),
    "changing the root": _escape("attempt(os.chroot, '/tmp')\nattempt(call, (155, 41)[here], b'.', b'.')", _NUMBER),
    "tracing": _escape("for pid in (1, 2, 3): attempt(call, (101, 117)[here], 16, pid, 0, 0)", _NUMBER),
    "memory of other processes": _escape(
        "for pid in (1, 2, 3):\n    attempt(call, (310, 270)[here], pid, 0, 0, 0, 0, 0)\n    attempt(call, (311, 271)[here], pid, 0, 0, 0, 0, 0)\n"
        "    attempt(open, f'/proc/{pid}/mem', 'rb')",
        _NUMBER,
    ),
    "descriptors of other processes": _escape(
        "for pid in (1, 2, 3):\n    try: fd = call(434, pid, 0)\n    except OSError: continue\n"
        "    for number in range(10): attempt(call, 438, fd, number, 0)"
    ),
    "kernel modules and programs": _escape(
        "for number in ((321, 280), (175, 105), (313, 273), (246, 104), (320, 294)): attempt(call, number[here], 0, 0, 0, 0, 0)",
        _NUMBER,
    ),
    "rings": _escape("attempt(call, 425, 8, ctypes.create_string_buffer(256))\nattempt(call, 426, 0, 0, 0, 0, 0, 0)"),
    "key rings": _escape("attempt(call, (250, 219)[here], 0, -3, 1)\nattempt(call, (248, 217)[here], b'user', b'k', b'v', 1, -3)", _NUMBER),
    "fault handlers and counters": _escape("attempt(call, (323, 282)[here], 0)\nattempt(call, (298, 241)[here], 0, 0, -1, -1, 0)", _NUMBER),
    "later calls": _escape("for number in range(453, 520): attempt(call, number, 0, 0, 0, 0, 0, 0)"),
    "sockets beyond the families": _escape(
        "for family in range(64):\n"
        "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):\n"
        "        if family not in (1, 2, 10): attempt(socket.socket, family, kind)\n"
    ),
    "AF_VSOCK": _escape("attempt(socket.socket, 40, socket.SOCK_STREAM)\nattempt(socket.socket, 40, socket.SOCK_DGRAM)"),
    "the network": _escape(
        "for where in ('127.0.0.1', '10.0.0.1', '169.254.169.254'): attempt(socket.create_connection, (where, 80), 1)\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nattempt(s.sendto, b'x', ('127.0.0.1', 53))"
    ),
    "shared memory of others": _escape(
        "libc.shmat.restype = ctypes.c_long\n"
        "for number in range(0, 65536):\n"
        "    if libc.shmat(number, None, 0) != -1 or libc.shmctl(number, 0, None) == 0 or libc.msgctl(number, 0, None) == 0 or libc.semctl(number, 0, 0) == 0:\n"
        "        print('did', number)"
    ),
    "signals to others": _escape(
        "for pid in range(20, 400): attempt(os.kill, pid, signal.SIGUSR1)\nattempt(os.killpg, 1000, signal.SIGTERM)"
    ),
    "schedules of others": _escape(
        "for pid in range(20, 400):\n    if pid != os.getpid():\n"
        "        attempt(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))\n"
        "        attempt(os.setpriority, os.PRIO_PROCESS, pid, 19)\n        attempt(os.sched_setaffinity, pid, {0})"
    ),
    "limits of others": _escape(
        "import resource\nfor pid in (1, 3, *range(20, 400)): attempt(resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1))"
    ),
    "raising its own limits": _escape(
        "import resource\nfor name in ('AS', 'CPU', 'NPROC', 'FSIZE', 'NOFILE'):\n"
        "    number = getattr(resource, f'RLIMIT_{name}')\n    hard = resource.getrlimit(number)[1]\n"
        "    try: resource.setrlimit(number, (hard * 2, hard * 2))\n    except (OSError, ValueError): continue\n    print('did', name)"
    ),
    "the environment": _escape("print(*('did' for _ in os.environ if _ not in ('LC_CTYPE',)))"),
    "packages of this machine": _escape(
        "sys.path += [os.path.dirname(os.__file__) + '/site-packages', '/usr/lib/python3/dist-packages']\n"
        "for name in ('numpy', 'torch', 'pip', 'setuptools', 'yaml', 'requests', 'trl_soft'):\n"
        "    try: __import__(name)\n    except ImportError: continue\n    print('did', name)"
    ),
    "handles of files by number": _escape("attempt(call, (304, 265)[here], -100, 0, 0)", _NUMBER),
    "the clock and the name of the machine": _escape(
        "import time\nattempt(time.clock_settime, time.CLOCK_REALTIME, 0)\nattempt(socket.sethostname, 'x')\nattempt(call, (169, 142)[here], 0, 0, 0, 0)",
        _NUMBER,
    ),
}  # fmt: skip

END = "import time\nend = time.monotonic() + 30\n"

EXHAUSTIONS: dict[str, Attack] = {
    "an endless loop": Attack(END + "while time.monotonic() < end: pass", reason="ran longer", limits={"timeout": 1}),
    "a long sleep": Attack("import time; time.sleep(30)", reason="ran longer", limits={"timeout": 1}),
    "a loop in the tested function": Attack(
        END + "def f():\n    while time.monotonic() < end: pass", "f()", "ran longer", {"timeout": 1}
    ),
    "deaf to signals": Attack(
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        + END
        + "while time.monotonic() < end: pass",
        reason="ran longer",
        limits={"timeout": 1},
    ),
    "a fork bomb": Attack(
        """
        import os, time
        for _ in range(300):
            try:
                if os.fork() == 0:
                    time.sleep(20)
                    os._exit(0)
            except OSError:
                pass
        """,
        reason="left a process running",
        limits={"processes": 8},
    ),
    "many threads": Attack(
        "import threading, time\nfor _ in range(300): threading.Thread(target=time.sleep, args=(20,)).start()",
        reason="RuntimeError|ran longer",
        limits={"processes": 8, "timeout": 5},
    ),
    "a grandchild that goes on": Attack(
        """
        import os, signal, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                time.sleep(20)
                os._exit(0)
            os._exit(0)
        """,
        reason="left a process running",
    ),
    "ten gigabytes": Attack("x = bytearray(10 * 2**30)", reason="MemoryError"),
    "many small objects": Attack(
        "x = []\nfor i in range(10**9): x.append([i] * 1000)", reason="MemoryError|killed", limits={"timeout": 20, "memory_mb": 256}
    ),
    "a large number": Attack("x = 10 ** 10 ** 10", reason="MemoryError|ran longer|killed", limits={"timeout": 2}),
    "a regular expression": Attack("import re; re.match('(a+)+b', 'a' * 64)", reason="ran longer", limits={"timeout": 1}),
    "endless recursion": Attack("def f(): return f()\nf()", reason="RecursionError"),
    "recursion past the stack": Attack(
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr([self])\nrepr(A())",
        reason="killed by SIGSEGV|RecursionError|MemoryError",
    ),
    "one large file": Attack(
        "with open('a', 'wb') as f:\n    for _ in range(40): f.write(bytes(2**20))",
        reason="No space left|File too large",
        limits={"file_kb": 4096},
    ),
    "many files": Attack(
        "for i in range(40):\n    with open(str(i), 'wb') as f: f.write(bytes(2**20))",
        reason="No space left",
        limits={"file_kb": 4096},
    ),
    "many empty files": Attack("for i in range(5000): open(str(i), 'w').close()", reason="No space left"),
    "a folder without permissions": Attack(
        "import os\nos.mkdir('d')\nfor i in range(5): open(f'd/{i}', 'wb').write(bytes(2**20))\nos.chmod('d', 0)\nos.chmod('.', 0) if os.getuid() == 0 else None\n"
        "def f(): return 7",
        "assert f() == 8",
    ),
    "a flood on stdout": Attack(
        "import sys\nfor _ in range(1600): sys.stdout.write('x' * 65536)", reason="more than 64 KiB", limits={"output_kb": 64}
    ),
    "a flood on stderr": Attack(
        "import sys\nfor _ in range(1600): sys.stderr.write('x' * 65536)", reason="more than 64 KiB", limits={"output_kb": 64}
    ),
    "an endless iterator": Attack(
        "import itertools\ndef f(): return itertools.count()", "list(f())", "failed|ran longer|killed", {"timeout": 5}
    ),
    "an endless answer": Attack(
        "import os\ndef f():\n    os.write(5, (1 << 40).to_bytes(8, 'big'))\n    for _ in range(4000): os.write(5, bytes(2**20))\n    os._exit(0)",
        "f()",
        "failed|killed|ran longer",
        {"timeout": 10, "memory_mb": 256},
    ),
}  # fmt: skip

FAMILIES = {
    "forging a pass": FORGERIES,
    "reaching what is not its own": ESCAPES,
    "using more than it may": EXHAUSTIONS,
}
