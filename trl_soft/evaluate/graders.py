# SPDX-License-Identifier: Apache-2.0
"""Graders: from a completion and a row's gold answer to a verdict and a class for majority voting."""

import ast
import atexit
import json
import os
import queue
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction

from .boxed import closing_brace
from .sandbox import run_program


_TAIL = 4000  # characters: where an answer without a \boxed is looked for; math-verify's patterns are slow on more
_STEP_SECONDS = 5  # one parse or one comparison
_JOB_SECONDS = 20.0  # all that math-verify does for one completion
_WORKER_BYTES = 4 << 30
_SOURCE_CHARACTERS = 65536
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Verdict:
    """
    What a grader found.

    Args:
        correct (`bool`): whether the answer is the gold answer.
        answer (`str`, *optional*): the answer as the completion wrote it, or the program that was run.
        vote (`str`, *optional*): the class of the answer: equal answers share it. `None` where there is no answer, and
            for programs, which are not voted on.
        reason (`str`): why a program failed, or why an answer could not be judged; empty otherwise.
    """

    correct: bool
    answer: str | None
    vote: str | None
    reason: str = ""


@dataclass(frozen=True)
class MathGold:
    """
    A gold answer with what has to be known to compare with it; a plain string stands for one with the defaults.

    Args:
        answer (`str`): LaTeX or plain.
        several (`bool`): the answer is several comma-separated ones, in any order, repetitions not counted.
        unit (`str`, *optional*): what may stand behind the answer.
        tolerance (`float`, *optional*): how far a number may be off.
    """

    answer: str
    several: bool = False
    unit: str | None = None
    tolerance: float | None = None

    @classmethod
    def of(cls, gold: "str | MathGold | Mapping") -> "MathGold":
        """Itself, a text, or the fields that `load_problems` reads of an OlympiadBench row."""
        if isinstance(gold, MathGold):
            return gold
        if isinstance(gold, Mapping):
            return cls.of_olympiadbench({**gold, "final_answer": [gold["answer"]]})
        return cls(str(gold))

    @classmethod
    def of_olympiadbench(cls, row: Mapping) -> "MathGold":
        """The gold answer of an OlympiadBench row (`final_answer`, `is_multiple_answer`, `unit`, `error`)."""
        (answer,) = row["final_answer"]
        tolerance = float(row["error"]) if row.get("error") else None
        return cls(answer, bool(row["is_multiple_answer"]), row.get("unit") or None, tolerance)


def after_thinking(text: str) -> str:
    """What follows the last `</think>`, or all of it."""
    return text.rpartition("</think>")[2]


def exact(text: str, gold: str) -> Verdict:
    """Right where the text after the last `</think>` is the gold answer to the letter, blanks at the ends aside."""
    answer = after_thinking(text).strip()
    return Verdict(answer == gold.strip(), answer or None, answer or None)


# ---------------------------------------------------------------------------------------------------- multiple choice

_WRAPPED = r"(?:\\(?:text|mathrm|textbf|mathbf)\s*\{\s*)?[({\[*\s]*([A-J])(?![A-Za-z'])"
_LETTER_PATTERNS = (
    re.compile(r"\\(?:boxed|fbox)\s*\{\s*" + _WRAPPED),
    re.compile(r"(?i:answer)[\s*]*(?:(?i:is|would be|should be)\b)?[\s*:$]*(?i:option\s+|choice\s+)?" + _WRAPPED),
    re.compile(r"(?m)^[\s*$(\[]*([A-J])[\s*$)\].:]*$"),
    re.compile(r"\(([A-J])\)"),
)


def letters(text: str, gold: str) -> Verdict:
    """
    Right where the chosen letter is the gold letter.

    The letter is the last one in a \\boxed; without one, the last behind the word "answer"; without one, the last that
    has a line to itself; without one, the last in parentheses.
    """
    tail = after_thinking(text)
    for pattern in _LETTER_PATTERNS:
        found = pattern.findall(tail)
        if found:
            return Verdict(found[-1] == gold.strip(), found[-1], found[-1])
    return Verdict(False, None, None)


def shuffled_options(options: Sequence[str], correct_index: int, seed: int | str) -> tuple[str, str]:
    """
    Options in an order drawn with `seed`, one a line behind its letter, and the letter of the right one.

    Args:
        options (sequence of `str`): at most ten.
        correct_index (`int`): which of `options` is right.
        seed (`int` or `str`): of this question, such as `f"{run_seed}:{question_id}"`; the same order on any machine.
    """
    if not 0 <= correct_index < len(options) <= len(_LETTERS):
        raise ValueError(
            f"`correct_index` is {correct_index} with {len(options)} options, but it must be one of them and there are "
            f"letters for {len(_LETTERS)} at most. Give the index, from 0, of the right option."
        )
    order = list(range(len(options)))
    random.Random(f"options {seed}").shuffle(order)  # a string: the same stream for 1 and "1"
    lines = [f"({letter}) {options[index]}" for letter, index in zip(_LETTERS, order)]
    return "\n".join(lines), _LETTERS[order.index(correct_index)]


# -------------------------------------------------------------------------------------------------------- mathematics

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_BETWEEN_BOXES = re.compile(r"[\s,;.$]*(?:\\?\\(?:text|quad|qquad)\s*(?:\{\s*)?)?(?:and|or)?[\s},;.$]*")
_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d*)?|[+-]?\.\d+")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[!,;: ]|\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\q?quad(?![a-zA-Z])|[\s~]")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°")
_UNIT_WORDS = re.compile(
    r"(.*\d)(?:\s+|\s*\\(?:text|mathrm|mbox)\s*\{[~\s]*)([A-Za-z][A-Za-z./ ]+?)[\s}]*(?:\^\{?\d\}?)?"
)
_NOT_UNITS = re.compile(r"(?i)\b(?:pi|sqrt|sin|cos|tan|log|ln|or|and|to|if|million|billion|thousand|hundred|dozen)\b")


def _closing(text: str, start: int) -> int | None:
    """Where the brace that opens at `start` closes, or `None`."""
    end = closing_brace(text[start + 1 :])
    return None if end is None else start + 1 + end


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every \\boxed, braces left out (`\\boxed 2`) or not; one that never closes is none."""
    found = []
    for match in _BOXED.finditer(text):
        if text[match.end() : match.end() + 1] == "{":
            end = _closing(text, match.end())
            if end is not None:
                found.append((match.start(), end + 1, text[match.end() + 1 : end].strip()))
        elif match.group() != "\\boxed" and match.group() != "\\fbox":
            content = re.match(r"[^\s$\\]+", text[match.end() :])
            if content:
                found.append((match.start(), match.end() + content.end(), content.group().rstrip(".,")))
    return found


def last_boxed(text: str, several: bool = False) -> str | None:
    """
    The content of the last \\boxed, or `None`; with `several`, of the last row of them, commas between.

    Args:
        several (`bool`): take \\boxed{1}, \\boxed{2} and \\boxed{3} as one answer `1,2,3`.
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    start, _, content = boxes[-1]
    for earlier_start, earlier_end, earlier in reversed(boxes[:-1] if several else []):
        if earlier_end > start or not _BETWEEN_BOXES.fullmatch(text[earlier_end:start]):
            break
        content, start = f"{earlier},{content}", earlier_start
    return content


def _bare(answer: str) -> str:
    """An answer without math marks, degrees, thin thousands commas, currency and the full stop behind it."""
    for mark in ("\\$", "$", "\\!", "\\[", "\\]", "\\(", "\\)"):
        answer = answer.replace(mark, "")
    answer = answer.replace("{,}", ",")
    return _DEGREES.sub("", answer).strip().rstrip(".").strip()


def _letters_of(answer: str) -> str:
    """The answer as letters only: what does not change its meaning is taken out."""
    answer = re.sub(r"\\[dt]frac", r"\\frac", _bare(answer))
    return _SPACES.sub("", _TEXT.sub(r"\1", answer))


def _number(answer: str) -> Fraction | None:
    bare = _SPACES.sub("", _bare(answer))
    return Fraction(bare.replace(",", "")) if _NUMBER.fullmatch(bare) and len(bare) < 100 else None


def _without_unit(answer: str, unit: str | None) -> str:
    """The answer without the row's unit, and without any words behind a number."""
    if unit:
        plain = unit.replace("$", "").strip()
        shapes = {plain, "\\" + plain, _TEXT.sub(r"\1", plain), f"\\text{{{plain}}}", f"\\mathrm{{{plain}}}"}
        for shape in sorted(shapes, key=len, reverse=True):
            if _bare(answer).endswith(shape):
                answer = _bare(answer).removesuffix(shape)
                break
    match = _UNIT_WORDS.fullmatch(_bare(answer))
    if match and _number(match.group(1)) is not None and not _NOT_UNITS.search(match.group(2)):
        return match.group(1)
    return answer


def _split(answer: str) -> list[str]:
    """The parts of an answer between commas that stand in no bracket, each \\pm as two."""
    answer = _bare(answer).replace("\\left", "").replace("\\right", "")
    if answer.startswith("\\{") and answer.endswith("\\}"):
        answer = answer[2:-2]
    answer = re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|;", ",", answer)
    parts, depth = [""], 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    signed = [[p.replace("\\pm", sign) for sign in "+-"] if "\\pm" in p else [p] for p in parts if p.strip()]
    return [part.strip().removeprefix("+") for pair in signed for part in pair]


def _show_number(value: Fraction) -> str:
    # Six decimals are what math-verify compares, so 1/3 and 0.333333 are one class.
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6f}"


def _canonical(expression) -> str:
    """A sympy object as text that is the same for equal numbers, sets in any order, and expanded polynomials."""
    import sympy

    if isinstance(expression, str):
        return _letters_of(expression)
    if isinstance(expression, sympy.Equality) and expression.lhs.is_Symbol:
        return _canonical(expression.rhs)
    if isinstance(expression, sympy.FiniteSet):
        return "{" + ",".join(sorted(_canonical(item) for item in expression.args)) + "}"
    if isinstance(expression, (sympy.Tuple, sympy.Interval)):
        return f"{type(expression).__name__}({','.join(_canonical(item) for item in expression.args)})"
    if isinstance(expression, sympy.Expr):
        if expression.is_number:
            return _canonical_number(expression)
        return str(sympy.expand(expression))
    return str(expression)


def _canonical_number(expression) -> str:
    value = expression.evalf(30)
    if not (value.is_real and value.is_finite):
        return str(expression)
    if abs(value) >= 1e25:  # 2019! has more digits than Python writes
        return str(value.evalf(15))
    number = Fraction(str(value))
    whole = Fraction(round(number))
    return _show_number(whole if abs(number - whole) < Fraction(1, 10**9) else number)


def _parsed(answer: str) -> list:
    from math_verify import parse

    return parse(f"${_bare(answer)}$", parsing_timeout=_STEP_SECONDS)


def _equal(gold: str, answer: str, tolerance: float | None) -> bool:
    from math_verify import verify

    if _letters_of(gold) and _letters_of(gold) == _letters_of(answer):
        return True
    left, right = _number(gold), _number(answer)
    if tolerance is not None and left is not None and right is not None:
        return abs(left - right) <= Fraction(str(tolerance))
    if left is not None and right is not None and left.denominator == right.denominator == 1:
        return left == right
    return bool(verify(_parsed(gold), _parsed(answer), timeout_seconds=_STEP_SECONDS))


def _class_of(answer: str) -> str:
    value = _number(answer)
    if value is not None:
        return _show_number(value)
    try:
        parsed = _parsed(answer)
        return _canonical(parsed[0]) if parsed else _letters_of(answer)
    except Exception:  # sympy fails in many ways; the answer is still told from others by its letters
        return _letters_of(answer)


def _judge(answer: str | None, tail: str, gold: MathGold) -> Verdict:
    """The slow path: everything that needs sympy. Runs in the worker, whose main thread takes math-verify's alarms."""
    from math_verify import parse

    if answer is None:
        extracted = parse(tail, parsing_timeout=_STEP_SECONDS)
        if not extracted:
            return Verdict(False, None, None)
        answer = str(extracted[-1])
    bare, target = _without_unit(answer, gold.unit), _without_unit(gold.answer, gold.unit)
    if gold.several:
        right, left = _split(bare), _split(target)
        # Equal as sets: each has its equal on the other side.
        correct = bool(right) and all(any(_equal(g, a, gold.tolerance) for a in right) for g in left)
        correct = correct and all(any(_equal(g, a, gold.tolerance) for g in left) for a in right)
        return Verdict(correct, answer, ",".join(sorted({_class_of(a) for a in right})))
    return Verdict(_equal(target, bare, gold.tolerance), answer, _class_of(bare))


def _serve() -> None:
    """The worker: one JSON job a line in, one verdict a line out, until the input ends."""
    import faulthandler
    import logging
    import resource

    logging.disable(logging.WARNING)  # math-verify's word on what could not be parsed, once a completion
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_BYTES, _WORKER_BYTES))
    sink = open(os.devnull, "w")
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        # The parent kills a worker that is late; this ends one whose parent is gone, even inside C code.
        faulthandler.dump_traceback_later(_JOB_SECONDS + 5, exit=True, file=sink)
        try:
            verdict = _judge(job["answer"], job["tail"], MathGold(**job["gold"]))
        except Exception as error:
            verdict = Verdict(False, job["answer"], _fallback_vote(job["answer"]), f"{type(error).__name__}: {error}")
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(asdict(verdict)), flush=True)


def _fallback_vote(answer: str | None) -> str | None:
    return None if answer is None else _letters_of(answer) or None


class _Worker:
    """
    A process that runs math-verify, started when first needed and again after it was killed.

    math-verify bounds itself by SIGALRM, which works in a main thread only, takes the alarm away from whoever set one,
    and cannot stop sympy inside one huge power. A process of its own has a main thread and can be killed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def _start(self) -> subprocess.Popen:
        code = "from trl_soft.evaluate.graders import _serve; _serve()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put("")

        threading.Thread(target=read, daemon=True).start()
        if lines.get(timeout=120) != "ready\n":
            raise RuntimeError(
                "The process that compares mathematical answers did not start, so nothing can be graded. Its error is "
                "above; `python -c 'import math_verify'` must work."
            )
        self._process, self._owner, self._lines = process, os.getpid(), lines
        return process

    def stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        self._process = None

    def judge(self, answer: str | None, tail: str, gold: MathGold) -> Verdict:
        with self._lock:
            process = self._process
            # A forked process must not share its parent's pipes.
            if process is None or self._owner != os.getpid() or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"answer": answer, "tail": tail, "gold": asdict(gold)}) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=_JOB_SECONDS)
            except (queue.Empty, BrokenPipeError):
                line = ""
            if not line:
                self.stop()
                reason = f"math-verify was stopped: longer than {_JOB_SECONDS:g} s, or out of memory"
                return Verdict(False, answer, _fallback_vote(answer), reason)
            return Verdict(**json.loads(line))


_worker = _Worker()
atexit.register(_worker.stop)


def math(text: str, gold: str | MathGold | Mapping) -> Verdict:
    """
    Right where math-verify finds the answer equal to the gold answer.

    The answer is the content of the last \\boxed after the last `</think>`, else what math-verify extracts from the last
    4,000 characters. Whole numbers are compared here, everything else in a process of its own that is killed after 20 s;
    works in any thread. An answer that cannot be judged in that time is wrong, and `reason` says so.

    Args:
        gold (`str`, [`MathGold`] or `dict`): the gold answer, in LaTeX or plain, with or without `$`; see `MathGold.of`.
    """
    gold = MathGold.of(gold)
    tail = after_thinking(text)
    answer = last_boxed(tail, gold.several)
    if answer is not None and not gold.several and gold.tolerance is None:
        left = _number(_without_unit(gold.answer, gold.unit))
        right = _number(_without_unit(answer, gold.unit))
        # Fractions of decimals are left to math-verify, which rounds.
        if left is not None and right is not None and (left == right or left.denominator == right.denominator == 1):
            return Verdict(left == right, answer, _show_number(right))
    return _worker.judge(answer, tail[-_TAIL:], gold)


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


def _run(source: str, tests: str, shadows: set[str], limits: Mapping) -> Verdict:
    if len(source) > _SOURCE_CHARACTERS:
        return Verdict(False, source[:_SOURCE_CHARACTERS], None, f"longer than {_SOURCE_CHARACTERS} characters")
    result = run_program(source, tests=tests, shadows=sorted(shadows), **limits)
    return Verdict(result.passed, source, None, "" if result.passed else result.reason)


def code_humaneval(text: str, gold: Mapping, **limits) -> Verdict:
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
    tests = f"{gold['test']}\n\ncheck({name})\n"
    return _run(source, tests, _top_level_names(gold["prompt"]) | {name}, limits)


def code_mbpp(text: str, gold: Mapping, **limits) -> Verdict:
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
    return _run(source, "\n".join([*setup, *gold["test_list"]]) + "\n", names, limits)


Grader = Callable[..., Verdict]

GRADERS: dict[str, Grader] = {
    "math": math,
    "letters": letters,
    "code_humaneval": code_humaneval,
    "code_mbpp": code_mbpp,
    "exact": exact,
}
