# SPDX-License-Identifier: Apache-2.0
"""The mathematics grader on answers as models write them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trl_soft import rewards
from trl_soft.evaluate.grading import MathGold, boxes, grade_math, grading_process, mathematics, notation, verdict
from trl_soft.rewards import math_reward, soft_tokens_reward


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
    ("\\boxed4", "4"),
    ("\\boxed\\pi", "\\pi"),
    ("Answer: \\(\\frac{3}{4}\\)", "0.75"),
    ("It costs $5. The answer is 12.", "12"),
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
    ("\\boxed{7} no: \\boxed{9", "7"),
    ("The answer is $1-\\frac{1}{\\foo}$.", "1"),
]


@pytest.mark.parametrize("text, gold", RIGHT)
def test_right_answers(text, gold):
    assert grade_math(text, gold).correct


@pytest.mark.parametrize("text, gold", WRONG)
def test_wrong_answers(text, gold):
    assert not grade_math(text, gold).correct


PAIRS = [
    # tiny and factorial values
    ("\\frac{1}{2^{98}}", "\\frac{1}{2^{99}}", False),
    ("\\frac{1}{2^{98}}", "-\\frac{1}{2^{98}}", False),
    ("\\frac{30!}{(10!)^3}", "-\\frac{30!}{(10!)^3}", False),
    ("\\frac{30!}{(10!)^3}", "\\frac{40!}{(10!)^3}", False),
    ("\\frac{30!}{(10!)^3}", "\\frac{30!}{(10!)^4}", False),
    (".0000672", ".0000673", False),
    ("6.63\\times10^{-34}", "6.7\\times10^{-34}", False),
    ("\\frac{1}{2004!}", "\\frac{1}{2005!}", False),
    ("\\frac{1}{2^{98}}", "2^{-98}", True),
    (".0000672", "6.72\\times10^{-5}", True),
    # LaTeX that does not parse falls back to a number in it
    ("\\frac \\pi4 + 2 - \\sqrt2", "\\frac{\\pi}{4}+2-\\sqrt{2}", True),
    ("11\\frac{1}{9}\\%", "11\\tfrac19\\%", True),
    ("1", "1-\\frac{1}{\\mathrm{e}}", False),
    ("3", "3√2", False),
    ("1, 2, \\ldots, n", "1,3,5,\\ldots,2n-1", False),
    # a variable taken for a unit
    ("6m", "6", False),
    ("4t", "4", False),
    ("2s", "2", False),
    ("a + b + c", "c + b + a", True),
    ("\\sin^2 t", "\\sin^2(t)", True),
    ("5\\text{ m}", "5", True),
    # notation
    ("\\dfrac{2469}{20,\\!000}", "\\frac{2469}{20000}", True),
    ("12000\\pi", "12{,}000\\pi", True),
    ("1000x", "1,000x", True),
    ("7.2\\%", "7.2", True),
    ("\\frac{25}{2}\\%", "12.5\\%", True),
    ("\\sin 60^\\circ", "\\frac{\\sqrt3}{2}", True),
    ("1500000", "1.5e6", True),
    ("-3", "-3\\%", True),
    ("52_8", "52_9", False),
    ("792_{12}", "792_{22}", False),
    ("\\frac32", "2 1/2", False),
    ("34", "3 \\quad 4", False),
    # Braces around all of it, plain text, temperatures, speeds, no elements, an approximate value without a name
    ("5", "{5}", True),
    ("{10\\choose 3}", "120", True),
    ("2\\sqrt{3}", "2*sqrt(3)", True),
    ("\\frac{1+\\sqrt5}{2}", "(1+sqrt(5))/2", True),
    ("\\frac{1-\\sqrt5}{2}", "(1+sqrt(5))/2", False),
    ("x^2+1", "x**2+1", True),
    ("1024", "2**10", True),
    ("\\sin x", "sin(x)", True),
    ("2\\pi", "2pi", True),
    ("25", "25^\\circ\\text{C}", True),
    ("25", "25\\text{ °C}", True),
    ("25^\\circ\\text{C}", "25", True),
    ("25^\\circ\\text{C}", "26", False),
    ("25C", "25", False),
    ("12", "12 km/h", True),
    ("12", "12 a/b", False),
    ("\\emptyset", "\\{\\}", True),
    ("5", "\\approx 5", True),
    ("5", "\\approx 6", False),
    # What the sweep over near misses found
    ("r^2+r+1=0", "r^2+r+6=0", False),
    ("f(2) < f(1) < f(4)", "f(2) < f(1) < f(9)", False),
    ("0.56 = 56\\%", "0.56 = 86\\%", False),
    ("\\$\\dfrac23 \\approx \\$0.67", "\\$\\dfrac23 \\approx \\$1.67", False),
    ("\\$\\dfrac23 \\approx \\$0.67", "\\frac23", True),
    ("440\\text{ cm}^2", "440\\text{ cm}^3", False),
    ("440\\text{ cm}^2", "440", True),
    # How a problem is read: per cent, names, bases, brackets
    ("0.35", "35\\%", True),
    ("35\\%", "0.35", True),
    ("35", "35\\%", True),
    ("35\\%", "35", True),
    ("\\frac14", "25\\%", True),
    ("1/3", "0.333333", True),
    ("\\pi", "3.14159265", True),
    ("3/10", "0.30000000000000004", True),
    ("x=5", "5", True),
    ("5", "x=5", True),
    ("y=2x+3", "2x-y+3=0", True),
    ("(1,2)", "1,2", True),
    ("1,2", "(1,2)", True),
    ("1,2", "2,1", True),
    ("\\{1,2\\}", "2,1", True),
    ("52_8", "52", True),
    ("52_8", "52_{8}", True),
    ("1<x<2", "(1,2)", True),
    ("x<2", "(-\\infty,2)", True),
    ("(-\\infty,2)", "x<2", True),
    ("5 million", "5000000", True),
    ("5{,}000{,}000", "5 million", True),
    ("\\text{Evelyn}", "evelyn", True),
    ("\\text{(C)}", "C", True),
    ("\\text{(C)}", "(C)", True),
    ("2\\sqrt2", "\\sqrt8", True),
    ("\\cos^2x+\\sin^2x", "1", True),
    ("\\log_2 8", "3", True),
    ("10^{-5}", "0.00001", True),
    ("1.5\\times10^{6}", "1500000", True),
    ("-\\frac{1}{2}", "\\frac{-1}{2}", True),
    ("-1/2", "-0.5", True),
    ("\\frac{x+1}{2}", "0.5x+0.5", True),
    ("x^2-1", "(x-1)(x+1)", True),
    ("45^\\circ", "45", True),
    ("\\frac{\\pi}{4}", "\\pi/4", True),
    ("1 \\pm \\sqrt2", "1+\\sqrt2, 1-\\sqrt2", True),
    ("\\pm 3", "3,-3", True),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}", True),
    ("(x-1)^2+y^2=4", "x^2-2x+1+y^2=4", True),
    ("x=1, y=2", "(1,2)", True),
    ("x=1,y=2", "y=2,x=1", True),
    ("\\frac{3}{4}", "\\dfrac34", True),
    ("e^{-1}", "\\frac1e", True),
    ("\\$18", "18", True),
    ("\\$18.50", "18.5", True),
    ("18 dollars", "18", True),
    ("3:2", "3/2", True),
    ("3:2", "3:2", True),
    ("2^{10}", "1024", True),
    ("\\binom{5}{2}", "10", True),
    ("\\text{Tuesday}", "Tuesday", True),
    ("p-q", "-q+p", True),
    ("1,000,000", "1000000", True),
    ("1 000 000", "1000000", True),
    ("\\sqrt{-4}", "2i", True),
    ("3+4i", "4i+3", True),
    ("[0,1]", "[0, 1]", True),
    ("(0,1) \\cup (2,3)", "(2,3)\\cup(0,1)", True),
    ("2\\frac12", "5/2", True),
    ("0", "-0", True),
    ("\\frac{1}{2},\\frac13", "1/3, 0.5", True),
    ("10\\text{ cm}", "10\\text{cm}", True),
    ("10", "10\\text{ cm}", True),
    ("x \\in [1,2]", "[1,2]", True),
    ("[1,2]", "x\\in[1,2]", True),
    ("1\\le x\\le 2", "[1,2]", True),
    ("2x+3", "f(x)=2x+3", True),
    ("\\infty", "+\\infty", True),
    ("12\\text{ hours}", "12 hours", True),
    ("\\text{even}", "Even", True),
    ("$11.50", "11.50", True),
    ("\\emptyset", "\\varnothing", True),
    ("n(n+1)/2", "\\frac{n^2+n}{2}", True),
    ("6\\text{ or }7", "6,7", True),
    ("\\sqrt[3]{2}", "2^{1/3}", True),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}", True),
    ("0.\\overline{3}", "\\frac13", True),
    ("\\angle A=30^\\circ", "30", True),
    ("0.5", "0.5\\%", False),
    ("x=5", "y=5", False),
    ("5", "5x", False),
    ("5", "5\\text{ million}", False),
    ("(1,2)", "2,1", False),
    ("(1,2)", "[1,2]", False),
    ("\\{1,2\\}", "(1,2)", False),
    ("52_8", "52_9", False),
    ("1/3", "0.33", False),
    ("\\pi", "3.14", False),
    ("0.333333", "0.333334", False),
    ("1.23456789", "1.23456788", False),
    ("2019!", "2020!", False),
    ("2^{1000}", "2^{1000}+1", False),
    ("x^2", "x", False),
    ("|x|", "x", False),
    ("x<2", "x>2", False),
    ("x<2", "x\\le 2", False),
    ("\\text{Evelyn}", "Evelyn and Tom", False),
    ("\\infty", "-\\infty", False),
    ("1", "1, 2", False),
    ("1,2", "1", False),
    ("\\frac{1}{2}", "\\frac{1}{", False),
    ("3", "3\\foo", False),
    ("3", "\\foo{3}", False),
    ("5", "x+5", False),
    ("2x", "2y", False),
    ("\\sin x", "\\cos x", False),
    ("\\frac12+2^{-100}", "\\frac12", False),
    ("7", "7_8+1", False),
    ("12", "1 2", False),
    ("C", "A", False),
    ("\\text{(C)}", "D", False),
    ("100,200", "100, 200, 300", False),
    ("x^2+y^2=1", "x^2+y^2=2", False),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}", False),
    ("3:2", "2:3", False),
    ("10^{-9}", "0", False),
    ("10^{-9}", "2\\cdot 10^{-9}", False),
    ("(10^{-9},1)", "(2\\cdot10^{-9},1)", False),
    ("e^{-50}", "e^{-51}", False),
    ("\\sin 60^\\circ", "\\sin 60", False),
    ("0.0000001", "0.0000002", False),
]


@pytest.mark.parametrize("gold, answer, right", PAIRS)
def test_equal_answers_are_right_and_share_a_vote(gold, answer, right):
    """The verdict and the class for voting are one notion of equality."""
    own, other = (grade_math(f"\\boxed{{{text}}}", gold) for text in (gold, answer))
    assert own.correct and own.vote and not own.reason
    assert other.correct is right and not other.reason
    assert (other.vote == own.vote) is right


def test_equal_wrong_answers_share_a_vote():
    """Among wrong answers too: 35% and 35, x=7 and 7, 52_8 twice."""
    for gold, one, other in [("1", "35\\%", "35"), ("1", "x=7", "7"), ("1", "0.5", "\\frac12"), ("x=1", "x=7", "7"),
                             ("52_8", "52_9", "52_{9}"), ("1", "12{,}000\\pi", "12000\\pi"), ("1", "5 million", "5000000"),
                             ("1", "2 1/2", "\\frac52"), ("1", "\\sin 60^\\circ", "\\frac{\\sqrt3}{2}"), ("1", "5\\text{ m}", "5"),
                             ("1", "2^{-98}", "\\frac{1}{2^{98}}"), ("1", "a+b+c", "c+b+a")]:  # fmt: skip
        votes = {grade_math(f"\\boxed{{{text}}}", gold).vote for text in (one, other)}
        assert len(votes) == 1, (gold, one, other, votes)


SEVERAL = MathGold("$1,-2$,$\\frac{1}{2}$", several=True)


@pytest.mark.parametrize(
    "text, gold, correct",
    [
        ("\\boxed{-2, 0.5, 1}", SEVERAL, True),
        ("\\boxed{\\{-2, \\frac12, 1\\}}", SEVERAL, True),
        ("$x=\\boxed{1}$ or $x=\\boxed{-2}$ or $x=\\boxed{\\frac12}$", SEVERAL, True),
        ("$x=\\boxed{1}$ or $x=\\boxed{2}$", "1,2", True),
        ("$x=\\boxed{1}$ or $x=\\boxed{2}$", "2", True),
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
    with monkeypatch.context() as patch:
        patch.setattr(grading_process, "JOB_SECONDS", 3.0)
        verdict = grade_math("\\boxed{7^{9^{9^{9^{9}}}} + x}", "\\sqrt{5}")
    assert not verdict.correct and verdict.vote
    assert grade_math("\\boxed{\\frac24}", "\\frac12").correct


def test_a_worker_that_is_killed_is_replaced():
    assert grade_math("\\boxed{\\frac24}", "\\frac12").correct
    grading_process.WORKER._process.kill()
    grading_process.WORKER._process.wait()
    assert grade_math("\\boxed{\\frac24}", "\\frac12").correct


class Slow:
    """A worker and a clock: each comparison takes so many seconds, and is lost where it may not take them."""

    def __init__(self, seconds: dict[str, float], monkeypatch):
        self.now, self.calls, self._seconds = 0.0, 0, seconds
        monkeypatch.setattr(grading_process.WORKER, "call", self._call)
        monkeypatch.setattr(rewards, "Allowance", self.allowance)

    def allowance(self) -> grading_process.Allowance:
        return grading_process.Allowance(lambda: self.now)

    def _call(self, seconds: float, answer: str, gold: dict) -> dict:
        wanted = self._seconds[answer]
        self.calls += 1
        self.now += min(seconds, wanted)
        if wanted > seconds:
            raise grading_process.WorkerLost
        return {"correct": True, "vote": "x"}


def test_the_comparisons_of_a_batch_share_their_time(monkeypatch):
    slow = Slow({"x^9": 1e9, "x^2": 0.05}, monkeypatch)
    # Every other answer never ends: those that are compared at once are judged until 50 had to be stopped.
    assert math_reward(["\\boxed{x^9}", "\\boxed{x^2}"] * 128, ["y"] * 256) == [0.0, 1.0] * 49 + [0.0, 0.0] * 79
    # 20, 20, 10, 5, 2.5 and 1.25 s, then 1 s each.
    assert slow.calls == 99 and 60 < slow.now < 60 + 50
    # Each batch has its own.
    assert math_reward(["\\boxed{x^2}"], ["y"]) == [1.0]


@pytest.mark.parametrize("seconds", [0.9, 1.1, 19.9, 1e9])
def test_no_batch_takes_longer_than_its_time(seconds, monkeypatch):
    slow = Slow({"x^9": seconds}, monkeypatch)
    math_reward(["\\boxed{x^9}"] * 256, ["y"] * 256)
    assert slow.now <= 60 + 256
    soft_tokens_reward(["\\boxed{x^9}"] * 256, ["y"] * 256)
    assert slow.now <= 2 * (60 + 256)


def test_an_answer_that_is_not_compared_says_so(monkeypatch):
    allowance = Slow({"x^9": 1e9}, monkeypatch).allowance()
    reasons = [grade_math("\\boxed{x^9}", "y", allowance).reason for _ in range(51)]
    assert reasons[0] == "the comparison was stopped: longer than 20 s, or out of memory"
    assert reasons[49] == "the comparison was stopped: longer than 1 s, or out of memory"
    assert reasons[50] == "not compared: 50 comparisons of its batch had to be stopped"
    # A text that is judged alone does not depend on others.
    assert all(grade_math("\\boxed{x^9}", "y").reason == reasons[0] for _ in range(60))
    # Rational numbers need no comparison in the worker.
    assert grade_math("\\boxed{2}", "2", allowance).correct


WORDS = "and so it goes on " * 6_000  # 108,000 characters


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"\boxed{5} " + WORDS, "5"),
        (WORDS + r"\boxed{5}. Page 7. " + WORDS, "5"),
        (WORDS + "The answer is 5", "5"),
        ("The answer is 5" + " \n" * 50_000, "5"),  # blanks at the end aside
        (WORDS + "The answer is 5. " + WORDS[:3_960], "5"),
        # What is not boxed counts in the last 4,000 characters.
        ("The answer is 5. " + WORDS, None),
        ("The answer is 5. " + WORDS + "7", "7"),
        ("\u0130" * 300 + "The answer is 5. Page 7", "5"),  # small letters in their places
    ],
    ids=lambda value: repr(value)[:24],
)
def test_the_answer_of_a_long_text(text, answer):
    assert grade_math(text, "5").answer == answer
    assert grade_math(text, "5").correct == (answer == "5")


LARGE = [
    *(f"{{}} {word}" for word in notation._SCALES),
    "{}\\text{{ thousand million}}",
    "{}\\%",
    "{}\\text{{ percent}}",
    "{} dollars",
    "{}!",
    "2^{{{}}}",
    "{}/7",
    "{}_8",
    "-{}",
    "x={}",
    "{},{}",
    "[{},{})",
]
POWERS = [
    "1 \\times 10^{5000}",
    "3*10^{8000}",
    "10^{-9999}",
    "1 \\cdot 10^{9999}",
    "1e9999",
    "9" * 240,
    "0.\\overline{" + "7" * 200 + "}",
]


@pytest.mark.parametrize("form", LARGE)
def test_no_size_of_a_number_makes_a_judge_raise(form):
    boxed = [f"\\boxed{{{form.replace('{}', power).replace('{{', '{').replace('}}', '}')}}}" for power in POWERS]
    assert math_reward(boxed, ["3"] * len(boxed)) == [0.0] * len(boxed)
    assert soft_tokens_reward(boxed, ["3"] * len(boxed)) == [10.0] * len(boxed)
    assert not grade_math(f"The answer is ${form.replace('{}', '10^{-9999}')}$", "3").correct


def test_a_scale_multiplies_numbers_that_can_be_written():
    assert grade_math("\\boxed{3 \\times 10^{6}\\text{ million}}", "3000000000000").correct
    assert grade_math("\\boxed{1 \\times 10^{990}\\text{ million}}", "10^{996}").correct
    assert not grade_math("\\boxed{10^{5000}\\text{ dozen}}", "10^{5000}").correct


def test_a_text_that_cannot_be_read_is_wrong_and_told_once(monkeypatch, caplog):
    def fails(*arguments):
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(verdict, "_reported", set())
    monkeypatch.setattr(verdict._LOGGER, "handlers", [])
    monkeypatch.setattr(
        mathematics, "last_boxed", lambda text, *rest: fails() if len(text) > 9 else boxes.last_boxed(text, *rest)
    )
    assert math_reward(["\\boxed{111}"] * 3 + ["\\boxed{1}"], ["1"] * 4) == [0.0, 0.0, 0.0, 1.0]
    assert grade_math("\\boxed{111}", "1").reason == "the text could not be read: ZeroDivisionError: by accident"
    (record,) = caplog.records
    assert "boxed{111}" in record.getMessage()
