# SPDX-License-Identifier: Apache-2.0
"""Refuse arguments of a trainer that cannot work with soft thoughts, before a model is loaded."""

import os

from datasets import Dataset, IterableDataset
from transformers import ProcessorMixin

from ..runs.fresh_prompts import different_prompts
from .broken_packages import leave_out_broken, why_not


_TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")  # each in the package of its name


def check_arguments(trainer: str, config_class: type, arguments: dict) -> None:
    """
    Args:
        trainer (`str`): the trainer's name, for errors.
        config_class (`type`): the class that `args` must have.
        arguments (`dict`): the arguments of the trainer's `__init__`, by name.

    Raises:
        TypeError: if `args` holds no thinking settings.
        ValueError:
            For trackers that are not installed, tools, rollout functions, images, virtual tokens, data sets without prompts,
            and data sets that have no fresh prompts for `max_refill_rollouts`.
    """
    args = arguments["args"]
    if not isinstance(args, config_class):
        raise TypeError(
            f"`args` is a {type(args).__name__}, which holds no thinking settings, and {trainer} does "
            f"not guess them. Pass a {config_class.__name__}, which takes the same fields and more."
        )
    refuse_missing_trackers(args)
    leave_out_broken("deepspeed")  # accelerate imports it in every run where it is installed
    for name in ("tools", "rollout_func", "environment_factory"):
        if arguments.get(name):
            raise ValueError(
                f"`{name}` was passed, but turns that others write would shift the record of thoughts against the "
                f"completion. Leave `{name}` out, or use TRL's own trainer with hard tokens."
            )
    if isinstance(arguments.get("processing_class"), ProcessorMixin):
        raise ValueError(
            "`processing_class` is a processor for images, but image placeholders and soft tokens cannot share a "
            "prompt yet. Pass a tokenizer and a text-only causal language model."
        )
    peft_config = arguments.get("peft_config") or getattr(arguments["model"], "active_peft_config", None)
    if getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(
            f"`peft_config` is a {type(peft_config).__name__}, which puts virtual tokens before the prompt and so "
            "shifts the record of thoughts. Use LoRA or full fine-tuning."
        )
    for name in ("train_dataset", "eval_dataset"):
        datasets = arguments.get(name)
        for dataset in datasets.values() if isinstance(datasets, dict) else [datasets]:
            _check_dataset(name, dataset)
    _check_refill(args, arguments.get("train_dataset"))


def refuse_missing_trackers(args) -> None:
    """Refuse trackers that transformers does not know, and those whose package is missing or cannot be imported."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as known

    trackers = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    for name in trackers:
        if name not in (*known, "all", "none"):
            raise ValueError(
                f"`report_to` is {name!r}, which is no tracker. Choose none, or among {', '.join(known)}."
            )
        reason = why_not(name) if name in _TRACKERS else None
        if reason is not None:
            raise ValueError(
                f"`report_to` is {name}, but {reason}, or set `report_to: none`: all metrics are written to "
                "`output_dir/metrics.jsonl` too."
            )


def asks_for_deepspeed(args) -> bool:
    """Whether the settings or the launcher ask for DeepSpeed."""
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes")
    return bool(args.deepspeed) or launched


def refuse_missing_deepspeed(args) -> None:
    """Refuse DeepSpeed where it is missing or cannot be imported, before transformers reads its settings."""
    reason = why_not("deepspeed") if asks_for_deepspeed(args) else None
    if reason is not None:
        asked = "`deepspeed` is set" if args.deepspeed else "`accelerate launch` was told to use DeepSpeed"
        raise ValueError(
            f"{asked}, but {reason}, or launch with DDP or FSDP: "
            "`recipes/accelerate/ddp.yaml`, `recipes/accelerate/fsdp2.yaml`."
        )


def _check_dataset(name: str, dataset) -> None:
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return  # None, or a type that TRL refuses itself
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(
            f"`{name}` is empty, so there is no prompt to complete. Check the file, the split and filters."
        )
    if "prompt" not in row:
        raise ValueError(
            f"`{name}` has the columns {sorted(row)} but no `prompt`. Rename the column that holds the prompt, or "
            "build it with `dataset.map`."
        )
    if {"image", "images"} & set(row):
        raise ValueError(
            f"`{name}` has images, but image placeholders and soft tokens cannot share a prompt yet. Drop the column."
        )


def _check_refill(args, dataset) -> None:
    if not args.max_refill_rollouts or dataset is None:
        return
    told = f"`max_refill_rollouts` is {args.max_refill_rollouts}, but"
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{told} `train_dataset` is a stream, and fresh prompts are taken by their place in the data set. Load it without "
            "streaming, or set `max_refill_rollouts: 0`."
        )
    if not isinstance(dataset, Dataset):
        return  # a type that TRL refuses itself
    groups = args.generation_batch_size // args.num_generations
    prompts = different_prompts(dataset, groups + 1)
    if prompts <= groups:
        raise ValueError(
            f"{told} `train_dataset` has {prompts} different {'prompt' if prompts == 1 else 'prompts'} and a batch takes {groups}, "
            "so a batch can leave no fresh prompt. Make the batch smaller (`per_device_train_batch_size`, "
            "`steps_per_generation`), or set `max_refill_rollouts: 0`."
        )
