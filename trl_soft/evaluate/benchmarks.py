# SPDX-License-Identifier: Apache-2.0
"""Benchmarks with their gold answers, and how each paper asks, caps, samples and reads, for evaluation and training.

problems = load_problems("math500", data_dir="data")        # or from the hub
prompt = build_prompt(problems[0], "soft_grpo", tokenizer)
"""

import csv
import difflib
import gzip
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..golds import gold_text, without_thousands
from .grading.boxes import last_boxed
from .grading.forced import ANNOUNCED, final_box


if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
Gold = str | dict[str, Any]

KINDS = ("math", "choice", "humaneval", "mbpp", "question")
LETTERS = "ABCD"
_EXTENSIONS = (".jsonl.gz", ".json.gz", ".jsonl", ".json", ".csv", ".parquet")

# MBPP's splits by `task_id`, as its authors number them; the hub's configurations follow the same numbers.
_MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974), "all": (1, 974)}

# Answers that a source has wrong or left empty: the problem's first 60 characters, the source's answer, the right one.
# An answer that a source has mended is left alone.
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
    One problem.

    Args:
        number (`int`): its number in the benchmark, from 0; the same with and without a `limit`.
        question (`str`): what is asked, the options of a choice included.
        gold (`str` or `dict`):
            What its grader compares with. Mathematics: the answer in LaTeX; OlympiadBench: a dict of `answer`,
            `answer_type`, `is_multiple_answer`, `unit`, `error`. Choices: a letter. Code: a dict with the names of the
            source, its reference solution among them.
        meta (`dict`):
            `benchmark`, `kind`, `grader`; the source's other short fields; `options` of a choice; `corrected`, the
            source's answer where `gold` differs from it because it was wrong or missing.
    """

    number: int
    question: str
    gold: Gold
    meta: Row


def _text(row: Row, column: str) -> str:
    return gold_text(row[column]) or ""


def _read_text(row: Row, column: str) -> Gold:
    return _text(row, column)


def _read_gsm8k(row: Row, column: str) -> Gold:
    _, mark, answer = _text(row, column).rpartition("#### ")
    if not mark:
        raise ValueError(f"{column!r} holds no `#### ` before a final answer. Give the original GSM8K rows")
    return _integer(without_thousands(answer))


def _read_boxed(row: Row, column: str) -> Gold:
    answer = last_boxed(_text(row, column))
    if answer is None:
        raise ValueError(rf"{column!r} holds no complete \boxed{{...}}. Give a worked solution that ends in one")
    return answer


def _read_integer(row: Row, column: str) -> Gold:
    return _integer(_text(row, column))


def _integer(text: str) -> str:
    """An integer without zero padding (AIME's `073`), a degree mark (`336^\\circ`) or a decimal point (AMC's `27.0`)."""
    match = re.fullmatch(r"\$?(-?\d+)(?:\.0+)?(?:\^\\circ|\^\{\\circ\})?\$?", text)
    if match is None:
        raise ValueError(f"the answer is {text!r}, which is no integer. Correct it, or load the file by its path")
    return str(int(match.group(1)))


def _read_olympiad(row: Row, column: str) -> Gold:
    answers = row[column]
    answer = gold_text(answers) if isinstance(answers, list) and len(answers) == 1 else None
    if answer is None:
        raise ValueError(f"{column!r} is {answers!r} where OlympiadBench has a list of one text. Correct the row")
    rest = {name: row.get(name) for name in ("answer_type", "is_multiple_answer", "unit", "error")}
    # The hub has the flag as text in some copies, and bool("False") is true.
    return {"answer": answer, **rest, "is_multiple_answer": str(rest["is_multiple_answer"]) == "True"}


def _read_humaneval(row: Row, column: str) -> Gold:
    _check_texts(row, ("prompt", "entry_point", "test"))
    return {name: row[name] for name in ("task_id", "prompt", "entry_point", "test", "canonical_solution")}


def _check_texts(row: Row, names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"{name!r} is {row[name]!r}, and no program can be judged without it. Correct the row")


def _read_mbpp(row: Row, column: str) -> Gold:
    if not row["test_list"]:
        raise ValueError("`test_list` is empty, so no program could be wrong. Correct the row")
    _check_texts(row, ("code",))
    gold = {name: row[name] for name in ("task_id", "test_list", "code")}
    # Only one of the two is in either version.
    return {**gold, "test_setup_code": row.get("test_setup_code") or "", "test_imports": row.get("test_imports") or []}


def _read_choice(row: Row, column: str) -> Gold:
    return LETTERS[row["options"].index(_text(row, column))]


@dataclass(frozen=True)
class Benchmark:
    """
    Where a benchmark lies and how its rows are read.

    Args:
        name (`str`).
        hub_id (`str`), config (`str`, *optional*), split (`str`): where it lies on the hub.
        files (`tuple[str, ...]`): its files in `--data_dir`, one after the other; `.gz` or not, and other formats.
        question_column, answer_column (`str`).
        read_gold: the grader's gold from a row and the name of its answer column; raises `ValueError`.
        grader (`str`): a key of [`~trl_soft.evaluate.grading.GRADERS`].
        kind (`str`): one of `KINDS`: which of a preset's prompts asks it.
        exclude (`str`, *optional*): the benchmark whose problems are left out.
    """

    name: str
    hub_id: str
    config: str | None
    split: str
    files: tuple[str, ...]
    question_column: str
    answer_column: str
    read_gold: Callable[[Row, str], Gold]
    grader: str = "math"
    kind: str = "math"
    exclude: str | None = None


# gpqa_diamond and amc23 are not in everyone's reach as files; with a file of the hub's rows `--data_dir` reads them too.
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
        # The file is a part of the 40,315 rows on the hub.
        Benchmark(
            "deepscaler", "agentica-org/DeepScaleR-Preview-Dataset", None, "train", ("deepscaler_subset.jsonl.gz",),
            "problem", "answer", _read_text,
        ),
    )
}  # fmt: skip


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
    The problems of a benchmark or training set, all of them or an error that names the row.

    Args:
        name (`str`):
            A key of `BENCHMARKS`; or a `.jsonl`, `.json` (gzipped or not), `.csv` or `.parquet` file or a hub id
            (`owner/name`) with a question and an answer column, whose answers the `math` grader compares.
        data_dir (`str`, *optional*): the folder with local files. `None` loads benchmarks from the hub.
        limit (`int`, *optional*): only the first so many.
        question_column, answer_column (`str`, *optional*):
            `None` is the benchmark's own, `question` and `answer` for a file or hub id.
        split (`str`, *optional*):
            Of a hub data set; `None` is the benchmark's own, `test` for another hub id. MBPP also has its splits in a
            local file, by `task_id`: `prompt`, `test`, `validation`, `train`, and `all`.
        seed (`int`): of the order of GPQA's options, drawn for each problem by its number.
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
        rows = (row for row in rows if _text(row, benchmark.question_column) not in held_out)
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


def get_benchmark(name: str, data_dir: str | None = None) -> Benchmark:
    """The benchmark of a name, or one for a file or hub id with `question` and `answer` columns; a `ValueError`."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    path = os.path.join(data_dir or "", name)
    rest = ("question", "answer", _read_text, "math", "question")
    if os.path.isfile(path):
        return Benchmark(name, "", None, "", (name,), *rest)
    if name.endswith((*_EXTENSIONS, ".gz")):
        raise FileNotFoundError(
            f"The data file {path} does not exist (looked from {os.getcwd()}). Correct the path, or name one of "
            f"{', '.join(BENCHMARKS)}."
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        near = difflib.get_close_matches(name, BENCHMARKS, 1)
        raise ValueError(
            f"{name!r} is no benchmark, no file and no hub id (owner/name). "
            + (f"Did you mean {near[0]!r}? " if near else "")
            + f"Choose one of {', '.join(BENCHMARKS)}, or give a file or a hub id."
        )
    return Benchmark(name, name, None, "test", (), *rest)


def _rows(benchmark: Benchmark, data_dir: str | None, split: str | None) -> Iterable[Row]:
    """The rows of one split, from the local files or from the hub."""
    mbpp = benchmark.grader == "code_mbpp"
    if benchmark.hub_id and (data_dir is None or not benchmark.files):
        from ..data import load_rows  # here, so that prompts and golds need no `datasets`

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
    """The path of a benchmark's file in `data_dir`, in whichever format it lies there."""
    path = os.path.join(data_dir or "", file)
    if os.path.isfile(path):
        return path
    stem = os.path.join(data_dir or "", file.split(".")[0])
    for extension in _EXTENSIONS:
        if os.path.isfile(stem + extension):
            return stem + extension
    raise FileNotFoundError(
        f"{benchmark.name} has no file {path} (nor in another of the formats {', '.join(_EXTENSIONS)}). Put it there, "
        f"or leave `data_dir` unset to load {benchmark.hub_id} from the hub."
    )


def _read_file(path: str) -> Iterable[Row]:
    """Rows of a local file. JSON is read by itself: where rows differ in their fields, `datasets` refuses the file."""
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
            f"{path} ends in none of {', '.join(_EXTENSIONS)}, so how to read it is unknown. Rename or convert it."
        )
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} does not hold objects with named fields. Make each problem one JSON object.")
    return rows


def _parse(path: str, line: int, text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON at line {line + error.lineno}: {error.msg}. Correct the file.") from error


def _problem(benchmark: Benchmark, number: int, row: Row, seed: int) -> Problem:
    """One row as a problem; a `ValueError` that names the row where it cannot be one."""
    place = f"Row {number} of {benchmark.name}"
    for name in ("question_column", "answer_column"):
        column = getattr(benchmark, name)
        if column not in row:
            raise ValueError(f"{place} has no column {column!r}, only {list(row)}. Set `{name}` to one of them.")
    # A function's signature is followed by its body, so HumanEval's blanks at the ends belong to it.
    question = (
        row[benchmark.question_column] if benchmark.kind == "humaneval" else _text(row, benchmark.question_column)
    )
    if not question:
        raise ValueError(
            f"{place} asks nothing: its {benchmark.question_column!r} is empty. Correct or remove the row."
        )
    meta: Row = {"benchmark": benchmark.name, "kind": benchmark.kind, "grader": benchmark.grader}
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


def _options(row: Row, answer_column: str, place: str, rng: random.Random) -> list[str]:
    """The four options in a drawn order."""
    columns = (answer_column, *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    absent = [column for column in columns if column not in row or not _text(row, column)]
    if absent:
        raise ValueError(f"{place} has nothing in {absent}, and GPQA has four options. Correct or remove the row.")
    options = [_text(row, column) for column in columns]
    if options[0] in options[1:]:
        raise ValueError(
            f"{place} has its right answer {options[0]!r} among the wrong ones. Correct or remove the row."
        )
    rng.shuffle(options)
    return options


@dataclass(frozen=True)
class Ask:
    """
    How a preset asks one kind of benchmark and reads the answer.

    Args:
        user (`str`): the user's message, or the whole text; holds `{question}`, and `{tests}` for MBPP.
        answer_after (`str`, *optional*): the answer is what follows its first occurrence; `None`: the whole completion.
        answer_prefill (`tuple[str, str]`, *optional*): forced after a thought that ended itself, and that was cut.
        max_answer_length (`int`, *optional*): cap of the answer in tokens; `None`: what the thought leaves.
    """

    user: str
    answer_after: str | None = None
    answer_prefill: tuple[str, str] | None = None
    max_answer_length: int | None = None


@dataclass(frozen=True)
class Preset:
    """
    How a paper evaluates.

    Args:
        name (`str`).
        asks (`dict[str, Ask]`): for each of `KINDS`.
        chat (`bool`): whether the tokenizer's chat template is applied, where it has one.
        system (`str`, *optional*): the system message.
        end_of_thinking (`str`): as in `ThinkingSettings`.
        max_thinking_length, max_completion_length (`int`, *optional*):
            Caps at evaluation, in tokens; `completion_length` works the second out where it depends on the tokenizer.
        thinking (`dict`): the other fields of `ThinkingSettings`.
        sampling (`dict`): `temperature`, `top_p`, `top_k` of the answer.
        num_samples (`int`): completions of each problem.
        training (`dict`): for each training set of the paper, the caps while training, where they differ.
    """

    name: str
    asks: dict[str, Ask]
    chat: bool
    end_of_thinking: str
    max_thinking_length: int | None
    max_completion_length: int | None
    thinking: Row
    sampling: Row
    num_samples: int
    system: str | None = None
    training: dict[str, dict[str, int]] = field(default_factory=dict)

    def thinking_settings(self, kind: str) -> Row:
        """Keyword arguments of `ThinkingSettings` for one kind of benchmark."""
        prefill = self.asks[kind].answer_prefill
        return {
            "end_of_thinking": self.end_of_thinking,
            "max_thinking_length": self.max_thinking_length,
            "answer_prefill": None if prefill is None else list(prefill),
            "max_answer_length": self.asks[kind].max_answer_length,
            **self.thinking,
        }

    def completion_length(self, kind: str, tokenizer) -> int:
        """
        Cap of thought, prefill and answer together, in tokens; the answer has its own beside it.
        """
        if self.max_completion_length is not None:
            return self.max_completion_length
        ask = self.asks[kind]
        forced = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ask.answer_prefill or ()]
        return (self.max_thinking_length or 0) + max(map(len, forced), default=0) + (ask.max_answer_length or 0)


# SofT-GRPO's released code (zz1358m/SofT-GRPO-master): `run_sglang_softthinking.py` and `run_sample_gumbel.sh` in
# `Soft-Thinking+noise+loss-main`; they agree with the paper (arXiv 2511.06411) in its Tables 6-8. The words of the four
# prompts are the script's. It reads the answer with math-verify from the whole completion, thought included
# (`matheval.py`), code from the last ```python block of it (`mbppeval.py`).
_SOFT_GRPO = Preset(
    name="soft_grpo",
    asks={
        "math": Ask("{question} Let's think step by step and output the final answer within \\boxed{}."),
        "choice": Ask(
            "Please solve the following multiple-choice question. Please show your choice in the answer field with only "
            'the choice letter, e.g.,"answer": "C".\n\n{question}'
        ),
        "humaneval": Ask(
            "Please solve the programming task below in Python. Code should be wrapped in a markdown code block.\n\n"
            "```python\n{question}\n```"
        ),
        "mbpp": Ask(
            "Please solve the programming task with test cases below in Python. Make sure your code satisfies the "
            "following requirements:\n"
            "1. The function name and signature must match exactly as specified in the test cases.\n"
            "2. Your code should be wrapped in a markdown code block without including any test cases.\n\n"
            "Task:\n{question}\n\nTest Cases:\n```python\n{tests}\n```"
        ),
        # not stated; ours: any other question is asked as mathematics
        "question": Ask("{question} Let's think step by step and output the final answer within \\boxed{}."),
    },
    chat=True,  # run_sglang_softthinking.py: one user message, `add_generation_prompt`, no system message
    end_of_thinking="</think>",  # run_sglang_softthinking.py: `think_end_str`
    max_thinking_length=None,  # the thought has no cap of its own
    max_completion_length=32768,  # run_sample_gumbel.sh: `max_generated_tokens`
    thinking={  # run_sample_gumbel.sh: `temperature`, `top_k` and `max_topk`, `top_p`, `gumbel_softmax_temperature`
        "thought": "gumbel",
        "thinking_temperature": 1.0,
        "thinking_top_k": 5,
        "thinking_top_p": 0.95,
        "gumbel_temperature": 0.1,
        "noise_scale": 1.0,  # `noise_factor`
        "gumbel_density": "softgrpo",  # sampler.py: every Gumbel number is clamped to [-1.5, 3], in evaluation too
    },
    # run_sample_gumbel.sh: `after_thinking_*`. The released sampler never reads them: an answer token is the largest of
    # the same clamped numbers. Here it is drawn from the same truncated distribution, without the clamp. The clamp makes
    # the likely tokens likelier: (.9, .1) is drawn as (.909, .091).
    sampling={"temperature": 1.0, "top_p": 0.95, "top_k": 5},
    num_samples=32,  # run_sample_gumbel.sh: `num_samples`
    training={"deepscaler": {"max_completion_length": 8192}},  # SofT-GRPO-deepscaler-8k.sh
)

# Soft Tokens, Hard Truths (arXiv 2509.19170), appendix B: one prompt for all models, no chat template mentioned.
_CONVERSATION = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first shows the complete reasoning process step by step, then provides the final answer in \\boxed{}. The assistant "
    "must always follow the format: 'User: [question] Assistant: [detailed reasoning] The final answer is: "
    "\\boxed{[answer]}.' User: {question} Assistant:"
)
_BOX = Ask(
    _CONVERSATION,
    # A thought stops at the first "The final answer is: ", or is cut and has it forced: what follows is the answer.
    answer_after=ANNOUNCED,
    answer_prefill=("\\boxed{", ANNOUNCED),  # appendix C
    max_answer_length=32,  # section 4
)
# not stated; ours: the paper has no code. Its prompt with a code block in the box's place, and room for one.
_CODE = replace(
    _BOX,
    user=_CONVERSATION.replace("the final answer in \\boxed{}", "the final answer in a Python code block").replace(
        "\\boxed{[answer]}", "```python [code]```"
    ),
    answer_after="The final answer is: ",
    answer_prefill=("\n```python\n", "The final answer is: \n```python\n"),
    max_answer_length=512,
)
_SOFT_TOKENS = Preset(
    name="soft_tokens",
    asks={
        "math": _BOX,
        "choice": _BOX,  # not stated; ours: the paper scores choices by likelihood only. The letter goes into the box
        "humaneval": _CODE,
        "mbpp": replace(
            _CODE, user=_CODE.user.replace("{question}", "{question} Your code should pass these tests:\n{tests}\n")
        ),
        "question": _BOX,
    },
    chat=False,
    end_of_thinking="The final answer is: ",  # appendix C: read in the shadow of most likely tokens
    max_thinking_length=512,  # section 4: at evaluation always
    max_completion_length=None,  # thought, prefill and answer
    # Section 4: "soft sample", one of the paper's six inference settings; the others differ in these three.
    thinking={"thought": "gaussian", "thinking_temperature": 0.5, "noise_scale": 0.33},
    sampling={"temperature": 0.0, "top_p": 1.0, "top_k": 0},  # section 4: answers at test time are greedy
    num_samples=32,  # section 4 reports pass@k up to 32; how many samples it is estimated from is not stated; ours
    training={  # section 4
        "gsm8k_train": {"max_thinking_length": 128},
        "math_train": {"max_thinking_length": 512},
        "deepscaler": {"max_thinking_length": 512},
    },
)

# Ours throughout: the question, the least that makes a gradable answer likely, and the model's own distribution.
_PLAIN = Preset(
    name="plain",
    asks={
        "math": Ask("{question}\n\nReason step by step and put the final answer in \\boxed{}.", "</think>"),
        "choice": Ask(
            "{question}\n\nReason step by step and put the letter of the right option in \\boxed{}.", "</think>"
        ),
        "humaneval": Ask("Complete this function in a Python code block.\n\n```python\n{question}\n```", "</think>"),
        # The tests are part of the prompt, as in Austin et al. 2021, section 4: they alone name the function.
        "mbpp": Ask(
            "{question}\n\nAnswer in a Python code block. The code should pass these tests:\n\n```python\n{tests}\n```",
            "</think>",
        ),
        "question": Ask("{question}", "</think>"),
    },
    chat=True,
    end_of_thinking="</think>",
    max_thinking_length=None,
    max_completion_length=2048,
    thinking={"thought": "hard"},
    sampling={"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    num_samples=32,
)

PRESETS: dict[str, Preset] = {p.name: p for p in (_SOFT_GRPO, _SOFT_TOKENS, _PLAIN)}


def get_preset(preset: str | Preset) -> Preset:
    """The preset of a name; a preset is passed through."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"`preset` is {preset!r}, which does not exist. Choose one of {', '.join(PRESETS)}.")
    return PRESETS[preset]


def ask(problem: Problem, preset: str | Preset) -> str:
    """The user's message, or the whole text, that asks a problem."""
    template = get_preset(preset).asks[problem.meta["kind"]].user
    tests = "\n".join(problem.gold["test_list"]) if isinstance(problem.gold, dict) and "{tests}" in template else ""
    # In one pass: a question may hold the other's name in braces.
    return re.sub(r"\{(question|tests)\}", lambda m: problem.question if m[1] == "question" else tests, template)


def build_messages(problem: Problem, preset: str | Preset, tokenizer) -> list[dict[str, str]] | str:
    """A conversation, as TRL takes it, where the preset and the tokenizer have a chat; else the text."""
    preset = get_preset(preset)
    text = ask(problem, preset)
    if not (preset.chat and tokenizer.chat_template):
        return text if preset.system is None else f"{preset.system}\n\n{text}"
    system = [] if preset.system is None else [{"role": "system", "content": preset.system}]
    return [*system, {"role": "user", "content": text}]


def build_prompt(problem: Problem, preset: str | Preset, tokenizer) -> str:
    """
    The prompt of a problem as `soft_generate` takes it: the chat template applied, or plain text.

    A template that writes the beginning of sequence, for a tokenizer that adds it too, would have it twice: it is taken
    off the text.
    """
    messages = build_messages(problem, preset, tokenizer)
    if isinstance(messages, str):
        return messages
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    begin = tokenizer.bos_token
    if begin and text.startswith(begin) and tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
        text = text.removeprefix(begin)
    return text


def answer_text(completion: str, preset: str | Preset, kind: str, answer_phase: str | None = None) -> str:
    r"""
    The part of a completion that the grader reads.

    Where the preset forces a box, it is that box and nothing behind it, by
    [`~trl_soft.evaluate.grading.forced.final_box`], and nothing where there is none. Where it forces something else it is
    what follows, or the text after the first `answer_after` where only the text is known. Else it is what follows the first
    `answer_after`, and all of the completion where that never occurs.

    Args:
        answer_phase (`str`, *optional*): the completion behind its thought, what was forced included; `None` where that is
            not known or nothing is forced. See [`~trl_soft.rollout.text.answer_phase`].
    """
    marker = get_preset(preset).asks[kind].answer_after
    if marker is not None and marker.endswith("\\boxed{"):
        box = final_box(completion, answer_phase, marker)
        return "" if box is None else f"\\boxed{{{box}}}"
    if answer_phase is not None:
        return answer_phase.removeprefix(marker or "")
    return completion if marker is None or marker not in completion else completion.partition(marker)[2]


def training_rows(
    name: str,
    preset: str | Preset,
    tokenizer,
    data_dir: str | None = None,
    limit: int | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    split: str | None = None,
) -> "Dataset":
    """
    A training set with a `prompt` and an `answer`, asked as it is evaluated; the arguments are `load_problems`'s.

    Some problems of `math_train` and `deepscaler` are also in the evaluation sets: 3 of OlympiadBench in the one, at
    least 3 of MATH-500 in the other. `math12k` holds none of MATH-500.
    """
    from datasets import Dataset

    if split is None and name not in BENCHMARKS and get_benchmark(name, data_dir).hub_id:
        split = "train"
    problems = load_problems(name, data_dir, limit, question_column, answer_column, split)
    if isinstance(problems[0].gold, dict):
        raise ValueError(
            f"{name} is graded by the {problems[0].meta['grader']} grader against several fields, and a reward compares "
            "`answer` with one text. Train on a set whose answers are texts, such as gsm8k_train."
        )
    rows = [{"prompt": build_messages(p, preset, tokenizer), "answer": p.gold} for p in problems]
    return Dataset.from_list(rows)
