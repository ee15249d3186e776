# SPDX-License-Identifier: Apache-2.0
"""The content of a `\\boxed` in a text."""

import re


_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_BETWEEN_BOXES = re.compile(r"[\s,;.$]*(?:\\?\\(?:text|quad|qquad)\s*(?:\{\s*)?)?(?:and|or)?[\s},;.$]*")


def closing_brace(text: str) -> int | None:
    """Where the brace that opened before `text` closes; escaped braces do not count. `None` where it never does."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def _closing(text: str, start: int) -> int | None:
    """Where the brace that opens at `start` closes, or `None`."""
    end = closing_brace(text[start + 1 :])
    return None if end is None else start + 1 + end


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every \\boxed, braces left out (`\\boxed 2`) or not; one that never closes is none."""
    found = []
    for match in _BOXED.finditer(text):
        if text[match.end() : match.end() + 1] == "{":
            end = _closing(text, match.end())
            if end is not None:
                found.append((match.start(), end + 1, text[match.end() + 1 : end].strip()))
        elif match.group() != "\\boxed" and match.group() != "\\fbox":
            content = re.match(r"[^\s$\\]+", text[match.end() :])
            if content:
                found.append((match.start(), match.end() + content.end(), content.group().rstrip(".,")))
    return found


def last_boxed(text: str, several: bool = False) -> str | None:
    """
    The content of the last \\boxed, or `None`; with `several`, of the last row of them, commas between.

    Args:
        several (`bool`): take \\boxed{1}, \\boxed{2} and \\boxed{3} as one answer `1,2,3`.
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    start, _, content = boxes[-1]
    for earlier_start, earlier_end, earlier in reversed(boxes[:-1] if several else []):
        if earlier_end > start or not _BETWEEN_BOXES.fullmatch(text[earlier_end:start]):
            break
        content, start = f"{earlier},{content}", earlier_start
    return content
