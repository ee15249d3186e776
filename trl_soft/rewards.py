# SPDX-License-Identifier: Apache-2.0
r"""
Rewards that `trl.rewards` does not have: they read answers as plain text, with or without a chat.

    exact         the text after the last </think>, letter by letter
    math          math-verify, on the box or else the end of the text after </think>  the judge of every evaluation here
    soft_grpo     the last \boxed{}, as a string after Hendrycks' normalisation       SofT-GRPO's released trainer
    soft_tokens   100 for right, 10 for wrong in a box, 0 without a box               Soft Tokens, Hard Truths, section 4

`soft_grpo` is stricter than the judge of the paper's results. It refuses `0.25` for `\frac{1}{4}` and `2x+1` for `1+2x`, and
it gives nothing for a right answer outside a box. To train on the judge of the evaluation, choose `math`.
"""

import re
from collections.abc import Callable
from typing import Any

from .evaluate.grading import grade_exact, grade_math, last_boxed
from .evaluate.grading.forced import final_box
from .evaluate.grading.grading_process import Allowance
from .files import printable
from .golds import gold_text


def _texts(completions: list) -> list[str]:
    return [c if isinstance(c, str) else _content(c[-1].get("content")) for c in completions]


def _content(content: Any) -> str:
    """The text of a message. A message may be in parts, or empty."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def _rewards(completions: list, answer: list | None, judge: Callable[[str, str], float]) -> list[float | None]:
    """The result of `judge` for each completion. `None` without a gold answer, which leaves the sample out."""
    if answer is None:
        raise ValueError(
            "The data set has no column `answer`, so no completion can be compared with one. Rename the column that holds "
            "the gold answers to `answer`, or build the data set with `to_prompts`."
        )
    try:
        golds = [gold_text(gold) for gold in answer]
    except ValueError as error:
        raise ValueError(f"A reward cannot compare with a gold answer: {printable(str(error))}.") from error
    pairs = zip(_texts(completions), golds, strict=True)
    return [None if gold is None else float(judge(text, gold)) for text, gold in pairs]


def exact_answer_reward(completions: list, answer: list | None = None, **kwargs) -> list[float | None]:
    """
    1.0 if the text after the last `</think>` equals the answer letter by letter, without blanks at the ends. `None` if there
    is no gold answer, which leaves the sample out.

    Args:
        answer (`list`): gold answers, texts or numbers; see [`~trl_soft.golds.gold_text`].
    """
    return _rewards(completions, answer, lambda text, gold: grade_exact(text, gold).correct)


def math_reward(completions: list, answer: list | None = None, **kwargs) -> list[float | None]:
    """
    1.0 if the judge of the evaluation, [`~trl_soft.evaluate.grading.grade_math`], finds the answer equal to the gold answer.
    `None` if there is no gold answer, which leaves the sample out.

    Unlike [`~trl.rewards.accuracy_reward`] it takes plain-text completions, and gold answers as data sets write them. A gold
    answer without mathematics marks is easily misread: `2x-2` would be 2, and one in twenty answers of MATH would change. The
    comparisons of a batch share their time, [`~trl_soft.evaluate.grading.grading_process.Allowance`]. An answer that is not
    compared within this time is wrong.

    Args:
        answer (`list`): gold answers, texts or numbers; see [`~trl_soft.golds.gold_text`].
    """
    allowance = Allowance()
    return _rewards(completions, answer, lambda text, gold: grade_math(text, gold, allowance).correct)


def soft_tokens_reward(
    completions: list, answer: list | None = None, answer_phase: list[str | None] | None = None, **kwargs
) -> list[float | None]:
    r"""
    100.0 if the answer in the box is right by `math`, 10.0 if it is wrong, 0.0 if there is no box. `None` if there is no gold
    answer, which leaves the sample out.

    [`~trl_soft.evaluate.grading.forced.final_box`] reads the box, as in the evaluation. It is the box that 2509.19170 forces
    after the thought. Other boxes of thought and answer do not count.

    Args:
        answer (`list`): gold answers, texts or numbers; see [`~trl_soft.golds.gold_text`].
        answer_phase (`list`, *optional*):
            The part of each completion after its thought. The trainers of this package pass it to every reward if they force
            an answer (`answer_prefill`). Without it the last closed box after "The final answer is: " counts, or the last box.
    """
    phases = [None] * len(completions) if answer_phase is None else answer_phase
    boxes = [final_box(text, phase) for text, phase in zip(_texts(completions), phases, strict=True)]
    right = math_reward([f"\\boxed{{{box or ''}}}" for box in boxes], answer)
    return [
        None if verdict is None else 100.0 if box and verdict else 10.0 if box else 0.0
        for box, verdict in zip(boxes, right, strict=True)
    ]


def soft_grpo_reward(completions: list, answer: list | None = None, **kwargs) -> list[float | None]:
    r"""
    1.0 if the completion's last `\boxed{}` equals the gold answer as a string, both normalised by `hendrycks`. `None` if there
    is no gold answer, which leaves the sample out.

    Args:
        answer (`list`): gold answers, texts or numbers; see [`~trl_soft.golds.gold_text`].
    """

    def judge(text: str, gold: str) -> bool:
        box = last_boxed(text)
        return box is not None and hendrycks(box) == hendrycks(gold)

    return _rewards(completions, answer, judge)


_SPELLINGS = (
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
    ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
)  # fmt: skip


def hendrycks(text: str) -> str:
    r"""
    An answer of MATH in one spelling, by the rules of its authors (Hendrycks et al. 2021, arXiv 2103.03874).

    The result has no spacing, sizes, degrees, dollars, percents or units. `k = 3` becomes `3`. `.5`, `0.5`, `\frac12` and
    `1/2` become `\frac{1}{2}`. `\sqrt3` becomes `\sqrt{3}`.
    """
    for old, new in _SPELLINGS:
        text = text.replace(old, new)
    text = text.partition("\\text{ ")[0]  # a unit
    text = text.replace("\\%", "")
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", text)
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    ratio = re.fullmatch(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)", text)
    return rf"\frac{{{ratio[1]}}}{{{ratio[2]}}}" if ratio else text


REWARDS = {
    "exact": exact_answer_reward,
    "math": math_reward,
    "soft_grpo": soft_grpo_reward,
    "soft_tokens": soft_tokens_reward,
}
