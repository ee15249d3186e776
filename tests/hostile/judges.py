# SPDX-License-Identifier: Apache-2.0
"""
Every judge on every text of its grid: the most steps that it takes for one character.

python -m tests.hostile.judges [--table docs/judges.md] [--processes 2] [--judges math letters]
"""

import argparse
import collections
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    grading_process,
    last_boxed,
    letters,
    mathematics,
    notation,
    parsing,
    programs,
    prose,
    reading,
    verdict,
)


MODULES = [boxes, code, forced, letters, mathematics, notation, parsing, programs, prose, reading, rewards, verdict]
HUMANEVAL = {"prompt": "def f(x):\n", "test": "def check(c):\n    assert c(1) == 1\n", "entry_point": "f"}
MBPP = {"code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"]}
LETTERS = (texts.LETTERS, texts.NESTED_LETTERS)
PROGRAMS = (texts.PROGRAMS, texts.NESTED_PROGRAMS)
MATHEMATICS = (texts.MATHEMATICS, texts.NESTED_MATHEMATICS)
SHORT, LONG = 400, 100_000  # characters
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"


@dataclass(frozen=True)
class Judge:
    """
    Args:
        call: reads a text.
        alphabet (`tuple`): what its texts repeat, and what they nest.
        bounds (`dict` of `int` to `int`): for each length of text the most steps for one character, about twice what the
            worst of all texts takes.
    """

    call: Callable[[str], Any]
    alphabet: tuple[list[str], list[tuple[str, str]]]
    bounds: dict[int, int]

    def texts(self, size: int) -> Iterator[tuple[str, str]]:
        return texts.texts(*self.alphabet, size)

    def sample(self, size: int, count: int) -> list[tuple[str, str]]:
        """Some of the texts, the same in every run; the others are not kept."""
        numbers = set(texts.sample(list(range(sum(1 for _ in self.texts(SHORT)))), count))
        return [pair for number, pair in enumerate(self.texts(size)) if number in numbers]


JUDGES = {
    "last_boxed": Judge(lambda text: last_boxed(text, several=True), MATHEMATICS, {SHORT: 20, LONG: 20}),
    "final_box": Judge(lambda text: forced.final_box(text, answer_phase=text), MATHEMATICS, {SHORT: 15, LONG: 15}),
    "math": Judge(lambda text: grade_math(text, "1,2"), MATHEMATICS, {SHORT: 280, LONG: 30}),
    "exact": Judge(lambda text: grade_exact(text, "1"), MATHEMATICS, {SHORT: 5, LONG: 5}),
    "soft_grpo": Judge(lambda text: rewards.soft_grpo_reward([text], ["1"]), MATHEMATICS, {SHORT: 30, LONG: 15}),
    "soft_tokens": Judge(lambda text: rewards.soft_tokens_reward([text], ["1"]), MATHEMATICS, {SHORT: 280, LONG: 20}),
    "letters": Judge(lambda text: grade_letter(text, "A"), LETTERS, {SHORT: 250, LONG: 30}),
    "code_humaneval": Judge(lambda text: grade_humaneval(text, HUMANEVAL), PROGRAMS, {SHORT: 160, LONG: 100}),
    "code_mbpp": Judge(lambda text: grade_mbpp(text, MBPP), PROGRAMS, {SHORT: 160, LONG: 100}),
    # What `math` and `soft_tokens` read as mathematics is this long at most.
    "an answer of mathematics": Judge(
        lambda text: reading.read(text[: mathematics.LONGEST_ANSWER]), MATHEMATICS, {mathematics.LONGEST_ANSWER: 320}
    ),
}


def let_judges_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the judges count, and leave out what they hand to a process of its own, which has limits of its own."""
    counted(MODULES, monkeypatch)
    monkeypatch.setattr(grading_process.WORKER, "call", lambda seconds, **job: {"correct": False, "vote": "x"})
    monkeypatch.setattr(programs, "_run", lambda source, *rest: verdict.Verdict(False, source, None))


def most_steps(call: Callable[[str], Any], named: Iterable[tuple[str, str]]) -> tuple[float, str, int]:
    """The most steps for a character, the name of the text that takes them, and how many texts there are."""
    most, worst, count = 0.0, "", 0
    for name, text in named:
        mathematics._read.cache_clear()  # else an answer that was read before counts nothing
        steps = steps_of(call, text, MODULES) / len(text)
        most, worst = max((most, worst), (steps, name))
        count += 1
    mathematics._read.cache_clear()
    return most, worst, count


_PARTS = 32  # of a grid, so that processes end together


def _part(task: tuple[str, int, int]) -> tuple[str, int, float, str, int]:
    name, size, part = task
    judge = JUDGES[name]
    named = (pair for number, pair in enumerate(judge.texts(size)) if number % _PARTS == part)
    return name, size, *most_steps(judge.call, named)


def _begin() -> None:
    let_judges_count(pytest.MonkeyPatch())


def counts(processes: int, names: Collection[str] = tuple(JUDGES)) -> dict[tuple[str, int], tuple[float, str, int]]:
    """For each judge and length of text what `most_steps` finds in all texts."""
    grids = [(name, size) for name in names for size in JUDGES[name].bounds]
    tasks = [(name, size, part) for name, size in grids for part in range(_PARTS)]
    found: dict[tuple[str, int], tuple[float, str, int]] = {}
    parts: collections.Counter = collections.Counter()
    with multiprocessing.get_context("spawn").Pool(processes, _begin) as pool:
        for name, size, most, worst, count in pool.imap_unordered(_part, tasks):
            before = found.get((name, size), (0.0, "", 0))
            found[name, size] = (*max(before[:2], (most, worst)), before[2] + count)
            parts[name, size] += 1
            if parts[name, size] == _PARTS:
                print(f"{name} at {size:,} characters: {found[name, size][0]:.1f} steps a character", flush=True)
    return {grid: found[grid] for grid in grids}


def table(found: dict[tuple[str, int], tuple[float, str, int]]) -> str:
    """Markdown: one row a judge and length of text."""
    lines = ["| judge | characters | texts | most steps a character | bound | in the text |", "| --- |" + " --- |" * 5]
    for (name, size), (most, worst, count) in found.items():
        shown = "`` " + worst.replace("|", "\\|") + " ``"
        lines.append(f"| {name} | {size:,} | {count:,} | {most:.1f} | {JUDGES[name].bounds[size]:,} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.judges", description="Hostile texts in the judges.")
    parser.add_argument("--table", type=Path, metavar="FILE", help="a page whose table of counts is written anew")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=list(JUDGES))
    options = parser.parse_args()
    if options.table and options.judges != list(JUDGES):
        parser.error("--table shows every judge. Leave out --judges, or --table.")
    found = counts(options.processes, options.judges)
    print(table(found))
    over = [
        f"{name} at {size:,} characters"
        for (name, size), (most, *_) in found.items()
        if most > JUDGES[name].bounds[size]
    ]
    print(
        f"{sum(count for *_, count in found.values()):,} texts; more steps than allowed: {', '.join(over) or 'none'}."
    )
    if options.table:
        page = options.table.read_text(encoding="utf-8")
        pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
        options.table.write_text(pattern.sub(lambda _: f"{BEGIN}\n{table(found)}\n{END}", page), encoding="utf-8")
    sys.exit(bool(over))


if __name__ == "__main__":
    main()
