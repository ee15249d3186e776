# SPDX-License-Identifier: Apache-2.0
"""Whether packages can be imported, each tried in a process of its own: one that crashes or hangs is a sentence too."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

from ..files import printable


SECONDS = 120  # for all packages together; the slowest, vLLM, takes some 30 on a busy machine


def failures(names: Iterable[str], seconds: float = SECONDS) -> dict[str, str]:
    """
    Import each package in a new interpreter, all at once.

    Returns:
        How it ended, as the end of a sentence, for each package whose import does not work.
    """
    ends, found = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory() as folder:  # deepspeed and others write where they are imported
        tried = {
            name: subprocess.Popen(
                # `-P`: a folder `wandb` of the working directory is no package.
                [sys.executable, "-P", "-c", f"import {name}"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            for name in names
        }
        for name, process in tried.items():
            try:
                _, told = process.communicate(timeout=max(0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                found[name] = f"does not end within {seconds:g} seconds"
                continue
            if process.returncode < 0:
                found[name] = f"ends Python with signal {-process.returncode}"
            elif process.returncode:
                last = next((line for line in reversed(told.splitlines()) if line.strip()), "without a word")
                found[name] = f"fails ({printable(last.strip())})"
    return found
