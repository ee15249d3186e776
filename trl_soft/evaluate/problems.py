# SPDX-License-Identifier: Apache-2.0
"""The problems of a benchmark, of a file or of a data set on the hub, each with its gold answer.

    problems = load_problems("math500", data_dir="data")  # without `data_dir` from the hub

Every row becomes a problem, or an error names the row.
"""

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .benchmarks import EXTENSIONS, LETTERS, Benchmark, Gold, SourceRow, get_benchmark, text_of


# First and last `task_id` of each split of MBPP, as its authors number them. The hub uses the same numbers.
_MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974), "all": (1, 974)}

# Wrong or missing answers of a source: the first 60 characters of the problem, the answer of the source, the right one.
# A correction applies only where the source still has that answer.
_CORRECTIONS = {
    # DeepScaleR, row 1716 of the hub: 3c is a square and 5c a cube, so c = 3**3 * 5**2.
    r"If $a<b<c<d<e$ are consecutive positive integers such that $": ("182", "675"),
    # MATH train: these two solutions end in an empty box; both show that there are no primes, choice (A) 0.
    r"For any integer $n>1$, the number of prime numbers greater t": ("", "0"),
    r"You are given a sequence of $58$ terms; each term has the fo": ("", "0"),
    # MATH train boxes these two without braces, and DeepScaleR's source file of MATH has no answer to them.
    r"What is the largest value of $x$, if $\frac{x}{5} + \frac{1}": ("", "2"),
    r"If $(x + y)^2 = 1$ and $xy = -4$, what is the value of $x^2 ": ("", "9"),
}


@dataclass(frozen=True)
class Problem:
    """
    One problem of a benchmark.

    Args:
        number (`int`): its number in the benchmark, from 0. A `limit` does not change it.
        question (`str`): the question. A multiple-choice question has its options.
        gold (`str` or `dict`):
            The gold answer, in the form that the grader compares with. Mathematics: LaTeX. OlympiadBench: a dict of
            `answer`, `answer_type`, `is_multiple_answer`, `unit` and `error`. Choices: a letter. Code: a dict with the
            fields of the source, the reference solution among them.
        meta (`dict`):
            `benchmark`, `kind` and `grader`; the other short fields of the source; `options` of a multiple-choice
            question; and `corrected`, the answer of the source if it was wrong or missing.
    """

    number: int
    question: str
    gold: Gold
    meta: SourceRow


def load_problems(
    name: str,
    data_dir: str | None = None,
    limit: int | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    split: str | None = None,
    seed: int = 0,
) -> list[Problem]:
    """
    The problems of a benchmark or of a training set.

    Args:
        name (`str`):
            A key of `BENCHMARKS`, a file (`.jsonl`, `.json`, both gzipped or not, `.csv`, `.parquet`) or a hub id
            (`owner/name`). A file or a hub id needs a question and an answer column; the `math` grader compares its
            answers.
        data_dir (`str`, *optional*): the folder with local files. `None` loads benchmarks from the hub.
        limit (`int`, *optional*): load only this many problems, from the first.
        question_column, answer_column (`str`, *optional*):
            `None` means the columns of the benchmark; `question` and `answer` for a file or a hub id.
        split (`str`, *optional*):
            Split of a data set on the hub. `None` means the split of the benchmark, and `test` for another hub id. For
            MBPP a local file also has splits, by `task_id`: `prompt`, `test`, `validation`, `train`, and `all`.
        seed (`int`): seed of the order of GPQA's options. Each problem draws its own order, by its number.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a row cannot be read (the message names the row), or if there is no problem at all.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"`limit` is {limit!r}, but it must be a whole number of problems, at least 1.")
    benchmark = get_benchmark(name, data_dir)
    benchmark = replace(
        benchmark,
        question_column=question_column or benchmark.question_column,
        answer_column=answer_column or benchmark.answer_column,
    )
    rows = _rows(benchmark, data_dir, split)
    if benchmark.exclude is not None:
        held_out = {p.question for p in load_problems(benchmark.exclude, data_dir)}
        rows = (row for row in rows if text_of(row, benchmark.question_column) not in held_out)
    problems: list[Problem] = []
    for number, row in enumerate(rows):
        if number == limit:
            break
        problems.append(_problem(benchmark, number, row, seed))
    if not problems:
        raise ValueError(
            f"{name} has no problems in split {split or benchmark.split!r}. Check the file and the split."
        )
    return problems


def _rows(benchmark: Benchmark, data_dir: str | None, split: str | None) -> Iterable[SourceRow]:
    """The rows of one split, from local files or from the hub."""
    mbpp = benchmark.grader == "code_mbpp"
    if benchmark.hub_id and (data_dir is None or not benchmark.files):
        from ..data import load_rows  # imported here: local JSON and CSV files do not need `datasets`

        split = split or benchmark.split
        every = "+".join(name for name in _MBPP_SPLITS if name != "all")
        return load_rows(benchmark.hub_id, every if mbpp and split == "all" else split, benchmark.config)
    if split not in (None, benchmark.split) and not mbpp:
        raise ValueError(
            f"`split` is {split!r}, but a local file is one split, here {benchmark.split or 'the whole file'!r}. "
            "Leave `split` unset, or load from the hub without `data_dir`."
        )
    paths = [_find(benchmark, file, data_dir) for file in benchmark.files]
    rows = (row for path in paths for row in _read_file(path))
    if not mbpp:
        return rows
    split = split or benchmark.split
    if split not in _MBPP_SPLITS:
        raise ValueError(f"`split` is {split!r}, which MBPP does not have. Choose one of {', '.join(_MBPP_SPLITS)}.")
    low, high = _MBPP_SPLITS[split]
    return (row for row in rows if low <= int(row["task_id"]) <= high)


def _find(benchmark: Benchmark, file: str, data_dir: str | None) -> str:
    """The path of a benchmark's file in `data_dir`, under any of the known extensions."""
    path = os.path.join(data_dir or "", file)
    if os.path.isfile(path):
        return path
    stem = os.path.join(data_dir or "", file.split(".")[0])
    for extension in EXTENSIONS:
        if os.path.isfile(stem + extension):
            return stem + extension
    raise FileNotFoundError(
        f"{benchmark.name} has no file {path} (nor in another of the formats {', '.join(EXTENSIONS)}). Put it there, "
        f"or leave `data_dir` unset to load {benchmark.hub_id} from the hub."
    )


def _read_file(path: str) -> Iterable[SourceRow]:
    """Rows of a local file. JSON is read here: `datasets` refuses a file whose rows differ in their fields."""
    if path.endswith(".parquet"):
        from ..data import load_rows

        return load_rows(path)
    with open(path, "rb") as file:
        data = file.read()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    stem = path.removesuffix(".gz")
    if stem.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text, newline="")))
    if stem.endswith(".jsonl"):
        rows = [_parse(path, n, line) for n, line in enumerate(text.split("\n")) if line.strip()]
    elif stem.endswith(".json"):
        rows = _parse(path, 0, text)
    else:
        raise ValueError(
            f"{path} ends in none of {', '.join(EXTENSIONS)}, so its format is unknown. Rename or convert it."
        )
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} does not hold objects with named fields. Make each problem one JSON object.")
    return rows


def _parse(path: str, line: int, text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON at line {line + error.lineno}: {error.msg}. Correct the file.") from error


def _problem(benchmark: Benchmark, number: int, row: SourceRow, seed: int) -> Problem:
    """The problem in one row. If the row has none, a `ValueError` names the row."""
    place = f"Row {number} of {benchmark.name}"
    for name in ("question_column", "answer_column"):
        column = getattr(benchmark, name)
        if column not in row:
            raise ValueError(f"{place} has no column {column!r}, only {list(row)}. Set `{name}` to one of them.")
    # HumanEval's question is the beginning of a program: blanks at its ends belong to it.
    question = (
        row[benchmark.question_column] if benchmark.kind == "humaneval" else text_of(row, benchmark.question_column)
    )
    if not question:
        raise ValueError(
            f"{place} has no question: its {benchmark.question_column!r} is empty. Correct or remove the row."
        )
    meta: SourceRow = {"benchmark": benchmark.name, "kind": benchmark.kind, "grader": benchmark.grader}
    long = (benchmark.question_column, benchmark.answer_column, "solution", "problem", "question", "code", "test")
    meta |= {k: v for k, v in row.items() if k not in (*long, *meta) and isinstance(v, str | int | float)}
    if benchmark.kind == "choice":
        row = {**row, "options": _options(row, benchmark.answer_column, place, random.Random(f"{seed}/{number}"))}
        meta = {k: v for k, v in meta.items() if k in ("benchmark", "kind", "grader", "Record ID", "Subdomain")}
        meta["options"] = row["options"]
        question += "\n\n" + "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, row["options"]))
    try:
        gold = benchmark.read_gold(row, benchmark.answer_column)
    except KeyError as error:
        raise ValueError(f"{place} has no column {error}, only {list(row)}. Give the original rows.") from error
    except ValueError as error:
        raise ValueError(f"{place} cannot be read: {error}.") from error
    wrong, right = _CORRECTIONS.get(question[:60], (None, ""))
    if gold == wrong:
        gold, meta["corrected"] = right, gold
    if gold == "":
        raise ValueError(
            f"{place} has no answer: its {benchmark.answer_column!r} is empty. Correct or remove the row."
        )
    return Problem(number, question, gold, meta)


def _options(row: SourceRow, answer_column: str, place: str, rng: random.Random) -> list[str]:
    """The four options, in random order."""
    columns = (answer_column, *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    absent = [column for column in columns if column not in row or not text_of(row, column)]
    if absent:
        raise ValueError(f"{place} has nothing in {absent}, and GPQA has four options. Correct or remove the row.")
    options = [text_of(row, column) for column in columns]
    if options[0] in options[1:]:
        raise ValueError(
            f"{place} has its right answer {options[0]!r} among the wrong ones. Correct or remove the row."
        )
    rng.shuffle(options)
    return options
