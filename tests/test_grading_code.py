# SPDX-License-Identifier: Apache-2.0
"""Where the program is in a completion: every HumanEval solution in every form that models write it in.

The programs are the benchmark's own, so they run here and not in the sandbox, which `test_grading_programs.py` tests.
"""

import ast
import random
import textwrap

import pytest

from tests.benchmark_files import FULL, needs_data, rows
from trl_soft.evaluate.grading import extract_code, grade_humaneval, grade_mbpp, parsing, programs
from trl_soft.evaluate.grading.code import longest_program
from trl_soft.evaluate.grading.parsing import LONGEST_PROGRAM
from trl_soft.evaluate.sandbox import Result


@pytest.fixture
def here(monkeypatch):
    """Trusted programs run in this process."""

    def run_program(source, *, setup, tests, tested, reference, **limits):
        names: dict = {}
        try:
            exec(compile(f"{setup}\n{source}\n{tests}", "<trusted>", "exec"), names)
        except Exception as error:
            return Result(False, repr(error), "", "", "none")
        return Result(True, "passed", "", "", "none")

    monkeypatch.setattr(programs, "run_program", run_program)


ROW = {
    "prompt": "from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    ''' The sum.\n    >>> total([1, 2])\n    3\n    '''\n",
    "canonical_solution": "    found = 0\n    for x in xs:\n        found += x\n    return found\n",
    "entry_point": "total",
    "test": "def check(f):\n    assert f([1, 2]) == 3 and f([]) == 0\n",
}


def forms(row: dict) -> dict[str, str]:
    """A task's solution as models write it."""
    body, name = row["canonical_solution"], row["entry_point"]
    full = row["prompt"] + body
    fenced = f"```python\n{full}\n```"
    helped = full.replace(body, f"    help_me(2)\n{body}")
    helper = "```python\nimport math\n\ndef help_me(x):\n    return math.floor(x) + OFFSET\n\nOFFSET = 1\n```"
    return {
        "a block": f"Sure:\n\n{fenced}\nDone.",
        "a closing fence alone": f"{full}\n```\nDone",
        "a closing fence behind the body": f"{body.rstrip()}\n```\nThis returns it.",
        "prose before": f"Here is the code:\n\n{full}",
        "prose around": f"Here is the code:\n\n{full}\n\nThis isn't (all",
        "a list item": f"1. The solution:\n\n{textwrap.indent(fenced, '   ')}\n2. Done",
        "behind a list mark": "- " + fenced.replace("\n", "\n  "),
        "indented code": f"```python\n{textwrap.indent(full, '    ')}\n```",
        "tabs before": textwrap.indent(fenced, "\t"),
        "tags": f"[PYTHON]\n{full}\n[/PYTHON]\nDone",
        "a fence between tags": f"[PYTHON]\n{fenced}\n[/PYTHON]",
        "tildes": f"~~~python\n{full}\n~~~\nDone ~~~",
        "a title": fenced.replace("python", '{.python title="a.py"}', 1),
        "a helper before": f"{helper}\nThen\n```python\n{helped}\n```\nUse it:\n```python\nprint({name}(1, 2, 3, 4, 5))\n```",
        "a helper behind": f"```python\n{helped}\n```\nwith\n{helper}",
        "no end": f"Sure\n```python\n{full}",
        "a forgotten end": f"{fenced[:-3]}\nFor example:\n```python\nx = (1\n```",
        "another language": f"```bash\npip install x\n```\n{fenced}\nprints\n```\n3\n```",
        "longer fences": f"````markdown\nx\n````\n{fenced}",
        "a better one": f"```python\ndef {name}(*a):\n    return None\n```\nWrong. Better:\n{fenced}",
        "a forced fence": f"\n{fenced}",
        "the body": body,
        "the body, stripped": body.strip(),
        "the body, fenced": f"```python\n{body}```",
        "the body, flush": f"```python\n{textwrap.dedent(body)}\n```",
        "the next turn": f"{body}\n\nUser: isn't it (fine",
    }


@pytest.mark.parametrize("form", forms(ROW))
def test_a_right_program_is_right_in_every_form(form, here):
    verdict = grade_humaneval(forms(ROW)[form], ROW)
    assert verdict.correct, verdict
    wrong = grade_humaneval(forms({**ROW, "canonical_solution": "    return len(xs)\n"})[form], ROW)
    assert not wrong.correct, wrong


@needs_data
def test_humaneval_in_every_form(here):
    tasks = rows("HumanEval.jsonl.gz")[:: 1 if FULL else 40]
    bad = [
        (task["task_id"], form)
        for task in tasks
        for form, text in forms(task).items()
        if not grade_humaneval(text, task).correct
    ]
    assert bad == []


def test_a_signature_alone_is_a_prompt(here):
    row = {**ROW, "prompt": "def total(xs):\n"}
    for text in (
        ROW["canonical_solution"],
        "def total(xs):\n    return sum(xs)",
        "```\ndef total(xs): return sum(xs)\n```",
    ):
        assert grade_humaneval(text, row).correct


def test_mbpp_with_helpers(here):
    row = {"code": "def up(x): ...\ndef down(x): ...", "test_list": ["assert up(1) == 2", "assert down(1) == 0"]}
    text = "Two:\n```python\ndef up(x):\n    return x + ONE\n```\nand\n```py\ndef down(x):\n    return x - ONE\n```\nwhere\n```\nONE = 1\n```"
    assert grade_mbpp(text, row).correct
    assert grade_mbpp(
        "The functions are\n\nONE = 1\ndef up(x): return x + ONE\ndef down(x): return x - ONE\n\nas asked.", row
    ).correct


def test_blocks_that_are_no_programs_are_left_out():
    assert extract_code("Output:\n```\nHello there\n```\nof\n```\nx = 1\n```") == "x = 1"
    assert extract_code("~~~\nx = 1\n~~~") == extract_code("[python]x = 1[/python]") == "x = 1"


def brute(head: str, body: str) -> tuple[str, int]:
    """The longest program by trying every number of lines."""
    lines = body.split("\n")
    for count in range(len(lines), 0, -1):
        try:
            ast.parse(source := head + "\n".join(lines[:count]))
        except (SyntaxError, ValueError):
            continue
        return source, count
    return head + body, 0


def test_the_longest_program_is_that_of_a_search_over_all():
    draw = random.Random(0)
    junk = [
        "    (",
        "'''",
        "It's",
        "if x:",
        "  else:",
        "@a",
        "\\",
        "\t y",
        "x = {",
        "\0",
        ")",
        "def g(x):",
        "Then one goes on",
    ]
    for _ in range(200):
        lines = ROW["canonical_solution"].split("\n") + draw.choices(junk, k=draw.randrange(4))
        for _ in range(draw.randrange(3)):
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(junk))
        body = "\n".join(lines)
        assert longest_program(ROW["prompt"], body) == brute(ROW["prompt"], body)


SHARED = "def total(x):\n    return (\n" + "x +\n" * 15_000


@pytest.mark.parametrize(
    "text",
    [
        "```python\ndef f(x):\n  y=(\n" + "1,\n" * 2000 + "```",
        "@a\n" * 2000,
        "'''\n" * 2001,
        "Here's\n" * 2000,
        "\0\n" * 2000,
        "(A)" * 15_000 + "1" + "\\\n" * 10_000,
        "[" + "a," * 15_000 + "] 1" + "\\\n" * 14_000 + "x" * 10_000,
        "```python\n[" + "a," * 15_000 + "] 1" + "\\\n" * 14_000 + "\n```",
        f"```\n{SHARED}\n```\n" * 8,
        "total = 1\n(\n\n" * 4_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_how_much_of_a_text_is_parsed(text, here, monkeypatch):
    """Counted, not measured: not once a line, and no source twice."""
    parsed = []
    parse = ast.parse
    monkeypatch.setattr(parsing.ast, "parse", lambda source, name: (parsed.append(source), parse(source, name))[1])
    row = {"code": "def total(x): ...", "test_list": ["assert total([1]) == 1"]}
    for judge, gold in (
        (grade_humaneval, ROW),
        (grade_humaneval, {**ROW, "prompt": "def total(xs):\n"}),
        (grade_mbpp, row),
    ):
        judge(text, gold)  # the row's own code is parsed once, at its first text
        parsed.clear()
        judge(text, gold)
        own = [source for source in parsed if source != gold.get("prompt")]
        assert len(own) <= parsing.MOST_PARSES and sum(map(len, own)) <= parsing.MOST_PARSED
        assert len(own) == len(set(own))


def test_what_is_parsed_beyond_the_bound_is_no_program(monkeypatch):
    monkeypatch.setattr(parsing, "MOST_PARSES", 2)
    with parsing.one_text():
        assert [parsing.parses(text) for text in ("a", "b", "a", "c")] == [True, True, True, False]
    monkeypatch.setattr(parsing, "MOST_PARSED", 5)
    with parsing.one_text():
        assert [parsing.parses(text) for text in ("abc", "abcd", "ab")] == [True, False, True]
    assert parsing.parses("abcd")


def test_what_the_parser_warns_of_is_not_shown(here, recwarn):
    parsing._without_warnings()  # pytest has filters of its own for each test
    text = ROW["canonical_solution"] + "    1 is 1\n    '\\d'\n    1(2)\n"
    assert grade_humaneval(f"```python\n{ROW['prompt']}{text}```", ROW).correct
    assert [str(w.message) for w in recwarn if w.filename == "<completion>"] == []


WORDS = "and so it goes on\n" * 18_000  # 324,000 characters


@pytest.mark.parametrize(
    "text, reason",
    [
        (f"{WORDS}```python\n{ROW['prompt']}{ROW['canonical_solution']}```", "passed"),
        (f"```python\n{ROW['prompt']}{ROW['canonical_solution']}```\n{WORDS}", "passed"),
        (ROW["canonical_solution"] + WORDS, "passed"),
        (ROW["canonical_solution"] + "(" * 100_000, "passed"),
        (ROW["canonical_solution"] + "# more\n" * 9_500, "passed"),
        (f"```python\n{ROW['prompt']}{ROW['canonical_solution']}" + "# more\n" * 9_500, "passed"),
        ("    # more\n" * 9_500 + ROW["canonical_solution"], "AssertionError()"),  # what follows is not read
        ("    # " + "more " * 20_000 + "\n" + ROW["canonical_solution"], "longer than 65536 characters"),
        (ROW["canonical_solution"] + WORDS * 2, "longer than 500000 characters"),
        (WORDS * 2 + "</think>" + ROW["canonical_solution"], "passed"),
    ],
    ids=lambda value: repr(value[:12] + value[-12:]),
)
def test_the_program_of_a_long_text(text, reason, here):
    verdict = grade_humaneval(text, ROW)
    assert (verdict.reason or "passed") == reason and verdict.correct == (reason == "passed")
    assert len(verdict.answer) <= LONGEST_PROGRAM
