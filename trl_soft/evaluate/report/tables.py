# SPDX-License-Identifier: Apache-2.0
"""One table, three ways of writing it: Markdown, LaTeX with booktabs, CSV."""

import csv
import io
import re
from dataclasses import dataclass, field

from ...files import printable


DASH = "\u2013"  # an empty cell
PERCENT = ("mean", "pass", "maj", "first", "clipped")
HEADINGS = {
    "length": "tokens",
    "correct_length": "tokens where right",
    "thinking_length": "thoughts",
    "clipped": "clipped, %",
    "entropy": "entropy, nats",
    "tokens_per_second": "tokens/s",
}
_DIGITS = {"entropy": 3}
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    DASH: "--",
    "±": r"$\pm$",
}


def kind(metric: str) -> str:
    """`pass@16` is a `pass`."""
    return metric.partition("@")[0]


def is_percent(metric: str) -> bool:
    return kind(metric) in PERCENT


def heading(metric: str) -> str:
    """A metric as a column's heading."""
    if kind(metric) == "first":
        return f"{metric} (legacy)"
    return HEADINGS.get(metric, metric)


@dataclass(frozen=True)
class Number:
    """
    A cell: shares in percent, all else in its own unit.

    Args:
        value (`float`): of one run, or the mean over runs that share a name.
        low, high (`float`, *optional*): ends of the 95 % interval; over several runs, the means of theirs.
        std (`float`, *optional*): sample standard deviation over the runs, with n - 1 in the denominator.
        seeds (`int`): how many runs there are.
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    seeds: int = 1


@dataclass
class Row:
    """
    A decoding of a run, ours or a paper's.

    Args:
        cells (`dict`): by (benchmark, metric).
        positions (`dict`): entropies in nats by position, by benchmark; `None` where no completion was so long.
        thought (`str`, *optional*), temperature (`float`, *optional*):
            kind and temperature of the thoughts; of a hard one the answer's, where it has none of its own.
    """

    name: str
    decoding: str
    source: str | None = None
    samples: str = ""
    seeds: int | None = 1
    cells: dict[tuple[str, str], Number] = field(default_factory=dict)
    positions: dict[str, list[float | None]] = field(default_factory=dict)
    thought: str | None = None
    temperature: float | None = None

    @property
    def label(self) -> str:
        """For a legend."""
        return f"{self.name} / {self.decoding}" + (f" ({self.source})" if self.source else "")


@dataclass
class Table:
    """Rows by (benchmark, metric) columns."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[Row]

    def stub(self) -> list[str]:
        """Headings of the columns that say what a row is."""
        extra = ["source"] if any(row.source for row in self.rows) else []
        seeds = ["seeds"] if any((row.seeds or 1) > 1 for row in self.rows) else []
        return ["run", "decoding", *extra, "n", *seeds]

    def stub_cells(self, row: Row) -> list[str]:
        """What a row is."""
        cells = {"run": row.name, "decoding": row.decoding, "source": row.source or "ours", "n": row.samples}
        cells["seeds"] = "" if row.seeds is None else str(row.seeds)
        return [cells[heading] for heading in self.stub()]


def _parts(number: Number | None, metric: str) -> tuple[str, str, str]:
    """Value, `± std` and `[low, high]` as text; a spread over seeds takes the interval's place."""
    if number is None:
        return "", "", ""
    digits = _DIGITS.get(metric, 1)
    value = f"{number.value:.{digits}f}"
    if number.std is not None:
        return value, f"{number.std:.{digits}f}", ""
    if number.low is None or number.high is None:
        return value, "", ""
    return value, "", f"[{number.low:.{digits}f}, {number.high:.{digits}f}]"


def escape_markdown(text: str) -> str:
    """Text that a Markdown table shows as it is."""
    text = re.sub(r"([\\|*<>\[\]`])", r"\\\1", printable(" ".join(text.split())))
    return re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", text)


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(character, character) for character in printable(" ".join(text.split())))


def markdown(table: Table) -> str:
    """The table in Markdown; an empty cell is a dash."""
    stub = table.stub()
    head = [*stub, *(f"{benchmark} {heading(metric)}" for benchmark, metric in table.columns)]
    rule = ["---" if name not in ("n", "seeds") else "--:" for name in stub] + ["--:"] * len(table.columns)
    lines = [[escape_markdown(cell) for cell in head], rule]
    for row in table.rows:
        cells = [escape_markdown(cell) or DASH for cell in table.stub_cells(row)]
        for benchmark, metric in table.columns:
            value, std, interval = _parts(row.cells.get((benchmark, metric)), metric)
            spread = f" ± {std}" if std else f" <sub>{interval}</sub>" if interval else ""
            cells.append(value + spread or DASH)
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def latex(table: Table) -> str:
    """The table in LaTeX: a `tabular` with booktabs' rules, benchmarks over their metrics."""
    stub = table.stub()
    groups = [(b, [m for where, m in table.columns if where == b]) for b in dict.fromkeys(b for b, _ in table.columns)]
    align = "".join("r" if name in ("n", "seeds") else "l" for name in stub) + "r" * len(table.columns)
    first, rules, at = [""] * len(stub), [], len(stub) + 1
    for benchmark, metrics in groups:
        first.append(rf"\multicolumn{{{len(metrics)}}}{{c}}{{{escape_latex(benchmark)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + len(metrics) - 1}}}")
        at += len(metrics)
    second = [*stub, *(escape_latex(heading(metric)) for _, metrics in groups for metric in metrics)]
    lines = [f"% {table.title}. Needs \\usepackage{{booktabs}}.", rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines += [" & ".join(first) + r" \\", " ".join(rules), " & ".join(second) + r" \\", r"\midrule"]
    for row in table.rows:
        cells = [escape_latex(cell) or "--" for cell in table.stub_cells(row)]
        for benchmark, metrics in groups:
            cells += [_latex_cell(row.cells.get((benchmark, metric)), metric) for metric in metrics]
        # A row that begins with a bracket would be read as the optional argument of the `\\` before it.
        lines.append("{}" * cells[0].startswith("[") + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(number: Number | None, metric: str) -> str:
    value, std, interval = _parts(number, metric)
    if std:
        return rf"${value} \pm {std}$"
    sign = f"${value}$" if value.startswith("-") else value
    return f"{sign} {{\\scriptsize {interval}}}" if interval else sign or "--"


def csv_text(table: Table) -> str:
    """The table in CSV: four columns a metric (value, low, high, std), four decimals, empty where there is nothing."""
    head = table.stub()
    for benchmark, metric in table.columns:
        name = f"{benchmark} {heading(metric)}" + (" (%)" if is_percent(metric) and "%" not in heading(metric) else "")
        head += [name, *(f"{name} {part}" for part in ("low", "high", "std"))]
    lines = [head]
    for row in table.rows:
        cells = table.stub_cells(row)
        for column in table.columns:
            number = row.cells.get(column) or Number(float("nan"))
            cells += [_decimal(x) for x in (number.value, number.low, number.high, number.std)]
        lines.append(cells)
    return to_csv(lines)


def _decimal(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"


def to_csv(lines: list[list[str]]) -> str:
    """Lines of cells as CSV with plain line ends, none of which a spreadsheet takes for a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_inert(cell) for cell in line] for line in lines)
    return text.getvalue()


def _inert(cell: str) -> str:
    """A cell with an apostrophe before what a spreadsheet would compute; numbers stay numbers."""
    cell = printable(cell)
    if not cell.startswith(("=", "+", "-", "@")):
        return cell
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell
