# SPDX-License-Identifier: Apache-2.0
"""
No text that a model writes holds a judge up: a bound on the steps for each character, whatever the text repeats or nests.

The suite takes a seeded sample of the texts, at 400 characters. `make test-hostile` (TRL_SOFT_FULL=1) takes all of them,
and a sample of them at 100,000 characters, against the same bounds.
"""

import itertools
import os

import pytest

from tests.hostile import texts
from tests.hostile.steps import counted, steps_of
from trl_soft import rewards
from trl_soft.evaluate.grading import (
    boxes,
    code,
    forced,
    grade_exact,
    grade_humaneval,
    grade_letter,
    grade_math,
    grade_mbpp,
    last_boxed,
    letters,
    mathematics,
    notation,
    programs,
    prose,
    reading,
    verdict,
)


FULL = os.environ.get("TRL_SOFT_FULL") == "1"
MODULES = [boxes, code, forced, letters, mathematics, notation, programs, prose, reading, rewards, verdict]
HUMANEVAL = {"prompt": "def f(x):\n", "test": "def check(c):\n    assert c(1) == 1\n", "entry_point": "f"}
MBPP = {"code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"]}
LETTERS = (texts.LETTERS, texts.NESTED_LETTERS)
PROGRAMS = (texts.PROGRAMS, texts.NESTED_PROGRAMS)
MATHEMATICS = (texts.MATHEMATICS, texts.NESTED_MATHEMATICS)

# Each judge, its texts, and the most steps for one character: about twice what the worst of all texts takes.
JUDGES = {
    "last_boxed": (lambda text: last_boxed(text, several=True), MATHEMATICS, 20),
    "math": (lambda text: grade_math(text, "1,2"), MATHEMATICS, 250),
    "exact": (lambda text: grade_exact(text, "1"), MATHEMATICS, 20),
    "soft_grpo": (lambda text: rewards.soft_grpo_reward([text], ["1"]), MATHEMATICS, 40),
    "soft_tokens": (lambda text: rewards.soft_tokens_reward([text], ["1"]), MATHEMATICS, 250),
    "letters": (lambda text: grade_letter(text, "A"), LETTERS, 250),
    "code_humaneval": (lambda text: grade_humaneval(text, HUMANEVAL), PROGRAMS, 160),
    "code_mbpp": (lambda text: grade_mbpp(text, MBPP), PROGRAMS, 160),
}
LONGEST_READ = 1_000_000  # steps for an answer of the length that is read as mathematics


@pytest.fixture(autouse=True)
def judges_that_count(monkeypatch):
    counted(MODULES, monkeypatch)
    monkeypatch.setattr(mathematics.WORKER, "call", lambda **job: {"correct": False, "vote": "x"})
    monkeypatch.setattr(programs, "_run", lambda source, *rest: verdict.Verdict(False, source, None))
    yield
    mathematics._read.cache_clear()


def over(judge, bound: int, named: list) -> list:
    """The texts that take more steps than the bound allows, with their steps for each character; and the most of all."""
    found, most = [], 0.0
    for name, text in named:
        mathematics._read.cache_clear()
        each = steps_of(judge, text, MODULES) / len(text)
        most = max(most, each)
        if each > bound:
            found.append((name, len(text), round(each)))
    print(f"{len(named)} texts, at most {most:.1f} steps a character")
    return found


@pytest.mark.parametrize("name", JUDGES)
def test_steps_are_bounded_for_every_text(name):
    judge, alphabet, bound = JUDGES[name]
    every = list(texts.texts(*alphabet, 400))
    assert over(judge, bound, every if FULL else texts.sample(every, 25)) == []


NAMES = ["".join(letters) for letters in itertools.product("BCDEGHJKLM", repeat=3)]


@pytest.mark.parametrize(
    "name, text",
    [
        ("last_boxed", "\\boxed{1}" + " " * 3000 + "x\\boxed{2}"),
        ("last_boxed", "\\boxed{" * 800),
        ("math", "\\boxed{" * 800),
        ("math", "\\boxed{1 a" + " " * 3000 + "!}"),
        ("math", "\\boxed{1 a" + " " * 450 + "!}"),
        ("soft_grpo", "\\boxed{" * 800),
        ("letters", "Answer" + "\n" * 1000 + "x"),
        ("code_humaneval", "```python\ndef f(x):\n  y=(\n" + "1,\n" * 1000 + "```"),
        ("code_mbpp", "```python\ndef f(x):\n  y=(\n" + "1,\n" * 1000 + "```"),
        ("soft_tokens", "The final answer is: \\boxed{" * 200),
        (
            "code_mbpp",  # a block that uses a thousand names, behind one that defines them
            "```python\n" + "=1\n".join(NAMES) + "=1\n```\n```python\ndef f(x):\n " + ";".join(NAMES) + "\n```",
        ),
    ],
)
def test_steps_of_what_once_took_seconds(name, text):
    judge, _, bound = JUDGES[name]
    assert over(judge, bound, [(name, text)]) == []


@pytest.mark.skipif(not FULL, reason="minutes: part of `make test-hostile`")
@pytest.mark.parametrize("name", JUDGES)
def test_steps_are_bounded_at_100_kilobytes(name):
    judge, alphabet, bound = JUDGES[name]
    every = list(texts.texts(*alphabet, 100_000))
    forms = [(form, text) for form, text in every if form.startswith(("nested", "open"))]
    assert over(judge, bound, [*texts.sample(every, 8), *texts.sample(forms, 12)]) == []


def test_an_answer_that_is_read_as_mathematics_is_short():
    every = list(texts.texts(*MATHEMATICS, mathematics.LONGEST_ANSWER))
    for name, text in every if FULL else texts.sample(every, 4):
        short = text[: mathematics.LONGEST_ANSWER]
        assert steps_of(reading.read, short, MODULES) < LONGEST_READ, name


@pytest.mark.parametrize(
    "text, expected",
    [("a1b22c333", ["1", "22", "333"]), ("", []), ("no digit", [])],
)
def test_the_matcher_that_counts_finds_what_re_finds(text, expected):
    import re

    from tests.hostile.steps import Pattern

    assert Pattern(re.compile(r"\d+")).findall(text) == expected
    for pattern in (
        r"(a|b)*?c|\d{2,}",
        r"(?:\w++)\s*(?=x|\Z)",
        r"(?i:A)b?(\d)\b",
        r"(?m)^\S+$",
        r"(?<!\d)\w",
        r"(?>a|ab)c",
    ):
        for sample in (text, "ab abc 12 x\naB1 c", "aaac 123\n\nx"):
            mine, theirs = Pattern(re.compile(pattern)), re.compile(pattern)
            assert [m.span() for m in mine.finditer(sample)] == [m.span() for m in theirs.finditer(sample)]
            assert [m.groups() for m in mine.finditer(sample)] == [m.groups() for m in theirs.finditer(sample)]
