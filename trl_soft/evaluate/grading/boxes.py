# SPDX-License-Identifier: Apache-2.0
r"""
The content of a `\boxed` or `\fbox`, for every judge, reward and reader of golds.

The rule: the last box counts.

- A box in braces ends at its matching brace. Escaped braces do not count.
- A box without braces (`\boxed 2`, `\boxed5`, `\boxed\pi`) holds the number, command or character that follows. Another box
  is not such a command.
- A box whose brace does not close within 4,000 characters holds no answer. An earlier box does not replace it, because the
  text was cut while it gave another answer.

String methods search for boxes from the end of the text, however long the text is. Only the text between two boxes, and 4,000
characters behind the last, is read further.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


LONGEST_BOX = 4_000  # characters, from its command to its closing brace

# All quantifiers are possessive: a match is found or missed in one reading.
_OPENING = re.compile(
    r"\\(?:boxed|fbox)(?![a-zA-Z])\s*+"
    r"(?:\{|(?P<bare>[-+]?\d++(?:\.\d++)?+|\\(?!(?:boxed|fbox)(?![a-zA-Z]))[a-zA-Z]++|[^\s{}$\\]))"
)
_ESCAPE_OR_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_LONGEST_BETWEEN = 200  # characters between two boxes of one answer
_PUNCTUATION = str.maketrans("", "", " \t\r\n,;.${}")
_BETWEEN = re.compile(
    r"(?:\\\\?(?:text|quad|qquad))*+(?:and|or)?(?:\\\\?(?:text|quad|qquad))*+(?:[a-zA-Z][a-zA-Z_]{0,9}=)?"
)


@dataclass(frozen=True)
class Box:
    """
    The place of a box in a text.

    Args:
        start, end (`int`): ends of the box with its command. A box that does not close ends with the text.
        content (`slice`, *optional*): the place of its content. `None` if the box does not close.
    """

    start: int
    end: int
    content: slice | None


def closing_brace(text: str, start: int = 0, end: int | None = None) -> int | None:
    """
    The place of the brace that closes the brace opened before `text[start]`. Escaped braces do not count. `None` if it does
    not close (before `end`, if that is given).
    """
    depth = 1
    for match in _ESCAPE_OR_BRACE.finditer(text, start, len(text) if end is None else end):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def openings(text: str) -> Iterator[re.Match]:
    """The beginnings of all boxes, the last box first. A box may be inside another."""
    place = len(text)
    while (place := text.rfind("box", 0, place)) >= 0:
        opening = _opening_around(text, place)
        if opening is not None:
            yield opening


def first_opening(text: str) -> re.Match | None:
    """The beginning of the first box of a text. `None` if the text has no box."""
    place = -1
    while (place := text.find("box", place + 1)) >= 0:
        opening = _opening_around(text, place)
        if opening is not None:
            return opening
    return None


def _opening_around(text: str, place: int) -> re.Match | None:
    r"""The beginning of the box whose command, `\boxed` or `\fbox`, has its "box" at `place`. `None` if that is no box."""
    start = place - (1 if text[place - 1 : place] == "\\" else 2)
    if start < 0:
        return None
    before = start
    while text[before - 1 : before] == "\\":
        before -= 1
    # With an odd number of backslashes before it, the last of them and the command's are a line break of LaTeX.
    return None if (start - before) % 2 else _OPENING.match(text, start, min(start + LONGEST_BOX, len(text)))


def box_of(text: str, opening: re.Match, limit: int | None = None) -> Box:
    """The box with this beginning. A box that does not close before `limit` counts as one that does not close."""
    if opening["bare"] is not None:
        return Box(opening.start(), opening.end(), slice(*opening.span("bare")))
    longest = min(opening.start() + LONGEST_BOX, len(text))
    closing = closing_brace(text, opening.end(), longest if limit is None else min(limit, longest))
    if closing is None:
        return Box(opening.start(), len(text), None)
    return Box(opening.start(), closing + 1, slice(opening.end(), closing))


def last_boxed(text: str, several: bool = False) -> str | None:
    r"""
    The content of the last box, without blanks at its ends. `None` if there is no box or if the last one does not close.

    Args:
        several (`bool`): boxes count as one answer `1,2` if only punctuation, "and", "or" and a name stand between them
            (`$x=\boxed{1}$ or $x=\boxed{2}$`).
    """
    begun = openings(text)
    opening = next(begun, None)
    last = opening and box_of(text, opening)
    if last is None or last.content is None:
        return None
    contents = [text[last.content].strip()]
    for opening in begun if several else ():
        earlier = box_of(text, opening, limit=last.start)
        if earlier.content is None or last.start - earlier.end > _LONGEST_BETWEEN:
            break
        if not _BETWEEN.fullmatch(text[earlier.end : last.start].translate(_PUNCTUATION)):
            break
        contents.append(text[earlier.content].strip())
        last = earlier
    return ",".join(reversed(contents))
