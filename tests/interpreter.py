# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter as a device computes: `fma` rounds once. The interpreters before Triton 3.9 round the product and the sum."""

import importlib.util

import numpy as np


def fuse_fma() -> None:
    """Replace an `fma` that rounds twice. Products of two float32 numbers are exact in float64."""
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    if hasattr(interpreter._interpreter, "fma_fp64"):
        return

    def create_fma(self, x, y, z):
        single = z.data.dtype == np.float32
        a, b, c = (value.data.astype(np.float64) if single else value.data for value in (x, y, z))
        return interpreter.TensorHandle((a * b + c).astype(z.data.dtype), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = create_fma
