# SPDX-License-Identifier: Apache-2.0
"""Mathematics: an answer is compared with the gold answer as numbers, sets and expressions, by math-verify."""

import atexit
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction

from .boxes import last_boxed
from .verdict import Verdict, after_thinking


_TAIL = 4000  # characters: where an answer without a \boxed is looked for; math-verify's patterns are slow on more
_STEP_SECONDS = 5  # one parse or one comparison
_JOB_SECONDS = 20.0  # all that math-verify does for one completion
_WORKER_BYTES = 4 << 30


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


_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d*)?|[+-]?\.\d+")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[!,;: ]|\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\q?quad(?![a-zA-Z])|[\s~]")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°")
_UNIT_WORDS = re.compile(
    r"(.*\d)(?:\s+|\s*\\(?:text|mathrm|mbox)\s*\{[~\s]*)([A-Za-z][A-Za-z./ ]+?)[\s}]*(?:\^\{?\d\}?)?"
)
_NOT_UNITS = re.compile(r"(?i)\b(?:pi|sqrt|sin|cos|tan|log|ln|or|and|to|if|million|billion|thousand|hundred|dozen)\b")


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
        code = "from trl_soft.evaluate.grading.mathematics import _serve; _serve()"
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


def grade_math(text: str, gold: str | MathGold | Mapping) -> Verdict:
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
