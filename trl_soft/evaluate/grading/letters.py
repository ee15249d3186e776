# SPDX-License-Identifier: Apache-2.0
"""Multiple choice: the letter that a completion chooses, and options in a seeded order."""

import random
import re
from collections.abc import Sequence

from .verdict import Verdict, after_thinking


_LETTERS = "ABCDEFGHIJ"
_WRAPPED = r"(?:\\(?:text|mathrm|textbf|mathbf)\s*\{\s*)?[({\[*\s]*([A-J])(?![A-Za-z'])"
_LETTER_PATTERNS = (
    re.compile(r"\\(?:boxed|fbox)\s*\{\s*" + _WRAPPED),
    re.compile(r"(?i:answer)[\s*]*(?:(?i:is|would be|should be)\b)?[\s*:$]*(?i:option\s+|choice\s+)?" + _WRAPPED),
    re.compile(r"(?m)^[\s*$(\[]*([A-J])[\s*$)\].:]*$"),
    re.compile(r"\(([A-J])\)"),
)


def grade_letter(text: str, gold: str) -> Verdict:
    """
    Right where the chosen letter is the gold letter.

    The letter is the last one in a \\boxed; without one, the last behind the word "answer"; without one, the last that
    has a line to itself; without one, the last in parentheses.
    """
    tail = after_thinking(text)
    for pattern in _LETTER_PATTERNS:
        found = pattern.findall(tail)
        if found:
            return Verdict(found[-1] == gold.strip(), found[-1], found[-1])
    return Verdict(False, None, None)


def shuffled_options(options: Sequence[str], correct_index: int, seed: int | str) -> tuple[str, str]:
    """
    Options in an order drawn with `seed`, one a line behind its letter, and the letter of the right one.

    Args:
        options (sequence of `str`): at most ten.
        correct_index (`int`): which of `options` is right.
        seed (`int` or `str`): of this question, such as `f"{run_seed}:{question_id}"`; the same order on any machine.
    """
    if not 0 <= correct_index < len(options) <= len(_LETTERS):
        raise ValueError(
            f"`correct_index` is {correct_index} with {len(options)} options, but it must be one of them and there are "
            f"letters for {len(_LETTERS)} at most. Give the index, from 0, of the right option."
        )
    order = list(range(len(options)))
    random.Random(f"options {seed}").shuffle(order)  # a string: the same stream for 1 and "1"
    lines = [f"({letter}) {options[index]}" for letter, index in zip(_LETTERS, order)]
    return "\n".join(lines), _LETTERS[order.index(correct_index)]
