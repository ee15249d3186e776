# SPDX-License-Identifier: Apache-2.0
"""The numbers of a report: the names of metrics, estimates, and rows of estimates."""

import math
from dataclasses import dataclass, field
from typing import Any


DASH = "\u2013"  # an empty cell
COSTS = ("length", "correct_length", "thinking_length", "clipped", "entropy", "tokens_per_second")
SCORES = ("mean", "pass", "maj", "first")
HEADINGS = {
    "length": "tokens",
    "correct_length": "tokens where right",
    "thinking_length": "thoughts",
    "clipped": "clipped, %",
    "entropy": "entropy, nats",
    "tokens_per_second": "tokens/s",
}
_ALIASES = {"avg": "mean", "first_k": "first"}


def score_name(metric: str) -> str:
    """`pass@16` is a `pass`."""
    return metric.partition("@")[0]


def is_percent(metric: str) -> bool:
    return score_name(metric) in (*SCORES, "clipped")


def heading(metric: str) -> str:
    """The heading of a metric's column."""
    if score_name(metric) == "first":
        return f"{metric} (legacy)"
    return HEADINGS.get(metric, metric)


def metric_order(metric: str) -> tuple[int, int]:
    """Sort key of scores: by kind, then by k."""
    k = metric.partition("@")[2]
    return SCORES.index(score_name(metric)), int(k) if k.isdigit() else 0


def parse_metric(name: str, where: str) -> str:
    """The standard name of a score: `avg@32` and `mean@32` are `mean@n`. Raises `ValueError` for other names."""
    score, _, k = str(name).strip().partition("@")
    score = _ALIASES.get(score, score)
    if score == "mean" and (k == "n" or k.isdigit()):
        return "mean@n"
    if score in SCORES and k.isdigit() and int(k) > 0:
        return f"{score}@{int(k)}"
    raise ValueError(
        f"{where} names the metric {name!r}, which is no known score. Name it mean@n (or mean@32), pass@k, maj@k or "
        "first@k, with a number for k."
    )


def finite_number(value: Any) -> float | None:
    """A finite number as a float; `None` for everything else."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


@dataclass(frozen=True)
class ResultCell:
    """
    A number of a table. Shares are in percent, other numbers in their own unit.

    Args:
        value (`float`): of one run, or the mean over the runs that share a name.
        low, high (`float`, *optional*): ends of the 95 % interval; over several runs, the means of their ends.
        std (`float`, *optional*): sample standard deviation over the runs, with n - 1 in the denominator.
        seeds (`int`): the number of runs.
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    seeds: int = 1


@dataclass
class ResultRow:
    """
    The results of one run, or of the runs that share a name, under one decoding; or a row that a paper published.

    Args:
        name (`str`), decoding (`str`).
        source (`str`, *optional*): the paper; `None` for our own runs.
        samples (`str`): numbers of samples for each problem.
        seeds (`int`, *optional*): number of runs; `None` for a paper.
        cells (`dict`): estimates by (benchmark, metric).
        positions (`dict`):
            Entropies in nats by position, for each benchmark; `None` where no completion reaches the position.
        thought (`str`, *optional*), temperature (`float`, *optional*):
            Kind and temperature of the thoughts. A hard thought without a temperature of its own has that of the answer.
    """

    name: str
    decoding: str
    source: str | None = None
    samples: str = ""
    seeds: int | None = 1
    cells: dict[tuple[str, str], ResultCell] = field(default_factory=dict)
    positions: dict[str, list[float | None]] = field(default_factory=dict)
    thought: str | None = None
    temperature: float | None = None

    @property
    def label(self) -> str:
        """For a legend."""
        return f"{self.name} / {self.decoding}" + (f" ({self.source})" if self.source else "")
