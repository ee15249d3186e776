# SPDX-License-Identifier: Apache-2.0
"""The mathematics grader on every gold answer at hand: right against itself, wrong against its neighbour and near misses.

By default some 60 rows of each file are graded. `make sweep-golds` (TRL_SOFT_FULL=1) grades all.
"""

import random
import re
import zlib

import pytest

from tests.benchmark_files import FULL, needs_data, rows
from trl_soft.evaluate.grading import MathGold, grade_math, last_boxed
from trl_soft.evaluate.grading.reading import read


def gold_answers(name: str) -> list[MathGold | None]:
    def of(row: dict) -> str | None:
        if name.startswith("gsm8k"):
            return row["answer"].rpartition("####")[2].strip()
        return last_boxed(row["solution"]) if name in ("math_train.jsonl.gz", "math_test.jsonl.gz") else row["answer"]

    if name.startswith("olympiadbench"):
        return [MathGold.of_olympiadbench(row) for row in rows(name)]
    return [None if of(row) is None else MathGold(of(row)) for row in rows(name)]


# File, rows, and rows without a gold answer: MATH has two solutions that end in an empty \boxed{}, and the copy of it
# in DeepScaleR also lost the two answers that are written without braces (\boxed 2).
ANSWERS = {
    "gsm8k_test.jsonl.gz": (1319, []),
    "gsm8k_train.jsonl.gz": (7473, []),
    "math_train.jsonl.gz": (7500, [5341, 5343]),
    "math_test.jsonl.gz": (5000, []),
    "math500.jsonl.gz": (500, []),
    "aime24.jsonl.gz": (30, []),
    "aime25.jsonl.gz": (30, []),
    "olympiadbench_math_en.jsonl.gz": (675, []),
    "deepscaler_train_aime.json.gz": (975, []),
    "deepscaler_train_math.json.gz": (7474, [886, 1009, 5328, 5330]),
    "deepscaler_subset.jsonl.gz": (20787, []),
}
# Rows whose neighbour's answer is the same one in another spelling, as math-verify reads it: a fraction or decimal
# (`3/4`, `0.75`), an equation solved for a name (`K=8`), a unit (`21 dogs`), a per cent sign, which it ignores.
SAME_AS_NEIGHBOUR = {
    "math500.jsonl.gz": {22},
    "math_test.jsonl.gz": {1660, 4159},
    "math_train.jsonl.gz": {3297, 5956, 6262, 6443},
    "deepscaler_train_math.json.gz": {3287, 5940, 6245, 6426},
    "deepscaler_subset.jsonl.gz": {4258, 4631, 5590, 6098, 6908, 15094, 19314},
}


@needs_data
@pytest.mark.parametrize("name", ANSWERS)
def test_gold_answers_against_themselves_and_their_neighbours(name, record_property):
    count, without = ANSWERS[name]
    golds = gold_answers(name)
    assert len(golds) == count and [i for i, g in enumerate(golds) if g is None or not g.answer] == without
    step = 1 if FULL else max(count // 60, 1)
    right, wrong, equal, bad = 0, 0, 0, []
    for index in sorted({*range(0, count, step)} - set(without)):
        gold, neighbour = golds[index], golds[(index + 1) % count]
        own = grade_math(f"Therefore the answer is $\\boxed{{{gold.answer}}}$.", gold)
        right += own.correct
        if not own.correct or not own.vote or own.reason:
            bad.append((index, gold, own))
        if neighbour is None or not neighbour.answer:
            continue
        spelled_alike = read(neighbour.answer).literal == read(gold.answer).literal
        if spelled_alike or index in SAME_AS_NEIGHBOUR.get(name, ()):
            equal += 1
            continue
        other = grade_math(f"Therefore the answer is $\\boxed{{{neighbour.answer}}}$.", gold)
        wrong += not other.correct
        if other.correct or other.reason:
            bad.append((index, gold, neighbour, other))
    print(
        f"{name}: {right} right against themselves, {wrong} wrong against their neighbours, {equal} neighbours equal"
    )
    assert bad == []


_DIGIT = re.compile(r"\d")
_EXPONENT = re.compile(r"\^\s*(?:\{\s*-?\s*\d*?(\d)\s*\}|(\d))")
_BASE = re.compile(r"(?<=\d)_(?:\{\d*?(\d)\}|(\d))")
_NOT_DIGITS = re.compile(r"[_^]\s*(?:\{[^{}]*\}|\d)|\\text\s*\{[^{}]*\}|\\mbox\s*\{[^{}]*\}|\[\d+(?:pt|em|ex)\]")


def _changed(answer: str, places: list[int], generator: random.Random) -> str | None:
    """The answer with one of its digits, at one of `places`, replaced by another."""
    if not places:
        return None
    place = generator.choice(places)
    digit = str((int(answer[place]) + generator.randrange(1, 9)) % 10)
    return answer[:place] + digit + answer[place + 1 :]


def _other_sign(answer: str, digits: list[int]) -> str | None:
    """The answer with the other sign before its first number, unless that is zero or stands behind a plus-minus."""
    number = re.compile(r"\d*(?:\.\d+)?").match(answer, digits[0]) if digits else None
    if number is None or not number.group().strip("0.") or "\\pm" in answer:
        return None
    before = answer[: number.start()].rstrip(" .")
    point = answer[len(answer[: number.start()].rstrip(".")) :]
    if before.endswith("-"):
        return f"{before[:-1]}+{point}"
    return f"{before.removesuffix('+')}-{point}"


def near_misses(answer: str, generator: random.Random) -> dict[str, str]:
    """The answer with its sign, one digit, one exponent or its base changed, as far as it has them."""
    skipped = [range(*match.span()) for match in _NOT_DIGITS.finditer(answer)]
    digits = [m.start() for m in _DIGIT.finditer(answer) if not any(m.start() in span for span in skipped)]
    exponents = [m.start(m.lastindex) for m in _EXPONENT.finditer(answer)]
    bases = [m.start(m.lastindex) for m in _BASE.finditer(answer)]
    found = {
        "sign": _other_sign(answer, digits),
        "digit": _changed(answer, digits, generator),
        "exponent": _changed(answer, exponents, generator),
        "base": _changed(answer, bases, generator),
    }
    return {kind: text for kind, text in found.items() if text is not None}


# Gold answers and the change that leaves their value: an even function, a square, a zero.
SAME_VALUE = {
    ("\\cos(6^\\circ)\\sin(12^\\circ)\\csc(18^\\circ)", "sign"),
    ("\\cos 58^\\circ", "sign"),
    ("\\cos 13^\\circ", "sign"),
    ("(0.03)^2 \\times 0.97 + (0.03)^3", "sign"),
    ("\\frac{1}{7} + \\frac{1}{7^2} + \\frac{0}{7^3} + \\frac{4}{7^4}", "exponent"),
}


@needs_data
@pytest.mark.parametrize("name", ANSWERS)
def test_gold_answers_against_near_misses(name):
    golds = gold_answers(name)
    step = 1 if FULL else max(len(golds) // 60, 1)
    wrong: dict[str, int] = {}
    bad = []
    for index in range(0, len(golds), step):
        gold = golds[index]
        if gold is None or not gold.answer:
            continue
        generator = random.Random(zlib.crc32(f"{index} {gold.answer}".encode()))
        inside = last_boxed(gold.answer) or gold.answer  # some golds are whole equations that end in a box
        for kind, answer in near_misses(inside, generator).items():
            if (inside.strip(), kind) in SAME_VALUE:
                continue
            verdict = grade_math(f"Therefore the answer is $\\boxed{{{answer}}}$.", gold)
            wrong[kind] = wrong.get(kind, 0) + (not verdict.correct)
            if verdict.correct:
                bad.append((index, kind, gold, answer))
    print(f"{name}: wrong near misses {wrong}")
    assert bad == []
