# SPDX-License-Identifier: Apache-2.0
"""Will a recipe fit? Memory of each phase on each GPU, worked out from the recipe and the model's sizes alone.

    python -m trl_soft.plan --config RECIPE.yaml [--accelerate_config recipes/accelerate/zero3.yaml] [--num_gpus 8]
        [--gpu_gb 80] [--model_config recipes/models/MODEL.json] [--algorithm rloo] [--prompt_length 1024] [--json]
        [any setting of the recipe, as a flag]

The recipe is read as the training scripts read it; nothing is downloaded but the model's `config.json`, and nothing with
`--model_config`. Ends with status 1 where it does not fit. The arithmetic is in `trl_soft.plan.memory`, what is and is not
counted in docs/plan.md.
"""

import argparse
import json
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM
from trl import ModelConfig, get_peft_config

from ..rollout.blank_action import blank_action
from ..scripts.arguments import SoftScriptArguments, check_update
from ..scripts.parser import SoftParser
from ..thoughts import Hard
from ..training.config import SoftGRPOConfig, SoftRLOOConfig
from ..training.rollout_precision import Surroundings, corrects, rollout_dtype
from .memory import FLOAT, Estimate, Run, Shape, estimate_bytes, per_token


GB = 1e9
# For the CUDA context, cuBLAS's workspace and NCCL's channels: a rule of thumb, not an estimate.
RESERVE_GB = 2.0
PROMPT_LENGTH = 1024
_CONFIGS = {"grpo": SoftGRPOConfig, "rloo": SoftRLOOConfig}
# Bytes of state for each trained number, where weights are float32.
_OPTIMISERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "stable_adamw", "adamw_hf"), 8.0),
    **dict.fromkeys(("lion_32bit", "rmsprop", "adagrad"), 4.0),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "ademamix_8bit"), 2.0),
    **dict.fromkeys(("lion_8bit", "rmsprop_bnb_8bit"), 1.0),
    **dict.fromkeys(("sgd", "adafactor"), 0.0),
}


@dataclass(frozen=True)
class World:
    """
    Devices, and how a model is spread over them.

    Args:
        backend (`str`): `single`, `ddp`, `zero0` to `zero3` or `fsdp2`.
        gpus (`int`): of all machines together.
        offload_optimizer, offload_parameters (`bool`): DeepSpeed's, to the host.
        half (`bool`): whether accelerate asks for bf16 or fp16, whatever the recipe says.
    """

    backend: str = "single"
    gpus: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    half: bool = False


def read_world(path: str | None, gpus: int | None) -> World:
    """The world an accelerate config describes; without one, one process or plain data parallelism."""
    if path is None:
        return World("ddp" if (gpus or 1) > 1 else "single", gpus or 1)
    with open(path, encoding="utf-8") as file:
        given = yaml.safe_load(file)
    kind, half = str(given.get("distributed_type", "NO")), given.get("mixed_precision") in ("bf16", "fp16")
    count = gpus or int(given.get("num_processes", 1))
    if kind == "DEEPSPEED":
        options = dict(given.get("deepspeed_config") or {})
        if options.get("deepspeed_config_file"):
            with open(options["deepspeed_config_file"], encoding="utf-8") as file:
                zero = json.load(file).get("zero_optimization", {})
            options = {"zero_stage": zero.get("stage", 0)} | {
                f"{name}_device": zero.get(name, {}).get("device") for name in ("offload_optimizer", "offload_param")
            }
        moved = [
            options.get(f"{name}_device") not in (None, "none") for name in ("offload_optimizer", "offload_param")
        ]
        return World(f"zero{int(options.get('zero_stage', 2))}", count, moved[0], moved[1], half)
    if kind == "FSDP":
        options = given.get("fsdp_config") or {}
        if int(options.get("fsdp_version", 1)) != 2 or options.get("fsdp_offload_params"):
            raise ValueError(
                f"{path} asks for FSDP1 or for offloaded parameters, whose memory is not worked out here. Set "
                "`fsdp_version: 2` and `fsdp_offload_params: false`, or plan for recipes/accelerate/zero3_offload.yaml."
            )
        return World("fsdp2", count, half=half)
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise ValueError(f"{path} has `distributed_type: {kind}`. Plan for NO, MULTI_GPU, DEEPSPEED or FSDP.")
    return World("ddp" if count > 1 else "single", count, half=half)


def read_config(name: str | None, file: str | None = None, **options):
    """A model's config: from a JSON file, a folder or the hub."""
    if file is not None:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"`--model_config` {file} does not exist. Give a model's config.json.")
        with open(file, encoding="utf-8") as handle:
            values = json.load(handle)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    if name is None:
        raise ValueError(
            "`model_name_or_path` is unset, so there is no model to plan for. Set it, or `--model_config`."
        )
    try:
        return AutoConfig.from_pretrained(name, **options)
    except OSError as error:
        raise OSError(
            f"The config of {name!r} is neither in a folder of that name nor to be had from the hub "
            f"({str(error).splitlines()[0]}). Pass `--model_config FILE` with its config.json; recipes/models holds those "
            "of the papers' models."
        ) from error


def shape_of(config, peft_config=None) -> Shape:
    """
    The sizes of a model of this config, built on the meta device.

    Raises:
        ValueError: for a model of experts, and for one that is no decoder with a gated MLP.
    """
    text = config.get_text_config()
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(text, field, None):
            raise ValueError(
                f"The model has experts (`{field}: {getattr(text, field)}`), whose activations depend on the routing and "
                "are not worked out here. Plan for a dense model."
            )
    missing = [f for f in ("hidden_size", "intermediate_size", "num_attention_heads") if not getattr(text, f, None)]
    if missing:
        raise ValueError(
            f"A config of type {text.model_type!r} has no {', '.join(missing)}, so its layers' memory is unknown. Plan for a "
            "decoder with a gated MLP (Llama, Qwen, Mistral)."
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        parameters = sum(p.numel() for p in model.parameters())
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        adapter, adapted = (0, ()) if peft_config is None else _adapter(model, peft_config)
    heads = text.num_attention_heads
    return Shape(
        vocab=text.vocab_size,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        tied=tied,
        parameters=parameters,
        adapter=adapter,
        adapted=adapted,
        lora_r=getattr(peft_config, "r", 0),
        lora_dropout=getattr(peft_config, "lora_dropout", 0.0),
        qk_norm=text.model_type.startswith("qwen3"),
    )


def _adapter(model, peft_config) -> tuple[int, tuple]:
    """Trainable parameters, and the adapted modules of one layer with their widths."""
    from peft import get_peft_model

    model = get_peft_model(model, peft_config)
    found = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]: module.in_features
        for name, module in model.named_modules()
        if ".lora_A." in name and hasattr(module, "in_features")
    }
    return sum(p.numel() for p in model.parameters() if p.requires_grad), tuple(found.items())


def action_bytes(settings, hidden: int, dtype: torch.dtype) -> int:
    """Bytes of what a thought of these settings leaves at one position, as one that is drawn shows."""
    thought = settings.make_thought(Hard(settings.temperature), table_rms=1.0)
    action = blank_action(thought, max(thought.top_k, 64), hidden, dtype)
    return sum(value.nbytes for value in action.values())


def run_of(
    training,
    shape: Shape,
    config,
    model: ModelConfig,
    world: World,
    prompt_length: int,
    gpu_gb: float | None,
    cuda=True,
) -> Run:
    """What costs memory, of a trainer's config, a model's and the devices."""
    for field in ("deepspeed", "fsdp"):
        if getattr(training, field, None):
            raise ValueError(
                f"`{field}` is set in the recipe. Describe the devices in an accelerate config instead, and pass it as "
                "`--accelerate_config`."
            )
    if training.use_vllm:
        raise ValueError(
            "`use_vllm` is true, but what vLLM holds is not worked out here: colocated it keeps "
            "`vllm_gpu_memory_utilization` of the device, beside training too unless it sleeps. Pass `--use_vllm false` and, "
            "where it is colocated, a `--gpu_gb` lower by that share."
        )
    if model.load_in_4bit or model.load_in_8bit:
        raise ValueError(
            "`load_in_4bit` and `load_in_8bit` are not worked out here. Plan without them: it is an upper bound."
        )
    dtype = (training.model_init_kwargs or {}).get("dtype") or model.dtype
    if dtype == "auto":
        dtype = str(config.dtype or "float32").removeprefix("torch.")
    weight = {"float32": 4, "bfloat16": 2, "float16": 2}[str(dtype).removeprefix("torch.")]
    half = training.bf16 or training.fp16 or world.half
    compute = 2 if half else weight
    name = str(getattr(training.optim, "value", training.optim))
    if name not in _OPTIMISERS:
        raise ValueError(f"`optim` is {name!r}, whose states are not known here. Known are {', '.join(_OPTIMISERS)}.")
    state = _OPTIMISERS[name]
    in_weights = weight if not (shape.adapter or world.backend not in ("single", "ddp")) else FLOAT
    attention = model.attn_implementation or "sdpa"
    known = [kind for kind in ("flash", "flex", "sdpa", "eager") if kind in attention]
    if not known:
        raise ValueError(
            f"`attn_implementation` is {attention!r}, whose memory is not worked out here. Use sdpa, eager or flash_attention_2."
        )
    thought = training.make_thought(Hard(training.temperature), table_rms=1.0)
    wide = torch.float32 if weight == FLOAT or shape.adapter else torch.bfloat16
    mixed = "fp16" if training.fp16 else "bf16" if half else "no"
    copy, _ = rollout_dtype(training, Surroundings(cuda, mixed, world.backend, wide, shape.tied))
    fed = torch.float32 if weight == FLOAT and world.backend in ("single", "ddp") and copy is None else torch.bfloat16
    rows = training.generation_batch_size // world.gpus
    every = training.steps_per_generation * training.num_iterations
    rloo = isinstance(training, SoftRLOOConfig)
    return Run(
        rows=rows,
        micro_batch=training.per_device_train_batch_size,
        prompt=prompt_length,
        completion=training.max_completion_length,
        thinking=training.max_thinking_length or training.max_completion_length - 1,
        weight=weight,
        compute=compute,
        copy=0 if copy is None else copy.itemsize,
        action=action_bytes(training, shape.hidden, fed),
        candidates=0 if thought.scores_vocabulary else thought.top_k or 1,
        mixes=thought.mixes_vocabulary,
        hard=thought.is_token,
        feeds_gradient=not training.detach_soft_inputs and not (thought.mixes_vocabulary or thought.needs_hidden),
        accumulates=training.gradient_accumulation_steps > 1,
        checkpointing=training.gradient_checkpointing,
        # 8-bit states are bytes whatever the weight; others are as precise as it.
        moments=state / FLOAT if state >= FLOAT else state / in_weights,
        foreach=cuda and name == "adamw_torch",
        old_logps=rloo
        or training.gradient_accumulation_steps % every != 0
        or (copy is not None and corrects(training)),
        reference=training.beta != 0.0,
        slots=min(training.rollout_slots or rows, rows),
        cache=None if training.rollout_cache_gb is None else training.rollout_cache_gb * GB,
        attention={"flex": "flash"}.get(known[0], known[0]),
        backend=world.backend,
        gpus=world.gpus,
        offload_optimizer=world.offload_optimizer,
        offload_parameters=world.offload_parameters,
        cuda=cuda,
        memory=None if gpu_gb is None else gpu_gb * GB,
    )


def estimate(
    training: SoftGRPOConfig | SoftRLOOConfig,
    config,
    model: ModelConfig | None = None,
    world: World | None = None,
    prompt_length: int = PROMPT_LENGTH,
    gpu_gb: float | None = None,
    reserve_gb: float = 0.0,
    cuda: bool = True,
    equal_lengths: bool = False,
) -> Estimate:
    """
    What a run takes on one device.

    Args:
        training: the trainer's config. config: the model's. model (`ModelConfig`): precision, attention, LoRA.
        world (`World`, *optional*): `None` is one device.
        prompt_length (`int`): tokens of the longest prompt.
        gpu_gb (`float`, *optional*): of the device; what is free of it bounds the rollout's cache.
        cuda (`bool`): False counts what TRL's scores cost on the CPU.
        equal_lengths (`bool`): no row of a micro-batch is padded, so that attention takes no mask.
    """
    model, world = model or ModelConfig(), world or World()
    shape = shape_of(config, get_peft_config(model))
    run = run_of(training, shape, config, model, world, prompt_length, gpu_gb, cuda)
    return estimate_bytes(shape, replace(run, masked=not equal_lengths), reserve_gb * GB)


def savings(shape: Shape, run: Run, reserve: float = 0.0) -> list[tuple[str, Shape, Run, float]]:
    """Settings that lower the largest phase, one at a time: what to set, what becomes of it, and bytes saved; best first."""
    H, A, KV = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    half = max(run.completion // 2, 2)
    options: list[tuple[bool, str, Any, Any]] = [
        (not run.checkpointing, "gradient_checkpointing: true", {"checkpointing": True}, {}),
        (
            run.micro_batch > 1,
            f"per_device_train_batch_size: {run.micro_batch // 2} (with twice the gradient_accumulation_steps)",
            {"micro_batch": run.micro_batch // 2, "accumulates": True},
            {},
        ),
        (run.slots > 1, f"rollout_slots: {run.slots // 2}", {"slots": run.slots // 2}, {}),
        (
            True,
            f"max_completion_length: {half}",
            {"completion": half, "thinking": min(run.thinking, half - 1)},
            {},
        ),
        (run.reference and not shape.adapter, "beta: 0.0", {"reference": False}, {}),
        (
            not shape.adapter,
            "use_peft: true (LoRA, r = 16 on q_proj and v_proj)",
            {},
            {"adapter": shape.layers * 16 * (H + A + H + KV), "adapted": (("q_proj", H), ("v_proj", H)), "lora_r": 16},
        ),
        (run.attention == "sdpa", "attn_implementation: flash_attention_2", {"attention": "flash"}, {}),
        (
            run.weight > 2 and not run.deepspeed and run.backend != "fsdp2",
            "dtype: bfloat16",
            {"weight": 2, "compute": 2, "copy": 0},
            {},
        ),
        (run.moments * FLOAT > 2 and not run.deepspeed, "optim: adamw_8bit", {"moments": 2 / FLOAT}, {}),
        (
            run.backend in ("ddp", "zero0", "zero1"),
            "recipes/accelerate/zero2.yaml",
            {"backend": "zero2", "copy": 0},
            {},
        ),
        (run.gpus > 1 and not run.sharded, "recipes/accelerate/zero3.yaml", {"backend": "zero3", "copy": 0}, {}),
        (
            run.stage > 0 and not run.offload_optimizer,
            "offload_optimizer_device: cpu",
            {"offload_optimizer": True},
            {},
        ),
        (run.stage == 3 and not run.offload_parameters, "offload_param_device: cpu", {"offload_parameters": True}, {}),
        (
            run.stage > 0 or run.backend == "fsdp2",
            f"num_processes: {2 * run.gpus} (with half the gradient_accumulation_steps)",
            {"gpus": 2 * run.gpus, "rows": max(run.rows // 2, 1), "slots": max(run.slots // 2, 1)},
            {},
        ),
    ]
    longest = run.length * per_token(shape, run) / GB
    now = estimate_bytes(shape, run, reserve)
    held = now.phases["rollout"]["keys and values"] / GB
    if held / 4 > longest:
        options.append((True, f"rollout_cache_gb: {held / 4:.3g}", {"cache": held / 4 * GB}, {}))
    found = []
    for applies, text, of_run, of_shape in options:
        if applies:
            changed = replace(shape, **of_shape), replace(run, **of_run)
            saved = now.peak - estimate_bytes(*changed, reserve).peak
            if saved > 0.005 * now.peak:
                found.append((text, *changed, saved))
    return sorted(found, key=lambda option: -option[3])


def advice(shape: Shape, run: Run, reserve: float = 0.0) -> list[str]:
    """Sentences for a run that does not fit: by how much, and the three settings that save most, each with how much."""
    found = estimate_bytes(shape, run, reserve)
    if found.fits:
        return []
    lines = []
    keys = run.length * per_token(shape, run)
    if found.longest_slots < 1:
        lines.append(
            f"A rollout would be refused: the longest prompt and completion take {keys / GB:.2f} GB of keys and values, and "
            f"the cache may have {found.phases['rollout']['keys and values'] / GB:.2f} GB."
        )
    if found.memory is not None and found.peak + reserve > found.memory:
        over = (found.peak + reserve - found.memory) / GB
        lines.append(f"It does not fit: {found.largest} and the reserve are {over:.1f} GB above the device's memory.")
    for text, one_shape, one_run, saved in savings(shape, run, reserve)[:3]:
        fits = "and it fits" if estimate_bytes(one_shape, one_run, reserve).fits else "which alone is not enough"
        lines.append(f"`{text}` saves {saved / GB:.1f} GB, {fits}.")
    return lines


def table(found: Estimate) -> str:
    """Parts down, phases across, in GB."""
    names = list(dict.fromkeys(name for parts in found.phases.values() for name in parts))
    rows = {name: [parts.get(name, 0.0) for parts in found.phases.values()] for name in names}
    rows = {name: values for name, values in rows.items() if any(values)}
    rows["peak of the phase"] = list(found.peaks.values())
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{phase:>11}" for phase in found.phases) + "   GB"]
    lines += [
        f"{name:{width}}" + "".join(f"{value / GB:11.2f}" if value else f"{'-':>11}" for value in values)
        for name, values in rows.items()
    ]
    lines.insert(-1, "-" * len(lines[1]))
    return "\n".join(lines)


def report(found: Estimate, shape: Shape, run: Run, reserve: float) -> dict:
    """All of it as JSON values, sizes in GB."""
    return {
        "phases_gb": {phase: {k: v / GB for k, v in parts.items()} for phase, parts in found.phases.items()},
        "peaks_gb": {phase: value / GB for phase, value in found.peaks.items()},
        "largest": found.largest,
        "peak_gb": found.peak / GB,
        "reserve_gb": reserve / GB,
        "gpu_gb": None if found.memory is None else found.memory / GB,
        "host_gb": found.host / GB,
        "longest_slots": found.longest_slots,
        "fits": found.fits,
        "advice": advice(shape, run, reserve),
        "savings_gb": {text: saved / GB for text, _, _, saved in savings(shape, run, reserve)[:3]},
        "parameters": shape.parameters,
        "trained": shape.trained,
        "rows": run.rows,
        "backend": run.backend,
        "gpus": run.gpus,
    }


def _algorithm_of(flags: list[str]) -> str:
    """`rloo` where the recipe or a flag is what `SoftRLOOConfig` alone reads, else `grpo`."""
    keys = {flag.partition("=")[0].lstrip("-") for flag in flags if flag.startswith("--")}
    if "--config" in flags[:-1]:
        with open(flags[flags.index("--config") + 1], encoding="utf-8") as file:
            keys |= set(yaml.safe_load(file) or {})
    only = set(SoftRLOOConfig.__dataclass_fields__) - set(SoftGRPOConfig.__dataclass_fields__)
    return "rloo" if keys & only else "grpo"


def read_recipe(flags: list[str], algorithm: str | None, gpus: int) -> tuple[Any, Any, ModelConfig, bool]:
    """SoftScriptArguments, training and model settings as the script would have them with `gpus` processes, and whether on CUDA."""
    kind = _CONFIGS[algorithm or _algorithm_of(flags)]
    # Batches are counted over all processes, of which this one is not; and bf16 is refused where there is no GPU.
    planned = type(kind.__name__, (kind,), {"world_size": property(lambda self: gpus)})
    given = SoftParser((SoftScriptArguments, planned, ModelConfig))
    on_cpu = _asks_for_cpu(flags)
    if not torch.cuda.is_available() and not on_cpu:
        flags = [*flags, "--use_cpu", "true"]
    arguments, training, model = given.parse_args_and_config(flags)
    check_update(arguments, training)
    return arguments, training, model, not on_cpu


def _asks_for_cpu(flags: list[str]) -> bool:
    values = []
    if "--config" in flags[:-1]:
        with open(flags[flags.index("--config") + 1], encoding="utf-8") as file:
            values.append((yaml.safe_load(file) or {}).get("use_cpu"))
    for index, flag in enumerate(flags):
        if flag.partition("=")[0] == "--use_cpu":
            following = (
                flags[index + 1] if index + 1 < len(flags) and not flags[index + 1].startswith("--") else "true"
            )
            values.append(flag.partition("=")[2] or following)
    return bool(values) and str(values[-1]).lower() == "true"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m trl_soft.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--accelerate_config", help="YAML that `accelerate launch --config_file` takes")
    parser.add_argument(
        "--num_gpus", type=int, help="processes of all machines together; beats the accelerate config's"
    )
    parser.add_argument("--gpu_gb", type=float, default=80.0, help="memory of one GPU, in 10**9 bytes")
    parser.add_argument("--model_config", help="a model's config.json, where there is no hub")
    parser.add_argument("--algorithm", choices=sorted(_CONFIGS), help="else by the recipe's keys")
    parser.add_argument(
        "--prompt_length", type=int, help=f"longest prompt in tokens; else the recipe's, else {PROMPT_LENGTH}"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    own, flags = parser.parse_known_args(argv)
    if own.num_gpus is not None and own.num_gpus < 1:
        raise ValueError(f"`--num_gpus` is {own.num_gpus}, but there must be at least one.")
    if not 0 < own.gpu_gb < float("inf"):
        raise ValueError(
            f"`--gpu_gb` is {own.gpu_gb:g}, but it must be above 0: the memory of one GPU in 10**9 bytes."
        )
    world = read_world(own.accelerate_config, own.num_gpus)
    arguments, training, model, cuda = read_recipe(flags, own.algorithm, world.gpus)
    config = read_config(
        model.model_name_or_path,
        own.model_config,
        revision=model.model_revision,
        trust_remote_code=training.trust_remote_code,
    )
    prompt = own.prompt_length or getattr(arguments, "max_prompt_length", None) or PROMPT_LENGTH
    shape = shape_of(config, get_peft_config(model))
    run = run_of(training, shape, config, model, world, prompt, own.gpu_gb, cuda)
    reserve = RESERVE_GB * GB if cuda else 0.0
    found = estimate_bytes(shape, run, reserve)
    if own.json:
        print(json.dumps(report(found, shape, run, reserve)))
        return 0 if found.fits else 1
    print(
        f"{shape.parameters / GB:.2f}e9 parameters, {shape.trained / GB:.3g}e9 trained, {run.backend} on {run.gpus} GPUs"
    )
    print(
        f"{run.rows} completions of {run.prompt} + {run.completion} tokens a GPU, {run.micro_batch} at once in the update\n"
    )
    print(table(found))
    print(
        f"\nLargest: {found.largest}, {found.peak / GB:.1f} GB, and {reserve / GB:.1f} GB in reserve, of {own.gpu_gb:g} GB."
    )
    if found.host:
        print(f"In the host's memory, for each GPU: {found.host / GB:.1f} GB.")
    held = found.longest_slots
    if 1 <= held < run.slots:
        print(
            f"The cache holds {held:.1f} of {run.slots} completions of full length at once; the rest wait their turn."
        )
    print("\n".join(advice(shape, run, reserve) or ["It fits."]))
    return 0 if found.fits else 1
