# SPDX-License-Identifier: Apache-2.0
"""What both halves of part B's section write."""

from collections.abc import Mapping
from typing import Any


def title(name: str, results: Mapping[str, dict[str, Any]]) -> str:
    """The model and what is to be said of its weights."""
    notes = sorted({result["model"]["note"] for result in results.values()} - {""})
    return f"{name} ({'; '.join(notes)})" if notes else name


def interval(entry: list[float] | None) -> str:
    """`17.3 (13.0 to 22.1)`: a score and its interval, in points."""
    if entry is None:
        return "-"
    value, low, high = (100 * x for x in entry)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
