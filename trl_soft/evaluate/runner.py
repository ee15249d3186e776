# SPDX-License-Identifier: Apache-2.0
"""Evaluate models on benchmarks under any way of thinking, one chunk of samples at a time.

    problems x samples -> chunks -> rollout -> grade -> samples/<rank>.jsonl -> metrics.json

With N processes (`accelerate launch`) each process computes every N-th chunk. The noise is keyed by the number of the
sample, and the samples of a chunk are always computed together. So neither the number of processes nor an interruption
changes a result.
"""

import os
from collections import defaultdict

import torch
from accelerate import PartialState

from .decoding import Decoding, saved_beside
from .evaluated_model import EvaluatedModel
from .evaluation import Evaluation
from .manifest import manifest_of
from .presets import get_preset
from .problems import load_problems
from .run_metrics import score
from .store import Store


__all__ = ["Evaluation", "evaluate", "saved_beside", "score"]


def evaluate(run: Evaluation) -> dict[str, dict[str, dict]]:
    """
    Compute the missing samples of a run, and its metrics.

    Returns:
        `{benchmark: {decoding: metrics}}`, as `metrics.json` holds it; empty on all processes but the first.
    """
    run.check()
    state = _processes()
    store = Store(run.output_dir, state.process_index)
    store.lock()  # first of all: another run may begin in the same folder at the same time
    problems = {
        name: load_problems(
            name, run.data_dir, run.limit, run.question_column, run.answer_column, seed=run.option_seed
        )
        for name in run.benchmarks
    }
    if state.is_main_process:
        store.open(manifest_of(run, problems, state.num_processes), run.SETTLED)
    state.wait_for_everyone()
    complete = {chunk for chunk, _, _ in store.chunks()}
    state.wait_for_everyone()  # all processes have read before any process writes

    by_model: dict[str, list[Decoding]] = defaultdict(list)
    for decoding in run.decodings:
        by_model[decoding.model or run.model].append(decoding)
    for model, decodings in by_model.items():
        policy: EvaluatedModel | None = None
        for name, rows in problems.items():
            for decoding in decodings:
                samples = decoding.num_samples or get_preset(run.preset).num_samples
                items = [(problem, sample) for problem in rows for sample in range(samples)]
                parts = [items[i : i + run.chunk] for i in range(0, len(items), run.chunk)]
                mine = [
                    (number, part)
                    for number, part in enumerate(parts)
                    if number % state.num_processes == state.process_index
                    and (name, decoding.name, number) not in complete
                ]
                if mine:
                    policy = policy or EvaluatedModel(run, model, state.device)
                    policy.complete(name, decoding, mine, samples, store, state)
        del policy
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}
    metrics = score(store, run.k_values, {(name, d.name) for name in problems for d in run.decodings})
    store.write("metrics.json", metrics)
    return metrics


def _processes() -> PartialState:
    """The processes of this run. Raises `RuntimeError` if several were started that do not know of each other."""
    state = PartialState(cpu=torch.accelerator.current_accelerator() is None)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise RuntimeError(
            f"{started} processes were started, but accelerate sees {state.num_processes}: each would compute the whole run "
            "and overwrite the others. Start them with `accelerate launch --num_processes` or `torchrun`, or start one."
        )
    return state
