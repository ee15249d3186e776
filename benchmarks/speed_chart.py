# SPDX-License-Identifier: Apache-2.0
"""The speed of soft rollouts beside hard ones, as a picture for the README. It measures nothing: `speed.yaml` has the figures.

python benchmarks/speed_chart.py -o docs/images/speed.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import yaml
from matplotlib.figure import Figure

from trl_soft.evaluate.report.figures import COLOURS, GREY, STYLE


FIGURES = Path(__file__).with_name("speed.yaml")
SOFT = "soft"  # begins the name of a bar of soft thoughts


def draw(panels: list[dict], path: Path) -> None:
    """One panel for each entry of `speed.yaml`, one bar for each kind of request. The ground is white, for dark pages too."""
    heights = [len(panel["bars"]) + 1 for panel in panels]
    with matplotlib.style.context(["default", STYLE, {"axes.grid.axis": "x"}]):
        figure = Figure(figsize=(7.6, 0.36 * sum(heights)), layout="constrained")
        most = max(bar["tokens"] for panel in panels for bar in panel["bars"])
        grid = figure.subplots(len(panels), 1, height_ratios=heights, sharex=True, squeeze=False).flatten()
        for axes, panel in zip(grid, panels, strict=True):
            names, tokens = ([bar[key] for bar in panel["bars"]] for key in ("name", "tokens"))
            colours = [COLOURS[0] if name.startswith(SOFT) else GREY for name in names]
            drawn = axes.barh(names, tokens, color=colours, height=0.7)
            axes.bar_label(drawn, [f"{number:,}" for number in tokens], padding=4)
            axes.set_title(panel["title"])
            axes.set_xlim(0, 1.12 * most)
            axes.invert_yaxis()
            axes.tick_params(left=False)
        grid[-1].xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        grid[-1].set_xlabel("tokens a second on one H200")
        figure.savefig(path, dpi=150, metadata={"Software": None})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the speed chart from speed.yaml.")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/speed.png"), help="path of the PNG")
    options = parser.parse_args(argv)
    draw(yaml.safe_load(FIGURES.read_text(encoding="utf-8")), options.output)
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()
