# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for CUDA: one launch instead of tens of operations of plain torch.

Each kernel computes what a plain torch function computes. That function is its reference, and all other devices run it.
`fused` says which of the two a caller uses. Triton's interpreter runs the kernels on a CPU, where tests compare them with
the plain functions.
"""

import importlib.util
import os
import struct
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)
_here = {"plain": False, "interpreted": False}
# The default options of compilation. `a + b * c` is rounded twice, as in plain torch.
OPTIONS = {"enable_fp_fusion": False}
# Each launch calls these with the kernel's name and the bytes that it reads and writes.
watchers: list[Callable[[str, int], None]] = []


def fused(device: torch.device) -> bool:
    """
    Whether tensors on this device go through the kernels: on CUDA if Triton is installed and `TRL_SOFT_KERNELS` is not 0.
    On other devices only inside `interpreted`.

    Raises:
        ValueError: if `TRL_SOFT_KERNELS` is neither 0 nor 1.
    """
    if _here["plain"]:
        return False
    if device.type != "cuda":
        return _here["interpreted"]
    asked = os.environ.get("TRL_SOFT_KERNELS") or "1"
    if asked not in ("0", "1"):
        raise ValueError(
            f"TRL_SOFT_KERNELS is {asked!r}, which means nothing. Set it to 0 (no Triton kernels) or to 1 (the default)."
        )
    if asked == "0":
        logger.warning_once(
            "TRL_SOFT_KERNELS is 0, so thoughts and tokens are drawn and scored by plain torch: hundreds of small kernels a step in "
            "place of a few."
        )
        return False
    if importlib.util.find_spec("triton") is None:
        logger.warning_once(
            "Triton is not installed, so thoughts and tokens are drawn and scored by plain torch: hundreds of small kernels a step in "
            "place of a few. `pip install triton`."
        )
        return False
    return True


def passed_over(what: str, cost: str) -> None:
    """Log once that a setting uses plain torch although kernels are on. `what` is the setting, `cost` its cost."""
    logger.warning_once(f"{what}: plain torch runs instead of the Triton kernels. {cost}")


@contextmanager
def plain():
    """Plain torch on every device, for comparison."""
    with _set("plain"):
        yield


@contextmanager
def interpreted():
    """Run the kernels on a CPU too, by Triton's interpreter. This is slow; it serves tests and counts."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "Triton interprets kernels only if TRITON_INTERPRET=1 is set before they are imported. Set it."
        )
    with _set("interpreted"):
        yield


@contextmanager
def _set(name: str):
    before = _here[name]
    _here[name] = True
    try:
        yield
    finally:
        _here[name] = before


def launch(kernel, grid: tuple[int, ...], *arguments, moved: int | Callable[[], int] | None = None, **options) -> None:
    """
    `kernel[grid](*arguments, **options)` on the device of its tensors, which need not be the current device.

    An empty grid runs nothing. Tensors of the meta device have no memory: there a launch only calls `watchers`, so that calls
    of any size can be counted.

    Args:
        moved (`int`, or a function that returns it, *optional*):
            Bytes that the kernel reads and writes. Default: each of its tensors once.
        options: constants of the kernel and options of its compilation, which default to `OPTIONS`.

    Raises:
        RuntimeError: if the kernel cannot be compiled or launched. The message says how to run without it.
    """
    if 0 in grid:
        return
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    if watchers:
        size = nbytes(*tensors) if moved is None else moved() if callable(moved) else moved
        for watch in watchers:
            watch(kernel.fn.__name__, size)
    device = tensors[0].device
    if device.type != "meta":
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            try:
                kernel[grid](*arguments, **{**OPTIONS, **options})
            except Exception as error:
                raise RuntimeError(
                    f"The kernel {kernel.fn.__name__} could not be compiled or launched on {device} ({type(error).__name__}). Triton "
                    "needs a C compiler and a device that it supports. To run plain torch instead of all kernels, which is "
                    "slower, set TRL_SOFT_KERNELS=0."
                ) from error


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`. Sizes of blocks are powers of two."""
    return 1 << max(count - 1, 0).bit_length()


def nbytes(*tensors: torch.Tensor) -> int:
    """Bytes that a kernel moves if it reads or writes all of each tensor."""
    return sum(x.numel() * x.element_size() for x in tensors)


def bits(x: float) -> int:
    """A float64 as an integer, because Triton rounds a float argument to float32."""
    return struct.unpack("<q", struct.pack("<d", x))[0]
