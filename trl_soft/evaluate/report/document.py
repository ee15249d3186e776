# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of evaluation runs: ours beside the papers', mean and std over seeds, nothing made up.

python -m trl_soft.evaluate.report outputs/eval/* -o outputs/report --papers papers.yaml
"""

import argparse
import csv
import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import parse_json, read_object
from . import figures as draw
from .tables import (
    DASH,
    Number,
    Row,
    Table,
    csv_text,
    escape_markdown,
    heading,
    is_percent,
    kind,
    latex,
    markdown,
    to_csv,
)


TRAINING_METRICS = ("reward", "kl", "thinking/entropy")
COSTS = ("length", "correct_length", "thinking_length", "clipped", "entropy", "tokens_per_second")
_KINDS = ("mean", "pass", "maj", "first")
_ALIASES = {"avg": "mean", "first_k": "first"}
PathLike = str | Path

_NOTES = 20  # sentences about what is missing


def report(
    runs: Sequence[PathLike],
    output: PathLike,
    papers: PathLike | None = None,
    training_logs: Sequence[PathLike] | Mapping[str, PathLike | Sequence[PathLike]] | None = None,
    reference_curves: PathLike | Mapping[str, PathLike | Sequence[PathLike]] | None = None,
    metrics: Sequence[str] | None = None,
    training_metrics: Sequence[str] = TRAINING_METRICS,
    figures: bool = True,
) -> Path:
    """
    Write `report.md`, its tables (`.md`, `.tex`, `.csv`) and its figures (`.png`, `.svg`).

    Runs that share a name are seeds of one run: their cells are means with standard deviations (n - 1); a run alone has
    its 95 % intervals. Shares are in percent. What a run lacks is left out, and the report says so.

    Args:
        runs (`list[path]`): run folders, each with `manifest.json` and `metrics.json`.
        output (`path`): a folder, made if it is not there; files of an earlier report are overwritten.
        papers (`path`, *optional*): numbers to stand beside ours, in percent. YAML: a list of `{source, name, decoding,
            values: {benchmark: {metric: number}}}`. CSV: columns `source,name,decoding,benchmark,metric,value`. A row
            whose name and decoding are those of one of ours comes right below it.
        training_logs (*optional*): `trainer_state.json`, a folder that holds one, or `.jsonl` or `.csv` with a `step`;
            a list (the folders' names are the labels) or a mapping from labels to one or several (seeds).
        reference_curves (*optional*): a CSV file `step,value,label` for the reward (with a column `metric`: for each
            its own), or a mapping from metrics to one such file or several.
        metrics (`list[str]`, *optional*): columns of the accuracy table, such as `mean@n`, `pass@16`, `maj@16`,
            `first@16`. Default: `mean@n`, and `pass@k` and `maj@k` of the largest k that a benchmark has.
        training_metrics (`list[str]`): panels of the training figure, by the names they are logged under.
        figures (`bool`): without them matplotlib is not needed.

    Returns the path of `report.md`. Raises `FileNotFoundError` and `ValueError` before anything is written.
    """
    if figures:
        draw.require_matplotlib()
    notes: list[str] = []
    loaded = [_load_run(Path(run)) for run in runs]
    _check_runs(loaded)
    rows, benchmarks = _collect(loaded, notes)
    theirs = _load_papers(Path(papers), benchmarks, notes) if papers is not None else []
    wanted = [_metric(m, "`metrics`") for m in metrics] if metrics is not None else None
    tables = {
        "accuracy": Table("Accuracy in percent", _columns(rows, theirs, benchmarks, wanted), _beside(rows, theirs)),
        "costs": Table("Lengths, entropy and speed", [(b, c) for b in benchmarks for c in COSTS], rows),
    }
    for table in tables.values():
        _leave_out_empty(table, benchmarks, rows, notes)
    logs = _load_logs(training_logs, training_metrics, notes)
    references = _load_references(reference_curves)

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        for suffix, write in (("md", markdown), ("tex", latex), ("csv", csv_text)):
            (output / f"{name}.{suffix}").write_text(write(table), encoding="utf-8", newline="\n")
    (output / "numbers.csv").write_text(_all_numbers(rows + theirs), encoding="utf-8", newline="\n")
    drawn = []
    if figures:
        drawn = _draw(rows, theirs, benchmarks, logs, references, training_metrics, output, notes)
    path = output / "report.md"
    path.write_text(_document(loaded, rows, tables, drawn, notes), encoding="utf-8", newline="\n")
    return path


# Runs


def _load_run(folder: Path) -> dict:
    manifest = read_object(folder / "manifest.json", "nothing says which run this is")
    file = folder / "metrics.json"
    scores = read_object(file, "there is nothing to tabulate")
    entries = [entry for d in scores.values() for entry in (d.values() if isinstance(d, dict) else [None])]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{file} does not hold metrics by benchmark and decoding. Write it again from the run.")
    flat = {
        benchmark: {decoding: _flat(entry, f"{file}, {benchmark}, {decoding}") for decoding, entry in d.items()}
        for benchmark, d in scores.items()
    }  # fmt: skip
    return {"folder": folder, "manifest": manifest, "name": str(manifest.get("name") or folder.name), "scores": flat}


def decodings_of(manifest: dict) -> dict[str, dict]:
    """The decodings of a run by name, as its manifest has them; entries without a name are left out."""
    entries = manifest.get("decodings")
    entries = entries if isinstance(entries, list) else []
    return {str(entry["name"]): entry for entry in entries if isinstance(entry, dict) and "name" in entry}


def _check_runs(loaded: list[dict]) -> None:
    if not loaded:
        raise ValueError("`runs` is empty, so there is nothing to report. Give at least one run folder.")
    seen: dict[tuple, Path] = {}
    for run in loaded:
        manifest = run["manifest"]
        key = (run["name"], str(manifest.get("model")), str(manifest.get("seed")))
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {run['folder']} are both the run {key[0]!r} of the model {key[1]!r} with seed "
                f"{key[2]}, so a standard deviation would count one run twice. Leave one out, or name them apart."
            )
        seen[key] = run["folder"]


def _finite(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _number(metric: str, value: Any, where: str) -> Number | None:
    """A number with its interval, or `None` where there is no value; shares become percent."""
    parts = value if isinstance(value, dict) else {"value": value}
    ends = [_finite(parts.get(key)) for key in ("value", "low", "high")]
    if ends[0] is None:
        return None
    if is_percent(metric):
        if not all(end is None or 0 <= end <= 1 for end in ends):
            raise ValueError(f"{where}: {metric} is {parts}, but a share lies between 0 and 1. Correct the file.")
        ends = [None if end is None else 100 * end for end in ends]
    return Number(ends[0], ends[1], ends[2])  # type: ignore[arg-type]


def _flat(entry: dict, where: str) -> dict[str, Any]:
    """A decoding's metrics under one name each (`pass@16`, `length`), and its number of samples."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        if name in ("pass@k", "maj@k", "first_k"):
            family = {"first_k": "first"}.get(name, kind(name))
            found |= {f"{family}@{int(k)}": _number(f"{family}@{k}", v, where) for k, v in (value or {}).items()}
        elif name in ("length", "correct_length", "thinking_length"):
            found[name] = _number(name, value.get("mean") if isinstance(value, dict) else value, where)
        elif name == "mean@n" or name in COSTS:
            found[name] = _number(name, value, where)
    numbers = {k: v for k, v in found.items() if v is not None}
    by_position = (entry.get("entropy_by_position") or {}).get("mean") or []
    return {"numbers": numbers, "samples": entry.get("samples"), "positions": by_position}


def _collect(loaded: list[dict], notes: list[str]) -> tuple[list[Row], list[str]]:
    """A row for each name and decoding, and the benchmarks in the order of the runs."""
    benchmarks = list(dict.fromkeys(b for run in loaded for b in run["scores"]))
    rows = []
    for name in dict.fromkeys(run["name"] for run in loaded):
        seeds = [run["scores"] for run in loaded if run["name"] == name]
        for decoding in dict.fromkeys(d for scores in seeds for by in scores.values() for d in by):
            row = Row(name, decoding, seeds=len(seeds))
            counts = set()
            for benchmark in benchmarks:
                entries = [scores.get(benchmark, {}).get(decoding) for scores in seeds]
                present = [entry for entry in entries if entry is not None]
                counts |= {entry["samples"] for entry in present if entry["samples"]}
                for metric in dict.fromkeys(m for entry in present for m in entry["numbers"]):
                    values = [entry["numbers"][metric] for entry in present if metric in entry["numbers"]]
                    row.cells[benchmark, metric] = _over_seeds(values)
                    if len(values) < len(seeds):
                        notes.append(
                            f"{heading(metric)} of {row.label} on {benchmark} is of {len(values)} of the {len(seeds)} "
                            "runs of that name; the others have none."
                        )
                measured = [entry["positions"] for entry in present if entry["positions"]]
                if measured:
                    row.positions[benchmark] = _mean_by_position(measured)
            row.samples = ", ".join(map(str, sorted(counts)))
            row.thought, row.temperature = _thought(loaded, name, decoding)
            rows.append(row)
    return rows, benchmarks


def _mean_by_position(curves: list[list[float | None]]) -> list[float | None]:
    """The mean of the runs that have a position."""
    columns = ([x for x in column if x is not None] for column in itertools.zip_longest(*curves))
    return [statistics.fmean(column) if column else None for column in columns]


def _thought(loaded: list[dict], name: str, decoding: str) -> tuple[str | None, float | None]:
    """Kind and temperature of a decoding's thoughts, as the run's manifest has them."""
    for run in loaded:
        for entry in run["manifest"].get("decodings") or [] if run["name"] == name else []:
            if entry.get("name") == decoding:
                thinking, answer = (entry.get(part) or {} for part in ("thinking", "answer"))
                own = thinking.get("thinking_temperature")
                return thinking.get("thought"), _finite(answer.get("temperature") if own is None else own)
    return None, None


def _over_seeds(numbers: list[Number]) -> Number:
    if len(numbers) == 1:
        return numbers[0]
    ends = []
    for side in ("low", "high"):
        found = [end for end in (getattr(number, side) for number in numbers) if end is not None]
        ends.append(statistics.fmean(found) if len(found) == len(numbers) else None)
    values = [number.value for number in numbers]
    return Number(statistics.fmean(values), ends[0], ends[1], statistics.stdev(values), len(values))


# Papers


def _metric(name: str, where: str) -> str:
    """A metric's one name: `avg@32` and `mean@32` are `mean@n`."""
    family, _, k = str(name).strip().partition("@")
    family = _ALIASES.get(family, family)
    if family == "mean" and (k == "n" or k.isdigit()):
        return "mean@n"
    if family in _KINDS and k.isdigit() and int(k) > 0:
        return f"{family}@{int(k)}"
    raise ValueError(
        f"{where} names the metric {name!r}, and which column that is, nobody can tell. Name it mean@n (or mean@32), "
        "pass@k, maj@k or first@k with a number for k."
    )


def _load_papers(path: Path, benchmarks: list[str], notes: list[str]) -> list[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"`papers` is {path}, which does not exist. Correct the path, or leave it out.")
    read = {".csv": _paper_csv, ".yaml": _paper_yaml, ".yml": _paper_yaml}.get(path.suffix)
    if read is None:
        raise ValueError(f"`papers` is {path}, which is neither .yaml nor .csv. Rename or convert it.")
    rows: dict[tuple, Row] = {}
    unknown, largest = [], 0.0
    for entry in read(path):
        key = tuple(str(entry.get(part) or "") for part in ("name", "decoding", "source"))
        if not key[0] or not key[2]:
            raise ValueError(
                f"{path} has an entry without a name or a source: {entry}. A number needs both; add them."
            )
        value, std = (_finite(entry[part]) for part in ("value", "std"))
        if value is None or not 0 <= value <= 100 or (std is not None and std < 0):
            raise ValueError(
                f"{path}: {entry['metric']} of {key[0]!r} on {entry['benchmark']} is {entry['value']!r} (std "
                f"{entry['std']!r}), and not a percentage. Write it as the paper prints it, between 0 and 100."
            )
        if entry["benchmark"] not in benchmarks:
            unknown.append(str(entry["benchmark"]))
            continue
        row = rows.setdefault(key, Row(key[0], key[1], key[2], seeds=None))
        metric = _metric(entry["metric"], str(path))
        n = str(entry["metric"]).partition("@")[2]
        if metric == "mean@n" and n.isdigit() and n not in row.samples.split(", "):
            row.samples = ", ".join(filter(None, (row.samples, n)))
        row.cells[entry["benchmark"], metric] = Number(value, std=std)
        largest = max(largest, value)
    for benchmark in dict.fromkeys(unknown):
        notes.append(f"{path.name} has numbers on {benchmark}, which no run was evaluated on; they are left out.")
    if 0 < largest <= 1:
        notes.append(f"No number in {path.name} is above 1; they are read as percentages, not as shares.")
    return list(rows.values())


def _paper_yaml(path: Path) -> Iterable[dict]:
    import yaml

    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("values"), dict) for e in entries
    ):
        raise ValueError(
            f"{path} is not a list of entries with `values`. Write it as a list of `{{source, name, decoding, values: "
            "{benchmark: {metric: number}}}}`."
        )  # fmt: skip
    for entry in entries:
        for benchmark, metrics in entry["values"].items():
            for metric, value in metrics.items():
                parts = value if isinstance(value, dict) else {"value": value}
                numbers = {"value": parts.get("value"), "std": parts.get("std")}
                yield entry | {"benchmark": benchmark, "metric": metric} | numbers


def _paper_csv(path: Path) -> Iterable[dict]:
    for row in _read_csv(path, ("source", "name", "decoding", "benchmark", "metric", "value")):
        yield row | {"value": _float(row["value"]), "std": _float(row.get("std"))}


def _float(text: str | None) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path} has the columns {reader.fieldnames} and lacks {missing}, so its numbers cannot be placed. "
                f"Begin it with the line {','.join(columns)}."
            )
        return list(reader)


# Tables


def _columns(rows: list[Row], theirs: list[Row], benchmarks: list[str], wanted: list[str] | None) -> list:
    """The accuracy table's columns: what is asked for; or else the defaults, and what the papers report."""
    columns = []
    for benchmark in benchmarks:
        chosen = wanted
        if chosen is None:
            ours = {m for row in rows for b, m in row.cells if b == benchmark}
            chosen = ["mean@n", *(_largest(ours, family) for family in ("pass", "maj") if _largest(ours, family))]
            extra = {m for row in theirs for b, m in row.cells if b == benchmark} - set(chosen)
            chosen += sorted(extra, key=_order)
            chosen.sort(key=_order)
        columns += [(benchmark, metric) for metric in chosen]
    return columns


def _order(metric: str) -> tuple[int, int]:
    k = metric.partition("@")[2]
    return _KINDS.index(kind(metric)), int(k) if k.isdigit() else 0


def _largest(metrics: set[str], family: str) -> str:
    return max((m for m in metrics if kind(m) == family), key=_order, default="")


def _beside(rows: list[Row], theirs: list[Row]) -> list[Row]:
    """Each of ours, the papers' of the same name and decoding below it, and the papers' other rows at the end."""
    ordered, left = [], list(theirs)
    for row in rows:
        same = [paper for paper in left if (paper.name, paper.decoding) == (row.name, row.decoding)]
        ordered += [row, *same]
        left = [paper for paper in left if paper not in same]
    return ordered + left


def _leave_out_empty(table: Table, benchmarks: list[str], rows: list[Row], notes: list[str]) -> None:
    """Columns that no row fills go, cells that some of ours lack stay empty; a sentence says which."""
    empty = [column for column in table.columns if not any(column in row.cells for row in table.rows)]
    table.columns = [column for column in table.columns if column not in empty]
    for metric in dict.fromkeys(metric for _, metric in empty):
        where = [b for b, m in empty if m == metric]
        notes.append(f"No run has {heading(metric)} on {_listed(where)}, so there is no such column.")
    for row in rows:
        for metric in dict.fromkeys(metric for _, metric in table.columns):
            lacking = [b for b, m in table.columns if m == metric and (b, m) not in row.cells]
            if lacking:
                notes.append(f"{row.label} has no {heading(metric)} on {_listed(lacking)}: left empty.")


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _all_numbers(rows: list[Row]) -> str:
    """Every number there is, one a line."""
    lines = [["run", "decoding", "source", "benchmark", "metric", "unit", "value", "low", "high", "std", "seeds"]]
    for row in rows:
        for (benchmark, metric), number in row.cells.items():
            unit = {"entropy": "nats", "tokens_per_second": "tokens/s"}.get(metric, "tokens")
            parts = (number.value, number.low, number.high, number.std)
            cells = ["" if part is None else f"{part:.6f}" for part in parts]
            stub = [row.name, row.decoding, row.source or "ours", benchmark, heading(metric)]
            lines.append([*stub, "%" if is_percent(metric) else unit, *cells, "" if row.source else str(number.seeds)])
    return to_csv(lines)


# Training logs


def _load_logs(logs, metrics: Sequence[str], notes: list[str]) -> list[tuple[str, dict[str, draw.Series]]]:
    pairs: list[tuple[str, Path]] = []
    if isinstance(logs, Mapping):
        for label, paths in logs.items():
            several = [paths] if isinstance(paths, (str, Path)) else paths
            pairs += [(label, Path(path)) for path in several]
    else:
        pairs = [(_log_label(Path(path)), Path(path)) for path in logs or ()]
    loaded = []
    for label, path in pairs:
        lines = read_training_log(path)
        series = {metric: _series(lines, metric) for metric in metrics}
        for metric in metrics:
            if not series[metric]:
                notes.append(f"The training log {path} has no {metric}, so {label} has no such curve.")
        loaded.append((label, series))
    return loaded


def _log_label(path: Path) -> str:
    """A log's folder names a `trainer_state.json`; any other file names itself."""
    if path.name == "trainer_state.json":
        path = path.resolve().parent
    return path.name if path.is_dir() else path.stem


def read_training_log(path: Path) -> list[dict]:
    """
    Lines of a training log, each with a `step`.

    Args:
        path (`Path`): a `trainer_state.json`, a folder that holds one (or checkpoints that do: the last), a `.jsonl`, or
            a `.csv`.
    """
    if path.is_dir():
        own, checkpoints = path / "trainer_state.json", path.glob("checkpoint-*/trainer_state.json")
        last = max(checkpoints, key=lambda p: int(re.sub(r"\D", "", p.parent.name) or 0), default=own)
        path = own if own.is_file() else last
    if not path.is_file():
        raise FileNotFoundError(f"The training log {path} does not exist. Correct the path, or leave it out.")
    if path.suffix == ".csv":
        return [{k: _float(v) for k, v in row.items()} for row in _read_csv(path, ("step",))]
    if path.suffix == ".jsonl":
        lines = _read_lines(path)
    else:
        lines = read_object(path, "there are no training curves").get("log_history") or []
    if not isinstance(lines, list) or not any(isinstance(line, dict) and "step" in line for line in lines):
        raise ValueError(
            f"The training log {path} has no line with a `step`, so nothing can be drawn over steps. Give a "
            "trainer_state.json, or lines that say which step they are of."
        )
    return [line for line in lines if isinstance(line, dict)]


def _read_lines(path: Path) -> list:
    values = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            values += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not JSON ({error}). Correct or remove the line.") from error
    return values


def _series(lines: list[dict], metric: str) -> draw.Series:
    points = ((_finite(line.get("step")), _finite(line.get(metric))) for line in lines)
    return sorted((step, value) for step, value in points if step is not None and value is not None)


def _load_references(curves) -> dict[str, dict[str, draw.Series]]:
    if curves is None:
        return {}
    files = curves if isinstance(curves, Mapping) else {"reward": curves}
    found: dict[str, dict[str, draw.Series]] = {}
    pairs = [(m, p) for m, ps in files.items() for p in ([ps] if isinstance(ps, (str, Path)) else ps)]
    for metric, path in pairs:
        if not Path(path).is_file():
            raise FileNotFoundError(f"The reference curves {path} do not exist. Correct the path, or leave it out.")
        for row in _read_csv(Path(path), ("step", "value", "label")):
            step, value = _finite(_float(row["step"])), _finite(_float(row["value"]))
            if step is None or value is None:
                raise ValueError(f"{path} has the line {row}, whose step or value is no number. Correct it.")
            found.setdefault(row.get("metric") or metric, {}).setdefault(row["label"], []).append((step, value))
    return {metric: {label: sorted(s) for label, s in by.items()} for metric, by in found.items()}


# The document


def _draw(rows, theirs, benchmarks, logs, references, training_metrics, output: Path, notes) -> list[tuple[str, str]]:
    """Draws what there are numbers for; returns (stem, caption) and notes what there are none for."""
    jobs: list[tuple[str, str, str, Callable[[Path], list[Path]]]] = [
        ("pass_at_k", "pass@k with 95 % bands.", "pass@k", lambda s: draw.curves(rows, theirs, benchmarks, "pass", s)),
        ("maj_at_k", "Majority vote over k samples, 95 % bands.", "maj@k",
         lambda s: draw.curves(rows, theirs, benchmarks, "maj", s)),
        ("accuracy_tokens", "Accuracy against the mean length of a completion, 95 % intervals.",
         "mean@n together with a length", lambda s: draw.accuracy_against_tokens(rows, benchmarks, s)),
    ]  # fmt: skip
    if any(row.positions for row in rows):
        caption = "Entropy of the next token's distribution at temperature 1, by position, mean over completions."
        jobs.append(("entropy", caption, "", lambda s: draw.entropy_by_position(rows, benchmarks, s)))
    if swept := _sweeps(rows):
        caption = "Accuracy over the temperature of the thoughts: mean@n with 95 % bands, dashed the largest pass@k."
        jobs.append(("temperatures", caption, "", lambda s: draw.over_temperatures(swept, benchmarks, s)))
    if logs or references:
        caption = "Training: faint as logged, strong the running mean over a twentieth of the points; references grey."
        wanted = list(dict.fromkeys([*training_metrics, *references]))
        jobs.append(("training", caption, "", lambda s: draw.training_curves(logs, references, wanted, s)))
    drawn = []
    for stem, caption, needs, job in jobs:
        if job(output / stem):
            drawn.append((stem, caption))
        elif needs:
            notes.append(f"No run has {needs}, so that figure is left out.")
    return drawn


def _sweeps(rows: list[Row]) -> dict[str, list[Row]]:
    """Decodings of one run and one kind of thought at three temperatures or more, coldest first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.thought is not None and row.temperature is not None:
            found.setdefault(f"{row.name}, {row.thought}", []).append(row)
    several = {name: own for name, own in found.items() if len({row.temperature for row in own}) == len(own) >= 3}
    return {name: sorted(own, key=lambda row: row.temperature or 0.0) for name, own in several.items()}


def _document(loaded: list[dict], rows: list[Row], tables: dict[str, Table], drawn, notes: list[str]) -> str:
    lines = [
        "# Evaluation report",
        "",
        "## Runs",
        "",
        "| run | model | seed | commit | decodings |",
        "| --- " * 5 + "|",
    ]
    for run in loaded:
        manifest = run["manifest"]
        decodings = ", ".join(decodings_of(manifest))
        cells = [
            run["name"],
            manifest.get("model"),
            manifest.get("seed"),
            str(manifest.get("commit") or "")[:12],
            decodings,
        ]
        lines.append(f"| {' | '.join(DASH if c in (None, '') else escape_markdown(str(c)) for c in cells)} |")
    lines += ["", "## How to read it", ""]
    lines.append("n is the number of samples a problem, and mean@n their mean accuracy. Shares are in percent.")
    if any((row.seeds or 1) > 1 for row in rows):
        lines.append(
            "A cell of several runs of one name is their mean ± standard deviation (n - 1 in the denominator); the "
            "bands of their curves are the means of the runs' own intervals."
        )
    if any(n.low is not None and n.std is None for row in rows for n in row.cells.values()):
        lines.append("Brackets are the 95 % interval of one run, over problems.")
    if any(kind(m) == "first" for table in tables.values() for _, m in table.columns):
        lines.append("first@k (legacy) scores the first k samples alone: a noisy pass@k that depends on their order.")
    for name, table in tables.items():
        lines += ["", f"## {table.title}", ""]
        lines.append(markdown(table) if table.columns else "Nothing to show: see below.\n")
        lines.append(f"As [LaTeX]({name}.tex) (booktabs) and [CSV]({name}.csv).")
    lines += ["", "Every number there is: [numbers.csv](numbers.csv).", ""]
    if drawn:
        lines += ["## Figures", ""]
        for stem, caption in drawn:
            lines += [f"![{caption}]({stem}.png)", "", f"{caption} [SVG]({stem}.svg)", ""]
    if notes:
        said = list(dict.fromkeys(notes))
        lines += ["## What is missing", "", *(f"- {escape_markdown(note)}" for note in said[:_NOTES])]
        if len(said) > _NOTES:
            lines.append(f"- and {len(said) - _NOTES} more cells of the tables, which are empty there.")
        lines.append("")
    return "\n".join(lines)


def _pairs(values: list[str] | None) -> list[tuple[str, str]]:
    """`LABEL=PATH` as a pair; a path alone, which may hold an equals sign, has an empty label."""
    split = [("", "", value) if Path(value).exists() else value.rpartition("=") for value in values or ()]
    return [(label, path) for label, _, path in split]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `report`."""
    parser = argparse.ArgumentParser(
        prog="python -m trl_soft.evaluate.report", description="Tables and figures of evaluation runs."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; those that share a name are seeds")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write")
    parser.add_argument("--papers", metavar="FILE", help="the papers' numbers: .yaml or .csv, in percent")
    parser.add_argument(
        "--training_log", action="append", metavar="[LABEL=]PATH", help="trainer_state.json, its folder, .jsonl or .csv; repeat"
    )  # fmt: skip
    parser.add_argument(
        "--reference", action="append", metavar="[METRIC=]CSV", help="curves: step,value,label; repeat"
    )
    parser.add_argument("--metrics", nargs="+", help="columns: mean@n pass@16 maj@16 first@16")
    parser.add_argument(
        "--training_metrics", nargs="+", default=TRAINING_METRICS, help="panels of the training figure"
    )
    parser.add_argument("--no_figures", action="store_true", help="tables alone; matplotlib is not needed")
    options = parser.parse_args(argv)
    logs: dict[str, list[PathLike]] = {}
    for label, path in _pairs(options.training_log):
        logs.setdefault(label or _log_label(Path(path)), []).append(path)
    references: dict[str, list[PathLike]] = {}
    for metric, path in _pairs(options.reference):
        references.setdefault(metric or "reward", []).append(path)
    try:
        written = report(
            options.runs, options.output, options.papers, logs, references, options.metrics,
            options.training_metrics, not options.no_figures,
        )  # fmt: skip
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(f"Wrote {written}.")
