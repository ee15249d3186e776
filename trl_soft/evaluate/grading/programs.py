# SPDX-License-Identifier: Apache-2.0
"""Programs: the code in a completion, run against the tests of HumanEval or MBPP in the sandbox."""

import ast
import re
from collections.abc import Mapping, Sequence

from ..sandbox import run_program
from .verdict import Verdict, after_thinking


_SOURCE_CHARACTERS = 65536
_FENCE = re.compile(r"```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def _defines(source: str, name: str) -> bool:
    return (
        re.search(rf"(?m)^(?:async[ \t]+def|def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}\s*=", source)
        is not None
    )


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _longest_program(head: str, body: str) -> str:
    """`head` and as many lines of `body` as make a program: base models write on after the answer."""
    lines = body.split("\n")
    for count in range(len(lines), 0, -1):
        source = head + "\n".join(lines[:count])
        if _parses(source):
            return source
    return head + body


def extract_code(text: str, name: str | None = None) -> str | None:
    """
    The program in the last fenced block that defines `name`, else in all Python blocks together, else `None`.

    Args:
        name (`str`, *optional*): a function or class. A block that the text breaks off in counts as far as it goes.
    """
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in ("", "python", "python3", "py")]
    if not blocks:
        return None
    naming = [block for block in blocks if name is not None and _defines(block, name)]
    return naming[-1] if naming else "\n".join(blocks)


def _top_level_names(source: str) -> set[str]:
    try:
        nodes = ast.parse(source).body
    except SyntaxError:
        return set()
    names = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return names | {target.id for target in targets if isinstance(target, ast.Name)}


def _run(source: str, setup: str, tests: str, tested: Sequence[str], limits: Mapping) -> Verdict:
    if len(source) > _SOURCE_CHARACTERS:
        return Verdict(False, source[:_SOURCE_CHARACTERS], None, f"longer than {_SOURCE_CHARACTERS} characters")
    result = run_program(source, setup=setup, tests=tests, tested=tested, **limits)
    return Verdict(result.passed, source, None, "" if result.passed else result.reason)


def grade_humaneval(text: str, gold: Mapping, **limits) -> Verdict:
    """
    Right where the program passes the row's tests in the sandbox.

    A completion with a fenced block, or one that defines the function anew, comes behind the prompt, whose imports and
    helpers it may use; any other completion continues the prompt, as far as the two make a program.

    Args:
        gold: the HumanEval row (`prompt`, `test`, `entry_point`).
        limits: for [`~trl_soft.evaluate.sandbox.run_program`].
    """
    text, name = after_thinking(text), gold["entry_point"]
    block = extract_code(text, name)
    body = text if block is None else block
    if _defines(body, name):
        source = _longest_program(gold["prompt"] + "\n\n", body)
    else:
        source = _longest_program(gold["prompt"], body)
    # The prompt's own helpers, which some tests call, are the task's and not the completion's.
    return _run(source, gold["prompt"], f"{gold['test']}\n\ncheck({name})\n", [name], limits)


def grade_mbpp(text: str, gold: Mapping, **limits) -> Verdict:
    """
    Right where the program passes the row's `test_list` in the sandbox.

    Args:
        gold: the MBPP row, full or sanitized (`test_list`, `code`, and `test_setup_code` or `test_imports`).
        limits: for [`~trl_soft.evaluate.sandbox.run_program`].
    """
    # The few-shot prompt of Austin et al. puts programs between these two.
    before, _, after = after_thinking(text).partition("[DONE]")[0].partition("[BEGIN]")
    body = after or before
    # What the reference solution defines: a task may ask for a function called `sum`.
    names = _top_level_names(gold["code"].replace("\r\n", "\n"))
    tested = [name for name in names if any(re.search(rf"\b{re.escape(name)}\b", test) for test in gold["test_list"])]
    block = extract_code(body, tested[0] if tested else None)
    source = _longest_program("", body if block is None else block)
    setup = [gold.get("test_setup_code") or "", *(gold.get("test_imports") or [])]
    return _run(source, "\n".join(setup) + "\n", "\n".join(gold["test_list"]) + "\n", sorted(names), limits)
