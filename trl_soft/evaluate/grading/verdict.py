# SPDX-License-Identifier: Apache-2.0
"""The verdict of a grader: whether an answer is right, and its class for majority voting."""

import logging
import traceback
from dataclasses import dataclass
from typing import Any

from ...files import printable
from ...golds import gold_text


ENDING = 4_000  # last characters of a text that are searched for an answer without a box


@dataclass(frozen=True)
class Verdict:
    """
    The verdict of a grader.

    Args:
        correct (`bool`): whether the answer is right.
        answer (`str`, *optional*): the answer as the completion wrote it, or the program that was run.
        vote (`str`, *optional*): the class of the answer, which equal answers share. `None` if there is no answer, and
            for programs, which have no vote.
        reason (`str`): why a program failed, or why an answer could not be judged; empty otherwise.
    """

    correct: bool
    answer: str | None
    vote: str | None
    reason: str = ""


_LOGGER = logging.getLogger(__name__)
_SHOWN = 200  # characters of a text that could not be read
_reported: set[str] = set()  # errors by type and message, each of which is logged once


def unreadable(text: str, error: Exception) -> Verdict:
    """
    The verdict on a text whose reader raised an error: wrong, with the error as `reason`.

    The fault is the reader's. It is logged with the beginning of the text, and does not stop a training run. The tests of the
    package let the error raise.
    """
    said = printable(f"{type(error).__name__}: {error}")
    if said not in _reported:
        _reported.add(said)
        _LOGGER.error(
            "A text could not be read (%s), so it counts as wrong. Please report this with the text, which begins %r.\n%s",
            said,
            text[:_SHOWN],
            "\n".join(map(printable, "".join(traceback.format_exception(error)).splitlines())),
        )
    return Verdict(False, None, None, f"the text could not be read: {said}")


def after_thinking(text: str) -> str:
    """The text after the last `</think>`, or the whole text."""
    return text.rpartition("</think>")[2]


def ending(text: str) -> str:
    """The last 4,000 characters of a text, without the blanks at its end."""
    return text.rstrip()[-ENDING:]


def lowered(text: str) -> str:
    """A text in small letters, with every letter in its place. One capital letter, U+0130, has a small form of two
    characters."""
    return text.replace("\u0130", "i").lower()


def grade_exact(text: str, gold: Any) -> Verdict:
    """Right if the text after the last `</think>` equals the gold answer letter by letter, without blanks at the ends."""
    answer = after_thinking(text).strip()
    expected = gold_text(gold)
    if expected is None:
        raise ValueError(f"The gold answer is {gold!r}, so no answer can be right. Leave the row out or correct it.")
    return Verdict(answer == expected, answer or None, answer or None)
