# SPDX-License-Identifier: Apache-2.0
"""What transformers and TRL keep in memory between two updates, in files of a checkpoint, for each process.

progress_RANK.json          counters, the loss and the metrics since the last log line, the table of completions
rollout_RANK.safetensors    the batches of the current rollout that are still to come, if there are any
"""

import json
import os
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .checkpoint import CheckpointError


def save_progress(trainer, folder: str) -> None:
    """Write this process's progress into the checkpoint `folder`."""
    rank = trainer.args.process_index
    progress = {
        "step": trainer._step,
        "rollouts": trainer._numbers.rollouts,
        "fresh_prompts": trainer._fresh_prompts.taken,
        "buffered": _save_rollout(trainer, os.path.join(folder, f"rollout_{rank}.safetensors")),
        "loss": trainer._tr_loss.item(),
        "last_logged": trainer._globalstep_last_logged,
        "metrics": trainer._metrics,
        # The table of completions is the same on every process.
        "logs": trainer._logs if rank == 0 else {},
    }
    with open(os.path.join(folder, f"progress_{rank}.json"), "w", encoding="utf-8") as file:
        json.dump(progress, file, default=_json_value)


def load_progress(trainer, folder: str) -> tuple[float, int]:
    """
    Give a trainer the progress that this process has in the checkpoint `folder`.

    Returns:
        `tuple` of `float` and `int`: the loss since the last log line, and the step of that line. `Trainer` sets its own
        values when training begins, so the caller must put these in place afterwards.

    Raises:
        CheckpointError: if the checkpoint has no count of rollouts.
    """
    rank = trainer.args.process_index
    with open(os.path.join(folder, f"progress_{rank}.json"), encoding="utf-8") as file:
        progress = json.load(file)
    if "rollouts" not in progress:
        raise CheckpointError(
            f"{folder} was written by an earlier trl_soft, which kept no count of rollouts, so noise would be drawn twice. "
            f"To train on from its weights alone, start a new run with `model_name_or_path: {folder}`."
        )
    trainer._step, trainer._numbers.rollouts = progress["step"], progress["rollouts"]
    trainer._fresh_prompts.taken = progress.get("fresh_prompts", 0)  # an earlier trl_soft took none
    trainer._buffered_inputs = None
    if progress["buffered"] is not None:
        path = os.path.join(folder, f"rollout_{rank}.safetensors")
        trainer._buffered_inputs = _load_rollout(trainer, path, progress["buffered"])
    for mode, metrics in progress["metrics"].items():
        trainer._metrics[mode].clear()
        trainer._metrics[mode].update(metrics)
    for name, values in progress["logs"].items():
        if isinstance(values, dict):
            for column, cells in values.items():
                trainer._logs[name][column].extend(cells)
        else:
            trainer._logs[name].extend(values)
    return progress["loss"], progress["last_logged"]


def _save_rollout(trainer, path: str) -> dict[str, Any] | None:
    """
    Write the batches of the current rollout that are still to come.

    Returns:
        `dict` or `None`: their numbers (`slices`), and their values that are no tensors (`others`). `None` if no batch is
        still to come.
    """
    slices = trainer.args.steps_per_generation
    remaining = -trainer._step % (slices * trainer.num_iterations)  # micro-batches that replay this rollout
    if not remaining or trainer._buffered_inputs is None:
        return None
    numbers = sorted({(trainer._step + i) % slices for i in range(remaining)})
    tensors: dict[str, torch.Tensor] = {}
    others: dict[str, Any] = {}
    for number in numbers:
        for key, value in trainer._buffered_inputs[number].items():
            (tensors if isinstance(value, torch.Tensor) else others)[f"{number}.{key}"] = value
    save_file(tensors_to_save(tensors), path)
    return {"slices": numbers, "others": others}


def _load_rollout(trainer, path: str, buffered: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The batches of a rollout, one for each micro-batch. `None` stands for a batch that has had its last turn."""
    batches: list[Any] = [None] * trainer.args.steps_per_generation
    for number in buffered["slices"]:
        batches[number] = {}
    tensors = load_file(path)
    values = {name: tensor.to(trainer.accelerator.device) for name, tensor in tensors.items()} | buffered["others"]
    for name, value in values.items():
        number, _, key = name.partition(".")
        batches[int(number)][key] = value
    return batches


def tensors_to_save(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the host that share no memory, as safetensors demands."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _json_value(value):
    """A value of a log table that JSON does not know, as a number or a list where possible, else as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if hasattr(value, "__iter__") else str(value)
