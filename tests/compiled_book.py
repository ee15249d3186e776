# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels of the bookkeeping for devices that need not be there: `python -m tests.compiled_book 80 90`, without TRITON_INTERPRET."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trl_soft.kernels import decisions


# Types of parameters, by name; int64 tensors where a name is not here.
TYPES: dict = dict.fromkeys(("n", "length"), "i32")
TYPES |= dict.fromkeys(
    ("flags", "masks", "undo_flags", "out_flags", "mask", "found", "thinks", "answers", "soft"), "*u8"
)
TYPES |= dict.fromkeys(("cold", "cold_entropy", "values"), "*fp32")
TYPES |= dict.fromkeys(("thought_p", "thought_entropy", "answer_p", "answer_entropy"), "*fp32")
TYPES |= dict.fromkeys(("classes", "matches"), "*i16")
ALL = {"UNDO": 4, "TEXTS": True, "COLD": True, "GATED": True, "CLOSES_AS_TOKEN": True, "EOS": 64, "ROWS": 32}
NONE = {"UNDO": 0, "TEXTS": False, "COLD": False, "GATED": False, "CLOSES_AS_TOKEN": False, "EOS": 1, "ROWS": 32}
# Of several tensors that are copied in one launch: values, and what they are written to.
TYPES_OF = ("*i64", "*bf16"), ("*i32", "*bf16")
LAYOUT = dict.fromkeys(("widths", "to_row", "to_column"), ("i32", "i32"))
SHAPES = [{"ROWS": 32, "WIDTH": 1}, {"ROWS": 1, "WIDTH": 1024}]
VARIANTS = [
    (decisions.decide_rows, {}, ALL, 1),
    (decisions.decide_rows, {"classes": "*i32"}, ALL, 1),
    (decisions.decide_rows, {}, NONE, 1),
    (decisions.put_pairs, {}, {"ROWS": 32}, 4),
    (decisions.find_thoughts, {}, {"ROWS": 32, "PICKED": True}, 4),
    *((decisions.put_rows, {"values": TYPES_OF[0], "targets": TYPES_OF[1], **LAYOUT}, shape, 4) for shape in SHAPES),
    *((decisions.take_rows, {"sources": TYPES_OF[1], "outs": TYPES_OF[1], **LAYOUT}, shape, 4) for shape in SHAPES),
]


def compiled(kernel, types: dict, constants: dict, warps: int, capability: int) -> int:
    """Bytes of the machine code."""
    types = {name: (TYPES | types).get(name, "*i64") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return len(triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"])


if __name__ == "__main__":
    for variant in VARIANTS:
        for capability in map(int, sys.argv[1:]):
            print(variant[0].__name__, f"sm_{capability}", compiled(*variant, capability), flush=True)
