# SPDX-License-Identifier: Apache-2.0
"""Graders on every gold answer and reference solution at hand, and on answers as models write them.

By default some 250 rows of the big files are graded. TRL_SOFT_FULL=1 grades all: about five minutes for the answers, and
another five for the programs, on one core.
"""

import functools
import gzip
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trl_soft.evaluate import graders
from trl_soft.evaluate.graders import GRADERS, MathGold, extract_code, last_boxed, letters, math, shuffled_options
from trl_soft.evaluate.sandbox import isolation


DATA = Path(os.environ.get("TRL_SOFT_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmarks' files (TRL_SOFT_DATA)")
FULL = os.environ.get("TRL_SOFT_FULL") == "1"


def _sandbox_is_missing() -> str:
    try:
        isolation()
    except RuntimeError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(bool(_sandbox_is_missing()), reason=_sandbox_is_missing() or "-")


def rows(name: str) -> list[dict]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return json.load(lines) if name.endswith(".json.gz") else [json.loads(line) for line in lines]


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
        own = math(f"Therefore the answer is $\\boxed{{{gold.answer}}}$.", gold)
        right += own.correct
        if not own.correct or not own.vote or own.reason:
            bad.append((index, gold, own))
        if neighbour is None or not neighbour.answer:
            continue
        spelled_alike = graders._letters_of(neighbour.answer) == graders._letters_of(gold.answer)
        if spelled_alike or index in SAME_AS_NEIGHBOUR.get(name, ()):
            equal += 1
            continue
        other = math(f"Therefore the answer is $\\boxed{{{neighbour.answer}}}$.", gold)
        wrong += not other.correct
        if other.correct or other.reason:
            bad.append((index, gold, neighbour, other))
    print(
        f"{name}: {right} right against themselves, {wrong} wrong against their neighbours, {equal} neighbours equal"
    )
    assert bad == []


@needs_data
@needs_sandbox
@pytest.mark.parametrize(
    "name, count, grader",
    [
        ("HumanEval.jsonl.gz", 164, "code_humaneval"),
        ("mbpp.jsonl.gz", 974, "code_mbpp"),
        ("mbpp_sanitized.json.gz", 427, "code_mbpp"),
    ],
)
def test_reference_solutions_pass_and_their_neighbours_fail(name, count, grader):
    tasks = rows(name)
    assert len(tasks) == count
    chosen = range(count) if FULL else range(3, count, max(count // 8, 1))

    def text(index: int) -> str:
        task = tasks[index % count]
        # As a base model goes on from the prompt, and as a chat model answers.
        return task["canonical_solution"] if "prompt" in task and "test" in task else f"```python\n{task['code']}\n```"

    def grade(index: int) -> tuple:
        own = GRADERS[grader](text(index), tasks[index], timeout=60)
        other = GRADERS[grader]("```python\nx = 1\n```" if "HumanEval" in name else text(index + 1), tasks[index])
        return index, own, other

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(grade, chosen))
    assert [(index, own.reason) for index, own, _ in verdicts if not own.correct] == []
    assert [index for index, _, other in verdicts if other.correct] == []


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
    assert math(text, gold).correct


@pytest.mark.parametrize("text, gold", WRONG)
def test_wrong_answers(text, gold):
    assert not math(text, gold).correct


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
    assert math(text, gold).correct is correct


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
    votes = {math(text, "7").vote for text in same}
    assert len(votes) == 1 and None not in votes


def test_different_answers_do_not_share_a_vote():
    texts = ["1", "2", "0.5", "(1,2)", "[1,2]", "x", "x+1", "\\sqrt2", "\\text{red}", "\\text{blue}", "2019!", "2020!"]
    assert len({math(f"\\boxed{{{text}}}", "7").vote for text in texts}) == len(texts)
    assert math("no number here", "7").vote is None


def test_any_thread_and_nobodys_alarm():
    """math-verify alone raises outside the main thread, and takes the alarm of whoever set one."""
    found = []
    thread = threading.Thread(target=lambda: found.append(math("\\boxed{\\frac{2}{4}}", "\\frac12")))
    thread.start()
    thread.join()
    assert found[0].correct
    with ThreadPoolExecutor(4) as pool:
        verdicts = pool.map(lambda i: math(f"\\boxed{{\\frac{{{i}}}{{3}}}}", f"{i}/3"), range(1, 20))
    assert all(verdict.correct for verdict in verdicts)


def test_an_answer_that_never_ends_is_wrong_and_the_next_is_graded(monkeypatch):
    monkeypatch.setattr(graders, "_JOB_SECONDS", 3.0)
    verdict = math("\\boxed{7^{9^{9^{9^{9}}}} + x}", "\\sqrt{5}")
    assert not verdict.correct and verdict.vote
    assert math("\\boxed{\\frac24}", "\\frac12").correct


def test_a_worker_that_is_killed_is_replaced():
    assert math("\\boxed{\\frac24}", "\\frac12").correct
    graders._worker._process.kill()
    graders._worker._process.wait()
    assert math("\\boxed{\\frac24}", "\\frac12").correct


@pytest.mark.parametrize(
    "text, letter",
    [
        ("The correct answer is (C).", "C"),
        ("ANSWER: B", "B"),
        ("**Answer:** D", "D"),
        ("\\boxed{\\text{A}}", "A"),
        ("\\boxed{(B)}", "B"),
        ("Answer: A</think>Answer: B", "B"),
        ("answer is A. No: the answer is B", "B"),
        ("C", "C"),
        ("(A) is wrong, so I take (D) here", "D"),
        ("Answer: A large one", "A"),
        ("A good question", None),
        ("The answer is Boron", None),
    ],
)
def test_letters(text, letter):
    assert (letters(text, "B").answer, letters(text, "B").correct) == (letter, letter == "B")


def test_options_are_shuffled_by_seed():
    options = ["red", "green", "blue", "black"]
    orders = set()
    for seed in range(200):
        text, letter = shuffled_options(options, 2, seed)
        assert f"({letter}) blue" in text.split("\n") and sorted(line[4:] for line in text.split("\n")) == sorted(
            options
        )
        assert shuffled_options(options, 2, seed) == (text, letter)
        orders.add(text)
    assert len(orders) == 24  # all of them: 24 missed one of 200 draws with probability 24 * (23/24)**200 = 0.5 %
    # Fixed, so that a run of another day asks the same.
    assert shuffled_options(options, 2, "0:id") == SHUFFLED
    with pytest.raises(ValueError, match="must be one of them"):
        shuffled_options(options, 4, 0)


SHUFFLED = ("(A) red\n(B) black\n(C) green\n(D) blue", "D")


@needs_data
def test_letters_of_arc():
    for row in rows("arc_challenge_validation.jsonl.gz"):
        choices = row["question"]["choices"]
        correct = [choice["label"] for choice in choices].index(row["answerKey"])
        _, gold = shuffled_options([choice["text"] for choice in choices], correct, row["id"])
        others = [letter for letter in "ABCDE"[: len(choices)] if letter != gold]
        assert letters(f"I think the answer is ({gold}).", gold).correct
        assert not any(letters(f"I think the answer is ({other}).", gold).correct for other in others)


def test_exact():
    assert GRADERS["exact"]("1+1</think> 2\n", "2").correct and not GRADERS["exact"]("2.", "2").correct


def test_code_is_found_in_a_completion():
    text = "Try:\n```python\ndef f(): return 1\n```\nor better\n```\ndef g(): return 2\n```\nRun\n```bash\nls\n```"
    assert extract_code(text, "f") == "def f(): return 1"
    assert extract_code(text) == "def f(): return 1\ndef g(): return 2"
    assert extract_code("```python\ndef f():\n    return 1", "f") == "def f():\n    return 1"
    assert extract_code("no code") is None


TASK = {
    "prompt": "import math\n\ndef helper(x):\n    return x\n\ndef half(x):\n    '''Half of x.'''\n",
    "test": "def check(candidate):\n    assert all([candidate(4) == 2, candidate(helper(3)) == 1.5])\n",
    "entry_point": "half",
}


@needs_sandbox
@pytest.mark.parametrize(
    "text, correct",
    [
        ("    return x / 2\n", True),
        ("    return x / 2\n\nprint(half(3))\n\nThen the user asks: what", True),
        ("Sure:\n```python\ndef half(x):\n    return math.fabs(x) / 2\n```\nDone.", True),
        ("Hm.</think>def half(x):\n    return helper(x) / 2", True),
        ("    return x", False),
        ("    import sys; sys.exit(0)", False),
        ("    return x\n\ndef all(xs): return True\n\nimport builtins; builtins.all = all", False),
        ("    return x\n\ndef check(c): pass", False),
        ("", False),
    ],
)
def test_humaneval_completions(text, correct):
    verdict = GRADERS["code_humaneval"](text, TASK)
    assert verdict.correct is correct, verdict
    assert correct == (verdict.reason == "") and verdict.vote is None


@needs_sandbox
def test_mbpp_completions():
    task = {
        "code": "def sum(a, b):\r\n  return a + b",
        "test_list": ["assert sum(1, 2) == 3"],
        "test_setup_code": "k = 1",
    }
    grade = functools.partial(GRADERS["code_mbpp"], gold=task)
    assert grade("def sum(a, b):\n    return a + b\n").correct
    assert grade("[BEGIN]\ndef sum(a, b):\n    return a + b\n[DONE]\nnext").correct
    assert not grade("def sum(a, b):\n    return a - b\n").correct
    assert grade("x" * 70000).reason == "longer than 65536 characters"
    task = {
        "code": "def root(x): ...",
        "test_list": ["assert root(4) == math.sqrt(4)"],
        "test_imports": ["import math"],
    }
    assert GRADERS["code_mbpp"]("```\ndef root(x):\n    return x ** 0.5\n```", task).correct
