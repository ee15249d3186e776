# SPDX-License-Identifier: Apache-2.0
"""
No text that a model writes holds a judge up: a bound on the steps for each character, whatever the text repeats or nests.

The suite takes a seeded sample of the texts. `make test-hostile` takes all of them, by `python -m tests.hostile.judges`.
"""

import itertools
import random
import re
from pathlib import Path

import pytest

from tests.hostile import judges, steps
from tests.hostile.judges import JUDGES, SHORT, let_judges_count, most_steps
from tests.hostile.steps import Pattern


ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def judges_that_count(monkeypatch):
    let_judges_count(monkeypatch)


@pytest.mark.parametrize("name, size", [(name, size) for name, judge in JUDGES.items() for size in judge.bounds])
def test_steps_are_bounded_for_every_text(name, size):
    judge = JUDGES[name]
    most, worst, _ = most_steps(judge.call, judge.sample(size, 20 if size == SHORT else 3))
    assert most <= judge.bounds[size], worst


def test_the_page_shows_the_counts_of_every_judge():
    page = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w ]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \| ``", page, re.MULTILINE)
    assert [(name, size, texts, bound) for name, size, texts, _, bound in rows] == [
        (name, f"{size:,}", f"{sum(1 for _ in judge.texts(SHORT)):,}", f"{bound:,}")
        for name, judge in JUDGES.items()
        for size, bound in judge.bounds.items()
    ]
    assert all(float(most) <= int(bound.replace(",", "")) for *_, most, bound in rows)


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
    judge = JUDGES[name]
    assert most_steps(judge.call, [(name, text)])[0] <= judge.bounds[SHORT]


@pytest.mark.parametrize(
    "text, expected",
    [("a1b22c333", ["1", "22", "333"]), ("", []), ("no digit", [])],
)
def test_the_matcher_that_counts_finds_what_re_finds(text, expected):
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


def test_what_is_kept_of_an_attempt_counts_as_the_attempt_does(monkeypatch):
    """Attempts whose outcome is kept by the characters they read, against the same ones made each time."""
    draw = random.Random(0)
    for _ in range(10):
        text = "".join(draw.choices(["a", "1", " ", "\n", "\\", "{", "}", "\\boxed", ".", "(", "A"], k=40))
        for module, name in (
            (judges.letters, "_TOKEN"), (judges.boxes, "_ESCAPE_OR_BRACE"), (judges.prose, "_NUMBER"), (judges.reading, "_NAME"),
        ):  # fmt: skip
            kept, spans, counts = Pattern(getattr(module, name)), [], []
            for ahead in (steps._AHEAD, steps._AHEAD, -1):  # the second finds all kept, the third keeps nothing
                pattern = kept if ahead > 0 else Pattern(getattr(module, name))
                steps.STEPS.count = 0
                with monkeypatch.context() as patch:
                    patch.setattr(steps, "_AHEAD", ahead)
                    spans.append([match.span() for match in pattern.finditer(text)])
                counts.append(steps.STEPS.count)
            assert counts[0] == counts[1] == counts[2] and spans[0] == spans[1] == spans[2]
