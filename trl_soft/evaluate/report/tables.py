# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: their rows, and their columns of benchmarks and metrics."""

from dataclasses import dataclass

from .results import SCORES, ResultRow, heading, metric_order, score_name


@dataclass
class ResultTable:
    """Rows of results under columns of (benchmark, metric)."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[ResultRow]

    def row_headings(self) -> list[str]:
        """Headings of the first columns, which identify a row."""
        source = ["source"] if any(row.source for row in self.rows) else []
        seeds = ["seeds"] if any((row.seeds or 1) > 1 for row in self.rows) else []
        return ["run", "decoding", *source, "n", *seeds]

    def row_cells(self, row: ResultRow) -> list[str]:
        """The cells under `row_headings`."""
        cells = {"run": row.name, "decoding": row.decoding, "source": row.source or "ours", "n": row.samples}
        cells["seeds"] = "" if row.seeds is None else str(row.seeds)
        return [cells[name] for name in self.row_headings()]

    def drop_empty_columns(self, ours: list[ResultRow], notes: list[str]) -> None:
        """
        Remove the columns that no row fills.

        `notes` receives a sentence for each metric that was removed, and for each of our rows that lacks a metric.
        """
        empty = [column for column in self.columns if not any(column in row.cells for row in self.rows)]
        self.columns = [column for column in self.columns if column not in empty]
        for metric in dict.fromkeys(metric for _, metric in empty):
            where = [b for b, m in empty if m == metric]
            notes.append(f"No run has {heading(metric)} on {_enumeration(where)}, so there is no such column.")
        for row in ours:
            for metric in dict.fromkeys(metric for _, metric in self.columns):
                lacking = [b for b, m in self.columns if m == metric and (b, m) not in row.cells]
                if lacking:
                    notes.append(f"{row.label} has no {heading(metric)} on {_enumeration(lacking)}: left empty.")


def _enumeration(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def accuracy_columns(
    ours: list[ResultRow], theirs: list[ResultRow], benchmarks: list[str], metrics: list[str] | None
) -> list[tuple[str, str]]:
    """
    Columns of scores for each benchmark: `metrics` if they are given.

    Otherwise mean@n, pass@k and maj@k at the largest k that one of our rows has, and every score that a paper reports.
    """
    columns = []
    for benchmark in benchmarks:
        scores = metrics
        if scores is None:
            own = {m for row in ours for b, m in row.cells if b == benchmark and score_name(m) in SCORES}
            largest = (
                max((m for m in own if score_name(m) == score), key=metric_order, default="")
                for score in ("pass", "maj")
            )
            of_papers = {m for row in theirs for b, m in row.cells if b == benchmark}
            scores = sorted({"mean@n", *filter(None, largest), *of_papers}, key=metric_order)
        columns += [(benchmark, metric) for metric in scores]
    return columns


def beside(ours: list[ResultRow], theirs: list[ResultRow]) -> list[ResultRow]:
    """Our rows. Below each stand the papers' rows of its name and decoding; the papers' other rows stand at the end."""
    rows, rest = [], list(theirs)
    for row in ours:
        same = [paper for paper in rest if (paper.name, paper.decoding) == (row.name, row.decoding)]
        rows += [row, *same]
        rest = [paper for paper in rest if paper not in same]
    return rows + rest
