# SPDX-License-Identifier: Apache-2.0
"""Evaluation as the papers do it: every problem is answered several times, and every score has an interval.

    from trl_soft.evaluate import Decoding, Evaluation, evaluate, load_problems, pass_at_k

The names load when they are first used, so that graders and scores do not need a model library.
"""

from importlib import import_module
from typing import Any


# Each public name and its module.
_MODULES = {
    "BENCHMARKS": "benchmarks",
    "Benchmark": "benchmarks",
    "get_benchmark": "benchmarks",
    "Problem": "problems",
    "load_problems": "problems",
    "PRESETS": "presets",
    "Preset": "presets",
    "answer_text": "presets",
    "build_prompt": "presets",
    "get_preset": "presets",
    "Decoding": "decoding",
    "soft_tokens_grid": "decoding",
    "Evaluation": "evaluation",
    "evaluate": "runner",
    "GRADERS": "grading",
    "first_k": "scores",
    "maj_at_k": "scores",
    "mean_at_n": "scores",
    "pass_at_k": "scores",
    "summary": "scores",
    "interval": "intervals",
    "paired": "intervals",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"trl_soft.evaluate has no name {name!r}. It has {', '.join(_MODULES)}.")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
