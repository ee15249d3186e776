# SPDX-License-Identifier: Apache-2.0
"""The figures of the report: reward over updates, pass@k, and the answer to the first question as a forest plot."""

import os
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .questions import INFERENCES, Answer
from .rules import BEATS, LOSES
from .runs import Runs, problem_scores


_COLOURS = {BEATS: "tab:green", LOSES: "tab:red"}
_STYLES = ("-", "--", ":")


def draw(runs: Runs, first: Answer, folder: Path) -> list[Path]:
    """Write the figures that there are runs for, and remove an older one that there are none for."""
    return save({"forest": _forest(runs, first), "reward": _rewards(runs), "pass_at_k": _pass_at_k(runs)}, folder)


def save(figures: dict[str, Figure | None], folder: Path) -> list[Path]:
    """Write figures as `study_NAME.svg`. `None`: remove an older one."""
    written = []
    for name, figure in figures.items():
        path = folder / f"study_{name}.svg"
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        os.makedirs(folder, exist_ok=True)
        # Without a date and with names from a fixed salt, the same results make the same file.
        with matplotlib.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"}):
            figure.savefig(path, metadata={"Date": None})
        written.append(path)
    return written


def _panels(runs: Runs, columns: int, height: float) -> tuple[Figure, list]:
    figure = Figure(figsize=(9, height * len(runs.design["tasks"])), layout="constrained")
    return figure, list(figure.subplots(len(runs.design["tasks"]), columns, squeeze=False, sharex="col"))


def _style(order: int) -> dict:
    return {"color": f"C{order % 10}", "linestyle": _STYLES[order // 10 % 3], "linewidth": 1.2}


def _rewards(runs: Runs) -> Figure | None:
    """Mean reward of a method's own samples, over seeds, as means of five updates."""
    figure, panels = _panels(runs, 1, 4.2)
    drawn = False
    for (axes,), task in zip(panels, runs.design["tasks"], strict=True):
        for order, method in enumerate(runs.design.methods):
            results = runs.of(task, method).values()
            curves = [[np.nan if x is None else x for x in result["curve"]["reward"]] for result in results]
            if curves:
                mean = np.mean(curves, axis=0)
                smooth = [np.mean(mean[max(i - 2, 0) : i + 3]) for i in range(len(mean))]
                axes.plot(range(1, len(mean) + 1), smooth, label=method, **_style(order))
                drawn = True
        axes.set(
            title=f"{task}: mean over seeds, means of five updates", ylabel="reward of own samples", ylim=(0, 1.02)
        )
        axes.grid(alpha=0.3)
    if not drawn:
        return None
    panels[-1][0].set_xlabel("update")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def _pass_at_k(runs: Runs) -> Figure | None:
    """pass@k of hard and of own inference."""
    figure, panels = _panels(runs, 2, 3.8)
    many = runs.design["evaluation"]["many"]
    values = [2**i for i in range(many.bit_length()) if 2**i <= many]
    drawn = False
    for row, task in zip(panels, runs.design["tasks"], strict=True):
        for axes, inference in zip(row, INFERENCES, strict=True):
            for order, method in enumerate(runs.design.methods):
                results = runs.of(task, method).values()
                if results:
                    curve = [
                        np.mean([problem_scores(result, "test", inference, k).mean() for result in results])
                        for k in values
                    ]
                    axes.plot(values, curve, label=method, **_style(order))
                    drawn = True
            axes.set(title=f"{task}, {inference} inference", xscale="log", ylabel="pass@k")
            axes.set_xticks(values, map(str, values))
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    if not drawn:
        return None
    for axes in panels[-1]:
        axes.set_xlabel("k")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def _forest(runs: Runs, answer: Answer) -> Figure | None:
    """Method less control in points, with 95 % intervals over seeds. The colour is the verdict of the strict interval."""
    shown = [comparison for comparison in answer.comparisons if comparison.difference is not None]
    if not shown:
        return None
    labels = list(dict.fromkeys(f"{comparison.method} less {comparison.other}" for comparison in shown))
    tasks = list(runs.design["tasks"])
    figure = Figure(figsize=(9, 1.2 + 0.24 * len(labels) * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(INFERENCES), squeeze=False, sharey=True, sharex=True)
    for comparison in shown:
        axes = panels[tasks.index(comparison.task)][INFERENCES.index(comparison.inference)]
        found, place = comparison.difference, labels.index(f"{comparison.method} less {comparison.other}")
        ends = [[100 * (found.mean - found.low)], [100 * (found.high - found.mean)]]
        colour = _COLOURS.get(comparison.word, "0.4")
        axes.errorbar([100 * found.mean], [place], xerr=ends, fmt="o", markersize=3, color=colour, linewidth=1)
    for row, task in zip(panels, tasks, strict=True):
        for axes, inference in zip(row, INFERENCES, strict=True):
            axes.axvline(0, color="0.7", linewidth=0.8)
            axes.set_title(f"{task}, {inference} inference", fontsize=9)
            axes.set_yticks(range(len(labels)), labels, fontsize=7)
            axes.grid(axis="x", alpha=0.3)
    panels[0][0].invert_yaxis()
    for axes in panels[-1]:
        axes.set_xlabel("mean@n less that of the control, points")
    return figure
