# SPDX-License-Identifier: Apache-2.0
"""Curves of training: series of logged metrics, and reference curves to draw beside them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...files import parse_json, read_object
from .csv_files import parse_number, read_csv
from .results import finite_number


PathLike = str | Path
Series = list[tuple[float, float]]  # pairs of a step and a value
Logs = Sequence[PathLike] | Mapping[str, PathLike | Sequence[PathLike]] | None
References = PathLike | Mapping[str, PathLike | Sequence[PathLike]] | None


def load_logs(logs: Logs, metrics: Sequence[str], notes: list[str]) -> list[tuple[str, dict[str, Series]]]:
    """Pairs of a label and the series of each metric. `notes` receives the metrics that a log does not have."""
    if isinstance(logs, Mapping):
        pairs = [(label, path) for label, paths in logs.items() for path in _paths_in(paths)]
    else:
        pairs = [(log_label(path), Path(path)) for path in logs or ()]
    labels_and_series = []
    for label, path in pairs:
        lines = read_training_log(path)
        series = {metric: _series(lines, metric) for metric in metrics}
        missing = [metric for metric in metrics if not series[metric]]
        notes += [f"The training log {path} has no {metric}, so {label} has no such curve." for metric in missing]
        labels_and_series.append((label, series))
    return labels_and_series


def log_label(path: PathLike) -> str:
    """The label of a log: the name of the folder of a `trainer_state.json`, or the name of any other file."""
    path = Path(path)
    if path.name == "trainer_state.json":
        path = path.resolve().parent
    return path.name if path.is_dir() else path.stem


def _paths_in(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def read_training_log(path: Path) -> list[dict]:
    """
    Lines of a training log, each with a `step`.

    Args:
        path (`Path`):
            A `trainer_state.json`, a `.jsonl` or a `.csv`; or a folder that holds a `trainer_state.json`, or checkpoints
            that do, of which the last is read.
    """
    if path.is_dir():
        own, checkpoints = path / "trainer_state.json", path.glob("checkpoint-*/trainer_state.json")
        last = max(checkpoints, key=lambda p: int(re.sub(r"\D", "", p.parent.name) or 0), default=own)
        path = own if own.is_file() else last
    if not path.is_file():
        raise FileNotFoundError(f"The training log {path} does not exist. Correct the path, or leave it out.")
    if path.suffix == ".csv":
        return [{k: parse_number(v) for k, v in row.items()} for row in read_csv(path, ("step",))]
    if path.suffix == ".jsonl":
        lines = _read_lines(path)
    else:
        lines = read_object(path, "there are no training curves").get("log_history") or []
    if not isinstance(lines, list) or not any(isinstance(line, dict) and "step" in line for line in lines):
        raise ValueError(
            f"The training log {path} has no line with a `step`, so nothing can be drawn over steps. Give a "
            "trainer_state.json, or lines that each have a `step`."
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


def _series(lines: list[dict], metric: str) -> Series:
    points = ((finite_number(line.get("step")), finite_number(line.get(metric))) for line in lines)
    return sorted((step, value) for step, value in points if step is not None and value is not None)


def load_references(curves: References) -> dict[str, dict[str, Series]]:
    """Reference curves by metric and label, from CSV files with the columns `step,value,label` and perhaps `metric`."""
    if curves is None:
        return {}
    files = curves if isinstance(curves, Mapping) else {"reward": curves}
    references: dict[str, dict[str, Series]] = {}
    for default, path in ((metric, path) for metric, paths in files.items() for path in _paths_in(paths)):
        if not path.is_file():
            raise FileNotFoundError(f"The reference curves {path} do not exist. Correct the path, or leave it out.")
        for row in read_csv(path, ("step", "value", "label")):
            step, value = (finite_number(parse_number(row[column])) for column in ("step", "value"))
            if step is None or value is None:
                raise ValueError(f"{path} has the line {row}, whose step or value is no number. Correct it.")
            by_label = references.setdefault(row.get("metric") or default, {})
            by_label.setdefault(row["label"], []).append((step, value))
    return {metric: {label: sorted(s) for label, s in by.items()} for metric, by in references.items()}
