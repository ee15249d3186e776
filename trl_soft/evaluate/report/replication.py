# SPDX-License-Identifier: Apache-2.0
"""A paper's tables with our results beside them; `not run` stands where we have none.

    python -m trl_soft.evaluate.paper_table recipes/papers/soft_grpo.yaml -o outputs/tables

It reads every evaluation under `outputs/quickstart/evaluation/PAPER`, the out-of-domain scores (`ood.json`) in the same folders, and
the training rewards under `outputs/PAPER`. Runs of one name are seeds: the table has their mean and standard deviation
(n - 1).
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...command_line import CommandParser
from ...files import printable
from ..run_files import read_manifest, read_out_of_domain
from .papers import AVERAGE, PublishedRow, read_papers
from .results import DASH, SCORES, ResultCell, finite_number, score_name
from .run_results import DecodingResults, load_run
from .table_formats import escape_markdown
from .training_logs import read_training_log


NOT_RUN = "not run"
Cell = tuple[str, str, str, str]  # run, decoding, benchmark, metric
Ours = dict[Cell, list[float]]  # one number for each seed
_TWO_DIGITS = (AVERAGE, "hellaswag", "arc_challenge", "mmlu")
_LENGTHS = ("length", "correct_length")
_REWARDS = 20  # the last rewards of a training run, whose mean is taken


def read_ours(outputs: Path, paper: str) -> tuple[Ours, list[str]]:
    """
    All numbers of the runs of a paper's recipes, with shares in percent; and sentences about the runs that are left out.

    Raises `ValueError` if two folders hold the same cell of the same model, because one seed would count twice.
    """
    ours: dict[Cell, dict[str, float]] = defaultdict(dict)
    notes: list[str] = []
    root = outputs / "evaluation" / paper
    for numbers in (_scores(root, notes), _out_of_domain(root, notes), _rewards(outputs / paper, notes)):
        for folder, seed, cell, value in numbers:
            if seed in ours[cell]:
                raise ValueError(
                    f"{folder} holds {cell} of {seed} a second time, and a mean over seeds would count it twice. Remove "
                    "or rename one of the runs."
                )
            ours[cell][seed] = value
    return {cell: list(seeds.values()) for cell, seeds in ours.items()}, notes


def _scores(root: Path, notes: list[str]) -> Iterator[tuple[Path, str, Cell, float]]:
    for file in sorted(root.rglob("manifest.json")):
        folder = file.parent
        limit = read_manifest(folder).get("limit")
        if not (folder / "metrics.json").is_file():
            notes.append(f"{folder} has no metrics.json: that run has not ended.")
        elif limit:
            notes.append(f"{folder} is a run over the first {limit} problems: left out.")
        else:
            run = load_run(folder)
            for benchmark, decodings in run.results.items():
                for decoding, results in decodings.items():
                    for metric, value in _printed_metrics(results):
                        yield folder, str(run.manifest.get("model")), (run.name, decoding, benchmark, metric), value


def _printed_metrics(results: DecodingResults) -> Iterator[tuple[str, float]]:
    """The metrics that papers print, by name (`mean@32`, `pass@16`, `maj@16`, `first@16`, `length`)."""
    for metric, estimate in results.estimates.items():
        if metric == "mean@n":
            if isinstance(results.samples, int):
                yield f"mean@{results.samples}", estimate.value
        elif score_name(metric) in SCORES or metric in _LENGTHS:
            yield metric, estimate.value


def _out_of_domain(root: Path, notes: list[str]) -> Iterator[tuple[Path, str, Cell, float]]:
    for file in sorted(root.rglob("ood.json")):
        content = read_out_of_domain(file)
        name = file.relative_to(root).parts[0]
        if content.get("limit"):
            notes.append(f"{file} is of the first {content['limit']} questions of each task: left out.")
            continue
        for benchmark, row in content["tasks"].items():
            for metric in ("greedy", "acc", "acc_norm", "nll"):
                if metric in row:
                    value = row[metric]["value"] * (1 if metric == "nll" else 100)
                    yield file.parent, str(content.get("model")), (name, "ood", benchmark, metric), value


def _rewards(root: Path, notes: list[str]) -> Iterator[tuple[Path, str, Cell, float]]:
    for file in sorted(root.glob("*/*/trainer_state.json")):
        rewards = [
            reward for row in read_training_log(file) if (reward := finite_number(row.get("reward"))) is not None
        ]
        if len(rewards) < _REWARDS:
            notes.append(f"{file} has {len(rewards)} rewards, fewer than the {_REWARDS} that a mean is taken over.")
            continue
        cell = (file.parent.parent.name, "training", "deepscaler", f"reward@{_REWARDS}")
        yield file.parent, file.parent.name, cell, 100 * statistics.fmean(rewards[-_REWARDS:])


def with_averages(theirs: Sequence[PublishedRow], ours: Ours) -> Ours:
    """Our numbers, and the averages that a paper prints, of the runs that have all benchmarks of an average."""
    averages: Ours = {}
    for row in theirs:
        for metric in row.average:
            cells = [ours.get((row.name, row.decoding, benchmark, metric), []) for benchmark in row.over]
            # Columns of unequal length mean that a seed lacks a benchmark; then there is no average.
            if min(map(len, cells)) == max(map(len, cells)) > 0:
                averages[row.name, row.decoding, AVERAGE, metric] = [
                    statistics.fmean(seed) for seed in zip(*cells, strict=True)
                ]
    return ours | averages


def tables(theirs: Sequence[PublishedRow], ours: Ours) -> str:
    """Markdown: a section for each table of the paper, and in it two lines for each row, theirs and ours."""
    sections: dict[str, list[PublishedRow]] = defaultdict(list)
    for row in theirs:
        sections[row.source].append(row)
    return "\n".join(f"## {printable(source)}\n\n{_table(rows, ours)}\n" for source, rows in sections.items())


def _table(rows: list[PublishedRow], ours: Ours) -> str:
    columns: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        for benchmark, estimates in row.columns.items():
            columns[benchmark] |= dict.fromkeys(estimates)
    heads = [f"{benchmark} {' / '.join(metrics)}" for benchmark, metrics in columns.items()]
    lines = [["run", "decoding", "", *heads], ["---"] * 3 + ["--:"] * len(heads)]
    for row in rows:
        theirs, own, seeds = [], [], 0
        for benchmark, metrics in columns.items():
            estimates = row.columns.get(benchmark, {})
            values = [ours.get((row.name, row.decoding, benchmark, metric)) for metric in metrics]
            seeds = max([seeds, *(len(value) for value in values if value)])
            most = 1 if benchmark == AVERAGE else 2  # a paper's averages have one decimal or two, table by table
            theirs.append(" / ".join(_theirs(estimates.get(m), min(most, _digits(benchmark, m))) for m in metrics))
            cells = [_ours(value, _digits(benchmark, m)) for value, m in zip(values, metrics, strict=True)]
            own.append(" / ".join(cells) if any(values) else NOT_RUN)
        who = "ours" if seeds < 2 else f"ours, {seeds} seeds"
        lines += [[row.name, row.decoding, "theirs", *theirs], ["", "", who, *own]]
    return "\n".join(f"| {' | '.join(escape_markdown(cell) for cell in cells)} |" for cells in lines)


def _digits(benchmark: str, metric: str) -> int:
    """Number of decimals."""
    return 0 if metric in _LENGTHS else 2 if benchmark in _TWO_DIGITS else 1


def _theirs(estimate: ResultCell | None, digits: int) -> str:
    if estimate is None:
        return DASH
    value, std = estimate.value, estimate.std
    # A number that the paper prints with more decimals than its column keeps them.
    text = f"{value:.{digits}f}" if round(value, digits) == value else str(value)
    return text + ("" if std is None else f" ± {std:.{digits}f}")


def _ours(values: list[float] | None, digits: int) -> str:
    if not values:
        return DASH
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        example="python -m trl_soft.evaluate.paper_table recipes/papers/soft_grpo.yaml",
        prog="python -m trl_soft.evaluate.paper_table",
        description="A paper's tables, theirs and ours.",
    )
    parser.add_argument("paper", type=Path, help="the paper's numbers, recipes/papers/PAPER.yaml")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where recipes write")
    parser.add_argument("-o", "--output", type=Path, help="folder to write PAPER.md and PAPER.json into")
    options = parser.parse_args(argv)
    paper = options.paper.stem
    try:
        theirs = read_papers(options.paper)
        ours, notes = read_ours(options.outputs, paper)
        ours = with_averages(theirs, ours)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{printable(str(error))}\n")
    cells = {(row.name, row.decoding, b, m) for row in theirs for b, metrics in row.columns.items() for m in metrics}
    both = sorted(cells & ours.keys())
    head = f"# {paper}: {len(both)} of {len(cells)} cells run\n\nIn percent; lengths in tokens, nll in nats.\n"
    text = "\n".join([head, tables(theirs, ours), *(f"- {printable(note)}" for note in notes)])
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{paper}.md").write_text(text + "\n", encoding="utf-8")
        lines = [{"cell": list(cell), "seeds": ours[cell]} for cell in both]
        (options.output / f"{paper}.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
