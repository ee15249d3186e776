# SPDX-License-Identifier: Apache-2.0
"""
The process that compares mathematical answers. It can be killed, because sympy may never return from one huge power.

math-verify limits its time by SIGALRM. SIGALRM works only in a main thread, and it replaces an alarm that the program has
set. A separate process has its own main thread. The process is ours, not a pool's: `pebble` starts workers by `multiprocessing`,
where a fork copies a trainer's threads and CUDA, and a spawn imports the user's script again.
"""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable


JOB_SECONDS = 20.0  # for all work on one completion
BATCH_SECONDS = 60.0  # of a batch's comparisons: each may take half of the time that is left
LEAST_SECONDS = 1.0  # for each comparison of a batch in any case; a normal one takes milliseconds
MOST_LOST = 50  # stopped comparisons of a batch; each costs the start of a worker. After these, no comparison is made
_WORKER_BYTES = 4 << 30


class WorkerLost(Exception):
    """The worker took too long or too much memory and was killed."""


def _serve() -> None:
    """The worker: each line of the input is a JSON job, each line of the output a JSON result, until the input ends."""
    import faulthandler
    import logging
    import resource

    from .comparison import judge

    logging.disable(logging.WARNING)  # math-verify warns about each answer that it cannot compare
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_BYTES, _WORKER_BYTES))
    sink = open(os.devnull, "w")
    print("ready", flush=True)
    for line in sys.stdin:
        # The parent kills a late worker. This alarm ends a worker whose parent is gone, even inside C code.
        faulthandler.dump_traceback_later(JOB_SECONDS + 5, exit=True, file=sink)
        try:
            result = judge(**json.loads(line))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(result), flush=True)


class Worker:
    """The process. It starts at the first call, and again after it was killed. Any thread may call it; calls wait in turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def _start(self) -> subprocess.Popen:
        code = "from trl_soft.evaluate.grading.grading_process import _serve; _serve()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put("")

        threading.Thread(target=read, daemon=True).start()
        if lines.get(timeout=120) != "ready\n":
            raise RuntimeError(
                "The process that compares mathematical answers did not start, so nothing can be graded. Its error is "
                "above; `python -c 'import math_verify'` must work."
            )
        self._process, self._owner, self._lines = process, os.getpid(), lines
        return process

    def stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        self._process = None

    def call(self, seconds: float, /, **job) -> dict:
        """The worker's result for one job. Raises [`WorkerLost`] after `seconds`, at most `JOB_SECONDS`."""
        with self._lock:
            process = self._process
            # A forked process must not share its parent's pipes.
            if process is None or self._owner != os.getpid() or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=seconds)
            except (queue.Empty, BrokenPipeError):
                line = ""
            if not line:
                self.stop()
                raise WorkerLost
            return json.loads(line)


WORKER = Worker()
atexit.register(WORKER.stop)


class Allowance:
    """
    The time that the comparisons of one batch of answers may take together, so that no batch stalls a training step.

    A comparison may take half of what the earlier ones left of 60 s, at most 20 s and at least 1 s. After 50 stopped
    comparisons no further one is made. So `N` answers take at most `60 + N` seconds and the starts of 50 workers.

    Args:
        clock: a function that returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._spent, self._lost = clock, 0.0, 0

    @property
    def seconds(self) -> float:
        """The time for the next comparison. 0 if no further comparison is made."""
        if self._lost >= MOST_LOST:
            return 0.0
        return min(JOB_SECONDS, max((BATCH_SECONDS - self._spent) / 2, LEAST_SECONDS))

    def call(self, **job) -> dict:
        """The worker's result for one job of the batch. Raises [`WorkerLost`] after `seconds`."""
        begun = self._clock()
        try:
            return WORKER.call(self.seconds, **job)
        except WorkerLost:
            self._lost += 1
            raise
        finally:
            self._spent += self._clock() - begun
