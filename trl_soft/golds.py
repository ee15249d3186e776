# SPDX-License-Identifier: Apache-2.0
"""Gold answers as text, from the values of data sets. Prompts, rewards and graders all use it."""

import math
import re
from decimal import Decimal
from typing import Any


# A whole number with thousands commas that is not part of a longer number.
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")


def gold_text(value: Any) -> str | None:
    """
    A gold answer as text. `None` if there is no answer: `None`, NaN, only blanks, an empty list.

    Args:
        value:
            One of these: a text (blanks at its ends are removed); a number of Python, NumPy or torch (`5.0` becomes `5`, and
            `1e-07` becomes `0.0000001`); a truth value; a list or an array with exactly one of these.

    Raises:
        ValueError: for a list of several values, a mapping, or an infinite number, because none of them is one answer.
    """
    if hasattr(value, "tolist"):  # NumPy, torch
        value = value.tolist()
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise ValueError(
                f"the answer {_shown(value)} is a list of {len(value)}, but an answer is compared as one text. Join "
                "its parts into one, such as '1,2', or keep one of them"
            )
        return gold_text(value[0]) if value else None
    if isinstance(value, dict):
        raise ValueError(
            f"the answer {_shown(value)} is a mapping, but an answer is compared as one text. Put the field that "
            "holds the answer into its own column"
        )
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            raise ValueError(f"the answer is {value}, which no completion can be compared with. Write it as text")
        text = format(Decimal(repr(value)), "f")  # the shortest digits; int(1e23) would be 99999999999999991611392
        return text.removesuffix(".0") if value else "0"
    return None if value is None else str(value).strip() or None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def without_thousands(answer: str) -> str:
    """
    An answer without the commas between groups of three digits: `1,080` is `1080`.

    Two kinds of commas stay: a comma inside brackets, which separates two parts, as in `(3,400)`; and a row of commas that
    separate several answers, as in `1,2,300`.
    """
    pieces, depth, start = [], 0, 0
    for mark in re.finditer(r"[()\[\]{}]", answer):
        end = mark.start()
        pieces.append(answer[start:end] if depth else _ungrouped(answer[start:end]))
        depth = max(depth + (1 if mark.group() in "([{" else -1), 0)
        pieces.append(mark.group())
        start = mark.end()
    pieces.append(answer[start:] if depth else _ungrouped(answer[start:]))
    return "".join(pieces)


def _ungrouped(text: str) -> str:
    return _GROUPED.sub(lambda match: match.group().replace(",", ""), text)
