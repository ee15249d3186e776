# SPDX-License-Identifier: Apache-2.0
"""The program graders on every reference solution at hand, and on programs as models write them.

By default some eight tasks of each file are graded. TRL_SOFT_FULL=1 grades all: about five minutes on one core.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.benchmark_files import FULL, needs_data, rows
from trl_soft.evaluate.grading import GRADERS, extract_code
from trl_soft.evaluate.grading.row_tests import mbpp_tests
from trl_soft.evaluate.sandbox import isolation


def _sandbox_is_missing() -> str:
    try:
        isolation()
    except RuntimeError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(bool(_sandbox_is_missing()), reason=_sandbox_is_missing() or "-")


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


def test_code_is_found_in_a_completion():
    text = "Try:\n```python\ndef f(): return 1\n```\nor better\n```\ndef g(): return 2\n```\nRun\n```bash\nls\n```"
    assert extract_code(text, "f") == "def f(): return 1"
    assert extract_code(text) == "def f(): return 1\ndef g(): return 2"
    assert extract_code("```python\ndef f():\n    return 1", "f") == "def f():\n    return 1"
    assert extract_code("Code: ```python\ndef f():\n    return 1\n```\nDone", "f") == "def f():\n    return 1"
    inner = 'def f():\n    """\n    As in ```python\n    """\n    return 1'
    assert extract_code(f"```python\n{inner}\n```", "f") == inner
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


NOT_UNDER_TEST = {
    "a module that the row does not import": ("assert math.isclose(f(1), 3, rel_tol=0.01)", "def f(x): return 3", "class math: isclose = staticmethod(lambda *a, **k: True)"),
    "a module that the reference imports": ("assert m.isclose(f(1), 3)", "import math as m\ndef f(x): return 3", "class m: isclose = staticmethod(lambda *a: True)"),
    "a name that the reference imports": ("assert isclose(f(1), 3)", "from math import isclose\ndef f(x): return 3", "def isclose(a, b): return True"),
    "a value of the reference": ("assert f(1) == wanted", "wanted = 3\ndef f(x): return 3", "wanted = 0"),
    "a helper of the reference": ("assert same(f(1), 3)", "def same(a, b): return a == b\ndef f(x): return 3", "def same(a, b): return True"),
    "a helper beside a truth value": ("assert same(f(1), 3) == True", "def same(a, b): return a == b\ndef f(x): return 3", "def same(a, b): return True"),
    "a class of the reference": ("assert Box(f(1)).value == 3", "class Box:\n  def __init__(self, x): self.value = x\ndef f(x): return 3", "class Box: value = 3; __init__ = lambda self, x: None"),
}  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize("name", NOT_UNDER_TEST)
def test_what_is_not_under_test_is_not_the_programs(name):
    test, reference, cheat = NOT_UNDER_TEST[name]
    mbpp = {"code": reference, "test_list": [test]}
    assert GRADERS["code_mbpp"](f"```python\n{reference}\n```", mbpp).correct
    assert GRADERS["code_mbpp"]("```python\ndef f(x): return 3\n```", mbpp).correct
    assert not GRADERS["code_mbpp"](f"```python\n{cheat}\ndef f(x): return 0\n```", mbpp).correct
    before, _, _ = reference.rpartition("def f")
    humaneval = {
        "prompt": f"{before}def f(x):\n",
        "canonical_solution": "    return 3\n",
        "entry_point": "f",
        "test": f"def check(f):\n    {test}\n",
    }
    assert GRADERS["code_humaneval"]("    return 3\n", humaneval).correct
    assert not GRADERS["code_humaneval"](f"    return 0\n\n{cheat}\n", humaneval).correct


@pytest.mark.parametrize(
    "tests, reference, tested",
    [
        (("assert f(P(1)) == 3",), "class P: ...\ndef f(x): ...", ("f", "P")),
        (("assert f(r) == 3",), "class Node: ...\ndef g(x): ...\ndef f(x): ...", ("f", "Node")),  # r is the setup's
        (("assert f(make(1)) == 3",), "def make(x): ...\ndef f(x): ...", ("f", "make")),
        (("assert f(1) == 2", "assert near(f(3), 4) < 1"), "def near(a, b): ...\ndef f(x): ...", ("f",)),
        (("assert up(1) == 2", "assert down(1) == 0"), "def up(x): ...\ndef down(x): ...", ("down", "up")),
        (("assert f(f(1)) == 3",), "f = lambda x: x", ("f",)),
        (("assert not same(f(1), 3)",), "def same(a, b): ...\ndef f(x): ...", ("f",)),
        (("assert isclose(f(1), 3)",), "from math import isclose\ndef f(x): ...", ("f",)),
        (("assert (",), "def f(x): ...", ()),
    ],
)
def test_what_is_under_test(tests, reference, tested):
    assert mbpp_tests(tests, "r = Node(1)\n", reference).tested == tested
