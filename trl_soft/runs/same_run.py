# SPDX-License-Identifier: Apache-2.0
"""Whether a run can continue from a checkpoint: it can if the checkpoint is of the same run.

`identity` describes a run as a dict of JSON values. A checkpoint's manifest holds the identity of the run that wrote it.
`mismatch` compares it with the identity of the run that would continue.
"""

import hashlib
import json
from typing import Any

from accelerate.utils import DistributedType

from ..version import __version__


# With another value of one of these settings, a run would not continue the run that wrote the checkpoint. The user may
# change all other settings, such as the learning rate, its schedule and gradient clipping.
_SCHEDULE = (
    # the order of prompts, and how often a rollout is replayed
    "seed",
    "data_seed",
    "shuffle_dataset",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    "max_refill_rollouts",
    # what a rollout samples
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "generation_kwargs",
    "chat_template_kwargs",
    # what TRL stores with a rollout, and how the loss uses it
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
    # the states of the optimiser and the gradient scaler
    "optim",
    "bf16",
    "fp16",
)
_SAMPLES = 16

Identity = dict[str, Any]


def identity(trainer) -> Identity:
    """The identity of a run: its trainer, model, data, thinking settings, schedule, and the step that it has reached."""
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    content = {
        "trl_soft": __version__,
        "step": trainer.state.global_step,
        "trainer": trainer._name,
        "processes": trainer.args.world_size,
        "sharding": _sharding(trainer.accelerator),
        "resumable": not trainer.args.save_only_model,
        "thinking": trainer.thinking.thinking_dict(),
        "schedule": {name: getattr(trainer.args, name, None) for name in _SCHEDULE}
        | {"rollout_dtype": trainer._weights.name},
        "rows": rows,
        "prompts": _prompt_digest(trainer.train_dataset, rows),
        "model": trainer._model_shapes,
    }
    return json.loads(json.dumps(content))  # the values as a manifest gives them back


def mismatch(trainer, folder: str, manifest: Identity) -> str | None:
    """Why the checkpoint in `folder` belongs to another run than the trainer's, as a sentence. `None` if it does not."""
    theirs, ours = manifest, identity(trainer)
    difference = (
        _trainer_difference(theirs, ours)
        or _model_difference(theirs["model"], ours["model"])
        or _thinking_difference(theirs["thinking"], ours["thinking"], measured=trainer.args.noise_rms is None)
        or _layout_difference(theirs, ours)
        or _schedule_difference(theirs["schedule"], ours["schedule"])
        or _data_difference(theirs, ours)
    )
    if difference is None and reference_moves(trainer) and ours["sharding"] != "none":
        difference = "holds no reference model: `sync_ref_model` moves it, and its shards are not saved."
    if difference is None:
        return None
    return f"{folder} {difference} To train on from its weights alone, start a new run with `model_name_or_path: {folder}`."


def reference_moves(trainer) -> bool:
    """Whether training changes the weights of the reference model."""
    return bool(getattr(trainer.args, "sync_ref_model", False)) and trainer.ref_model is not None


# The functions below compare one part of two identities. Each returns a sentence without its subject, the folder.


def _trainer_difference(theirs: Identity, ours: Identity) -> str | None:
    if not theirs["resumable"]:
        return "was saved with `save_only_model`, so it holds weights and neither optimiser nor RNG to continue with."
    if theirs["trainer"] != ours["trainer"]:
        return f"was written by a {theirs['trainer']} trainer, and this is a {ours['trainer']} trainer."
    return None


def _model_difference(theirs: dict[str, list[int]], ours: dict[str, list[int]]) -> str | None:
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            shapes = [f"shape {tuple(side[name])}" if name in side else "no such parameter" for side in (theirs, ours)]
            return (
                f"is of another model: `{name}` has {shapes[0]} there and {shapes[1]} here. Start with the model it was "
                "trained from."
            )
    return None


def _thinking_difference(theirs: dict[str, Any], ours: dict[str, Any], measured: bool) -> str | None:
    """`measured`: this run has not set `noise_rms`, so it takes the checkpoint's."""
    free = ("eval_thought", "noise_rms") if measured else ("eval_thought",)
    for name, value in ours.items():
        if name not in free and theirs.get(name) != value:
            return (
                f"was trained with `{name}: {theirs.get(name)}`, and this run has `{name}: {value}`. Set it back to "
                "continue."
            )
    return None


def _layout_difference(theirs: Identity, ours: Identity) -> str | None:
    reasons = {
        "processes": "each process has an RNG state and rollouts of its own",
        "sharding": "the states of the optimiser differ",
    }
    for name, reason in reasons.items():
        if theirs[name] != ours[name]:
            return (
                f"was written with {name}: {theirs[name]}, and this run has {ours[name]}; {reason}. Launch this run as "
                "that one was launched."
            )
    return None


def _schedule_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    for name, value in ours.items():
        if name not in theirs:
            continue  # an earlier version of TRL or trl_soft wrote the checkpoint and did not know the setting
        if name == "beta" and theirs[name] and value:
            continue  # with both above 0, a reference model is there in both runs; the weight itself may change
        if theirs[name] != value:
            return (
                f"was trained with `{name}: {theirs[name]}`, and this run has `{name}: {value}`, so it would be another "
                "run from here on. Set it back to continue."
            )
    return None


def _data_difference(theirs: Identity, ours: Identity) -> str | None:
    if theirs["rows"] != ours["rows"]:
        return (
            f"was trained on {theirs['rows']} prompts, and this run has {ours['rows']}, so their order is another. Give "
            "it the same data."
        )
    if theirs.get("prompts") is not None and theirs["prompts"] != ours["prompts"]:
        return (
            f"was trained on other prompts: as many, but a sample of them has the digest {theirs['prompts']} there and "
            f"{ours['prompts']} here. Give it the same data in the same order."
        )
    return None


def _sharding(accelerator) -> str:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    return "FSDP" if accelerator.distributed_type == DistributedType.FSDP else "none"


def _prompt_digest(dataset, rows: int | None) -> str | None:
    """
    A digest of a few prompts, evenly spread, with the first and the last among them. `None` for a stream.

    The fingerprint of the datasets library does not serve here: it depends on where a file lies and on how a function is
    pickled.
    """
    if not rows:
        return None
    places = sorted({i * (rows - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)})
    text = json.dumps([dataset[i]["prompt"] for i in places], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
