# SPDX-License-Identifier: Apache-2.0
"""
The process that compares mathematical answers: it can be killed, which sympy inside one huge power needs.

math-verify bounds itself by SIGALRM, which works in a main thread only and takes the alarm away from whoever set one. A
process of its own has a main thread.
"""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading


JOB_SECONDS = 20.0  # all that is done for one completion
_WORKER_BYTES = 4 << 30


class WorkerLost(Exception):
    """The worker took too long or too much memory and was killed."""


def _serve() -> None:
    """The worker: one JSON job a line in, one JSON result a line out, until the input ends."""
    import faulthandler
    import logging
    import resource

    from .mathematics import judge

    logging.disable(logging.WARNING)  # math-verify's word on what could not be compared, once a completion
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_BYTES, _WORKER_BYTES))
    sink = open(os.devnull, "w")
    print("ready", flush=True)
    for line in sys.stdin:
        # The parent kills a worker that is late; this ends one whose parent is gone, even inside C code.
        faulthandler.dump_traceback_later(JOB_SECONDS + 5, exit=True, file=sink)
        try:
            result = judge(**json.loads(line))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(result), flush=True)


class Worker:
    """The process, started when first needed and again after it was killed. Any thread may call it; one waits for another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def _start(self) -> subprocess.Popen:
        code = "from trl_soft.evaluate.grading.worker import _serve; _serve()"
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

    def call(self, **job) -> dict:
        """The worker's result for one job. Raises [`WorkerLost`] after `JOB_SECONDS`."""
        with self._lock:
            process = self._process
            # A forked process must not share its parent's pipes.
            if process is None or self._owner != os.getpid() or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=JOB_SECONDS)
            except (queue.Empty, BrokenPipeError):
                line = ""
            if not line:
                self.stop()
                raise WorkerLost
            return json.loads(line)


WORKER = Worker()
atexit.register(WORKER.stop)
