# SPDX-License-Identifier: Apache-2.0
"""The numbers that papers published, as recipes/papers holds them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .csv_files import parse_number, read_csv
from .results import ResultCell, ResultRow, finite_number, parse_metric


AVERAGE = "average"  # the mean over benchmarks, as a column of its own
_COLUMNS = ("source", "name", "decoding", "benchmark", "metric", "value")


@dataclass(frozen=True)
class PublishedRow:
    """
    A row of a paper's table, with the numbers as printed: shares in percent.

    Args:
        source (`str`): the paper and its table.
        name (`str`), decoding (`str`): the run and the decoding of ours that the row stands beside.
        values (`dict`): estimates by benchmark and metric.
        average (`dict`): by metric, the average over benchmarks that the paper prints.
        over (`list[str]`): the benchmarks of that average.
    """

    source: str
    name: str
    decoding: str
    values: dict[str, dict[str, ResultCell]]
    average: dict[str, ResultCell] = field(default_factory=dict)
    over: list[str] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, dict[str, ResultCell]]:
        """`values`, and the average as one more benchmark."""
        return self.values | ({AVERAGE: self.average} if self.average else {})


def read_papers(path: Path) -> list[PublishedRow]:
    """
    The rows of a file of published numbers.

    Args:
        path (`Path`):
            YAML: a list of `{source, name, decoding, values: {benchmark: {metric: number}}}`; a number may also be
            `{value, std}`; `average: {metric: number}` and `over: [benchmark]` are optional. CSV: the columns
            `source,name,decoding,benchmark,metric,value`, and optionally `std`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if a row cannot be read; the message shows it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"The papers' numbers {path} do not exist. Those of this repository are in recipes/papers; correct the path."
        )
    read = {".csv": _read_csv_rows, ".yaml": _read_yaml_rows, ".yml": _read_yaml_rows}.get(path.suffix)
    if read is None:
        raise ValueError(f"The papers' numbers {path} are neither .yaml nor .csv. Rename or convert the file.")
    rows = list(read(path))
    for row in rows:
        if not row.name or not row.source:
            raise ValueError(f"{path} has a row without a name or a source: {row}. A number needs both; add them.")
    return rows


def _read_yaml_rows(path: Path) -> Iterator[PublishedRow]:
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{path} is not a list of entries. Write it as a list of `{{source, name, decoding, values: {{benchmark: "
            "{metric: number}}}`."
        )
    for entry in entries:
        missing = [key for key in ("source", "name", "decoding", "values") if key not in entry]
        if missing or not isinstance(entry["values"], dict):
            raise ValueError(f"{path} has an entry without {missing or ['values']}: {entry}. Add them.")
        values = {
            benchmark: {metric: _cell(value, f"{path}: {metric} on {benchmark}") for metric, value in by.items()}
            for benchmark, by in entry["values"].items()
        }
        average = {m: _cell(value, f"{path}: average {m}") for m, value in (entry.get("average") or {}).items()}
        source, name, decoding = (str(entry[key] or "") for key in ("source", "name", "decoding"))
        yield PublishedRow(source, name, decoding, values, average, entry.get("over") or list(values))


def _read_csv_rows(path: Path) -> Iterator[PublishedRow]:
    for row in read_csv(path, _COLUMNS):
        parts = {"value": parse_number(row["value"]), "std": parse_number(row.get("std"))}
        estimate = _cell(parts, f"{path}: {row['metric']} of {row['name']!r} on {row['benchmark']}")
        source, name, decoding = (row[key] or "" for key in ("source", "name", "decoding"))
        yield PublishedRow(source, name, decoding, {row["benchmark"]: {row["metric"]: estimate}})


def _cell(number: Any, where: str) -> ResultCell:
    parts = number if isinstance(number, dict) else {"value": number}
    value, std = (finite_number(parts.get(key)) for key in ("value", "std"))
    if value is None or (std is None and parts.get("std") is not None) or (std is not None and std < 0):
        raise ValueError(f"{where} is {number!r}, which is no number. Write it as the paper prints it.")
    return ResultCell(value, std=std)


def paper_rows(path: Path, benchmarks: list[str], notes: list[str]) -> list[ResultRow]:
    """
    A paper's numbers as rows of a report: its scores on `benchmarks`, in percent.

    `notes` receives the benchmarks that are left out. Raises `ValueError` if a number is no percentage, or if its metric
    is unknown.
    """
    rows: dict[tuple[str, str, str], ResultRow] = {}
    unknown: dict[str, None] = {}
    largest = 0.0
    for entry in read_papers(path):
        for benchmark, by in entry.values.items():
            for metric, estimate in by.items():
                if not 0 <= estimate.value <= 100:
                    raise ValueError(
                        f"{path}: {metric} of {entry.name!r} on {benchmark} is {estimate.value:g}, which is not a "
                        "percentage. Write it as the paper prints it, between 0 and 100."
                    )
                if benchmark not in benchmarks:
                    unknown[benchmark] = None
                    continue
                key = (entry.name, entry.decoding, entry.source)
                row = rows.setdefault(key, ResultRow(*key, seeds=None))
                name, n = parse_metric(metric, str(path)), metric.partition("@")[2]
                if name == "mean@n" and n.isdigit() and n not in row.samples.split(", "):
                    row.samples = ", ".join(filter(None, (row.samples, n)))
                row.cells[benchmark, name] = estimate
                largest = max(largest, estimate.value)
    notes += [f"{path.name} has numbers on {b}, which no run was evaluated on; they are left out." for b in unknown]
    if 0 < largest <= 1:
        notes.append(f"No number in {path.name} is above 1; they are read as percentages, not as shares.")
    return list(rows.values())
