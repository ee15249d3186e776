# SPDX-License-Identifier: Apache-2.0
"""The box with the answer in Soft Tokens, Hard Truths (arXiv 2509.19170), for its reward and its evaluation."""

import itertools
import re

from .boxes import Box, box_of, first_opening, openings


# The text before the answer, in the paper's prompt and in its prefill (appendix C).
ANNOUNCED = "The final answer is: \\boxed{"


def final_box(text: str, answer_phase: str | None = None, announced: str = ANNOUNCED) -> str | None:
    r"""
    The content of the box with the answer, or `None` if there is none.

    The reward of the paper is R(a), a function of the answer alone (section 3, Eq. 7). The answer begins with the box that is
    forced after the thought (appendix C). So only the forced box counts. A box that the thought wrote before it, or that the
    answer wrote after it, does not count. A completion that ended inside its thought has no answer, even with a box. An empty
    box, or a box that the cap of the answer left open, is no answer.

    Args:
        text (`str`): the completion.
        answer_phase (`str`, *optional*):
            The part of the completion after the thought, with the forced text. Empty if the thought ended the completion.
            `None` if only the text is known, or if nothing is ever forced. Then the last closed box that `announced` opens
            has the answer. If `announced` opens no box, the last box has it.
        announced (`str`): the words before a box, and the box up to its brace.
    """
    if answer_phase is None:
        box = _announced_box(text, announced.removesuffix("\\boxed{").rstrip())
    else:
        text, opening = answer_phase, first_opening(answer_phase)
        box = None if opening is None else box_of(answer_phase, opening)
    return None if box is None or box.content is None else text[box.content].strip() or None


def _announced_box(text: str, words: str) -> Box | None:
    """The last closed box that follows `words`. If no box follows them, the last box."""
    # A model that writes the text itself often writes `The final answer is: $\boxed{5}$`.
    before = re.compile(re.escape(words) + r"[\s$*(\[\\]*\Z")
    longest = len(words) + 20
    last, unclosed = None, None
    for opening in openings(text) if words in text else itertools.islice(openings(text), 1):
        last = last or opening
        if before.search(text, max(opening.start() - longest, 0), opening.start()):
            # It is not known which boxes were forced, and the cap cuts only boxes that were not. A box around a box that
            # does not close does not close either.
            box = box_of(text, opening, limit=unclosed)
            if box.content is not None:
                return box
            unclosed = opening.start()
    return None if last is None or unclosed is not None else box_of(text, last)
