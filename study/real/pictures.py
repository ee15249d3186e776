# SPDX-License-Identifier: Apache-2.0
"""The figure of part B: pass@k of each arm, by model and benchmark."""

from pathlib import Path

from matplotlib.figure import Figure

from ..pictures import save
from ..results import Results
from .arms import RealDesign
from .questions import Arms, models


NAME = "real_pass_at_k"


def draw(design: RealDesign, results: Results, folder: Path) -> list[Path]:
    """Write the figure, or remove an older one if there are no results."""
    return save({NAME: _pass_at_k(design, models(design, results))}, folder)


def _pass_at_k(design: RealDesign, found: dict[str, dict]) -> Figure | None:
    """One panel for each model and benchmark. Solid: Gumbel thoughts. Dashed: hard tokens. Dotted: other kinds."""
    panels = [(model, arms, b) for model, arms in found.items() for b in next(iter(arms.values()))["scores"]]
    if not panels:
        return None
    figure = Figure(figsize=(9, 4.2 * ((len(panels) + 1) // 2)), layout="constrained")
    grid = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
    for axes, (model, arms, benchmark) in zip(grid, panels, strict=False):
        _panel(design, axes, arms, benchmark)
        axes.set_title(f"{model}, {benchmark}", fontsize=9)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def _panel(design: RealDesign, axes, arms: Arms, benchmark: str) -> None:
    places: dict[str, int] = {}
    for name, arm in design.arms.items():
        if name not in arms:
            continue
        points = arms[name]["scores"][benchmark]["own"]["pass@k"]
        style = {"gumbel": "-", "hard": "--"}.get(str(arm.given["thought"]), ":")
        order = places[style] = places.get(style, -1) + 1
        ks = [int(k) for k in points]
        values = [100 * entry[0] for entry in points.values()]
        if len(ks) > 1:
            axes.plot(ks, values, style, label=name, color=f"C{order % 10}", linewidth=1.2)
        else:
            axes.plot(ks, values, "ox+*"[(order + len(places)) % 4], label=name, color="0.3", markersize=5)
    axes.set(xscale="log", xlabel="k", ylabel="pass@k, points")
    ticks = sorted({int(k) for name in arms for k in arms[name]["scores"][benchmark]["own"]["pass@k"]})
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
