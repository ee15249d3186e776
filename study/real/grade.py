# SPDX-License-Identifier: Apache-2.0
"""Grade what was drawn, in other processes, and make the result of each arm."""

import json
import os
from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from trl_soft.evaluate.problems import Problem
from trl_soft.evaluate.run_metrics import Samples

from ..inference import rounded
from ..results import Results
from .arms import TASK, Arm, RealDesign
from .parts import Drawn, Parts, Round
from .verdicts import Verdict, grade_texts


PIECE = 256  # texts that one process grades at a time


class Now(Executor):
    """Runs each call at once in this process, for few texts."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        done: Future = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def executor(processes: int) -> Executor:
    """`processes` processes, or this one for 0. They import no model library and never hold the device."""
    if processes == 0:
        return Now()
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


class Grading:
    """
    The grading of rounds, which goes on while further ones are drawn.

    Args:
        design (`RealDesign`), problems (`dict[str, list[Problem]]`): by benchmark.
        tokenizer: of the model.
        silent (`set[int]`): ids that are not written: ends of sequence and padding.
        pool (`Executor`).
    """

    def __init__(
        self,
        design: RealDesign,
        problems: dict[str, list[Problem]],
        tokenizer,
        silent: set[int],
        pool: Executor,
    ):
        self.design, self.problems, self.tokenizer, self.silent, self.pool = design, problems, tokenizer, silent, pool
        self.golds = [problem.gold for rows in problems.values() for problem in rows]
        self.benchmark = [name for name, rows in problems.items() for _ in rows]
        self._verdicts: dict[Round, list[Future]] = {}
        self._problems: dict[Round, np.ndarray] = {}

    def submit(self, part: Round, drawn: Drawn) -> None:
        """Begin to grade a round."""
        if part in self._verdicts:
            return
        texts, golds = self.texts(drawn), [self.golds[problem] for problem in drawn.problem]
        self._problems[part] = drawn.problem
        self._verdicts[part] = [
            self.pool.submit(grade_texts, self.design["grader"], texts[i : i + PIECE], golds[i : i + PIECE])
            for i in range(0, len(texts), PIECE)
        ]

    def texts(self, drawn: Drawn) -> list[str]:
        """The completions as text, as `trl_soft.rollout.completion_text` writes it."""
        kept = [[i for i in ids if i not in self.silent] for ids in drawn.completions()]
        return self.tokenizer.batch_decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def verdicts(self, part: Round) -> list[Verdict]:
        """The verdicts of a round, in the order of its completions. Waits for them."""
        return [verdict for piece in self._verdicts[part] for verdict in piece.result()]

    def tell(self, say: Callable[[str], None], but: Collection[Round]) -> list[Round]:
        """Print a line for each round whose grading has ended, except those in `but`. Returns the rounds."""
        ended = [
            part
            for part, pieces in self._verdicts.items()
            if part not in but and all(piece.done() for piece in pieces)
        ]
        for part in ended:
            right = np.array([correct for correct, _ in self.verdicts(part)])
            parts = []
            for name in self.problems:
                mine = np.array([self.benchmark[problem] == name for problem in self._problems[part]])
                solved = len(set(self._problems[part][mine & right].tolist())) / len(self.problems[name])
                n = part.last - part.first
                parts.append(f"{name} mean {100 * right[mine].mean():.1f}, pass@{n} {100 * solved:.1f}")
            say(f"           {part.arm}, samples {part.first} to {part.last - 1}: {'; '.join(parts)}")
        return ended

    def lines(self, part: Round, drawn: Drawn) -> list[dict[str, Any]]:
        """The completions of a round as an evaluation scores them (`trl_soft.evaluate.run_metrics`)."""
        found = []
        for i, ((problem, sample), (correct, vote)) in enumerate(zip(drawn.rows(), self.verdicts(part), strict=True)):
            entropy = float(drawn.entropy[i])
            found.append(
                {
                    "benchmark": self.benchmark[problem],
                    "problem": problem,
                    "sample": sample,
                    "correct": correct,
                    "vote": vote,
                    "length": int(drawn.length[i]),
                    "thinking_length": int(drawn.thinking_length[i]),
                    "thinking_cut": bool(drawn.thinking_cut[i]),
                    "clipped": bool(drawn.clipped[i]),
                    "entropy": None if np.isnan(entropy) else entropy,
                }
            )
        return found


def whole_rounds(parts: Parts, arm: Arm, problems: int) -> list[tuple[Round, Drawn, dict[str, Any]]]:
    """The complete rounds of an arm, from the first sample on."""
    found, samples = [], 0
    for part in parts.rounds(arm.name):
        read = parts.read(part)
        if part.first != samples or read is None or len(read[0]) != problems * (part.last - part.first):
            break
        found.append((part, *read))
        samples = part.last
    return found


def scores(lines: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """What a result keeps of an arm, by benchmark. Intervals are over problems, at 95 %."""
    found = {}
    for name in names:
        samples = Samples([line for line in lines if line["benchmark"] == name])
        metrics = samples.metrics(None)
        right = [sum(line["correct"] for line in rows) for rows in samples.by_problem().values()]

        def ends(entry: dict[str, float]) -> list[float]:
            return [entry["value"], entry["low"], entry["high"]]

        means = {key: metrics[key] and metrics[key]["mean"] for key in ("length", "thinking_length", "correct_length")}
        found[name] = {
            "own": {
                "samples": metrics["samples"],
                "mean": metrics["mean@n"]["value"],
                "right": right,
                "mean@n": ends(metrics["mean@n"]),
                "pass@k": {k: ends(entry) for k, entry in metrics["pass@k"].items()},
                "maj@k": {k: ends(entry) for k, entry in metrics.get("maj@k", {}).items()},
                **means,
                **{key: metrics[key] for key in ("clipped", "thinking_cut", "entropy")},
                "tokens": sum(line["length"] for line in samples.lines),
            }
        }
    return found


def summary_line(found: dict[str, Any]) -> str:
    """`gsm8k mean 17.3, pass@4 36.0, maj@4 25.1; math500 ...`"""
    parts = []
    for name, entry in found.items():
        own = entry["own"]
        n = str(own["samples"])
        votes = f", maj@{n} {100 * own['maj@k'][n][0]:.1f}" if n in own["maj@k"] else ""
        parts.append(f"{name} mean {100 * own['mean']:.1f}, pass@{n} {100 * own['pass@k'][n][0]:.1f}{votes}")
    return "; ".join(parts)


def graded(design: RealDesign, grading: Grading, parts: Parts) -> dict[str, dict[str, Any]]:
    """
    Grade the complete rounds of each arm.

    Returns:
        By arm, of those that have any: `scores`, `settings` and `spent`.
    """
    count = sum(map(len, grading.problems.values()))
    rounds = {name: whole_rounds(parts, arm, count) for name, arm in design.arms.items()}
    for found in rounds.values():
        for part, drawn, about in found:
            parts.check(part, about, design.settings(part.arm))
            grading.submit(part, drawn)
    result = {}
    for name, found in rounds.items():
        if found:
            lines = [line for part, drawn, _ in found for line in grading.lines(part, drawn)]
            seconds = sum(about["seconds"] for _, _, about in found)
            tokens = sum(line["length"] for line in lines)
            result[name] = {
                "settings": design.settings(name),
                "spent": {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / max(seconds, 1e-9)},
                "scores": scores(lines, list(grading.problems)),
            }
    return result


def about_model(design: RealDesign, manifest: dict[str, Any], method: str, phase: str) -> dict[str, Any]:
    """What every result of a model begins with."""
    environment = {**manifest["environment"], "registered": manifest["registered"] or design.registered()}
    return {
        "cell": {"task": TASK, "method": method, "phase": phase, "model": manifest["name"], "seed": design["seed"]},
        "model": {key: manifest[key] for key in ("name", "note", "weights", "dtype")},
        "problems": manifest["problems"],
        "environment": environment,
        "later": manifest.get("resumed", []),
    }


def write_results(
    design: RealDesign, grading: Grading, parts: Parts, results: Results, manifest: dict[str, Any], slug: str, say
) -> None:
    """Grade every complete round, and write one result for each arm that has any."""
    for name, found in graded(design, grading, parts).items():
        results.write(f"{TASK}/{name}/{slug}", rounded({**about_model(design, manifest, name, "evaluate"), **found}))
        say(f"{name}: {summary_line(found['scores'])}")


def grader_count() -> int:
    """As many processes as there are cores but one, which the drawing needs."""
    return max((os.cpu_count() or 2) - 1, 1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the folder of the samples says about them."""
    return json.loads((folder / "manifest.json").read_text("utf-8"))
