# SPDX-License-Identifier: Apache-2.0
"""A paper's tables with what has been run beside them; what has not says so.

    python -m trl_soft.evaluate.paper_table recipes/papers/soft_grpo.yaml -o outputs/tables

Reads every evaluation under `outputs/evaluation/PAPER`, out-of-domain scores (`ood.json`) in the same folders, and the
training rewards under `outputs/PAPER`. Several runs of one name are seeds: their mean and standard deviation (n - 1).
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...files import read_object
from .tables import DASH, escape_markdown


NOT_RUN = "not run"
AVERAGE = "average"  # over benchmarks: a column like that of a benchmark
Cell = tuple[str, str, str, str]  # run, decoding, benchmark, metric
_TWO_DIGITS = (AVERAGE, "hellaswag", "arc_challenge", "mmlu")
_LENGTHS = ("length", "correct_length")


def load_paper(path: Path) -> list[dict]:
    """
    The entries of a file of published numbers: `source`, `name`, `decoding` and `values[benchmark][metric]`; where the
    paper prints them also `average[metric]`, and `over`, the benchmarks it is the mean of where `values` has none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. The papers' numbers lie in recipes/papers.")
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in entries:
        lacking = [key for key in ("source", "name", "decoding", "values") if key not in entry]
        if lacking:
            raise ValueError(f"{path} has an entry without {lacking}: {entry}. Add them.")
    return entries


def published(entry: dict) -> dict[str, dict[str, Any]]:
    """An entry's numbers by benchmark and metric, the average over benchmarks among them."""
    return entry["values"] | ({AVERAGE: entry["average"]} if "average" in entry else {})


def with_averages(entries: Sequence[dict], found: dict[Cell, list[float]]) -> dict[Cell, list[float]]:
    """What was measured, and the averages that a paper prints: of the runs that have every benchmark of one."""
    averages: dict[Cell, list[float]] = {}
    for entry in entries:
        run, over = (entry["name"], entry["decoding"]), entry.get("over") or list(entry["values"])
        for metric in entry.get("average", ()):
            cells = [found.get((*run, benchmark, metric), []) for benchmark in over]
            # A benchmark that a seed lacks leaves the columns of unequal length, and then there is no average to take.
            if min(map(len, cells)) == max(map(len, cells)) > 0:
                averages[*run, AVERAGE, metric] = [statistics.fmean(seed) for seed in zip(*cells, strict=True)]
    return found | averages


def measured(outputs: Path, paper: str) -> tuple[dict[Cell, list[float]], list[str]]:
    """
    Every number that runs of a paper's recipes have, over seeds, shares in percent; and what was left out, in sentences.

    Raises `ValueError` where two folders hold the same cell of the same model, so that no seed counts twice.
    """
    found: dict[Cell, dict[str, float]] = defaultdict(dict)
    notes: list[str] = []
    for folder, seed, cell, value in _numbers(outputs, paper, notes):
        if seed in found[cell]:
            raise ValueError(
                f"{folder} holds {cell} of {seed} a second time, and a mean over seeds would count it twice. Remove or "
                "rename one of the runs."
            )
        found[cell][seed] = value
    return {cell: list(seeds.values()) for cell, seeds in found.items()}, notes


def _numbers(outputs: Path, paper: str, notes: list[str]) -> Iterator[tuple[Path, str, Cell, float]]:
    root = outputs / "evaluation" / paper
    for file in sorted(root.rglob("manifest.json")):
        manifest, folder = read_object(file, "nothing says which run this is"), file.parent
        if not (folder / "metrics.json").is_file():
            notes.append(f"{folder} has no metrics.json: that run has not ended.")
        elif manifest.get("limit"):
            notes.append(f"{folder} is a run over the first {manifest['limit']} problems: left out.")
        else:
            scores = read_object(folder / "metrics.json", "there is nothing to tabulate")
            for benchmark, decodings in scores.items():
                for decoding, entry in decodings.items():
                    for metric, value in _flat(entry):
                        cell = (str(manifest["name"]), decoding, benchmark, metric)
                        yield folder, str(manifest["model"]), cell, value
    for file in sorted(root.rglob("ood.json")):
        content = read_object(file, "there is nothing to tabulate")
        name = file.relative_to(root).parts[0]
        if content.get("limit"):
            notes.append(f"{file} is of the first {content['limit']} questions of each task: left out.")
            continue
        for benchmark, row in content["tasks"].items():
            for metric in ("greedy", "acc", "acc_norm", "nll"):
                if metric in row:
                    value = row[metric]["value"] * (1 if metric == "nll" else 100)
                    yield file.parent, str(content["model"]), (name, "ood", benchmark, metric), value
    for file in sorted((outputs / paper).glob("*/*/trainer_state.json")):
        history = read_object(file, "there are no rewards")["log_history"]
        rewards = [row["reward"] for row in history if row.get("reward") is not None]
        if len(rewards) < 20:
            notes.append(f"{file} has {len(rewards)} rewards, fewer than the 20 that a mean is taken over.")
            continue
        cell = (file.parent.parent.name, "training", "deepscaler", "reward@20")
        yield file.parent, file.parent.name, cell, 100 * statistics.fmean(rewards[-20:])


def _flat(entry: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """A decoding's shares in percent by one name each (`mean@32`, `pass@16`, `maj@16`, `first@16`), and its lengths."""
    if isinstance(entry["samples"], int):
        yield f"mean@{entry['samples']}", 100 * entry["mean@n"]["value"]
    for name in ("pass@k", "maj@k", "first_k"):
        for k, score in (entry.get(name) or {}).items():
            yield f"{name[:-2].rstrip('@')}@{k}", 100 * score["value"]
    for name in _LENGTHS:
        if entry.get(name):
            yield name, entry[name]["mean"]


def tables(entries: Sequence[dict], found: dict[Cell, list[float]]) -> str:
    """Markdown: a section for each of the paper's tables, two lines a row, theirs and ours (from `with_averages`)."""
    sections: dict[str, list[dict]] = defaultdict(list)
    for entry in entries:
        sections[entry["source"]].append(entry)
    parts = []
    for source, rows in sections.items():
        columns: dict[str, list[str]] = {}
        for row in rows:
            for benchmark, numbers in published(row).items():
                known = columns.setdefault(benchmark, [])
                known += [metric for metric in numbers if metric not in known]
        heads = [f"{benchmark} {' / '.join(metrics)}" for benchmark, metrics in columns.items()]
        lines = [["run", "decoding", "", *heads], ["---"] * 3 + ["--:"] * len(heads)]
        for row in rows:
            theirs, ours, seeds = [], [], 0
            for benchmark, metrics in columns.items():
                printed = published(row).get(benchmark, {})
                values = [found.get((row["name"], row["decoding"], benchmark, metric)) for metric in metrics]
                seeds = max([seeds, *(len(value) for value in values if value)])
                least = 1 if benchmark == AVERAGE else 2  # a paper's averages have one decimal or two, table by table
                theirs.append(" / ".join(_theirs(printed.get(m), min(least, _digits(benchmark, m))) for m in metrics))
                written = (_ours(value, _digits(benchmark, m)) for value, m in zip(values, metrics, strict=True))
                ours.append(" / ".join(written) if any(values) else NOT_RUN)
            who = "ours" if seeds < 2 else f"ours, {seeds} seeds"
            lines += [[row["name"], row["decoding"], "theirs", *theirs], ["", "", who, *ours]]
        text = "\n".join(f"| {' | '.join(escape_markdown(cell) for cell in cells)} |" for cells in lines)
        parts.append(f"## {source}\n\n{text}\n")
    return "\n".join(parts)


def _digits(benchmark: str, metric: str) -> int:
    """Decimals."""
    return 0 if metric in _LENGTHS else 2 if benchmark in _TWO_DIGITS else 1


def _theirs(printed: Any, digits: int) -> str:
    if printed is None:
        return DASH
    value, std = (printed["value"], printed["std"]) if isinstance(printed, dict) else (printed, None)
    # A number with more decimals than its column has keeps them: it is the paper's.
    text = f"{value:.{digits}f}" if round(value, digits) == value else str(value)
    return text + ("" if std is None else f" ± {std:.{digits}f}")


def _ours(values: list[float] | None, digits: int) -> str:
    if not values:
        return DASH
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trl_soft.evaluate.paper_table", description="A paper's tables, theirs and ours."
    )
    parser.add_argument("paper", type=Path, help="the paper's numbers, recipes/papers/PAPER.yaml")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where recipes write")
    parser.add_argument("-o", "--output", type=Path, help="folder to write PAPER.md and PAPER.json into")
    options = parser.parse_args(argv)
    try:
        entries = load_paper(options.paper)
        found, notes = measured(options.outputs, options.paper.stem)
        found = with_averages(entries, found)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    cells = {(e["name"], e["decoding"], b, m) for e in entries for b, metrics in published(e).items() for m in metrics}
    run = sum(cell in found for cell in cells)
    head = f"# {options.paper.stem}: {run} of {len(cells)} cells run\n\nIn percent; lengths in tokens, nll in nats.\n"
    text = "\n".join([head, tables(entries, found), *(f"- {note}" for note in notes)])
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{options.paper.stem}.md").write_text(text + "\n", encoding="utf-8")
        lines = [{"cell": list(cell), "seeds": found[cell]} for cell in sorted(cells & found.keys())]
        (options.output / f"{options.paper.stem}.json").write_text(
            json.dumps(lines, indent=1) + "\n", encoding="utf-8"
        )
