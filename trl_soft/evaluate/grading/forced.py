# SPDX-License-Identifier: Apache-2.0
"""The box that answers under Soft Tokens, Hard Truths (arXiv 2509.19170), for its reward and its evaluation."""

import itertools
import re

from .boxes import Box, box_of, first_opening, openings


# What begins the answer, in the paper's prompt and in its prefill (appendix C).
ANNOUNCED = "The final answer is: \\boxed{"


def final_box(text: str, answer_phase: str | None = None, announced: str = ANNOUNCED) -> str | None:
    r"""
    The content of the box that answers, or `None` where there is none.

    The reward of the paper is R(a), a function of the answer alone (section 3, Eq. 7), and the answer begins with the box
    that is forced after the thought (appendix C). So the forced box counts: not one that the thought wrote before it, nor
    one that the answer wrote behind it. A completion whose thought ended the sequence has no answer, whatever it boxed.
    A box that the cap of the answer left open is no answer, and so is an empty one.

    Args:
        text (`str`): the completion.
        answer_phase (`str`, *optional*):
            Its part behind the thought, what was forced included; empty where the thought ended the completion. `None` where
            only the text is known, or nothing is ever forced. Then the last closed box of those that
            `announced` opens answers, and where it opens none the last box.
        announced (`str`): the words before a box, and the box as far as its brace.
    """
    if answer_phase is None:
        box = _announced_box(text, announced.removesuffix("\\boxed{").rstrip())
    else:
        text, opening = answer_phase, first_opening(answer_phase)
        box = None if opening is None else box_of(answer_phase, opening)
    return None if box is None or box.content is None else text[box.content].strip() or None


def _announced_box(text: str, words: str) -> Box | None:
    """The last box behind `words` that closes, or the last box where none stands behind them."""
    # Answered in free hand it is often `The final answer is: $\boxed{5}$`.
    before = re.compile(re.escape(words) + r"[\s$*(\[\\]*\Z")
    longest = len(words) + 20
    last, unclosed = None, None
    for opening in openings(text) if words in text else itertools.islice(openings(text), 1):
        last = last or opening
        if before.search(text, max(opening.start() - longest, 0), opening.start()):
            # Which were forced is not known, and the cap cuts only what was not. A box around one that does not close does
            # not close itself.
            box = box_of(text, opening, limit=unclosed)
            if box.content is not None:
                return box
            unclosed = opening.start()
    return None if last is None or unclosed is not None else box_of(text, last)
