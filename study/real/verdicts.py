# SPDX-License-Identifier: Apache-2.0
"""What a process that grades runs. It loads no model library, so it starts in a second."""

from typing import Any

from trl_soft.evaluate.grading import GRADERS


Verdict = tuple[bool, str | None]  # right or not, and the class for majority voting


def grade_texts(grader: str, texts: list[str], golds: list[Any]) -> list[Verdict]:
    """The verdicts on some texts."""
    judge = GRADERS[grader]
    found = [judge(text, gold) for text, gold in zip(texts, golds, strict=True)]
    return [(verdict.correct, verdict.vote) for verdict in found]
