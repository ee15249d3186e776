# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a trained policy: which decodings, in which order, and the scores that a result keeps of them."""

from pathlib import Path
from typing import Any

from trl_soft.evaluate import Decoding, Evaluation, evaluate
from trl_soft.evaluate.run_metrics import read_samples
from trl_soft.evaluate.store import Store

from . import rules
from .cells import Cell, Design


Scores = dict[str, dict[str, dict[str, Any]]]


def hard(temperature: float, name: str | None = None) -> dict[str, Any]:
    """Hard inference: tokens of the whole vocabulary, whatever the support of training."""
    return {
        "name": name or f"hard {temperature:g}",
        "thought": "hard",
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
    }


def tuned(design: Design, cell: Cell) -> list[dict[str, Any]]:
    """What is drawn for the tuning problems."""
    few = design["evaluation"]["few"]
    temperatures = [1.0] if cell.phase == "tune" else design["evaluation"]["temperatures"]
    own = {"name": "own", **design.answer(design.methods[cell.method])}
    return [{**decoding, "num_samples": few} for decoding in [*map(hard, temperatures), own]]


def choose(design: Design, tune: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the tuning problems choose: the temperature of hard inference, and the length at which a thought is cut."""
    temperatures = design["evaluation"]["temperatures"]
    return {
        "temperature": rules.choose_best({t: tune[f"hard {t:g}"]["mean"] for t in temperatures}),
        "cut": max(int(tune["own"]["thinking_length"] / 2), 1),
    }


def tested(design: Design, cell: Cell, chosen: dict[str, Any], outside: bool) -> list[dict[str, Any]]:
    """What is drawn for the test problems, or for problems that are outside of the training distribution."""
    method, numbers = design.methods[cell.method], design["evaluation"]
    own = {"name": "own", **design.answer(method)}
    decodings = [hard(chosen["temperature"], "hard"), own]
    if outside:
        return [{**decoding, "num_samples": numbers["few"]} for decoding in decodings]
    decodings = [{**decoding, "num_samples": numbers["many"]} for decoding in decodings]
    decodings.append({**hard(0.0, "greedy"), "num_samples": 1})
    decodings.append({**own, "name": "cut", "max_thinking_length": chosen["cut"], "num_samples": numbers["few"]})
    if method.argmax is not None:
        decodings.append({**own, "name": "argmax", **design["argmax"][method.argmax], "num_samples": numbers["few"]})
    return decodings


def evaluate_run(design: Design, cell: Cell, model: Path, folder: Path) -> tuple[Scores, dict[str, Any]]:
    """
    Evaluate the policy in `model`, in folders of `folder`, each of which an interrupted evaluation continues.

    Returns:
        The scores by split and decoding, and what the tuning problems chose.
    """
    task, cap = design["tasks"][cell.task], design["training"]["max_completion_length"]
    scores = {"tune": _evaluate(design, model, task["tune"], cap, tuned(design, cell), folder / "tune")}
    if cell.phase == "tune":
        return scores, {}
    chosen = choose(design, scores["tune"])
    scores["test"] = _evaluate(design, model, task["test"], cap, tested(design, cell, chosen, False), folder / "test")
    for split, entry in task["outside"].items():
        decodings = tested(design, cell, chosen, True)
        scores[split] = _evaluate(design, model, entry["problems"], entry["cap"], decodings, folder / split)
    return scores, chosen


def _evaluate(design, model: Path, problems: str, cap: int, decodings: list[dict], folder: Path) -> dict[str, dict]:
    numbers = design["evaluation"]
    metrics = evaluate(
        Evaluation(
            str(model), [problems], [Decoding.parse(decoding) for decoding in decodings], str(folder), grader=numbers["grader"],
            max_completion_length=cap, chunk=numbers["chunk"], slots=numbers["slots"], dtype=numbers["dtype"],
        )
    )[problems]  # fmt: skip
    samples = read_samples(Store(folder))
    return {name: _kept(metrics[name], samples[problems, name]) for name in metrics}


def _kept(metrics: dict[str, Any], samples) -> dict[str, Any]:
    """What a result keeps: the number of right samples of each problem, from which mean@n and pass@k follow, and the rest."""
    right = [sum(line["correct"] for line in lines) for lines in samples.by_problem().values()]
    kept = {"samples": metrics["samples"], "mean": metrics["mean@n"]["value"], "right": right}
    if metrics["samples"] > 1:
        kept["maj@k"] = {k: entry["value"] for k, entry in metrics.get("maj@k", {}).items()}
    lengths = {
        name: metrics[name] and metrics[name]["mean"] for name in ("length", "thinking_length", "correct_length")
    }
    shares = {name: metrics[name] for name in ("clipped", "thinking_cut", "entropy")}
    return rounded({**kept, **lengths, **shares, "tokens": samples.tokens, "seconds": samples.seconds})


def rounded(value: Any, digits: int = 5) -> Any:
    """The same with each float rounded to so many significant digits; `None` for a NaN or an infinity, which JSON lacks."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    return [rounded(entry, digits) for entry in value] if isinstance(value, list) else value
