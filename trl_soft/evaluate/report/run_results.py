# SPDX-License-Identifier: Apache-2.0
"""The results in run folders: `manifest.json` and `metrics.json`, and rows over the runs that share a name."""

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..run_files import read_manifest, read_metrics
from .results import COSTS, ResultCell, ResultRow, finite_number, heading, is_percent


@dataclass(frozen=True)
class DecodingResults:
    """
    The results of a run on one benchmark under one decoding.

    Args:
        estimates (`dict[str, ResultCell]`): by metric (`mean@n`, `pass@16`, `length`).
        samples: number of samples for each problem, or the smallest and the largest number.
        positions (`list`): entropies by position.
    """

    estimates: dict[str, ResultCell]
    samples: Any
    positions: list[float | None]


@dataclass(frozen=True)
class RunResults:
    """
    The results of one run.

    Args:
        folder (`Path`), name (`str`), manifest (`dict`).
        results (`dict`): `DecodingResults` by benchmark and decoding.
    """

    folder: Path
    name: str
    manifest: dict
    results: dict[str, dict[str, DecodingResults]]


def load_run(folder: Path) -> RunResults:
    """
    Read the results of a run.

    Raises:
        FileNotFoundError: if the manifest or the metrics are not there.
        ValueError: if one of them cannot be read; the message names the file and the entry.
    """
    manifest = read_manifest(folder)
    results = {
        benchmark: {name: _decoding_results(entry) for name, entry in by.items()}
        for benchmark, by in read_metrics(folder).items()
    }
    return RunResults(folder, str(manifest.get("name") or folder.name), manifest, results)


def check_runs(runs: list[RunResults]) -> None:
    """Raise `ValueError` if there is no run, or if two folders hold the same run."""
    if not runs:
        raise ValueError("`runs` is empty, so there is nothing to report. Give at least one run folder.")
    folders: dict[tuple, Path] = {}
    for run in runs:
        key = (run.name, str(run.manifest.get("model")), str(run.manifest.get("seed")))
        if key in folders:
            raise ValueError(
                f"{folders[key]} and {run.folder} are both the run {key[0]!r} of the model {key[1]!r} with seed "
                f"{key[2]}, so a standard deviation would count one run twice. Leave one out, or name them apart."
            )
        folders[key] = run.folder


def decodings_of(manifest: dict) -> dict[str, dict]:
    """The decodings in a run's manifest by name."""
    return {entry["name"]: entry for entry in manifest.get("decodings") or ()}


def _decoding_results(entry: dict) -> DecodingResults:
    estimates: dict[str, ResultCell | None] = {}
    for name, value in entry.items():
        if name in ("pass@k", "maj@k", "first_k"):
            score = name.removesuffix("@k").removesuffix("_k")
            for k, part in (value or {}).items():
                estimates[f"{score}@{int(k)}"] = _estimate(f"{score}@{k}", part)
        elif name in ("length", "correct_length", "thinking_length"):
            estimates[name] = _estimate(name, value.get("mean") if isinstance(value, dict) else value)
        elif name == "mean@n" or name in COSTS:
            estimates[name] = _estimate(name, value)
    positions = (entry.get("entropy_by_position") or {}).get("mean") or []
    positions = [finite_number(position) for position in positions]
    numbers = {metric: estimate for metric, estimate in estimates.items() if estimate is not None}
    return DecodingResults(numbers, entry.get("samples"), positions)


def _estimate(metric: str, value: Any) -> ResultCell | None:
    """A number with its interval, shares in percent; `None` where there is no value."""
    parts = value if isinstance(value, dict) else {"value": value}
    center, low, high = (finite_number(parts.get(key)) for key in ("value", "low", "high"))
    if center is None:
        return None
    if not is_percent(metric):
        return ResultCell(center, low, high)
    low, high = (None if end is None else 100 * end for end in (low, high))
    return ResultCell(100 * center, low, high)


def rows_of(runs: list[RunResults], notes: list[str]) -> tuple[list[ResultRow], list[str]]:
    """A row for each name and decoding, and the benchmarks in the order of the runs. `notes` receives what is missing."""
    benchmarks = list(dict.fromkeys(benchmark for run in runs for benchmark in run.results))
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        seeds = [run for run in runs if run.name == name]
        decodings = dict.fromkeys(decoding for run in seeds for by in run.results.values() for decoding in by)
        rows += [_row(seeds, name, decoding, benchmarks, notes) for decoding in decodings]
    return rows, benchmarks


def _row(seeds: list[RunResults], name: str, decoding: str, benchmarks: list[str], notes: list[str]) -> ResultRow:
    row = ResultRow(name, decoding, seeds=len(seeds))
    row.thought, row.temperature = _thought(seeds, decoding)
    counts = set()
    for benchmark in benchmarks:
        results = [run.results[benchmark][decoding] for run in seeds if decoding in run.results.get(benchmark, {})]
        counts |= {tuple(r.samples) if isinstance(r.samples, list) else (r.samples,) for r in results if r.samples}
        for metric in dict.fromkeys(metric for result in results for metric in result.estimates):
            estimates = [result.estimates[metric] for result in results if metric in result.estimates]
            row.cells[benchmark, metric] = _over_seeds(estimates)
            if len(estimates) < len(seeds):
                notes.append(
                    f"{heading(metric)} of {row.label} on {benchmark} is of {len(estimates)} of the {len(seeds)} runs "
                    "of that name; the others have none."
                )
        curves = [result.positions for result in results if result.positions]
        if curves:
            row.positions[benchmark] = _mean_by_position(curves)
    row.samples = ", ".join("-".join(map(str, count)) for count in sorted(counts))
    return row


def _over_seeds(estimates: list[ResultCell]) -> ResultCell:
    """The mean over runs, with the standard deviation. The interval's ends are means, if every run has them."""
    if len(estimates) == 1:
        return estimates[0]
    values = [estimate.value for estimate in estimates]
    ends = ([end for end in (getattr(e, side) for e in estimates) if end is not None] for side in ("low", "high"))
    low, high = (statistics.fmean(end) if len(end) == len(estimates) else None for end in ends)
    return ResultCell(statistics.fmean(values), low, high, statistics.stdev(values), len(values))


def _mean_by_position(curves: list[list[float | None]]) -> list[float | None]:
    """At each position the mean over the runs that have a value there."""
    columns = ([x for x in column if x is not None] for column in itertools.zip_longest(*curves))
    return [statistics.fmean(column) if column else None for column in columns]


def _thought(seeds: list[RunResults], decoding: str) -> tuple[str | None, float | None]:
    """Kind and temperature of a decoding's thoughts, from the first manifest that has the decoding."""
    for run in seeds:
        if entry := decodings_of(run.manifest).get(decoding):
            thinking, answer = (entry.get(part) or {} for part in ("thinking", "answer"))
            own = thinking.get("thinking_temperature")
            return thinking.get("thought"), finite_number(answer.get("temperature") if own is None else own)
    return None, None
