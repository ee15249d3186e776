# SPDX-License-Identifier: Apache-2.0
"""The box that answers under Soft Tokens, Hard Truths (arXiv 2509.19170), for its reward and its evaluation."""

import re

from .boxes import find_boxes


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
    read = text if answer_phase is None else answer_phase
    boxes = find_boxes(read)
    if answer_phase is None:
        # Answered in free hand it is often `The final answer is: $\boxed{5}$`.
        words = announced.removesuffix("\\boxed{").rstrip()
        before = re.compile(re.escape(words) + r"[\s$*(\[\\]*\Z")
        longest = len(words) + 20
        announced_boxes = [b for b in boxes if before.search(read, max(b.start - longest, 0), b.start)]
        # Of those announced the last that closes: which were forced is not known, and the cap cuts only what was not.
        boxes = [b for b in announced_boxes if b.content][-1:] if announced_boxes else boxes[-1:]
    content = boxes[0].content if boxes else None
    return None if content is None else read[content].strip() or None
