# SPDX-License-Identifier: Apache-2.0
r"""
The content of a `\boxed` or `\fbox`, for every judge, reward and reader of golds.

The rule: the last box counts. A box in braces ends at its matching brace; escaped braces do not count. A box without braces
(`\boxed 2`, `\boxed5`, `\boxed\pi`) holds the number, command or character that follows. A box whose brace never closes
holds no answer, and no earlier box stands in for it: the text was cut while it gave another answer.

Each function reads the text once, whatever it holds.
"""

import re
from dataclasses import dataclass


# All quantifiers are possessive: a match is found or missed in one reading.
_BOX_OR_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)(?![a-zA-Z]))\s*+|\\.|[{}]", re.DOTALL)
_ESCAPE_OR_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[-+]?\d++(?:\.\d++)?+|\\[a-zA-Z]++|[^\s{}$\\]")
_LONGEST_BETWEEN = 200  # characters between two boxes of one answer
_PUNCTUATION = str.maketrans("", "", " \t\r\n,;.${}")
_BETWEEN = re.compile(
    r"(?:\\\\?(?:text|quad|qquad))*+(?:and|or)?(?:\\\\?(?:text|quad|qquad))*+(?:[a-zA-Z][a-zA-Z_]{0,9}=)?"
)


@dataclass(frozen=True)
class Box:
    """
    Where a box stands in a text.

    Args:
        start, end (`int`): of the box with its command; a box that never closes ends with the text.
        content (`slice`, *optional*): of its content; `None` where it never closes.
    """

    start: int
    end: int
    content: slice | None


def closing_brace(text: str, start: int = 0) -> int | None:
    """Where the brace that opened before `text[start]` closes; escaped braces do not count. `None` where it never does."""
    depth = 1
    for match in _ESCAPE_OR_BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def find_boxes(text: str) -> list[Box]:
    """All boxes of a text, in the order in which they begin; one may stand inside another."""
    boxes: list[Box] = []
    opened: list[tuple[int, int] | None] = []  # for each open brace its box and where it opened, or `None`
    position = 0
    while (match := _BOX_OR_BRACE.search(text, position)) is not None:
        position = match.end()
        if match["box"]:
            braced = text.startswith("{", position)
            content = None if braced else _UNBRACED.match(text, position)
            if braced:
                position += 1
                opened.append((len(boxes), position))
                boxes.append(Box(match.start(), len(text), None))
            elif content is not None:
                boxes.append(Box(match.start(), content.end(), slice(*content.span())))
                position = content.end()
        elif match.group() == "{":
            opened.append(None)
        elif match.group() == "}" and opened:
            box = opened.pop()
            if box is not None:
                boxes[box[0]] = Box(boxes[box[0]].start, position, slice(box[1], match.start()))
    return boxes


def last_boxed(text: str, several: bool = False) -> str | None:
    r"""
    The content of the last box, blanks at its ends aside; `None` where there is no box or where the last never closes.

    Args:
        several (`bool`): take boxes with nothing but punctuation, "and", "or" and a name (`$x=\boxed{1}$ or
            $x=\boxed{2}$`) between them as one answer `1,2`.
    """
    boxes = find_boxes(text)
    last = boxes[-1] if boxes else None
    if last is None or last.content is None:
        return None
    contents = [text[last.content].strip()]
    for earlier in reversed(boxes[:-1] if several else []):
        gap = last.start - earlier.end
        if earlier.content is None or not 0 <= gap <= _LONGEST_BETWEEN:
            break
        if not _BETWEEN.fullmatch(text[earlier.end : last.start].translate(_PUNCTUATION)):
            break
        contents.append(text[earlier.content].strip())
        last = earlier
    return ",".join(reversed(contents))
