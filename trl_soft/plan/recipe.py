# SPDX-License-Identifier: Apache-2.0
"""The memory of each phase on each GPU, computed from the recipe and the sizes of the model alone.

    trl-soft plan --config RECIPE.yaml [--accelerate_config recipes/accelerate/zero3.yaml] [--num_gpus 8]
        [--gpu_gb 80] [--model_config recipes/models/MODEL.json] [--algorithm rloo] [--prompt_length 1024] [--json]
        [any setting of the recipe, as a flag]

The recipe is read as by the training scripts. Only the model's `config.json` is downloaded, and nothing with `--model_config`.
The exit status is 1 if the run does not fit. `trl_soft.plan.memory` has the arithmetic. docs/plan.md says what is counted.
"""

import argparse
import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from trl import ModelConfig, get_peft_config

from ..command_line import CommandParser
from ..scripts.arguments import SoftScriptArguments, check_update
from ..scripts.parser import SoftParser, algorithm_of, read_recipe_file
from ..training.config import SoftGRPOConfig, SoftRLOOConfig
from .memory import Estimate, estimate_bytes, per_token
from .run import GB, Run, run_of
from .shape import Shape, read_config, shape_of
from .world import World, read_world


# For the CUDA context, cuBLAS's workspace and NCCL's channels: a rule of thumb, not an estimate.
RESERVE_GB = 2.0
PROMPT_LENGTH = 1024
_CONFIGS = {"grpo": SoftGRPOConfig, "rloo": SoftRLOOConfig}


def estimate(
    training: SoftGRPOConfig | SoftRLOOConfig,
    config,
    model: ModelConfig | None = None,
    world: World | None = None,
    prompt_length: int = PROMPT_LENGTH,
    gpu_gb: float | None = None,
    reserve_gb: float = 0.0,
    cuda: bool = True,
) -> Estimate:
    """
    The memory of a run on one device.

    Args:
        training: the trainer's config. config: the model's config. model (`ModelConfig`): precision, attention, LoRA.
        world (`World`, *optional*): `None` means one device.
        prompt_length (`int`): tokens of the longest prompt.
        gpu_gb (`float`, *optional*): memory of the device. Its free part bounds the rollout's cache.
        cuda (`bool`): False counts the cost of TRL's scores on the CPU.
    """
    model, world = model or ModelConfig(), world or World()
    shape = shape_of(config, get_peft_config(model))
    run = run_of(training, shape, config, model, world, prompt_length, gpu_gb, cuda)
    return estimate_bytes(shape, run, reserve_gb * GB)


def knobs(training, world: World) -> dict[str, tuple[Any, World]]:
    """
    Three settings that lower the peak: a smaller micro-batch, shorter completions, and more shards or offloading.

    A setting that cannot be lowered is left out.

    Returns:
        For each setting, written as in a recipe: the training config and the world that result.
    """
    alternatives: dict[str, tuple[Any, World]] = {}
    batch, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if batch > 1:
        smaller = batch // 2 if batch % 2 == 0 else 1
        times = batch // smaller
        changes = {"per_device_train_batch_size": smaller, "gradient_accumulation_steps": steps * times}
        rollout = {"steps_per_generation": training.steps_per_generation * times}
        alternatives[_as_yaml(changes)] = _with(training, changes | rollout), world
    shorter = training.max_completion_length // 2
    if shorter > 1:
        changes = {"max_completion_length": shorter}
        if (training.max_thinking_length or 0) >= shorter:
            changes["max_thinking_length"] = shorter - 1
        alternatives[_as_yaml(changes)] = _with(training, changes), world
    # Under ZeRO there is no copy for rollouts.
    no_copy = _with(training, {"rollout_dtype": "auto"})
    zero3 = World("zero3", world.gpus, half=True)
    if world.gpus > 1 and not world.sharded:
        alternatives["recipes/accelerate/zero3.yaml"] = no_copy, zero3
    elif not world.offload_parameters:
        offload = replace(zero3, offload_optimizer=True, offload_parameters=True)
        alternatives["recipes/accelerate/zero3_offload.yaml"] = no_copy, offload
    return alternatives


def _with(training, changes: dict[str, Any]):
    """A copy of a config with other values. Values that the config derived from the old ones stay."""
    other = copy.copy(training)
    vars(other).update(changes)
    return other


def _as_yaml(changes: dict[str, int]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in changes.items())


def table(memory: Estimate) -> str:
    """A table in GB: one row for each part, one column for each phase."""
    names = dict.fromkeys(name for parts in memory.phases.values() for name in parts)
    rows = {name: [parts.get(name, 0.0) for parts in memory.phases.values()] for name in names}
    rows = {name: values for name, values in rows.items() if any(values)}
    rows["peak of the phase"] = list(memory.peaks.values())
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{phase:>11}" for phase in memory.phases) + "   GB"]
    lines += [
        f"{name:{width}}" + "".join(f"{value / GB:11.2f}" if value else f"{'-':>11}" for value in values)
        for name, values in rows.items()
    ]
    lines.insert(-1, "-" * len(lines[1]))
    return "\n".join(lines)


def report(memory: Estimate, alternatives: dict[str, Estimate], shape: Shape, run: Run) -> dict:
    """The result as JSON values, sizes in GB."""
    return {
        "phases_gb": {phase: {k: v / GB for k, v in parts.items()} for phase, parts in memory.phases.items()},
        "peaks_gb": {phase: value / GB for phase, value in memory.peaks.items()},
        "largest": memory.largest,
        "peak_gb": memory.peak / GB,
        "reserve_gb": memory.reserve / GB,
        "gpu_gb": None if memory.memory is None else memory.memory / GB,
        "host_gb": memory.host / GB,
        "longest_slots": memory.longest_slots,
        "fits": memory.fits,
        "knobs": {
            text: {"largest": other.largest, "peak_gb": other.peak / GB, "fits": other.fits}
            for text, other in alternatives.items()
        },
        "parameters": shape.parameters,
        "trained": shape.trained,
        "rows": run.rows,
        "backend": run.world.backend,
        "gpus": run.world.gpus,
    }


def sentences(memory: Estimate, alternatives: dict[str, Estimate], shape: Shape, run: Run) -> Iterable[str]:
    """The sentences around the table."""
    device = memory.memory or 0.0
    yield f"{shape.parameters / GB:.2f}e9 parameters, {shape.trained / GB:.3g}e9 trained, {run.world.backend} on {run.world.gpus} GPUs"
    yield (
        f"{run.rows} completions of {run.prompt} + {run.completion} tokens a GPU, {run.micro_batch} at once in the update\n"
    )
    yield table(memory)
    yield (
        f"\nLargest: {memory.largest}, {memory.peak / GB:.1f} GB, and {memory.reserve / GB:.1f} GB in reserve, "
        f"of {device / GB:g} GB."
    )
    if memory.host:
        yield f"In the host's memory, for each GPU: {memory.host / GB:.1f} GB."
    if 1 <= memory.longest_slots < run.slots:
        yield (
            f"The cache holds {memory.longest_slots:.1f} of {run.slots} completions of full length at once; the rest wait "
            "their turn."
        )
    for text, other in alternatives.items():
        yield (
            f"With `{text}` the peak is {other.peak / GB:.1f} GB, in {other.largest}, and it "
            f"{'fits' if other.fits else 'does not fit'}."
        )
    if memory.longest_slots < 1:
        yield (
            f"A rollout would be refused: the longest prompt and completion take {run.length * per_token(shape, run) / GB:.2f} "
            f"GB of keys and values, but the cache may have {memory.phases['rollout']['keys and values'] / GB:.2f} GB."
        )
    over = (memory.peak + memory.reserve - device) / GB
    if over > 0:
        yield f"It does not fit: {memory.largest} and the reserve are {over:.1f} GB above the device's memory."
    if memory.fits:
        yield "It fits."


def settings_in(flags: list[str]) -> dict[str, Any]:
    """The settings of the recipe's file and of the flags, before any check. A flag overrides the file."""
    settings = dict(read_recipe_file(flags))
    for flag, following in zip(flags, [*flags, "--"][1:], strict=True):
        if flag.startswith("--"):
            name, equals, value = flag[2:].partition("=")
            settings[name] = value if equals else "true" if following.startswith("--") else following
    return settings


def read_recipe(flags: list[str], algorithm: str | None, gpus: int) -> tuple[Any, Any, ModelConfig, bool]:
    """
    SoftScriptArguments, training and model settings as in the script with `gpus` processes, and whether the run uses CUDA. If
    `algorithm` is unset, it is rloo if only `SoftRLOOConfig` reads one of the settings.
    """
    settings = settings_in(flags)
    kind = _CONFIGS[algorithm or algorithm_of(flags)]
    # Batches are counted over the processes of the run, not of the planner. Without a GPU, bf16 would be refused.
    planned = type(kind.__name__, (kind,), {"world_size": property(lambda self: gpus)})
    on_cpu = str(settings.get("use_cpu")).lower() == "true"
    if not torch.cuda.is_available() and not on_cpu:
        flags = [*flags, "--use_cpu", "true"]
        if not {"bf16", "fp16"} & set(settings):
            flags += ["--bf16", "true"]  # what the config chooses on a GPU
    parser = SoftParser((SoftScriptArguments, planned, ModelConfig))
    parser.others = {action.dest for action in _parser()._actions}
    arguments, training, model = parser.parse_args_and_config(flags)
    check_update(arguments, training)
    return arguments, training, model, not on_cpu


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        example="trl-soft plan --config recipes/quickstart/gumbel.yaml",
        prog="trl-soft plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--accelerate_config", help="YAML file for `accelerate launch --config_file`")
    parser.add_argument(
        "--num_gpus", type=int, help="processes of all machines together; overrides the accelerate config"
    )
    parser.add_argument("--gpu_gb", type=float, default=80.0, help="memory of one GPU, in 10**9 bytes")
    parser.add_argument("--model_config", help="a model's config.json, if there is no hub")
    parser.add_argument("--algorithm", choices=sorted(_CONFIGS), help="unset: by the keys of the recipe")
    parser.add_argument(
        "--prompt_length", type=int, help=f"longest prompt in tokens; unset: the recipe's, or {PROMPT_LENGTH}"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def main(argv: list[str] | None = None) -> int:
    own, flags = _parser().parse_known_args(argv)
    if own.num_gpus is not None and own.num_gpus < 1:
        raise ValueError(f"`--num_gpus` is {own.num_gpus}, but there must be at least one.")
    if not 0 < own.gpu_gb < float("inf"):
        raise ValueError(
            f"`--gpu_gb` is {own.gpu_gb:g}, but it must be above 0: the memory of one GPU in 10**9 bytes."
        )
    world = read_world(own.accelerate_config, own.num_gpus)
    arguments, training, model, cuda = read_recipe(flags, own.algorithm, world.gpus)
    if model.model_name_or_path is None and own.model_config is None:
        raise ValueError(
            "No recipe and no model are given, so there is nothing to plan. Give `--config RECIPE.yaml` (`trl-soft recipes list` "
            "names some), or `--model_name_or_path`."
        )
    options = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    config = read_config(model.model_name_or_path, own.model_config, **options)
    prompt = own.prompt_length or getattr(arguments, "max_prompt_length", None) or PROMPT_LENGTH
    shape = shape_of(config, get_peft_config(model))
    reserve = RESERVE_GB * GB if cuda else 0.0

    def plan(training, world: World) -> tuple[Run, Estimate]:
        run = run_of(training, shape, config, model, world, prompt, own.gpu_gb, cuda)
        return run, estimate_bytes(shape, run, reserve)

    run, memory = plan(training, world)
    alternatives = {text: plan(*settings)[1] for text, settings in knobs(training, world).items()}
    if own.json:
        print(json.dumps(report(memory, alternatives, shape, run)))
    else:
        print(*sentences(memory, alternatives, shape, run), sep="\n")
    return 0 if memory.fits else 1
