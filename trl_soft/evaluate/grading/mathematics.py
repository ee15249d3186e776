# SPDX-License-Identifier: Apache-2.0
"""Mathematics: an answer is compared with the gold answer as numbers, sets and expressions."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from ...golds import gold_text
from .boxes import last_boxed, openings
from .grading_process import MOST_LOST, Allowance, WorkerLost
from .notation import fraction_key
from .prose import final_expression
from .reading import Reading, read
from .verdict import Verdict, after_thinking, ending, unreadable


LONGEST_ANSWER = 500  # characters that are read as mathematics


@dataclass(frozen=True)
class MathGold:
    """
    A gold answer, and how to compare with it. A plain string means one with the default fields.

    Args:
        answer (`str`): LaTeX or plain.
        several (`bool`): the answer is a list, separated by commas, in any order. Repetitions do not count.
        unit (`str`, *optional*): the unit that may follow the answer.
        tolerance (`float`, *optional*): largest difference of two equal numbers.
    """

    answer: str
    several: bool = False
    unit: str | None = None
    tolerance: float | None = None

    @classmethod
    def of(cls, gold: "str | float | MathGold | Mapping") -> "MathGold":
        """From a `MathGold`, a text, a number, or the fields that `load_problems` reads from a row of OlympiadBench."""
        if isinstance(gold, MathGold):
            return gold
        if isinstance(gold, Mapping):
            return cls.of_olympiadbench({**gold, "final_answer": [gold["answer"]]})
        text = gold_text(gold)
        if text is None:
            raise ValueError(
                f"The gold answer is {gold!r}, so no answer can be right. Leave the row out or correct it."
            )
        return cls(text)

    @classmethod
    def of_olympiadbench(cls, row: Mapping) -> "MathGold":
        """The gold answer of an OlympiadBench row (`final_answer`, `is_multiple_answer`, `unit`, `error`)."""
        (answer,) = row["final_answer"]
        tolerance = float(row["error"]) if row.get("error") else None
        return cls(answer, bool(row["is_multiple_answer"]), row.get("unit") or None, tolerance)


@functools.lru_cache(maxsize=4096)
def _read(answer: str, unit: str | None, several: bool) -> Reading:
    return read(answer, unit, several)


def grade_math(text: str, gold: str | MathGold | Mapping, allowance: Allowance | None = None) -> Verdict:
    r"""
    Right if the answer equals the gold answer, by the rules of [`~trl_soft.evaluate.grading.comparison`].

    The answer is the content of the last \boxed after the last `</think>`, wherever it stands
    ([`~trl_soft.evaluate.grading.boxes`]). If the gold answer has several parts, several boxes side by side count. Without a
    box, the answer is the formula or number that the last 4,000 characters (without blanks at the end) give as the answer.

    Rational numbers are compared here. Everything else is compared in another process, which is killed after 20 s. It works
    in any thread. An answer that cannot be judged in that time is wrong, and `reason` says so. An answer of more than 500
    characters is right only if it equals the gold answer letter by letter.

    Args:
        gold (`str`, [`MathGold`] or `dict`): the gold answer, in LaTeX or plain, with or without `$`; see `MathGold.of`.
        allowance ([`~trl_soft.evaluate.grading.grading_process.Allowance`], *optional*): the time of the batch that the text
            belongs to. Without it the verdict does not depend on other texts.
    """
    gold = MathGold.of(gold)
    gold = replace(gold, answer=last_boxed(gold.answer) or gold.answer)  # some data sets keep the box
    tail = after_thinking(text)
    if len(gold.answer) > LONGEST_ANSWER:
        return _to_the_letter(last_boxed(tail), gold)
    target = _read(gold.answer, gold.unit, gold.several)
    try:
        verdict = _without_the_worker(tail, gold, target)
    except Exception as error:
        return unreadable(text, error)
    return _by_the_worker(verdict, gold, allowance or Allowance()) if isinstance(verdict, str) else verdict


def _without_the_worker(tail: str, gold: MathGold, target: Reading) -> Verdict | str:
    """The verdict on a text, or its answer if the worker has to compare it."""
    answer = last_boxed(tail, gold.several or (not target.brackets and target.single is None))
    if answer is None and next(openings(tail), None) is None:
        answer = final_expression(ending(tail))
    if not answer or not answer.strip():
        return Verdict(False, answer, None)
    if len(answer) > LONGEST_ANSWER:
        return _to_the_letter(answer, gold)
    return _rational(answer, _read(answer, gold.unit, gold.several), target, gold) or answer


def _to_the_letter(answer: str | None, gold: MathGold) -> Verdict:
    if answer is None:
        return Verdict(False, None, None)
    return Verdict(answer == gold.answer.strip(), answer, answer, f"longer than {LONGEST_ANSWER} characters")


def _rational(answer: str, reading: Reading, target: Reading, gold: MathGold) -> Verdict | None:
    """The verdict on two rational numbers without name, per cent or tolerance. `None` for all other answers."""
    left, right = target.single, reading.single
    if left is None or right is None or left.number is None or right.number is None or gold.tolerance is not None:
        return None
    if left.name or left.rounded or left.power or left.per_cent or right.per_cent or left.equation or right.equation:
        return None
    same = left.number.value == right.number.value
    if not same and (left.number.decimals or right.number.decimals):
        return None  # one of them may round the other
    return Verdict(same, answer, fraction_key(right.number.value))


def _by_the_worker(answer: str, gold: MathGold, allowance: Allowance) -> Verdict:
    seconds = allowance.seconds
    try:
        if seconds:
            result = allowance.call(answer=answer, gold=asdict(gold))
        else:
            result = {"error": f"not compared: {MOST_LOST} comparisons of its batch had to be stopped"}
    except WorkerLost:
        result = {"error": f"the comparison was stopped: longer than {seconds:g} s, or out of memory"}
    if "error" in result:
        return Verdict(False, answer, _read(answer, gold.unit, gold.several).literal or None, result["error"])
    return Verdict(result["correct"], answer, result["vote"])
