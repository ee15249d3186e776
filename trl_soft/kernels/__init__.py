# SPDX-License-Identifier: Apache-2.0
"""Triton kernels: one launch where plain torch takes tens, on CUDA.

Each kernel computes what a plain torch function computes. That function is its reference, and what other devices run.
`fused` says which of the two a caller takes. Triton's interpreter runs the kernels on a CPU, where tests hold them against
the plain functions.
"""

import importlib.util
import os
from contextlib import contextmanager

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)
_here = {"plain": False, "interpreted": False}


def fused(device: torch.device) -> bool:
    """Whether tensors on this device go through the kernels: on CUDA where Triton is installed, else within `interpreted`."""
    if _here["plain"]:
        return False
    if device.type != "cuda":
        return _here["interpreted"]
    if importlib.util.find_spec("triton") is None:
        logger.warning_once(
            "Triton is not installed, so thoughts and tokens are drawn by plain torch: hundreds of small kernels a step in "
            "place of a few. `pip install triton`."
        )
        return False
    return True


@contextmanager
def plain():
    """Plain torch on every device: to compare with."""
    with _set("plain"):
        yield


@contextmanager
def interpreted():
    """The kernels on a CPU too, by Triton's interpreter: slow, to test and to count with."""
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
