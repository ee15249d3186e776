# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a function, interleaved with its rivals so that a busy machine is busy for all of them."""

import ctypes
import gc
import statistics
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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


class Held(TorchDispatchMode):
    """
    Bytes of all tensors that are alive, counted as torch's operations return them, and the most there were in each phase.

    The allocator's own account but for what a kernel takes and gives back before it returns; the same in every run, which
    resident memory is not: that rises with what the system's allocator keeps for later.

    Attributes:
        phase (`str`): what is going on, set by the caller. most (`dict`): bytes by phase.
    """

    def __init__(self):
        super().__init__()
        self.now, self.phase, self.most = 0, "", defaultdict(int)
        self._alive: dict[int, weakref.ref] = {}

    def enter(self, phase: str) -> None:
        self.phase = phase
        self._note()

    def _note(self) -> None:
        self.most[self.phase] = max(self.most[self.phase], self.now)

    def _add(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._alive.get(key)
        if known is not None and known() is not None:
            return

        def gone(reference):
            self.now -= size
            if self._alive.get(key) is reference:
                del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self._note()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return out
