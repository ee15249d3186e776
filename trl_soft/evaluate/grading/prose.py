# SPDX-License-Identifier: Apache-2.0
"""The answer of a completion without a box."""

import re

from .verdict import lowered


# All quantifiers are possessive: each pattern reads the text once.
_NUMBER = re.compile(r"(?<![\w\\.,])[-+]?+\$?+(?:\d++(?:,\d{3})*+(?:\.\d++)?+|\.\d++)(?:/\d++)?+(?:\s?+\\?%)?+")
_MARKS = re.compile(r"\\.|\$\$?+", re.DOTALL)
_CLOSING = {"\\(": "\\)", "\\[": "\\]", "$": "$", "$$": "$$"}
_BEHIND_ANSWER = 200  # characters after the word "answer" in which the answer begins


def final_expression(text: str) -> str | None:
    r"""
    The formula (`$...$`, `\(...\)`) or number that a text gives as its answer, or `None`.

    It is the first one after the last word "answer". If there is none, it is the last one of the text.
    """
    expressions = _formulas(text)
    outside = list(text)
    for start, end, _ in expressions:
        outside[start:end] = " " * (end - start)
    expressions += [(*match.span(), match.group()) for match in _NUMBER.finditer("".join(outside))]
    expressions.sort()
    word = lowered(text).rfind("answer")
    behind = [item for item in expressions if word >= 0 and word <= item[0] <= word + _BEHIND_ANSWER]
    if behind:
        return behind[0][2]
    return expressions[-1][2] if expressions else None


def _formulas(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the formulas. A formula that never closes does not count."""
    formulas = []
    opened: tuple[str, int, int] | None = None
    for match in _MARKS.finditer(text):
        mark = match.group()
        if opened is None and mark in _CLOSING:
            opened = (_CLOSING[mark], match.start(), match.end())
        elif opened is not None and mark == opened[0]:
            content = text[opened[2] : match.start()].strip()
            if content:
                formulas.append((opened[1], match.end(), content))
            opened = None
    return formulas
