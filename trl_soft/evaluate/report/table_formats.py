# SPDX-License-Identifier: Apache-2.0
"""A table as Markdown, as LaTeX with booktabs, and as CSV.

`Styler.to_latex` of pandas writes no rules under groups of columns and escapes neither `<`, `>` nor `|`, its Markdown needs
`tabulate`, and its CSV stops no spreadsheet from computing a cell. So these writers are ours.
"""

import re

from ...files import printable
from .csv_files import to_csv
from .results import DASH, ResultCell, heading, is_percent
from .tables import ResultTable


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


def _parts(estimate: ResultCell | None, metric: str) -> tuple[str, str, str]:
    """Value, standard deviation and `[low, high]` as text. With a standard deviation there is no interval."""
    if estimate is None:
        return "", "", ""
    digits = _DIGITS.get(metric, 1)
    value = f"{estimate.value:.{digits}f}"
    if estimate.std is not None:
        return value, f"{estimate.std:.{digits}f}", ""
    if estimate.low is None or estimate.high is None:
        return value, "", ""
    return value, "", f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def escape_markdown(text: str) -> str:
    """The text, escaped for a cell of a Markdown table."""
    text = re.sub(r"([\\|*<>\[\]`])", r"\\\1", printable(" ".join(text.split())))
    return re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", text)


def escape_latex(text: str) -> str:
    """The text, escaped for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in printable(" ".join(text.split())))


def markdown(table: ResultTable) -> str:
    """The table in Markdown. An empty cell is a dash."""
    names = table.row_headings()
    head = [*names, *(f"{benchmark} {heading(metric)}" for benchmark, metric in table.columns)]
    rule = ["---" if name not in ("n", "seeds") else "--:" for name in names] + ["--:"] * len(table.columns)
    lines = [[escape_markdown(cell) for cell in head], rule]
    for row in table.rows:
        cells = [escape_markdown(cell) or DASH for cell in table.row_cells(row)]
        for benchmark, metric in table.columns:
            value, std, interval = _parts(row.cells.get((benchmark, metric)), metric)
            spread = f" ± {std}" if std else f" <sub>{interval}</sub>" if interval else ""
            cells.append(value + spread or DASH)
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def latex(table: ResultTable) -> str:
    """The table in LaTeX: a `tabular` with the rules of booktabs, and each benchmark above its metrics."""
    names = table.row_headings()
    groups = [(b, [m for where, m in table.columns if where == b]) for b in dict.fromkeys(b for b, _ in table.columns)]
    align = "".join("r" if name in ("n", "seeds") else "l" for name in names) + "r" * len(table.columns)
    first, rules, at = [""] * len(names), [], len(names) + 1
    for benchmark, metrics in groups:
        first.append(rf"\multicolumn{{{len(metrics)}}}{{c}}{{{escape_latex(benchmark)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + len(metrics) - 1}}}")
        at += len(metrics)
    second = [*names, *(escape_latex(heading(metric)) for _, metrics in groups for metric in metrics)]
    lines = [f"% {table.title}. Needs \\usepackage{{booktabs}}.", rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines += [" & ".join(first) + r" \\", " ".join(rules), " & ".join(second) + r" \\", r"\midrule"]
    for row in table.rows:
        cells = [escape_latex(cell) or "--" for cell in table.row_cells(row)]
        for benchmark, metrics in groups:
            cells += [_latex_cell(row.cells.get((benchmark, metric)), metric) for metric in metrics]
        # LaTeX would read a bracket at the beginning of a row as the optional argument of the `\\` before it.
        lines.append("{}" * cells[0].startswith("[") + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(estimate: ResultCell | None, metric: str) -> str:
    value, std, interval = _parts(estimate, metric)
    if std:
        return rf"${value} \pm {std}$"
    sign = f"${value}$" if value.startswith("-") else value
    return f"{sign} {{\\scriptsize {interval}}}" if interval else sign or "--"


def csv_text(table: ResultTable) -> str:
    """The table in CSV: value, low, high and std for each metric, with four decimals; an unknown number is empty."""
    head = table.row_headings()
    for benchmark, metric in table.columns:
        name = f"{benchmark} {heading(metric)}" + (" (%)" if is_percent(metric) and "%" not in heading(metric) else "")
        head += [name, *(f"{name} {part}" for part in ("low", "high", "std"))]
    lines = [head]
    for row in table.rows:
        cells = table.row_cells(row)
        for column in table.columns:
            estimate = row.cells.get(column) or ResultCell(float("nan"))
            cells += [_decimal(x) for x in (estimate.value, estimate.low, estimate.high, estimate.std)]
        lines.append(cells)
    return to_csv(lines)


def _decimal(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"
