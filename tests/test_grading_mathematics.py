# SPDX-License-Identifier: Apache-2.0
"""The mathematics grader on every gold answer at hand, and on answers as models write them.

By default some 250 rows of the big files are graded. TRL_SOFT_FULL=1 grades all: about five minutes on one core.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.benchmark_files import FULL, needs_data, rows
from trl_soft.evaluate.grading import MathGold, grade_math, last_boxed, mathematics


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
    step = 1 if FULL else max(count // 250, 1)
    right, wrong, equal, bad = 0, 0, 0, []
    for index in sorted({*range(0, count, step)} - set(without)):
        gold, neighbour = golds[index], golds[(index + 1) % count]
        own = grade_math(f"Therefore the answer is $\\boxed{{{gold.answer}}}$.", gold)
        right += own.correct
        if not own.correct or not own.vote or own.reason:
            bad.append((index, gold, own))
        if neighbour is None or not neighbour.answer:
            continue
        spelled_alike = mathematics._letters_of(neighbour.answer) == mathematics._letters_of(gold.answer)
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


RIGHT = [
    ("so \\boxed{73}", "073"),
    ("so \\boxed{073}.", "73"),
    ("it is \\boxed{336}", "336^\\circ"),
    ("it is $\\boxed{336^{\\circ}}$", "336"),
    ("\\boxed{1080}", "1,080"),
    ("\\boxed{1{,}080}", "1080"),
    ("\\boxed{1,\\!080}", "1080"),
    ("The answer is 1,080.", "1080"),
    ("First 3, then 5. The final answer is 42 apples.", "42"),
    ("\\boxed{45 \\text{ minutes}}", "45"),
    ("\\boxed{45 minutes}", "45"),
    ("\\boxed{3} no, \\boxed{4}", "4"),
    ("\\boxed 4", "4"),
    ("\\boxed{\\frac{1}{2}}", "$0.5$"),
    ("\\boxed{\\dfrac12}", "\\frac{1}{2}"),
    ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}"),
    ("\\boxed{(x+1)^2}", "x^2+2x+1"),
    ("\\boxed{[0,1)}", "$[0,1)$"),
    ("\\boxed{(-\\infty,\\,5)}", "(-\\infty,5)"),
    ("\\boxed{(3, 4)}", "(3,4)"),
    ("\\boxed{x=5}", "5"),
    ("\\boxed{5}</think>\\boxed{6}", "6"),
    ("The area is $\\frac{3}{4}$.", "0.75"),
    ("\\boxed{\\text{Evelyn}}", "Evelyn"),
    ("\\boxed{2,1}", "1,2"),
]
WRONG = [
    ("\\boxed{37}", "073"),
    ("\\boxed{6}</think>\\boxed{5}", "6"),
    ("\\boxed{10 80}", "10"),
    ("\\boxed{(4,3)}", "(3,4)"),
    ("\\boxed{(0,1)}", "[0,1]"),
    ("\\boxed{}", "0"),
    ("", "0"),
    ("I do not know.", "7"),
    ("\\boxed{5 \\pi}", "5"),
    ("\\boxed{5x}", "5"),
    ("\\boxed{4 million}", "4"),
    ("\\boxed{0.33}", "\\frac{1}{3}"),
    ("\\boxed{\\frac{1}{}", "1"),
    ("\\boxed{\\[ 5 + \\sqrt{3} \\]}", "5"),
]


@pytest.mark.parametrize("text, gold", RIGHT)
def test_right_answers(text, gold):
    assert grade_math(text, gold).correct


@pytest.mark.parametrize("text, gold", WRONG)
def test_wrong_answers(text, gold):
    assert not grade_math(text, gold).correct


SEVERAL = MathGold("$1,-2$,$\\frac{1}{2}$", several=True)


@pytest.mark.parametrize(
    "text, gold, correct",
    [
        ("\\boxed{-2, 0.5, 1}", SEVERAL, True),
        ("\\boxed{\\{-2, \\frac12, 1\\}}", SEVERAL, True),
        ("\\boxed{1}, \\boxed{-2} and \\boxed{\\frac12}", SEVERAL, True),
        ("\\boxed{1, 1, -2 \\text{ and } \\frac12}", SEVERAL, True),
        ("\\boxed{1, -2}", SEVERAL, False),
        ("\\boxed{1, -2, \\frac12, 3}", SEVERAL, False),
        ("\\boxed{1}. Before: \\boxed{-2}", SEVERAL, False),
        ("\\boxed{\\pm 2}", MathGold("2,-2", several=True), True),
        ("\\boxed{(2,1),(0,0)}", MathGold("$(0,0),(2,1)$", several=True), True),
        ("\\boxed{(1,2),(0,0)}", MathGold("$(0,0),(2,1)$", several=True), False),
        ("\\boxed{4.25}", MathGold("4.2", unit="%", tolerance=0.1), True),
        ("\\boxed{4.25\\%}", MathGold("4.2", unit="%", tolerance=0.1), True),
        ("\\boxed{4.35}", MathGold("4.2", unit="%", tolerance=0.1), False),
        ("\\boxed{\\frac{41}{12} km}", MathGold("$\\frac{41}{12}$", unit="km"), True),
        ("\\boxed{166 \\text{ cm}^2}", MathGold("$166$", unit="$cm^2$"), True),
    ],
)
def test_several_answers_units_and_tolerance(text, gold, correct):
    assert grade_math(text, gold).correct is correct


@pytest.mark.parametrize(
    "same",
    [
        ["\\boxed{0.5}", "\\boxed{\\frac12}", "\\boxed{1/2}", "\\boxed{\\dfrac{2}{4}}", "so $x = 0.50$"],
        ["\\boxed{073}", "\\boxed{73}", "\\boxed{73^\\circ}", "\\boxed{x = 73}", "The answer is 73."],
        ["\\boxed{1,2}", "\\boxed{2,1}", "\\boxed{\\{2, 1\\}}"],
        ["\\boxed{(x+1)^2}", "\\boxed{x^2 + 2x + 1}"],
        ["\\boxed{2\\sqrt2}", "\\boxed{\\sqrt{8}}"],
    ],
)
def test_equal_answers_share_a_vote(same):
    votes = {grade_math(text, "7").vote for text in same}
    assert len(votes) == 1 and None not in votes


def test_different_answers_do_not_share_a_vote():
    texts = ["1", "2", "0.5", "(1,2)", "[1,2]", "x", "x+1", "\\sqrt2", "\\text{red}", "\\text{blue}", "2019!", "2020!"]
    assert len({grade_math(f"\\boxed{{{text}}}", "7").vote for text in texts}) == len(texts)
    assert grade_math("no number here", "7").vote is None


def test_any_thread_and_nobodys_alarm():
    """math-verify alone raises outside the main thread, and takes the alarm of whoever set one."""
    found = []
    thread = threading.Thread(target=lambda: found.append(grade_math("\\boxed{\\frac{2}{4}}", "\\frac12")))
    thread.start()
    thread.join()
    assert found[0].correct
    with ThreadPoolExecutor(4) as pool:
        verdicts = pool.map(lambda i: grade_math(f"\\boxed{{\\frac{{{i}}}{{3}}}}", f"{i}/3"), range(1, 20))
    assert all(verdict.correct for verdict in verdicts)


def test_an_answer_that_never_ends_is_wrong_and_the_next_is_graded(monkeypatch):
    monkeypatch.setattr(mathematics, "_JOB_SECONDS", 3.0)
    verdict = grade_math("\\boxed{7^{9^{9^{9^{9}}}} + x}", "\\sqrt{5}")
    assert not verdict.correct and verdict.vote
    assert grade_math("\\boxed{\\frac24}", "\\frac12").correct


def test_a_worker_that_is_killed_is_replaced():
    assert grade_math("\\boxed{\\frac24}", "\\frac12").correct
    mathematics._worker._process.kill()
    mathematics._worker._process.wait()
    assert grade_math("\\boxed{\\frac24}", "\\frac12").correct
