# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is of, and whether a run can continue from it."""

import hashlib
import json
from typing import Any

from accelerate.utils import DistributedType

from ..version import __version__


# Changed, a run would not go on where it was. Learning rate, schedule, clipping and the like are the user's to change.
_SCHEDULE = (
    # the order of prompts and the replay of a rollout
    "seed",
    "data_seed",
    "shuffle_dataset",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    # what is drawn
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "generation_kwargs",
    "chat_template_kwargs",
    # what a rollout in flight was given with its record, and what the loss reads of it
    "beta",
    "loss_type",
    "importance_sampling_level",
    "scale_rewards",
    "reward_weights",
    "multi_objective_aggregation",
    "normalize_advantages",
    "reward_clip_range",
    "mask_truncated_completions",
    "use_vllm",
    "vllm_importance_sampling_correction",
    # what the optimiser's and the scaler's states are of
    "optim",
    "bf16",
    "fp16",
)
_SAMPLES = 16


def facts_of(trainer) -> dict[str, Any]:
    """What a checkpoint is of: a run can only continue from one whose facts are its own."""
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    facts = {
        "trl_soft": __version__,
        "step": trainer.state.global_step,
        "trainer": trainer._name,
        "processes": trainer.args.world_size,
        "sharding": _sharding(trainer.accelerator),
        "resumable": not trainer.args.save_only_model,
        "thinking": trainer.thinking.thinking_dict(),
        "schedule": {name: getattr(trainer.args, name, None) for name in _SCHEDULE},
        "rows": rows,
        "prompts": _digest_of(trainer.train_dataset, rows),
        "model": trainer._model_shapes,
    }
    return json.loads(json.dumps(facts))  # as they read in a manifest


def _digest_of(dataset, rows: int | None) -> str | None:
    """
    A digest of a few prompts, evenly spread, the first and the last among them; `None` of a stream.

    The fingerprint that datasets keeps will not do: it depends on where a file lies and how a function is pickled.
    """
    if not rows:
        return None
    places = sorted({i * (rows - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)})
    told = json.dumps([dataset[i]["prompt"] for i in places], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def foreign(trainer, folder: str, manifest: dict[str, Any]) -> str | None:
    """What in a whole checkpoint is of another run than this one, in a sentence, or `None`."""
    theirs, ours = manifest, facts_of(trainer)
    weights = f"To train on from its weights alone, start a new run with `model_name_or_path: {folder}`."
    if not theirs["resumable"]:
        return (
            f"{folder} was saved with `save_only_model`, so it holds weights and neither optimiser nor RNG to "
            f"continue with. {weights}"
        )
    if theirs["trainer"] != ours["trainer"]:
        return f"{folder} was written by a {theirs['trainer']} trainer, and this is a {ours['trainer']} trainer. {weights}"
    if difference := _model_difference(theirs["model"], ours["model"]):
        return f"{folder} is of another model: {difference}. Start with the model it was trained from."
    thinking = {**theirs["thinking"], "eval_thought": ours["thinking"]["eval_thought"]}
    if trainer.args.noise_rms is None:
        thinking["noise_rms"] = ours["thinking"]["noise_rms"]  # measured when training started, which was then
    for name, value in ours["thinking"].items():
        if thinking.get(name) != value:
            return (
                f"{folder} was trained with `{name}: {thinking.get(name)}`, and this run has `{name}: {value}`. Set "
                f"it back to continue. {weights}"
            )
    for what, kept in (
        ("processes", "RNG and rollouts are kept for each"),
        ("sharding", "optimiser states differ"),
    ):
        if theirs[what] != ours[what]:
            return (
                f"{folder} was written with {what}: {theirs[what]}, and this run has {ours[what]}; {kept}. Launch it "
                f"as it was. {weights}"
            )
    for name, value in ours["schedule"].items():
        if name not in theirs["schedule"]:
            continue  # written by a version, of TRL or of this, that did not know it
        then = theirs["schedule"][name]
        if name == "beta" and then and value:
            continue  # a weight of the loss, for which the reference is there either way
        if then != value:
            return (
                f"{folder} was trained with `{name}: {then}`, and this run has `{name}: "
                f"{value}`, so it would not go on where it was. Set it back to continue. {weights}"
            )
    if theirs["rows"] != ours["rows"]:
        return (
            f"{folder} was trained on {theirs['rows']} prompts, and this run has {ours['rows']}, so their order is "
            f"another. Give it the same data. {weights}"
        )
    if theirs.get("prompts") is not None and theirs["prompts"] != ours["prompts"]:
        return (
            f"{folder} was trained on other prompts: as many, of which a sample has the digest {theirs['prompts']} there "
            f"and {ours['prompts']} here. Give it the same data in the same order. {weights}"
        )
    if reference_moves(trainer) and ours["sharding"] != "none":
        return f"{folder} holds no reference model: `sync_ref_model` moves it, and its shards are not saved. {weights}"
    return None


def reference_moves(trainer) -> bool:
    """Whether the reference model is another than at the start."""
    return bool(getattr(trainer.args, "sync_ref_model", False)) and trainer.ref_model is not None


def _sharding(accelerator) -> str:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    return "FSDP" if accelerator.distributed_type == DistributedType.FSDP else "none"


def _model_difference(theirs: dict[str, list[int]], ours: dict[str, list[int]]) -> str | None:
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            shapes = [f"shape {tuple(side[name])}" if name in side else "no such parameter" for side in (theirs, ours)]
            return f"`{name}` has {shapes[0]} there and {shapes[1]} here"
    return None
