# SPDX-License-Identifier: Apache-2.0
"""CSV files: read by the names of their columns, and written so that a spreadsheet computes no cell."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...files import printable


def read_csv(path: Path, columns: Sequence[str]) -> list[dict]:
    """The rows of a file. Raises `ValueError` if it lacks one of `columns`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path} has the columns {reader.fieldnames} and lacks {missing}, so its numbers cannot be placed. "
                f"Begin it with the line {','.join(columns)}."
            )
        return list(reader)


def parse_number(text: str | None) -> float | str | None:
    """A cell as a number; a cell that is no number as it is; `None` for an empty one."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def to_csv(lines: Iterable[Sequence[str]]) -> str:
    """Lines of cells as CSV with `\\n` line ends. A spreadsheet takes none of the cells for a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_inert(cell) for cell in line] for line in lines)
    return text.getvalue()


def _inert(cell: str) -> str:
    """The cell, with an apostrophe before it where a spreadsheet would compute it. Numbers stay numbers."""
    cell = printable(cell)
    if not cell.startswith(("=", "+", "-", "@")):
        return cell
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell
