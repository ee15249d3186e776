# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a function, interleaved with its rivals so that a busy machine is busy for all of them."""

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path


def resident() -> int:
    """Resident bytes of this process, after what was freed has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _pages() * 4096


def _pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def peak(function: Callable[[], object]) -> int:
    """Most bytes that `function` held above what was there before it, sampled every millisecond."""
    before, most, stop = resident(), 0, threading.Event()

    def watch():
        nonlocal most
        while not stop.wait(0.001):
            most = max(most, _pages() * 4096)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        stop.set()
        watcher.join()
    return max(most - before, 1)


def interleaved(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function over `repeats` rounds, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            gc.collect()
            start = time.perf_counter()
            function()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
