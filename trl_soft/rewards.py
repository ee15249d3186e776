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
    """The text of a message, which may be in parts, or none."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def _rewards(completions: list, answer: list | None, judge: Callable[[str, str], float]) -> list[float | None]:
    """What `judge` gives each completion and its gold answer; `None`, which leaves a sample out, without a gold answer."""
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
    1.0 where the text after the last `</think>` is the answer to the letter, blanks at the ends aside; `None`, which leaves
    the sample out, where there is no gold answer.

    Args:
        answer (`list`): gold answers, texts or numbers; see [`~trl_soft.golds.gold_text`].
    """
    return _rewards(completions, answer, lambda text, gold: grade_exact(text, gold).correct)


def math_reward(completions: list, answer: list | None = None, **kwargs) -> list[float | None]:
    """
    1.0 where the evaluation's judge, [`~trl_soft.evaluate.grading.grade_math`], finds the answer equal to the gold answer.

    Unlike [`~trl.rewards.accuracy_reward`] it takes plain-text completions and gold answers as data sets write them: read
    without the mathematics around it, `2x-2` would be 2, and so would one in twenty answers of MATH be something else.
    `None`, which leaves the sample out, where there is no gold answer. The comparisons of a batch have a time that they share,
    [`~trl_soft.evaluate.grading.grading_process.Allowance`]; an answer that is not compared within it is wrong.

    Args:
        answer (`list`): gold answers, texts or numbers; see [`~trl_soft.golds.gold_text`].
    """
    allowance = Allowance()
    return _rewards(completions, answer, lambda text, gold: grade_math(text, gold, allowance).correct)


def soft_tokens_reward(
    completions: list, answer: list | None = None, answer_phase: list[str | None] | None = None, **kwargs
) -> list[float | None]:
    r"""
    100.0 where the boxed answer is right by `math`, 10.0 where it is wrong, 0.0 where there is none; `None`, which leaves
    the sample out, where there is no gold answer.

    The box is read by [`~trl_soft.evaluate.grading.forced.final_box`], as in the evaluation: it is the one that 2509.19170
    forces after the thought, whatever thought and answer box besides.

    Args:
        answer (`list`): gold answers, texts or numbers; see [`~trl_soft.golds.gold_text`].
        answer_phase (`list`, *optional*):
            Each completion behind its thought, which the trainers of this package hand over to every reward where they force an
            answer (`answer_prefill`). Without it the last closed box behind "The final answer is: " counts, or the last box.
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
    1.0 where the completion's last `\boxed{}` is the gold answer as a string, both normalised by `hendrycks`; `None`, which
    leaves the sample out, where there is no gold answer.

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
