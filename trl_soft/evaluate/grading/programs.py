# SPDX-License-Identifier: Apache-2.0
"""Programs: the code in a completion, run against the tests of HumanEval or MBPP in the sandbox."""

from collections.abc import Mapping

from ..sandbox import run_program
from .code import defines, extract_code, longest_program, names_defined, unfenced_program
from .parsing import LONGEST_PROGRAM, one_text, parses
from .row_tests import RowTests, humaneval_tests, mbpp_tests
from .verdict import Verdict, after_thinking, unreadable


LONGEST_TEXT = 500_000  # characters after the last `</think>` that are searched for a program


def _run(source: str, row: RowTests, limits: Mapping) -> Verdict:
    if len(source) > LONGEST_PROGRAM:
        return _refused(source, LONGEST_PROGRAM)
    result = run_program(
        source, setup=row.setup, tests=row.tests, tested=row.tested, reference=row.reference, **limits
    )
    return Verdict(result.passed, source, None, "" if result.passed else result.reason)


def _refused(text: str, longest: int) -> Verdict:
    return Verdict(False, text[:LONGEST_PROGRAM], None, f"longer than {longest} characters")


def grade_humaneval(text: str, gold: Mapping, **limits) -> Verdict:
    """
    Right if the program passes the row's tests in the sandbox.

    A completion that defines the function, in a fenced block or without one, is put after the prompt, so that it may use the
    prompt's imports and helpers. Every other completion continues the prompt, as far as the two make a program. The lines of
    a program within 65,536 characters are read. A text of more than 500,000 characters after the last `</think>` is wrong,
    and `reason` says so.

    Args:
        gold: the HumanEval row (`prompt`, `test`, `entry_point`, and `canonical_solution`, the reference, if the row has it).
        limits: for [`~trl_soft.evaluate.sandbox.run_program`].
    """
    text, name, prompt = after_thinking(text), gold["entry_point"], gold["prompt"]
    if len(text) > LONGEST_TEXT:
        return _refused(text, LONGEST_TEXT)
    head = prompt if parses(prompt) else prompt.rstrip() + "\n    pass\n"  # a signature alone is not a program
    reference = gold.get("canonical_solution")
    row = humaneval_tests(head, gold["test"], name, None if reference is None else prompt + reference)
    try:
        with one_text():
            source = _humaneval_program(text, prompt, head, name)
    except Exception as error:
        return unreadable(text, error)
    return _run(source, row, limits)


def _humaneval_program(text: str, prompt: str, head: str, name: str) -> str:
    block = extract_code(text, name, given=names_defined(head) - {name})
    body = unfenced_program(text, name) if block is None else block
    return longest_program(head + "\n\n", body)[0] if defines(body, name) else _continued(prompt, body)


def _continued(prompt: str, body: str) -> str:
    """The prompt and the body of its function. The body may have lost the blanks at its beginning."""
    texts = [body]
    if not next((line for line in body.split("\n") if line.strip()), " ")[0].isspace():
        # Python parses `return` outside a function, so the indented readings are tried first.
        indented = "\n".join("    " + line if line.strip() else line for line in body.split("\n"))
        texts = [indented, "    " + body.lstrip(), body]
    return max((longest_program(prompt, text) for text in texts), key=lambda program: program[1])[0]


def grade_mbpp(text: str, gold: Mapping, **limits) -> Verdict:
    """
    Right if the program passes the row's `test_list` in the sandbox. The lines of a program within 65,536 characters are read.
    A text of more than 500,000 characters after the last `</think>` is wrong, and `reason` says so.

    Args:
        gold: the MBPP row, full or sanitized (`test_list`, `code`, and `test_setup_code` or `test_imports`).
        limits: for [`~trl_soft.evaluate.sandbox.run_program`].
    """
    text = after_thinking(text)
    if len(text) > LONGEST_TEXT:
        return _refused(text, LONGEST_TEXT)
    setup = "\n".join([gold.get("test_setup_code") or "", *(gold.get("test_imports") or [])]) + "\n"
    row = mbpp_tests(tuple(gold["test_list"]), setup, gold["code"].replace("\r\n", "\n"))
    try:
        with one_text():
            source = _mbpp_program(text, row.tested)
    except Exception as error:
        return unreadable(text, error)
    return _run(source, row, limits)


def _mbpp_program(text: str, tested: tuple[str, ...]) -> str:
    # The few-shot prompt of Austin et al. puts programs between these two.
    before, _, after = text.partition("[DONE]")[0].partition("[BEGIN]")
    body = after or before
    name = tested[0] if tested else None
    block = extract_code(body, name, needed=tested)
    return longest_program("", unfenced_program(body, name) if block is None else block)[0]
