# SPDX-License-Identifier: Apache-2.0
"""The benchmarks and training sets: where each one lies, and how a gold answer is read from its rows."""

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..golds import gold_text, without_thousands
from .grading.boxes import last_boxed


SourceRow = dict[str, Any]
Gold = str | dict[str, Any]

KINDS = ("math", "choice", "humaneval", "mbpp", "question")
LETTERS = "ABCD"
EXTENSIONS = (".jsonl.gz", ".json.gz", ".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Benchmark:
    """
    Where the rows of a benchmark are, and how they are read.

    Args:
        name (`str`).
        hub_id (`str`), config (`str`, *optional*), split (`str`): of the data set on the hub.
        files (`tuple[str, ...]`):
            Names of its files in `data_dir`, which are read one after the other. A file may also lie there in another
            format of `EXTENSIONS`.
        question_column, answer_column (`str`).
        read_gold: a function of a row and the name of its answer column. It returns the gold answer for the grader, or
            raises a `ValueError`.
        grader (`str`): a key of [`~trl_soft.evaluate.grading.GRADERS`].
        kind (`str`): one of `KINDS`. It selects the prompt of a preset.
        exclude (`str`, *optional*): name of a benchmark; its problems are left out of this one.
    """

    name: str
    hub_id: str
    config: str | None
    split: str
    files: tuple[str, ...]
    question_column: str
    answer_column: str
    read_gold: Callable[[SourceRow, str], Gold]
    grader: str = "math"
    kind: str = "math"
    exclude: str | None = None


def text_of(row: SourceRow, column: str) -> str:
    """The text in a column, without blanks at its ends. Empty if the column has none."""
    return gold_text(row[column]) or ""


def _read_text(row: SourceRow, column: str) -> Gold:
    return text_of(row, column)


def _read_gsm8k(row: SourceRow, column: str) -> Gold:
    _, mark, answer = text_of(row, column).rpartition("#### ")
    if not mark:
        raise ValueError(f"{column!r} holds no `#### ` before a final answer. Give the original GSM8K rows")
    return _integer(without_thousands(answer))


def _read_boxed(row: SourceRow, column: str) -> Gold:
    answer = last_boxed(text_of(row, column))
    if answer is None:
        raise ValueError(rf"{column!r} holds no complete \boxed{{...}}. Give a worked solution that ends in one")
    return answer


def _read_integer(row: SourceRow, column: str) -> Gold:
    return _integer(text_of(row, column))


def _integer(text: str) -> str:
    """An integer without zero padding (AIME's `073`), a degree mark (`336^\\circ`) or a decimal point (AMC's `27.0`)."""
    match = re.fullmatch(r"\$?(-?\d+)(?:\.0+)?(?:\^\\circ|\^\{\\circ\})?\$?", text)
    if match is None:
        raise ValueError(f"the answer is {text!r}, which is no integer. Correct it, or load the file by its path")
    return str(int(match.group(1)))


def _read_olympiad(row: SourceRow, column: str) -> Gold:
    answers = row[column]
    answer = gold_text(answers) if isinstance(answers, list) and len(answers) == 1 else None
    if answer is None:
        raise ValueError(f"{column!r} is {answers!r} where OlympiadBench has a list of one text. Correct the row")
    rest = {name: row.get(name) for name in ("answer_type", "is_multiple_answer", "unit", "error")}
    # The hub has the flag as text in some copies, and bool("False") is true.
    return {"answer": answer, **rest, "is_multiple_answer": str(rest["is_multiple_answer"]) == "True"}


def _read_humaneval(row: SourceRow, column: str) -> Gold:
    _check_texts(row, ("prompt", "entry_point", "test"))
    return {name: row[name] for name in ("task_id", "prompt", "entry_point", "test", "canonical_solution")}


def _check_texts(row: SourceRow, names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"{name!r} is {row[name]!r}, and no program can be judged without it. Correct the row")


def _read_mbpp(row: SourceRow, column: str) -> Gold:
    if not row["test_list"]:
        raise ValueError("`test_list` is empty, so no program could be wrong. Correct the row")
    _check_texts(row, ("code",))
    gold = {name: row[name] for name in ("task_id", "test_list", "code")}
    # Each version of MBPP has only one of the two.
    return {**gold, "test_setup_code": row.get("test_setup_code") or "", "test_imports": row.get("test_imports") or []}


def _read_choice(row: SourceRow, column: str) -> Gold:
    return LETTERS[row["options"].index(text_of(row, column))]


# A training set may share problems with an evaluation set: 3 problems of math_train are also in olympiadbench, and at
# least 3 of deepscaler in math500. `contamination` of the training scripts counts them.
BENCHMARKS: dict[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark("gsm8k", "openai/gsm8k", "main", "test", ("gsm8k_test.jsonl.gz",), "question", "answer", _read_gsm8k),
        Benchmark(
            "math500", "HuggingFaceH4/MATH-500", None, "test", ("math500.jsonl.gz",), "problem", "answer", _read_text
        ),
        Benchmark(
            "aime24", "HuggingFaceH4/aime_2024", None, "train", ("aime24.jsonl.gz",), "problem", "answer", _read_integer
        ),
        Benchmark("aime25", "math-ai/aime25", None, "test", ("aime25.jsonl.gz",), "problem", "answer", _read_integer),
        Benchmark("amc23", "math-ai/amc23", None, "test", ("amc23.jsonl.gz",), "question", "answer", _read_integer),
        Benchmark(
            "olympiadbench", "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train",
            ("olympiadbench_math_en.jsonl.gz",), "question", "final_answer", _read_olympiad,
        ),
        Benchmark(
            "gpqa_diamond", "Idavidrein/gpqa", "gpqa_diamond", "train", ("gpqa_diamond.csv",), "Question",
            "Correct Answer", _read_choice, "letters", "choice",
        ),
        Benchmark(
            "humaneval", "openai/openai_humaneval", None, "test", ("HumanEval.jsonl.gz",), "prompt",
            "canonical_solution", _read_humaneval, "code_humaneval", "humaneval",
        ),
        Benchmark(
            "mbpp", "google-research-datasets/mbpp", "full", "test", ("mbpp.jsonl.gz",), "text", "test_list",
            _read_mbpp, "code_mbpp", "mbpp",
        ),
        Benchmark(
            "mbpp_sanitized", "google-research-datasets/mbpp", "sanitized", "test", ("mbpp_sanitized.json.gz",),
            "prompt", "test_list", _read_mbpp, "code_mbpp", "mbpp",
        ),
        Benchmark(
            "gsm8k_train", "openai/gsm8k", "main", "train", ("gsm8k_train.jsonl.gz",), "question", "answer", _read_gsm8k
        ),
        Benchmark(
            "math_train", "DigitalLearningGmbH/MATH-lighteval", None, "train", ("math_train.jsonl.gz",), "problem",
            "solution", _read_boxed,
        ),
        # Lightman et al. 2023 train on these 12,000.
        Benchmark(
            "math12k", "DigitalLearningGmbH/MATH-lighteval", None, "train+test",
            ("math_train.jsonl.gz", "math_test.jsonl.gz"), "problem", "solution", _read_boxed, exclude="math500",
        ),
        # The hub has 40,315 rows; the file holds some of them.
        Benchmark(
            "deepscaler", "agentica-org/DeepScaleR-Preview-Dataset", None, "train", ("deepscaler_subset.jsonl.gz",),
            "problem", "answer", _read_text,
        ),
    )
}  # fmt: skip


def get_benchmark(name: str, data_dir: str | None = None) -> Benchmark:
    """
    The benchmark with this name, or a benchmark made for a file or a hub id.

    Raises:
        FileNotFoundError: if `name` looks like a file that does not exist.
        ValueError: if `name` is not a benchmark, a file or a hub id.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    path = os.path.join(data_dir or "", name)
    rest = ("question", "answer", _read_text, "math", "question")
    if os.path.isfile(path):
        return Benchmark(name, "", None, "", (name,), *rest)
    if name.endswith((*EXTENSIONS, ".gz")):
        raise FileNotFoundError(
            f"The data file {path} does not exist (looked from {os.getcwd()}). Correct the path, or name one of "
            f"{', '.join(BENCHMARKS)}."
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        near = difflib.get_close_matches(name, BENCHMARKS, 1)
        raise ValueError(
            f"{name!r} is not a benchmark, a file or a hub id (owner/name). "
            + (f"Did you mean {near[0]!r}? " if near else "")
            + f"Choose one of {', '.join(BENCHMARKS)}, or give a file or a hub id."
        )
    return Benchmark(name, name, None, "test", (), *rest)
