# SPDX-License-Identifier: Apache-2.0
"""A small evaluation, for tests in this process and in others."""

from pathlib import Path

from trl_soft.evaluate.decoding import Decoding
from trl_soft.evaluate.runner import Evaluation, evaluate


BRIEF = {"limit": 2, "chunk": 4, "candidates": 3}  # six chunks: one, three and two of the three decodings


def evaluation(world: Path, out: Path, **changes) -> Evaluation:
    """Of the model and the benchmark in the folder `world`."""
    entries = [
        {"name": "hard greedy", "thought": "hard", "temperature": 0.0, "num_samples": 1},
        {"name": "as saved", "num_samples": 6, "max_completion_length": 16},
        {"name": "gaussian", "thought": "gaussian", "num_samples": 4},
    ]
    settings = {"chunk": 10, "slots": 4, "grader": "exact", "max_completion_length": 12, "dtype": "float32"}
    return Evaluation(
        str(world / "model"), [str(world / "sums.jsonl")], [Decoding.parse(e) for e in entries], str(out),
        **{**settings, **changes},
    )  # fmt: skip


def brief(world: str, out: str) -> None:
    """Begin or continue a brief evaluation."""
    evaluate(evaluation(Path(world), Path(out), **BRIEF))
