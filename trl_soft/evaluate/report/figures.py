# SPDX-License-Identifier: Apache-2.0
"""The figures of a report, as PNG and SVG. The same numbers give the same bytes.

The colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart, without
yellow, which is hard to see on white. Markers and dashes repeat what the colours say.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...files import printable
from .training_logs import Series


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
GREY = "#767676"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.wspace": 0.05,
    "figure.constrained_layout.hspace": 0.05,
    "svg.hashsalt": "trl_soft",  # without it the ids in an SVG file are random
}
_PANELS_A_ROW = 3


def require_matplotlib() -> None:
    """Raise an `ImportError` that says what to do if matplotlib is missing."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            "Figures are drawn by matplotlib, which is not installed. Install it (`pip install 'trl_soft[plot]'`), or "
            "write only the tables with `figures=False` (`--no_figures`)."
        ) from error


@contextmanager
def _style():
    """This module's style on top of matplotlib's defaults. The user's matplotlibrc has no effect."""
    require_matplotlib()
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield


def _panels(titles: Sequence[str], width: float = 3.4, height: float = 2.9):
    """A figure with one panel for each title."""
    from matplotlib.figure import Figure

    columns = min(len(titles), _PANELS_A_ROW)
    lines = math.ceil(len(titles) / columns)
    # A single panel is wider, so that the legend below it has room.
    figure = Figure(figsize=(max(width * columns, 4.6), height * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(_plain(title))
    for axes in grid[len(titles) :]:
        axes.remove()
    return figure, list(grid[: len(titles)])


def _plain(text: str) -> str:
    """The text without formulas of matplotlib and without characters that SVG cannot hold."""
    return printable(text).replace("$", r"\$")


def _save(figure, axes: list, stem: Path) -> list[Path]:
    """The figure as PNG and SVG, with one legend for all its panels."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        # Inches: a letter of the legend is 0.075 wide, its handle and gaps 0.75, its line 0.19 high.
        if len(handles) > 6:
            figure.set_figwidth(max(figure.get_figwidth(), 6.8))
        entry = 0.075 * max(map(len, handles)) + 0.75
        columns = max(1, min(len(handles), int(figure.get_figwidth() / entry)))
        figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(handles) / columns) + 0.1)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=3.2)
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def _looks(rows: Sequence) -> list[dict]:
    """
    The style of each row. The colour shows the run and the marker the decoding; where there is only one run, or only one
    decoding, both show the other.
    """
    names, decodings = ([*dict.fromkeys(getattr(row, kind) for row in rows)] for kind in ("name", "decoding"))
    looks = []
    for row in rows:
        name, decoding = names.index(row.name), decodings.index(row.decoding)
        colour = decoding if len(names) == 1 else name
        shape = name if len(decodings) == 1 else decoding
        looks.append(
            {
                "label": _plain(row.label),
                "color": COLOURS[colour % len(COLOURS)],
                "marker": MARKERS[(shape + colour // len(COLOURS)) % len(MARKERS)],
                "linestyle": DASHES[shape % len(DASHES)],
            }
        )
    return looks


def _limits(axes, values: list[float]) -> None:
    """Limits of a percentage axis: around the values, at least 5 wide, and within 0 to 100 with a small margin."""
    low, high = min(values), max(values)
    pad = max(0.06 * (high - low), (5 - (high - low)) / 2, 0)
    low, high = low - pad, high + pad
    if low < 0:
        low, high = 0.0, max(high, 5.0)
    if high > 100:
        low, high = min(low, 95.0), 100.0
    margin = 0.03 * (high - low)
    axes.set_ylim(low - margin, high + margin)


def _curve(row, benchmark: str, metric: str) -> list[tuple[int, Any]]:
    """A row's estimates over k. `metric` is "pass" or "maj"."""
    points = []
    for (where, name), estimate in row.cells.items():
        kind, _, k = name.partition("@")
        if where == benchmark and kind == metric and k.isdigit():
            points.append((int(k), estimate))
    return sorted(points, key=lambda pair: pair[0])


def curves(rows: Sequence, papers: Sequence, benchmarks: Sequence[str], metric: str, stem: Path) -> list[Path]:
    """
    pass@k or maj@k over k, one panel for each benchmark, with 95 % bands. The papers' points are hollow and grey.

    Args:
        rows, papers (`list[ResultRow]`).
        metric (`str`): "pass" or "maj".
        stem (`Path`): path of the files, without a suffix.

    Returns:
        The paths of the files; an empty list if there is nothing to draw.
    """
    with_data = [b for b in benchmarks if any(_curve(row, b, metric) for row in rows)]
    if not with_data:
        return []
    with _style():
        figure, panels = _panels(with_data)
        for axes, benchmark in zip(panels, with_data, strict=True):
            _curve_panel(axes, rows, papers, benchmark, metric)
        return _save(figure, panels, stem)


def _curve_panel(axes, rows: Sequence, papers: Sequence, benchmark: str, metric: str) -> None:
    ks, values = set(), []
    for row, look in zip(rows, _looks(rows), strict=True):
        points = _curve(row, benchmark, metric)
        if not points:
            continue
        x = [k for k, _ in points]
        axes.plot(x, [n.value for _, n in points], **look, clip_on=False, zorder=3)
        band = [(k, n.low, n.high) for k, n in points if n.low is not None]
        if band:
            area = zip(*band, strict=True)
            strength = min(1.0, 6 / len(rows))  # many bands on top of each other would hide the lines
            face, edge = ((look["color"], strength * alpha) for alpha in (0.09, 0.35))
            axes.fill_between(*area, facecolor=face, edgecolor=edge, linewidth=0.6)
        ks.update(x)
        values += [v for _, n in points for v in (n.value, n.low, n.high) if v is not None]
    for index, row in enumerate(papers):
        points = _curve(row, benchmark, metric)
        if points:
            x, y = [k for k, _ in points], [n.value for _, n in points]
            look = {"marker": "DosP^vX*"[index % 8], "color": "#4D4D4D", "mfc": "white", "markersize": 7, "mew": 1.3}
            axes.plot(x, y, linestyle="none", label=_plain(row.label), clip_on=False, zorder=4, **look)
            ks.update(x)
            values += y
    axes.set_xscale("log", base=2)
    axes.set_xticks(_tick_labels(sorted(ks)), minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda k, _: f"{k:g}")
    axes.set(xlabel="samples k", ylabel=f"{metric}@k, %")
    _limits(axes, values)


def _tick_labels(ks: list[int]) -> list[int]:
    """The k to label: all of them, or only powers of two where there are many."""
    return ks if len(ks) <= 8 else [k for k in ks if k & (k - 1) == 0] or ks[:: len(ks) // 8]


def accuracy_against_tokens(rows: Sequence, benchmarks: Sequence[str], stem: Path) -> list[Path]:
    """Accuracy (mean@n, 95 % intervals) against the mean length of a completion, one panel for each benchmark."""

    def point(row, benchmark):
        return row.cells.get((benchmark, "length")), row.cells.get((benchmark, "mean@n"))

    with_data = [b for b in benchmarks if any(None not in point(row, b) for row in rows)]
    if not with_data:
        return []
    with _style():
        figure, panels = _panels(with_data)
        for axes, benchmark in zip(panels, with_data, strict=True):
            values = []
            for row, look in zip(rows, _looks(rows), strict=True):
                length, number = point(row, benchmark)
                if length is None or number is None:
                    continue
                low, high = (number.value if end is None else end for end in (number.low, number.high))
                error = [[max(number.value - low, 0.0)], [max(high - number.value, 0.0)]]
                look = look | {"linestyle": "none", "capsize": 2.5, "elinewidth": 1, "markersize": 7}
                axes.errorbar([length.value], [number.value], yerr=error, **look)
                values += [low, high]
            axes.set(xlabel="mean completion length, tokens", ylabel="accuracy (mean@n), %")
            axes.margins(x=0.15)
            _limits(axes, values)
        return _save(figure, panels, stem)


def entropy_by_position(rows: Sequence, benchmarks: Sequence[str], stem: Path) -> list[Path]:
    """Entropy in nats over the position in the completion, one panel for each benchmark (2509.19170, Figure 4)."""
    with_data = [b for b in benchmarks if any(row.positions.get(b) for row in rows)]
    if not with_data:
        return []
    with _style():
        figure, panels = _panels(with_data)
        for axes, benchmark in zip(panels, with_data, strict=True):
            for row, look in zip(rows, _looks(rows), strict=True):
                points = [(t, h) for t, h in enumerate(row.positions.get(benchmark, ()), start=1) if h is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), **look | {"marker": None, "linewidth": 1.1})
            axes.set(xlabel="position in the completion", ylabel="entropy, nats")
            axes.margins(x=0.02)
            axes.set_ylim(bottom=0)
        return _save(figure, panels, stem)


def over_temperatures(sweeps: Mapping[str, Sequence], benchmarks: Sequence[str], stem: Path) -> list[Path]:
    """
    mean@n and the largest pass@k over the temperature of the thoughts: one panel for each benchmark, one colour a run.

    Args:
        sweeps: rows of each run, coldest first.
        benchmarks, stem: as for `curves`.
    """

    def largest(row, benchmark: str):
        return max(_curve(row, benchmark, "pass"), key=lambda pair: pair[0], default=(0, None))[1]

    with_data = [b for b in benchmarks if any((b, "mean@n") in row.cells for rows in sweeps.values() for row in rows)]
    if not with_data:
        return []
    with _style():
        figure, panels = _panels(with_data)
        for axes, benchmark in zip(panels, with_data, strict=True):
            values: list[float] = []
            for index, (name, rows) in enumerate(sweeps.items()):
                colour = COLOURS[index % len(COLOURS)]
                label: str | None = _plain(name)
                means = [(row.temperature, row.cells.get((benchmark, "mean@n"))) for row in rows]
                means = [(x, number) for x, number in means if number is not None]
                tops = [(row.temperature, number) for row in rows if (number := largest(row, benchmark)) is not None]
                for points, dashes in ((means, DASHES[0]), (tops, DASHES[1])):
                    look = {"color": colour, "marker": MARKERS[index % len(MARKERS)], "linestyle": dashes}
                    axes.plot([x for x, _ in points], [n.value for _, n in points], label=label, **look)
                    label = None
                    values += [n.value for _, n in points]
                band = [(x, n.low, n.high) for x, n in means if n.low is not None]
                if band:
                    axes.fill_between(*zip(*band, strict=True), facecolor=colour, alpha=0.12, linewidth=0)
            axes.set(xlabel="temperature of the thoughts", ylabel="mean@n and pass@k, %")
            _limits(axes, values)
        return _save(figure, panels, stem)


def training_curves(
    logs: Sequence[tuple[str, Mapping[str, Series]]],
    references: Mapping[str, Mapping[str, Series]],
    metrics: Sequence[str],
    stem: Path,
) -> list[Path]:
    """
    Logged metrics over optimizer steps: the values faint, their running mean strong, and reference curves grey.

    Args:
        logs: pairs of a label and the series by metric. Logs that share a label are seeds and share a colour.
        references: series by label, by metric.
        metrics: one panel for each.
        stem (`Path`): path of the files, without a suffix.
    """
    with_data = [m for m in metrics if references.get(m) or any(log.get(m) for _, log in logs)]
    if not with_data:
        return []
    labels = [*dict.fromkeys(label for label, _ in logs)]
    with _style():
        figure, panels = _panels([TITLES.get(m, m) for m in with_data])
        for axes, metric in zip(panels, with_data, strict=True):
            for label, log in logs:
                if log.get(metric):
                    index = labels.index(label)
                    look = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}
                    raw, mean = log[metric], running_mean(log[metric])
                    axes.plot(*zip(*raw, strict=True), color=look["color"], alpha=0.22, linewidth=0.8)
                    axes.plot(*zip(*mean, strict=True), **look, label=_plain(label))
            for index, (label, series) in enumerate(references.get(metric, {}).items()):
                dashes = DASHES[1 + index % (len(DASHES) - 1)]
                axes.plot(*zip(*series, strict=True), color=GREY, linestyle=dashes, label=_plain(label))
            axes.set(xlabel="optimizer step", ylabel=metric)
            axes.margins(x=0.02)
        return _save(figure, panels, stem)


TITLES = {"reward": "Reward", "kl": "KL to the reference", "thinking/entropy": "Entropy of thoughts, nats"}


def running_mean(series: Series) -> Series:
    """Centred mean over a twentieth of the points. Points whose window reaches beyond an end have no mean."""
    half = len(series) // 40
    means = []
    for i in range(half, len(series) - half):
        window = [value for _, value in series[i - half : i + half + 1]]
        means.append((series[i][0], sum(window) / len(window)))
    return means
