# SPDX-License-Identifier: Apache-2.0
"""Compiles every kernel for devices that need not be there: `python -m tests.compiled_kernels 90 80`, without TRITON_INTERPRET.

All variants of it for the first, one for each of the others.

A kernel is a function of `trl_soft.kernels` under `triton.jit` whose name begins with `_`; others are parts of kernels.
Prints a line for each, and ends with an error where one does not compile.
"""

import importlib
import itertools
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from trl_soft import kernels


# Those of a step's draws; others have tests of their own.
MODULES = ("blocks", "gaussian_thought", "gumbel_thought", "philox", "row_mixtures", "support", "tournament")
# Types of parameters, by name; i32 where a name is not here. A name's second type is one more kernel.
TYPES: dict[str, tuple[str, ...]] = {
    "z": ("*bf16", "*fp32"),
    "table": ("*bf16", "*fp32"),
    "p": ("*fp32", "*bf16"),
    "rest": ("*bf16",),
    "seed": ("i64", "*i64"),
    "generation": ("i64", "*i64"),
    **dict.fromkeys(("key", "ids", "sample", "position", "token", "order", "index", "rows"), ("*i64",)),
    **dict.fromkeys(("s", "t", "log_p", "entropy", "logits", "shape", "perturbed", "log_prob"), ("*fp32",)),
    **dict.fromkeys(("weights",), ("*fp32",)),
    **dict.fromkeys(("u", "normaliser"), ("*fp64",)),
    **dict.fromkeys(("kept", "closed", "thinks"), ("*i1",)),
    "tokens": ("*bf16",),
    **dict.fromkeys(("mean", "drawn"), ("*bf16", "*fp32")),
    **dict.fromkeys(("temperature", "top_p", "min_p", "scale", "sigma", "tau"), ("i64",)),
}
# A kernel's own, where its names mean something else.
OWN = {
    ("_uniform", "out"): ("*fp64",),
    ("_gate", "out"): ("*fp64",),
    ("_pick", "p"): ("*fp32",),
    ("_centred", "z"): ("*fp32",),
    ("_mix_where", "out"): ("*bf16",),
    ("_mix_into", "out"): ("*bf16",),
    ("_around", "out"): ("*bf16", "*fp32"),
}
OUT = ("*fp32",)
CONSTANTS: dict[str, tuple] = {
    "ROWS": (2,),
    "COUNT": (32,),
    "WIDTH": (8,),
    "LANES": (128,),
    "KEYED": (False, True),
    "SPLIT": (False, True),
    "ONE": (False, True),
    "RANKED": (False, True),
    "SOFTGRPO": (False, True),
    "DENSITY": (0, 1, 2),
    "LOW": (-1.5,),
    "HIGH": (3.0,),
    "EPSILON": (1e-6,),
    "EDGE": (1e-4,),
    "LOG_P_FLOOR": (-3.0,),
}


def functions() -> list[JITFunction]:
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in MODULES]
    return [
        value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.startswith("_") and value.__module__ == module.__name__
    ]


def types_of(kernel: JITFunction) -> list[dict[str, str]]:
    """Signatures: each of a parameter's types once, beside the first of all others."""
    name = kernel.__name__
    choices = {p.name: OWN.get((name, p.name), TYPES.get(p.name, ("i32",))) for p in kernel.params}
    choices |= {p.name: ("constexpr",) for p in kernel.params if p.is_constexpr}
    choices |= {"out": OWN.get((name, "out"), OUT)} if "out" in choices else {}
    most = max(map(len, choices.values()))
    made = [{name: of[min(i, len(of) - 1)] for name, of in choices.items()} for i in range(most)]
    # Triton compiles a size of one as a constant.
    one = {name for name in choices if name in ("K", "count", "size")}
    return [*made, {name: "constexpr" if name in one else of for name, of in made[0].items()}] if one else made


def compiled(kernel: JITFunction, capability: int, most: int) -> int:
    """How many variants of it were compiled."""
    names = [p.name for p in kernel.params if p.is_constexpr]
    done = 0
    for types in types_of(kernel):
        for values in itertools.product(*(CONSTANTS[name] for name in names)):
            constants = dict(zip(names, values, strict=True))
            if "KEYED" in constants and constants["KEYED"] != types["seed"].startswith("*"):
                continue
            if "SPLIT" in constants and constants["SPLIT"] != (types["p"] == "*bf16"):
                continue
            constants |= {name: 1 for name, of in types.items() if of == "constexpr" and name not in constants}
            source = ASTSource(fn=kernel, signature=types, constexprs=constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(kernels.OPTIONS)).asm
            assert made["cubin"]
            # `log p + eps * scale`, the one sum of products in float32 here, is rounded twice as in plain torch. (The exponential and
            # logarithm of `softgrpo` have such instructions of their own.)
            if kernel.__name__ == "_sample" and not constants["SOFTGRPO"]:
                assert "fma.rn.f32" not in made["ptx"] and "mul.rn.f32" in made["ptx"], made["ptx"]
            done += 1
            if done == most:
                return done
    return done


def main():
    for kernel in functions():
        for i, capability in enumerate(map(int, sys.argv[1:])):
            done = compiled(kernel, capability, 1 if i else sys.maxsize)
            print(kernel.__name__, f"sm_{capability}", done, flush=True)


if __name__ == "__main__":
    main()
