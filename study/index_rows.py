# SPDX-License-Identifier: Apache-2.0
"""This repository's own rows in the index of the recipes (recipes/README.md), from the result files alone."""

from pathlib import Path
from typing import Any

from .real.arms import RealDesign
from .real.page_parts import title
from .real.questions import models
from .rules import Estimate
from .runs import Runs, score
from .tables import table
from .tasks import ROOT


INDEX = ROOT / "recipes/README.md"
BEGIN = "<!-- `make study-report` writes the rows from here -->"
END = "<!-- to here -->"


def _small(runs: Runs, task: str) -> list[list[str]]:
    """Part A: each method that has a figure on a task."""
    many, found = runs.design["evaluation"]["many"], []
    for method in runs.design.methods:
        hard, own = (
            [runs.mean(task, method, score("test", inference, k)) for k in (1, many)] for inference in ("hard", "own")
        )
        if all(hard + own):
            seeds = len(runs.of(task, method))
            found.append([f"`{method}`", str(seeds), *(" / ".join(map(_points, pair)) for pair in (hard, own))])
    return found


def _points(value: Estimate | None) -> str:
    return "-" if value is None else f"{100 * value.mean:.1f}"


def _real(design: RealDesign, arms: dict[str, dict[str, Any]], benchmarks: list[str]) -> list[list[str]]:
    """Part B without training: each arm of a model."""
    found = []
    for name in filter(arms.__contains__, design.arms):
        owns = [arms[name]["scores"][benchmark]["own"] for benchmark in benchmarks]
        figures = [f"{100 * own['mean@n'][0]:.1f} / {100 * own['pass@k'][str(own['samples'])][0]:.1f}" for own in owns]
        found.append([f"`{name}`", str(owns[0]["samples"]), *figures])
    return found


def rows(runs: Runs) -> str:
    """Tables of mean@n / pass@n in points."""
    design, many, parts = RealDesign(), runs.design["evaluation"]["many"], []
    for task in runs.design["tasks"]:
        found = _small(runs, task)
        if found:
            heading = ["ours", "seeds", f"hard: mean@{many} / pass@{many}", f"own: mean@{many} / pass@{many}"]
            parts += [f"Trained on `{task}` (`make study`):", table(heading, found)]
    for name, arms in models(design, runs.results).items():
        benchmarks = list(next(iter(arms.values()))["scores"])
        heading = ["ours", "n", *(f"{benchmark}: mean@n / pass@n" for benchmark in benchmarks)]
        parts += [
            f"{title(name, arms)}, untrained (`make study-gpu`):",
            table(heading, _real(design, arms, benchmarks)),
        ]
    return "\n\n".join(parts or ["Not run."])


def write(runs: Runs, path: Path = INDEX) -> None:
    """
    Put the rows between the two marks of the index.

    Raises:
        ValueError: if the index has lost a mark.
    """
    text = path.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} must have the lines {BEGIN!r} and {END!r} once each. Put them back.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{rows(runs)}\n\n{END}{after}", encoding="utf-8")
