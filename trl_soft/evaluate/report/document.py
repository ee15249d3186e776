# SPDX-License-Identifier: Apache-2.0
"""The report of evaluation runs: tables and figures of our results, with those of papers beside them.

Runs that share a name are seeds of one run. The report says what is missing; it fills no gap.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from . import figures as draw
from .csv_files import to_csv
from .papers import paper_rows
from .results import COSTS, DASH, ResultRow, heading, is_percent, parse_metric, score_name
from .run_results import RunResults, check_runs, decodings_of, load_run, rows_of
from .table_formats import csv_text, escape_markdown, latex, markdown
from .tables import ResultTable, accuracy_columns, beside
from .training_logs import Logs, PathLike, References, load_logs, load_references


TRAINING_METRICS = ("reward", "kl", "thinking/entropy")
_MOST_NOTES = 20  # sentences about what is missing


def report(
    runs: Sequence[PathLike],
    output: PathLike,
    papers: PathLike | None = None,
    training_logs: Logs = None,
    reference_curves: References = None,
    metrics: Sequence[str] | None = None,
    training_metrics: Sequence[str] = TRAINING_METRICS,
    figures: bool = True,
) -> Path:
    """
    Write `report.md`, its tables (`.md`, `.tex`, `.csv`) and its figures (`.png`, `.svg`).

    The cells of runs that share a name are means with standard deviations (n - 1). A single run has its 95 % intervals.
    Shares are in percent. A number that a run does not have is left out, and the report says so.

    Args:
        runs (`list[path]`): run folders, each with `manifest.json` and `metrics.json`.
        output (`path`): a folder. It is made if it is not there; files of an earlier report are overwritten.
        papers (`path`, *optional*):
            Published numbers, in percent; see [`~trl_soft.evaluate.report.papers.read_papers`] for the format. A row with
            the name and the decoding of one of our rows stands right below it.
        training_logs (*optional*):
            Paths of logs (`trainer_state.json`, a folder that holds one, or `.jsonl` or `.csv` with a `step`), as a list
            or as a mapping from labels to one path or several (seeds). In a list the label is the folder's name.
        reference_curves (*optional*):
            A CSV file `step,value,label` for the reward (or for the metric in a column `metric`), or a mapping from
            metrics to such files.
        metrics (`list[str]`, *optional*):
            Columns of the accuracy table, such as `mean@n`, `pass@16`, `maj@16`, `first@16`. Default: `mean@n`, and
            `pass@k` and `maj@k` at the largest k of each benchmark.
        training_metrics (`list[str]`): the metrics of the training figure, by the names under which they are logged.
        figures (`bool`): `False` writes tables only, and does not need matplotlib.

    Returns:
        The path of `report.md`.

    Raises:
        FileNotFoundError, ValueError: for what cannot be read, before anything is written.
    """
    if figures:
        draw.require_matplotlib()
    notes: list[str] = []
    results = [load_run(Path(run)) for run in runs]
    check_runs(results)
    rows, benchmarks = rows_of(results, notes)
    theirs = paper_rows(Path(papers), benchmarks, notes) if papers is not None else []
    tables = _tables(rows, theirs, benchmarks, metrics, notes)
    logs = load_logs(training_logs, training_metrics, notes)
    references = load_references(reference_curves)

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    _write_tables(tables, output)
    _write(output / "numbers.csv", _numbers_csv(rows + theirs))
    pictures = _result_figures(rows, theirs, benchmarks, output, notes) if figures else []
    pictures += _training_figure(logs, references, training_metrics, output) if figures else []
    return _write(output / "report.md", _document(results, rows, tables, pictures, notes))


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _write_tables(tables: dict[str, ResultTable], output: Path) -> None:
    for name, table in tables.items():
        for suffix, form in (("md", markdown), ("tex", latex), ("csv", csv_text)):
            _write(output / f"{name}.{suffix}", form(table))


def _tables(
    rows: list[ResultRow],
    theirs: list[ResultRow],
    benchmarks: list[str],
    metrics: Sequence[str] | None,
    notes: list[str],
) -> dict[str, ResultTable]:
    """The tables by the names of their files; `notes` receives what is missing in them."""
    scores = None if metrics is None else [parse_metric(metric, "`metrics`") for metric in metrics]
    columns = accuracy_columns(rows, theirs, benchmarks, scores)
    tables = {
        "accuracy": ResultTable("Accuracy in percent", columns, beside(rows, theirs)),
        "costs": ResultTable("Lengths, entropy and speed", [(b, c) for b in benchmarks for c in COSTS], rows),
    }
    for table in tables.values():
        table.drop_empty_columns(rows, notes)
    return tables


def _numbers_csv(rows: list[ResultRow]) -> str:
    """All numbers, one in each line."""
    lines = [["run", "decoding", "source", "benchmark", "metric", "unit", "value", "low", "high", "std", "seeds"]]
    for row in rows:
        for (benchmark, metric), estimate in row.cells.items():
            unit = {"entropy": "nats", "tokens_per_second": "tokens/s"}.get(metric, "tokens")
            parts = (estimate.value, estimate.low, estimate.high, estimate.std)
            cells = ["" if part is None else f"{part:.6f}" for part in parts]
            names = [row.name, row.decoding, row.source or "ours", benchmark, heading(metric)]
            seeds = "" if row.source else str(estimate.seeds)
            lines.append([*names, "%" if is_percent(metric) else unit, *cells, seeds])
    return to_csv(lines)


def _result_figures(
    rows: list[ResultRow], theirs: list[ResultRow], benchmarks: list[str], output: Path, notes: list[str]
) -> list[tuple[str, str]]:
    """Draw the figures that have data. Returns pairs of a file's stem and a caption; `notes` receives the others."""
    jobs: list[tuple[str, str, str, Callable[[Path], list[Path]]]] = [
        ("pass_at_k", "pass@k with 95 % bands.", "pass@k", lambda s: draw.curves(rows, theirs, benchmarks, "pass", s)),
        ("maj_at_k", "Majority vote over k samples, 95 % bands.", "maj@k",
         lambda s: draw.curves(rows, theirs, benchmarks, "maj", s)),
        ("accuracy_tokens", "Accuracy against the mean length of a completion, 95 % intervals.",
         "mean@n together with a length", lambda s: draw.accuracy_against_tokens(rows, benchmarks, s)),
        ("entropy", "Entropy of the next token's distribution at temperature 1, by position, mean over completions.",
         "", lambda s: draw.entropy_by_position(rows, benchmarks, s)),
        ("temperatures",
         "Accuracy over the temperature of the thoughts: mean@n with 95 % bands, dashed the largest pass@k.",
         "", lambda s: draw.over_temperatures(_sweeps(rows), benchmarks, s)),
    ]  # fmt: skip
    pictures = []
    for stem, caption, needs, job in jobs:
        if job(output / stem):
            pictures.append((stem, caption))
        elif needs:
            notes.append(f"No run has {needs}, so that figure is left out.")
    return pictures


def _training_figure(logs, references, metrics: Sequence[str], output: Path) -> list[tuple[str, str]]:
    caption = "Training: faint as logged, strong the running mean over a twentieth of the points; references grey."
    metrics = list(dict.fromkeys([*metrics, *references]))
    return [("training", caption)] if draw.training_curves(logs, references, metrics, output / "training") else []


def _sweeps(rows: list[ResultRow]) -> dict[str, list[ResultRow]]:
    """Decodings of one run and one kind of thought at three different temperatures or more, coldest first."""
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        if row.thought is not None and row.temperature is not None:
            groups.setdefault(f"{row.name}, {row.thought}", []).append(row)
    sweeps = {name: own for name, own in groups.items() if len({row.temperature for row in own}) == len(own) >= 3}
    return {name: sorted(own, key=lambda row: row.temperature or 0.0) for name, own in sweeps.items()}


def _document(
    runs: list[RunResults],
    rows: list[ResultRow],
    tables: dict[str, ResultTable],
    pictures: list[tuple[str, str]],
    notes: list[str],
) -> str:
    """The Markdown of the report."""
    lines = [
        "# Evaluation report",
        "",
        "## Runs",
        "",
        "| run | model | seed | commit | decodings |",
        "| --- " * 5 + "|",
    ]
    for run in runs:
        commit, decodings = str(run.manifest.get("commit") or "")[:12], ", ".join(decodings_of(run.manifest))
        cells = [run.name, run.manifest.get("model"), run.manifest.get("seed"), commit, decodings]
        lines.append(f"| {' | '.join(DASH if c in (None, '') else escape_markdown(str(c)) for c in cells)} |")
    lines += ["", "## How to read it", "", *_legend(rows, tables)]
    for name, table in tables.items():
        lines += ["", f"## {table.title}", ""]
        lines.append(markdown(table) if table.columns else "Nothing to show: see below.\n")
        lines.append(f"As [LaTeX]({name}.tex) (booktabs) and [CSV]({name}.csv).")
    lines += ["", "All numbers: [numbers.csv](numbers.csv).", ""]
    if pictures:
        lines += ["## Figures", ""]
        for stem, caption in pictures:
            lines += [f"![{caption}]({stem}.png)", "", f"{caption} [SVG]({stem}.svg)", ""]
    if notes:
        sentences = list(dict.fromkeys(notes))
        lines += ["## What is missing", "", *(f"- {escape_markdown(note)}" for note in sentences[:_MOST_NOTES])]
        if len(sentences) > _MOST_NOTES:
            lines.append(f"- and {len(sentences) - _MOST_NOTES} more; the cells of the tables are empty there.")
        lines.append("")
    return "\n".join(lines)


def _legend(rows: list[ResultRow], tables: dict[str, ResultTable]) -> list[str]:
    lines = ["n is the number of samples for each problem, and mean@n their mean accuracy. Shares are in percent."]
    if any((row.seeds or 1) > 1 for row in rows):
        lines.append(
            "A cell of several runs of one name is their mean ± standard deviation (n - 1 in the denominator); the "
            "bands of their curves are the means of the runs' own intervals."
        )
    if any(e.low is not None and e.std is None for row in rows for e in row.cells.values()):
        lines.append("Brackets are the 95 % interval of one run, over problems.")
    if any(score_name(m) == "first" for table in tables.values() for _, m in table.columns):
        lines.append(
            "first@k (legacy) scores only the first k samples: a noisy pass@k that depends on the order of the samples."
        )
    return lines
