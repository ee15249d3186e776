# SPDX-License-Identifier: Apache-2.0
"""Reading the files of a run folder. Each file is checked once, where it is read, in every field that is used.

An entry that is missing or wrong raises a `ValueError`: one sentence that names the file and the entry.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import printable, read_object
from .shapes import (
    Check,
    WrongEntry,
    anything,
    check_file,
    count,
    finite,
    flag,
    is_count,
    is_number,
    list_of,
    mapping,
    number,
    optional,
    record,
    stands,
    text,
    where,
)  # fmt: skip
from .store import Chunk, Store


_ROUNDING = 1e-9  # tolerance between the ends of an interval without width
_NATS = where(
    lambda x: is_number(x) and (abs(x) <= 1e6 or not math.isfinite(x)),
    "it has to be a number of nats, no more than 1e6",
)
_THINKING = record({}, {"thought": text, "thinking_temperature": optional(number), "end_of_thinking": optional(text)})
_DECODING = record(
    {"name": text},
    {"thinking": optional(_THINKING), "answer": optional(record({}, {"temperature": optional(number)}))},
)
_MANIFEST = record(
    {},
    {
        "name": optional(text), "model": optional(text), "commit": optional(text), "limit": optional(count),
        "seed": where(
            lambda seed: seed is None or all(map(is_count, seed if isinstance(seed, list) else [seed])),
            "it has to be a whole number from 0 to 2^53, or a list of them",
        ),
        "benchmarks": optional(list_of(text)), "decodings": optional(list_of(_DECODING)),
        "problems": optional(mapping(text, record({}))),
    },
)  # fmt: skip


def _estimate(share: bool) -> Check:
    """A number, alone or with the ends of its interval, or `null` where a run had nothing to measure."""

    def check(value: Any) -> None:
        parts = value if isinstance(value, dict) else {"value": value}
        record({}, {name: optional(number) for name in ("value", "mean", "low", "high")})(parts)
        ends = [parts[name] for name in ("low", "high") if parts.get(name) is not None]
        if len(ends) == 1 or (ends and ends[0] > ends[1] + _ROUNDING):
            raise WrongEntry(stands(value), "an interval has two ends, the lower one first")
        numbers = [parts[name] for name in ("value", "mean", "low", "high") if parts.get(name) is not None]
        if share and any(x < 0 or x > 1 for x in numbers):
            raise WrongEntry(stands(value), "a share lies between 0 and 1")

    return check


_SHARES = optional(
    mapping(
        where(lambda k: k.isascii() and k.isdigit() and len(k) < 10 and int(k) > 0, "k counts samples: from 1 to 999999999"),
        _estimate(share=True),
    )
)  # fmt: skip
_METRICS = mapping(
    text,
    mapping(
        text,
        record(
            {},
            dict.fromkeys(("pass@k", "maj@k", "first_k"), _SHARES)
            | dict.fromkeys(("mean@n", "clipped"), _estimate(share=True))
            | dict.fromkeys(
                ("length", "correct_length", "thinking_length", "entropy", "tokens_per_second"), _estimate(share=False)
            )
            | {
                "samples": where(
                    lambda n: n is None or all(map(is_count, n if isinstance(n, list) else [n])),
                    "it has to be a whole number, or a list of the smallest and the largest",
                ),
                "entropy_by_position": optional(record({}, {"mean": optional(list_of(optional(number)))})),
            },
        ),
    ),
)

_VOTE = where(lambda vote: vote is None or isinstance(vote, (str, int)), "it has to be a text, a whole number or null")
_SCORED = {
    "problem": count, "sample": count, "correct": flag, "vote": _VOTE, "length": count, "thinking_length": count,
    "clipped": flag, "thinking_cut": flag, "entropy": optional(_NATS),
}  # fmt: skip
_CANDIDATE = where(
    lambda pair: isinstance(pair, list) and len(pair) == 2 and (pair[1] is None or is_number(pair[1])),
    "it has to be a token and its weight",
)
_STEP = record(
    {"token": anything},
    {"entropy": optional(_NATS), "thought": flag, "drawn": flag, "candidates": optional(list_of(_CANDIDATE))},
)
_SHOWN = {"benchmark": text, "decoding": text, "problem": count, "sample": count, "text": text}
_SHOWN_TOO = {name: optional(check) for name, check in _SCORED.items() if name not in _SHOWN} | {
    "prompt": optional(text), "answer_at": optional(count), "thoughts": optional(list_of(_STEP)),
}  # fmt: skip

_OUT_OF_DOMAIN = record(
    {
        "tasks": mapping(
            text,
            record({}, dict.fromkeys(("greedy", "acc", "acc_norm", "nll"), record({"value": finite}))),
        )
    },
    {"model": optional(text), "limit": optional(count)},
)  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run. Raises `FileNotFoundError` or `ValueError`, one sentence."""
    return _read(folder / "manifest.json", "nothing says which run this is", _MANIFEST)


def read_metrics(folder: Path) -> dict[str, dict[str, dict]]:
    """The metrics of a run by benchmark and decoding. Raises `FileNotFoundError` or `ValueError`, one sentence."""
    return _read(folder / "metrics.json", "there is nothing to tabulate", _METRICS)


def read_out_of_domain(file: Path) -> dict[str, Any]:
    """The out-of-domain scores of a run (`ood.json`). Raises `FileNotFoundError` or `ValueError`, one sentence."""
    return _read(file, "there is nothing to tabulate", _OUT_OF_DOMAIN)


def scored_chunks(store: Store, only: set[tuple[str, str]] | None = None) -> Iterator[tuple[Chunk, list[dict], dict]]:
    """
    The sealed chunks of a run, with samples that can be scored.

    Args:
        store (`Store`).
        only (`set[tuple[str, str]]`, *optional*): benchmarks and decodings to read; `None` means all.

    Raises:
        ValueError: if a sample has no field that scores need, or a wrong value there.
    """
    check = record(_SCORED)
    for path, chunk, samples, seal in store.chunks_of_files():
        if only is None or chunk[:2] in only:
            _check_samples(path, chunk, samples, check, "scored")
            yield chunk, samples, seal


def shown_samples(store: Store) -> Iterator[dict]:
    """
    The sealed samples of a run, one at a time, each with the fields that a page shows.

    Raises:
        ValueError: if a sample has no field that a page needs, or a wrong value there.
    """
    check = record(_SHOWN, _SHOWN_TOO)
    for path, chunk, samples, _ in store.chunks_of_files():
        _check_samples(path, chunk, samples, check, "shown")
        yield from samples


def _read(file: Path, purpose: str, check: Check) -> dict[str, Any]:
    content = read_object(file, purpose)
    check_file(file, content, check)
    return content


def _check_samples(path: Path, chunk: Chunk, samples: list[dict], check: Check, purpose: str) -> None:
    for index, sample in enumerate(samples):
        try:
            check(sample)
        except WrongEntry as error:
            raise ValueError(
                f"{printable(str(path))}: in sample {index} of chunk {chunk[2]}, {chunk[1]!r} on {chunk[0]!r}, {error}, so "
                f"it cannot be {purpose}. The file was changed after the run wrote it: put the original back."
            ) from error
