# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels of tiles and rows for devices that need not be there: `python -m tests.compiled_tiles 80 90`, without TRITON_INTERPRET."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trl_soft.kernels import row_products, softmax_tiles


# Types of parameters, by name; float32 tensors where a name is not here.
TYPES = dict.fromkeys(("ids", "top"), "*i64") | dict.fromkeys(("high", "low", "scale", "softcap"), "fp32")
TYPES |= dict.fromkeys(("stride", "part_stride", "g_stride", "d_stride", "weights_stride"), "i32")
TYPES |= dict.fromkeys(("start", "size", "candidates", "width"), "i32")
LOW = dict.fromkeys(("bias", "table", "high_part", "low_part", "d_z", "weights"), "*bf16")
ALL = {"BIASED": True, "CAPPED": True, "IDS": True, "B": 2048, "K": 16}
NONE = {"BIASED": False, "CAPPED": False, "IDS": False, "B": 2048, "K": 16}
# What a kernel is given None for.
ABSENT = {"bias": None, "ids": None, "z_ids": None}
MIXED = {"table": None, "R": None, "high_part": None, "low_part": None}
VARIANTS = [
    (softmax_tiles._fold, LOW, ALL | MIXED | {"PARTS": 0, "H": 1024}, 8),
    (softmax_tiles._fold, {}, NONE | ABSENT | {"PARTS": 1, "H": 1024, "low_part": None}, 8),
    (softmax_tiles._fold, LOW, ALL | {"PARTS": 2, "H": 1024}, 8),
    (softmax_tiles._gradient, LOW, ALL | {"MIXED": True, "WEIGHTS": True}, 4),
    (
        softmax_tiles._gradient,
        {},
        NONE | ABSENT | {"candidate": None, "g_rows": None, "weights": None, "MIXED": False, "WEIGHTS": False},
        4,
    ),
    (softmax_tiles._of_equal, {}, {"K": 16}, 1),
    (row_products._dot, LOW | {"hidden": "*bf16"}, {"B": 1024}, 4),
]


def compiled(kernel, types: dict, constants: dict, warps: int, capability: int) -> int:
    """Bytes of the machine code."""
    types = {name: (TYPES | types).get(name, "*fp32") for name in kernel.arg_names} | dict.fromkeys(
        constants, "constexpr"
    )
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return len(triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"])


if __name__ == "__main__":
    for variant in VARIANTS:
        for capability in map(int, sys.argv[1:]):
            print(variant[0].__name__, f"sm_{capability}", compiled(*variant, capability), flush=True)
