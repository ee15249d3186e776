# SPDX-License-Identifier: Apache-2.0
"""Graders: from a completion and a row's gold answer to a verdict and a class for majority voting."""

from collections.abc import Callable

from .boxes import last_boxed
from .letters import grade_letter
from .mathematics import MathGold, grade_math
from .programs import extract_code, grade_humaneval, grade_mbpp
from .verdict import Verdict, after_thinking, grade_exact


__all__ = [
    "GRADERS",
    "Grader",
    "MathGold",
    "Verdict",
    "after_thinking",
    "extract_code",
    "grade_exact",
    "grade_humaneval",
    "grade_letter",
    "grade_math",
    "grade_mbpp",
    "last_boxed",
]

Grader = Callable[..., Verdict]

# The graders by the name that a preset or the settings of an evaluation use.
GRADERS: dict[str, Grader] = {
    "math": grade_math,
    "letters": grade_letter,
    "code_humaneval": grade_humaneval,
    "code_mbpp": grade_mbpp,
    "exact": grade_exact,
}
