# SPDX-License-Identifier: Apache-2.0
"""The metrics of a run, computed from its sealed samples."""

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from .entropy import PositionMeans
from .run_files import scored_chunks
from .scores import summary
from .store import Store


@dataclass
class Samples:
    """
    The sealed samples of one benchmark and one decoding.

    Args:
        lines (`list[dict]`): the samples, in any order.
        tokens (`int`), seconds (`float`): tokens drawn and time taken.
        positions (`PositionMeans`, *optional*): entropies by position; `None` unless every chunk measured them, because
            the mean over a part of the chunks would be a mean over other problems.
    """

    lines: list[dict] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    positions: PositionMeans | None = field(default_factory=lambda: PositionMeans(0))

    def add(self, lines: list[dict], seal: dict) -> None:
        """Add a chunk."""
        self.lines += lines
        self.tokens += seal["tokens"]
        self.seconds += seal["seconds"]
        if "entropy_by_position" not in seal:
            self.positions = None
        elif self.positions is not None:
            self.positions.add_sums(**seal["entropy_by_position"])

    def by_problem(self) -> dict[int, list[dict]]:
        """The samples of each problem. Problems and samples are in the order of their numbers."""
        problems: dict[int, list[dict]] = defaultdict(list)
        for line in sorted(self.lines, key=lambda line: (line["problem"], line["sample"])):
            problems[line["problem"]].append(line)
        return dict(problems)

    def metrics(self, k_values: list[int] | None) -> dict[str, Any]:
        """Scores with intervals, lengths, entropies and speed, as `metrics.json` holds them."""
        problems = self.by_problem().values()
        correct = [[line["correct"] for line in rows] for rows in problems]
        votes = [[line["vote"] for line in rows] for rows in problems]
        has_votes = any(vote is not None for row in votes for vote in row)
        fewest = min(map(len, correct))
        right = [line["length"] for line in self.lines if line["correct"]]
        entropies = [line["entropy"] for line in self.lines if line["entropy"] is not None]
        result = {
            **summary(
                correct,
                votes if has_votes else None,
                None if k_values is None else [k for k in k_values if k <= fewest],
            ),
            "length": {"mean": mean(line["length"] for line in self.lines)},
            "correct_length": {"mean": mean(right)} if right else None,  # tokens of right completions only
            "thinking_length": {"mean": mean(line["thinking_length"] for line in self.lines)},
            "clipped": mean(line["clipped"] for line in self.lines),
            "thinking_cut": mean(line["thinking_cut"] for line in self.lines),
            "entropy": mean(entropies) if entropies else None,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
        }
        return result if self.positions is None else result | {"entropy_by_position": self.positions.means()}


def read_samples(store: Store, only: set[tuple[str, str]] | None = None) -> dict[tuple[str, str], Samples]:
    """
    The sealed samples of a run by benchmark and decoding.

    Args:
        only (`set[tuple[str, str]]`, *optional*): benchmarks and decodings to read; `None` means all.

    Raises:
        ValueError: if a sample has no field that scores need, or a wrong value there.
    """
    groups: dict[tuple[str, str], Samples] = defaultdict(Samples)
    for (benchmark, decoding, _), lines, seal in scored_chunks(store, only):
        groups[benchmark, decoding].add(lines, seal)
    return dict(groups)


def score(
    store: Store, k_values: list[int] | None = None, only: set[tuple[str, str]] | None = None
) -> dict[str, dict[str, dict]]:
    """Metrics by benchmark and decoding; see `read_samples` for `only`, and `summary` for `k_values`."""
    result: dict[str, dict[str, dict]] = defaultdict(dict)
    for (benchmark, decoding), samples in read_samples(store, only).items():
        result[benchmark][decoding] = samples.metrics(k_values)
    return dict(result)
