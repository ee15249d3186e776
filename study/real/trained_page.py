# SPDX-License-Identifier: Apache-2.0
"""The tables of part B's training, from the result files alone."""

from statistics import fmean
from typing import Any

from trl_soft.evaluate import paired

from ..rules import NOT_RUN
from ..runs import problem_scores
from ..tables import run_only, significant
from .arms import RealDesign
from .page_parts import interval, title


_VERL = "https://verl.readthedocs.io/en/latest/algo/baseline.html"
PUBLISHED = f"""Figures that [verl publishes]({_VERL}) for Qwen2.5-0.5B-Instruct on the whole test set of GSM8K, by other code and another prompt:

| | score |
| --- | ---: |
| before training (36.4 on that page in June 2025) | 49.6 |
| GRPO with LoRA | 54.3 |
| PPO | 56.7 |"""
_WINDOW = 10  # updates whose rewards are averaged


def trained(design: RealDesign, name: str, results: dict[str, dict[str, Any]]) -> str:
    """The section of one model."""
    model = title(name, results)
    benchmarks = list(dict.fromkeys(b for r in results.values() for e in r["before"].values() for b in e["scores"]))
    parts = [
        f"### {model}, with training",
        "One seed. The intervals are over problems, and say nothing of other seeds.",
    ]
    parts += [f"Reward of {model} in training, mean of {_WINDOW} updates:", rewards(design, results)]
    for benchmark in benchmarks:
        parts += [f"mean@n of {model} on `{benchmark}`, before and after:", before_after(design, results, benchmark)]
    return "\n\n".join(parts)


def rewards(design: RealDesign, results: dict[str, dict[str, Any]]) -> str:
    """The curve of each arm in numbers, and whether its loss was healthy."""
    wanted = design["training"]["common"]["max_steps"]
    starts = range(0, wanted, _WINDOW)
    rows = []
    for arm in design["training"]["arms"]:
        if arm not in results:
            rows.append([f"`{arm}`", *[NOT_RUN] * (len(starts) + 3)])
            continue
        curve = results[arm]["curve"]
        values = [value for value in curve.get("reward", []) if value is not None]
        means = [significant(fmean(values[i : i + _WINDOW])) if values[i:] else "-" for i in starts]
        difference = [value for value in curve.get("thinking/logp_difference/mean", []) if value is not None]
        skipped = [value for value in curve.get("nonfinite/skipped", []) if value is not None]
        shown = [significant(max(difference, default=None)), f"{sum(skipped):.0f}"]
        rows.append([f"`{arm}`", f"{results[arm]['updates']} of {wanted}", *means, *shown])
    heading = ["arm", "updates", *(f"{i + 1} to {i + _WINDOW}" for i in starts)]
    return run_only([*heading, "worst logp difference, nats", "updates skipped for a NaN"], rows)


def before_after(design: RealDesign, results: dict[str, dict[str, Any]], benchmark: str) -> str:
    """The scores of each arm, and after less before, paired by problem."""
    rows = []
    for arm in design["training"]["arms"]:
        for kind in ("greedy", "hard", "own"):
            sides = [results.get(arm, {}).get(when, {}).get(kind) for when in ("before", "after")]
            if any(side is None for side in sides):
                rows.append([f"`{arm}`, {kind}", *[NOT_RUN] * 4])
                continue
            before, after = (problem_scores(side, benchmark, "own") for side in sides)
            own = [side["scores"][benchmark]["own"] for side in sides]
            found = paired(before, after, resamples=4000)
            change = f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
            shown = [interval(entry["mean@n"]) for entry in own]
            rows.append([f"`{arm}`, {kind}", str(own[0]["samples"]), *shown, change])
    return run_only(["arm and inference", "n", "before", "after", "after less before"], rows)
