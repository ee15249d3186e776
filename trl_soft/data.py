# SPDX-License-Identifier: Apache-2.0
"""Questions with answers, from a hub id or a local file, as prompts for a trainer; what must not be among them."""

import os
from collections.abc import Iterable

from datasets import Dataset, load_dataset


_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_rows(name: str, split: str = "train", config: str | None = None) -> Dataset:
    """
    Rows of a data set.

    Args:
        name (`str`): a hub id, or a local `.jsonl`, `.json` or `.parquet` file, gzipped or not.
        split (`str`), config (`str`, *optional*): of a hub data set; a local file is one split.
    """
    stem = name.removesuffix(".gz")
    builder = _BUILDERS.get(os.path.splitext(stem)[1])
    if os.path.isfile(name):
        if builder is None:
            raise ValueError(
                f"{name} ends neither in .jsonl, .json nor .parquet (nor in one of them and .gz), so how to read it is "
                "unknown. Rename or convert it."
            )
        return load_dataset(builder, data_files=name, split="train")
    if builder is not None:
        raise FileNotFoundError(
            f"The data file {name} does not exist (looked from {os.getcwd()}). Correct the path, or give a hub id."
        )
    return load_dataset(name, config, split=split)


def to_prompts(
    rows: Dataset,
    tokenizer,
    question_column: str = "question",
    answer_column: str = "answer",
    prompt_template: str = "{question}",
    answer_marker: str | None = None,
    raw: bool = False,
) -> Dataset:
    """
    Rows with a `prompt` and an `answer`.

    Args:
        rows: with a question column and an answer column.
        tokenizer: with a chat template the prompt is a user message, without one it is text.
        raw (`bool`): text, chat template or not (2509.19170 asks so).
        prompt_template (`str`): holds `{question}`.
        answer_marker (`str`, *optional*): the answer is what follows its last occurrence (GSM8K: `####`), without
            thousands commas; a row without it is an error, so that no row is graded against a whole solution.
    """
    if len(rows) == 0:
        raise ValueError("The data set is empty, so there is no question to ask. Check the file and the split.")
    for field, column in (("question_column", question_column), ("answer_column", answer_column)):
        if column not in rows.column_names:
            raise ValueError(
                f"`{field}` is {column!r}, but the data set has the columns {rows.column_names}. Set `{field}` to one."
            )
    if "{question}" not in prompt_template:
        raise ValueError(
            f"`prompt_template` is {prompt_template!r}, which holds no {{question}}. Put it where it goes."
        )

    def convert(row: dict) -> dict:
        text = prompt_template.replace("{question}", str(row[question_column]))
        answer = str(row[answer_column])
        if answer_marker is not None:
            _, found, answer = answer.rpartition(answer_marker)
            if not found:
                raise ValueError(f"`answer_marker` {answer_marker!r} is not in the answer {row[answer_column]!r}.")
            answer = answer.strip().replace(",", "")
        prompt = [{"role": "user", "content": text}] if tokenizer.chat_template and not raw else text
        return {"prompt": prompt, "answer": answer}

    return rows.map(convert, remove_columns=rows.column_names, desc="Building prompts")


def drop_long_prompts(prompts: Dataset, tokenizer, limit: int, cap: int | None = None) -> tuple[Dataset, int]:
    """
    The rows whose prompt has at most `limit` tokens, and how many had more; a `ValueError` if none is left.

    Args:
        limit (`int`): the model's context less the completion. cap (`int`, *optional*): a lower limit that is wanted.
    """
    limit = limit if cap is None else min(limit, cap)

    def fits(row: dict) -> bool:
        if isinstance(row["prompt"], str):
            ids = tokenizer(row["prompt"])["input_ids"]
        else:
            ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
        return len(ids) <= limit

    kept = prompts.filter(fits, desc="Measuring prompts")
    if len(kept) == 0:
        reason = "the model's context less `max_completion_length`" if limit != cap else "`max_prompt_length`"
        remedy = "Lower `max_completion_length` or use a model with a longer context." if limit != cap else "Raise it."
        raise ValueError(f"All {len(prompts)} prompts are longer than {limit} tokens, {reason}. {remedy}")
    return kept, len(prompts) - len(kept)


def fingerprint(question: str) -> str:
    """A question's letters and digits, in lower case: equal for copies that differ in blanks, marks and LaTeX spacing."""
    return "".join(c for c in question.lower() if c.isalnum())


def overlap(questions: Iterable[str], held_out: Iterable[str]) -> dict[int, list[int]]:
    """
    Which held-out questions are among others: row of the held-out question -> rows that ask the same.

    Compared by `fingerprint`, so a paraphrase is not found. A question without a letter or digit is nobody's copy.
    """
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(fingerprint(question), []).append(row)
    rows.pop("", None)
    prints = [fingerprint(question) for question in held_out]
    return {number: rows[key] for number, key in enumerate(prints) if key in rows}
