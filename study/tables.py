# SPDX-License-Identifier: Apache-2.0
"""The tables of the report, in Markdown. Scores are in points: hundredths of a share."""

from collections.abc import Callable, Sequence

from .questions import Answer, Comparison, gap
from .rules import NOT_RUN, Estimate
from .runs import Runs, entry, learned, score


NOTHING = f"{NOT_RUN.capitalize()}."


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its first column to the left and the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: Estimate | None, factor: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    """`95.3 (94.1 to 96.5)`: a mean and its 95 % interval over seeds."""
    if value is None:
        return NOT_RUN
    shown = [f"{factor * x:{'+' if sign else ''}.{digits}f}" for x in (value.mean, value.low, value.high)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def ends(interval: tuple[float, float] | None) -> str:
    """The ends of an interval over problems, in points."""
    return NOT_RUN if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def significant(value: float | None) -> str:
    """Three significant digits."""
    return "-" if value is None else f"{value:.3g}"


def by_task(runs: Runs, heading: Sequence[str], rows: Callable[[str], list[list[str]]]) -> str:
    """One table for each task, each under its name."""
    found = {task: run_only(heading, rows(task)) for task in runs.design["tasks"]}
    if set(found.values()) == {NOTHING}:
        return NOTHING
    return "\n\n".join(f"Task `{task}`:\n\n{text}" for task, text in found.items())


def run_only(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of the rows of which something was run, and the names of the other rows below it."""
    run = [row for row in rows if any(cell not in (NOT_RUN, "-") and cell[:1] not in "`" for cell in row[1:])]
    others = list(dict.fromkeys(row[0] for row in rows if row not in run))
    if not run:
        return NOTHING
    return table(headings, run) + (f"\n\n{NOT_RUN.capitalize()}: {', '.join(others)}." if others else "")


def scores(runs: Runs) -> str:
    """Every method and its scores."""
    many = runs.design["evaluation"]["many"]

    def rows(task: str) -> list[list[str]]:
        found = []
        for method in runs.design.methods:
            cells = [
                number(runs.mean(task, method, figure))
                for figure in (
                    score("test", "greedy"), score("test", "hard"), score("test", "own"), score("test", "hard", many),
                    score("test", "own", many),
                )
            ]  # fmt: skip
            votes = [
                number(runs.mean(task, method, lambda r, d=d: r["scores"]["test"][d]["maj@k"][str(many)]))
                for d in ("hard", "own")
            ]
            found.append([f"`{method}`", str(len(runs.of(task, method)) or "-"), *cells, *votes])
        return found

    n = str(many)
    heading = ["method", "seeds", "greedy", f"hard mean@{n}", f"own mean@{n}", f"hard pass@{n}", f"own pass@{n}"]
    return by_task(runs, [*heading, f"hard maj@{n}", f"own maj@{n}"], rows)


def costs(runs: Runs) -> str:
    """Lengths, entropy, tokens and seconds."""

    def rows(task: str) -> list[list[str]]:
        found = []
        for method in runs.design.methods:
            rate = runs.rates[method]
            cells = [
                number(runs.mean(task, method, learned), 1.0),
                number(runs.mean(task, method, entry("test", "own", "thinking_length")), 1.0),
                number(runs.mean(task, method, entry("test", "own", "entropy")), 1.0, 3),
                number(runs.mean(task, method, lambda r: r["curve"]["num_tokens"][-1]), 1e-3, 0),
                number(runs.mean(task, method, lambda r: r["seconds"]["training_cpu"]), 1.0, 0),
            ]
            found.append([f"`{method}`", NOT_RUN if rate is None else f"{rate:g}", *cells])
        return found

    heading = [
        "method",
        "learning rate",
        "updates until learned",
        "thoughts in a completion",
        "entropy of thoughts, nats",
    ]
    heading += ["tokens of training, thousands", "processor seconds of training", "learning rate"]
    return by_task(runs, heading, rows)


def rates(runs: Runs) -> str:
    """The tuning runs."""
    grid, found = runs.design["tuning"]["learning_rates"], []
    for method in runs.design.methods:
        cells = []
        for cell in runs.design.tuning_cells(method):
            result = runs.results.get(cell.name)
            tune = result and result["scores"]["tune"]
            cells.append(f"{100 * tune['hard 1']['mean']:.1f}, {100 * tune['own']['mean']:.1f}" if tune else NOT_RUN)
        rate = runs.rates[method]
        found.append([f"`{method}`", *cells, NOT_RUN if rate is None else f"{rate:g}"])
    return run_only(["method", *(f"{rate:g}: hard, own" for rate in grid), "chosen"], found)


def comparisons(runs: Runs, answer: Answer, name: str = "less") -> str:
    """The comparisons of a question, one table for each task: a row for each pair, columns for each kind of inference."""
    kinds = list(dict.fromkeys(comparison.inference for comparison in answer.comparisons))

    def rows(task: str) -> list[list[str]]:
        pairs: dict[tuple[str, str], dict[str, Comparison]] = {}
        for comparison in answer.comparisons:
            if comparison.task == task:
                pairs.setdefault((comparison.method, comparison.other), {})[comparison.inference] = comparison
        return [
            [
                f"`{method}`",
                *([] if alone else [f"`{other}`"]),
                *(c for kind in kinds for c in _cells(found.get(kind))),
            ]
            for (method, other), found in pairs.items()
        ]

    alone = all(comparison.method == comparison.other for comparison in answer.comparisons)
    heading = ["method", *([] if alone else [name])]
    for kind in kinds:
        heading += [kind, *([] if kind == "updates" else ["over problems"]), "word"]
    return by_task(runs, heading, rows)


def _cells(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return ["-", "-", "-"]
    if comparison.inference == "updates":
        return [number(comparison.difference, 1.0, sign=True), comparison.word]
    return [number(comparison.difference, sign=True), ends(comparison.problems), comparison.word]


def gaps(runs: Runs) -> str:
    """pass@64 less mean@64, less that of hard training with KL."""

    def rows(task: str) -> list[list[str]]:
        return [
            [f"`{m.name}`", *(number(gap(runs, m.name, task, kind), sign=True) for kind in ("hard", "own"))]
            for m in runs.design.soft()
        ]

    return by_task(runs, ["method", "hard", "own"], rows)


def thoughts(runs: Runs, methods: Sequence[str]) -> str:
    """The scores of the untrained policy's thoughts."""

    def rows(task: str) -> list[list[str]]:
        found = []
        for method in methods:
            measured = runs.measured(task, method)
            if measured is None:
                found.append([f"`{method}`", *[NOT_RUN] * 7])
                continue
            quantiles = [significant(measured["quantiles"][q]) for q in ("0.5", "0.99", "1.0")]
            shares = [f"{100 * measured[name]:.1f}" for name in ("zero_float32", "zero_float64", "reward")]
            found.append(
                [f"`{method}`", significant(measured["mean"]), *quantiles, *shares, str(measured["thoughts"])]
            )
        return found

    heading = [
        "method",
        "mean",
        "median",
        "99 %",
        "largest",
        "0 in float32, %",
        "0 in float64, %",
        "reward, %",
        "thoughts",
    ]
    return by_task(runs, heading, rows)


def health(runs: Runs) -> tuple[str, list[str]]:
    """Each method's worst figures of the run itself, and sentences on those out of range."""
    found, failed = [], []
    for name in runs.design.methods:
        results = [result for task in runs.design["tasks"] for result in runs.of(task, name).values()]
        if not results:
            found.append([f"`{name}`", *[NOT_RUN] * 4])
            continue
        limit = min(result["healthy_logp_difference"] for result in results)
        difference = _worst(results, "thinking/logp_difference/mean")
        clamped, skipped = _worst(results, "thinking/clamped_ratio"), _worst(results, "nonfinite/skipped")
        found.append(
            [f"`{name}`", significant(difference), significant(limit), significant(clamped), significant(skipped)]
        )
        for text, value, most in (
            ("the mean log-probability difference", difference, limit), ("the share of bounded log-ratios", clamped, 0.0),
            ("the share of skipped updates", skipped, 0.0),
        ):  # fmt: skip
            if value is not None and value > most:
                failed.append(
                    f"`{name}`: {text} of an update is up to {value:.3g}, and healthy is at most {most:.3g}."
                )
    heading = [
        "method",
        "largest mean log-probability difference, nats",
        "healthy below",
        "largest share of bounded log-ratios",
    ]
    return run_only([*heading, "largest share of skipped updates"], found), failed


def _worst(results: list[dict], metric: str) -> float | None:
    values = [x for result in results for x in result["curve"].get(metric, []) if x is not None]
    return max(values, default=None)
