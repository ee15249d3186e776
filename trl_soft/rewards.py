# SPDX-License-Identifier: Apache-2.0
r"""
Rewards that `trl.rewards` does not have: answers as plain text, with or without a chat.

    exact         what follows the last </think>, to the letter
    math          math-verify, on the box or else the end of what follows </think>  the judge of every evaluation here
    soft_grpo     the last \boxed{}, as a string after Hendrycks' normalisation     SofT-GRPO's released trainer
    soft_tokens   100 right, 10 wrong but boxed, 0 nothing boxed                    Soft Tokens, Hard Truths, section 4

`soft_grpo` is stricter than the judge its own results come from: it takes neither `0.25` for `\frac{1}{4}` nor `2x+1` for
`1+2x`, and it pays nothing for a right answer outside a box. To train on what is measured, choose `math`.
"""

import re

from .evaluate.grading import grade_math, last_boxed
from .evaluate.grading.boxes import closing_brace


# What begins the answer, in 2509.19170's prompt and in its prefill.
_FINAL = "The final answer is: \\boxed{"


def _texts(completions: list) -> list[str]:
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]


def exact_answer_reward(completions: list, answer: list[str], **kwargs) -> list[float]:
    """1.0 where the text after the last `</think>` is the answer to the letter, blanks at the ends aside."""
    return [float(text.rpartition("</think>")[2].strip() == gold) for text, gold in zip(_texts(completions), answer)]


def math_reward(completions: list, answer: list[str], **kwargs) -> list[float | None]:
    """
    1.0 where the evaluation's judge, [`~trl_soft.evaluate.grading.grade_math`], finds the answer equal to the gold answer.

    Unlike [`~trl.rewards.accuracy_reward`] it takes plain-text completions and gold answers as data sets write them: read
    without the mathematics around it, `2x-2` would be 2, and so would one in twenty answers of MATH be something else.
    `None`, which leaves the sample out, where there is no gold answer.
    """
    return [
        float(grade_math(text, gold).correct) if gold.strip() else None
        for text, gold in zip(_texts(completions), answer, strict=True)
    ]


def soft_tokens_reward(completions: list, answer: list[str], **kwargs) -> list[float | None]:
    r"""
    100.0 where the boxed answer is right by `math`, 10.0 where it is wrong, 0.0 where there is none.

    The box is the one after the last "The final answer is: ", which 2509.19170 forces after the thought, or without that
    the last one; a box that the cap of the answer left open is none, and so is an empty one.
    """
    boxes = [_final_box(text) for text in _texts(completions)]
    right = math_reward([f"\\boxed{{{box or ''}}}" for box in boxes], answer)
    return [
        None if verdict is None else 100.0 if box and verdict else 10.0 if box else 0.0
        for box, verdict in zip(boxes, right, strict=True)
    ]


def _final_box(text: str) -> str | None:
    _, found, rest = text.rpartition(_FINAL)
    if not found:
        return last_boxed(text)
    end = closing_brace(rest)
    return None if end is None else rest[:end].strip()


def soft_grpo_reward(completions: list, answer: list[str], **kwargs) -> list[float]:
    r"""1.0 where the completion's last `\boxed{}` is the gold answer as a string, both normalised by `hendrycks`."""
    boxes = [last_boxed(text) for text in _texts(completions)]
    return [
        float(box is not None and hendrycks(box) == hendrycks(gold)) for box, gold in zip(boxes, answer, strict=True)
    ]


_SPELLINGS = (
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
    ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
)  # fmt: skip


def hendrycks(text: str) -> str:
    r"""
    An answer of MATH in one spelling, by the rules its authors compare with (Hendrycks et al. 2021, arXiv 2103.03874):
    no spacing, sizes, degrees, dollars, percents or units; `k = 3` is `3`; `.5` is `0.5`, and that `\frac{1}{2}`, as are
    `\frac12` and `1/2`; `\sqrt3` is `\sqrt{3}`.
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
