# SPDX-License-Identifier: Apache-2.0
"""Questions with answers, from a hub id or a local file, as prompts for a trainer."""

import os
from typing import Any

from datasets import Dataset, Features, Value, load_dataset

from .contamination import fingerprint, overlap
from .files import printable
from .golds import gold_text, without_thousands
from .hub import hub_or_cache


__all__ = ["drop_long_prompts", "fingerprint", "load_rows", "overlap", "to_prompts"]


_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_rows(name: str, split: str = "train", config: str | None = None) -> Dataset:
    """
    Rows of a data set.

    Args:
        name (`str`): a hub id, or a local `.jsonl`, `.json` or `.parquet` file, gzipped or not.
        split (`str`), config (`str`, *optional*): of a data set on the hub. A local file is one split.
    """
    stem = name.removesuffix(".gz")
    builder = _BUILDERS.get(os.path.splitext(stem)[1])
    if os.path.isfile(name):
        if builder is None:
            raise ValueError(
                f"{name} does not end in .jsonl, .json or .parquet (with or without .gz), so its format is unknown. "
                "Rename or convert it."
            )
        try:
            return load_dataset(builder, data_files=name, split="train")
        except Exception as error:  # datasets raises errors of many types
            cause = error.__cause__ or error
            reason = " ".join(str(cause).split()) or type(cause).__name__
            raise ValueError(f"{name} cannot be read as {builder}: {reason.rstrip('.')}. Check the file.") from error
    if builder is not None:
        raise FileNotFoundError(
            f"The data file {name} does not exist (looked from {os.getcwd()}). Correct the path, or give a hub id."
        )
    with hub_or_cache():
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
        tokenizer: with a chat template the prompt is a user message. Without one it is text.
        raw (`bool`): make the prompt text even if the tokenizer has a chat template (2509.19170 does so).
        prompt_template (`str`): holds `{question}`.
        answer_marker (`str`, *optional*): the answer is the text after the last occurrence of this mark (GSM8K: `####`),
            without thousands commas. A row without the mark is an error, so that no row is graded against a whole solution.

    Raises:
        ValueError: if a column or a mark is missing, or if a row has no question or no answer. The message names the number
            of the row. Answers may be text or numbers; see [`~trl_soft.golds.gold_text`].
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
            f"`prompt_template` is {prompt_template!r}, which holds no {{question}}. Put it where the question belongs."
        )

    chat = bool(tokenizer.chat_template) and not raw

    def convert(row: dict, number: int) -> dict:
        try:
            question = _question(row[question_column])
            answer = _answer(row[answer_column], answer_marker)
        except ValueError as error:
            raise ValueError(f"Row {number} of the data set cannot be used: {printable(str(error))}.") from error
        text = prompt_template.replace("{question}", question)
        prompt = [{"role": "user", "content": text}] if chat else text
        return {"prompt": prompt, "answer": answer}

    text = Value("string")
    # The types are stated, because `map` gives a column the type of an earlier column of the same name, and answers may be
    # numbers.
    features = Features({"prompt": [{"role": text, "content": text}] if chat else text, "answer": text})
    columns = rows.column_names
    return rows.map(convert, with_indices=True, remove_columns=columns, features=features, desc="Building prompts")


def _question(value: Any) -> str:
    if isinstance(value, list | dict):
        raise ValueError(
            f"its question is a {type(value).__name__}, and a question is put into `prompt_template` as text. Give a "
            "column of texts, or give rows with a `prompt` column to the trainer as they are"
        )
    text = gold_text(value)
    if text is None:
        raise ValueError("its question is missing. Fill it in or remove the row")
    return value if isinstance(value, str) else text  # blanks at the ends may belong to the question


def _answer(value: Any, marker: str | None) -> str:
    answer = gold_text(value)
    if answer is not None and marker is not None:
        _, found, rest = answer.rpartition(marker)
        if not found:
            raise ValueError(
                f"`answer_marker` {marker!r} is not in the answer {answer[-80:]!r}. Correct the mark or the row"
            )
        answer = without_thousands(rest.strip()) or None
    if answer is None:
        raise ValueError("its answer is missing. Fill it in or remove the row, because no reward could judge it")
    return answer


def drop_long_prompts(prompts: Dataset, tokenizer, limit: int, cap: int | None = None) -> tuple[Dataset, int]:
    """
    The rows whose prompt has at most `limit` tokens, and how many rows had more. A `ValueError` if no row is left.

    Args:
        limit (`int`): the model's context less the completion. cap (`int`, *optional*): a lower limit from the settings.
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
