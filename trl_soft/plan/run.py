# SPDX-License-Identifier: Apache-2.0
"""The settings of a run that cost memory, from a trainer's config, a model's config and the devices."""

from dataclasses import dataclass, field

import torch
from trl import ModelConfig

from ..rollout.blank_action import blank_action
from ..thoughts import Hard
from ..training.config import SoftRLOOConfig
from ..training.rollout_precision import Surroundings, corrects, rollout_dtype
from .shape import Shape
from .world import World


GB = 1e9
FLOAT = 4  # bytes of a float32 number
# Bytes of optimiser state for each trained float32 number.
_OPTIMISERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "stable_adamw", "adamw_hf"), 8.0),
    **dict.fromkeys(("lion_32bit", "rmsprop", "adagrad"), 4.0),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "ademamix_8bit"), 2.0),
    **dict.fromkeys(("lion_8bit", "rmsprop_bnb_8bit"), 1.0),
    **dict.fromkeys(("sgd", "adafactor"), 0.0),
}


@dataclass(frozen=True)
class Run:
    """
    Settings that cost memory. All except `world` are those of one device.

    Args:
        rows (`int`): completions of a rollout. micro_batch (`int`): rows of a forward.
        prompt, completion (`int`): most tokens of each. thinking (`int`): most thinking tokens of a completion.
        weight, compute (`int`): bytes of a weight on the device, and of a number in a product.
        copy (`int`): bytes of a weight in the copy for rollouts (`rollout_dtype`). 0: there is no copy.
        action (`int`): bytes of a thought's action at one position.
        candidates (`int`): K. 0 if the thought is scored over the whole vocabulary.
        neighbours (`int`): k, the nearest tokens that a rollout looks up for each token. 0: none.
        mixes (`bool`): thoughts mix the whole vocabulary. hard (`bool`): thoughts are tokens.
        accumulates (`bool`): the gradients of an earlier micro-batch are already there.
        state (`float`): bytes of optimiser state for each trained number.
        foreach (`bool`): the optimiser makes lists of temporaries.
        old_logps, reference (`bool`): whether old log-probabilities and a reference model are needed.
        slots (`int`), cache (`float`, bytes, *optional*): slots and cache of a rollout.
        attention (`str`): sdpa, eager or flash.
        cuda (`bool`): TRL scores answers by its Triton kernels.
        memory (`float`, *optional*): bytes of the device.
    """

    rows: int
    micro_batch: int
    prompt: int
    completion: int
    thinking: int
    weight: int = FLOAT
    compute: int = FLOAT
    copy: int = 0
    action: int = 0
    candidates: int = 0
    neighbours: int = 0
    mixes: bool = False
    hard: bool = False
    accumulates: bool = False
    checkpointing: bool = False
    state: float = 8.0
    foreach: bool = False
    old_logps: bool = False
    reference: bool = False
    slots: int = 0
    cache: float | None = None
    attention: str = "sdpa"
    cuda: bool = True
    memory: float | None = None
    world: World = field(default_factory=World)

    @property
    def length(self) -> int:
        return self.prompt + self.completion

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_batch * self.length

    @property
    def thoughts(self) -> int:
        """Thinking positions of a micro-batch."""
        return 0 if self.hard else self.micro_batch * self.thinking

    @property
    def answers(self) -> int:
        """Answer positions of a micro-batch."""
        return self.micro_batch * self.completion - self.thoughts

    @property
    def autocast(self) -> bool:
        """Whether float32 weights are cast at each product. DeepSpeed and FSDP2 cast them once."""
        return self.compute < self.weight and self.world.replicated


def run_of(
    training,
    shape: Shape,
    config,
    model: ModelConfig,
    world: World,
    prompt_length: int,
    gpu_gb: float | None,
    cuda: bool = True,
) -> Run:
    """The `Run` of a trainer's config, a model's config and the devices."""
    _refuse(training, model)
    loaded, compute, copy = _precision(training, shape, config, model, world, cuda)
    # DeepSpeed holds weights in the type of the products. FSDP2 holds trained weights in float32.
    weight = compute if world.deepspeed else FLOAT if world.fsdp and not shape.adapter else loaded
    optimiser = str(getattr(training.optim, "value", training.optim))
    state = _OPTIMISERS[optimiser]
    if state >= FLOAT and world.backend in ("single", "ddp", "zero0") and not shape.adapter:
        state *= weight / FLOAT  # moments are as precise as the weight; 8-bit states take one byte in any case
    thought = training.make_thought(Hard(training.temperature), table_rms=1.0)
    rows = training.generation_batch_size // world.gpus
    updates = training.steps_per_generation * training.num_iterations
    fed = torch.float32 if weight == FLOAT and world.replicated and not copy else torch.bfloat16
    return Run(
        rows=rows,
        micro_batch=training.per_device_train_batch_size,
        prompt=prompt_length,
        completion=training.max_completion_length,
        thinking=training.max_thinking_length or training.max_completion_length - 1,
        weight=weight,
        compute=compute,
        copy=copy,
        action=action_bytes(training, shape.hidden, fed),
        candidates=0 if thought.scores_vocabulary else thought.top_k or 1,
        neighbours=thought.neighbours,
        mixes=thought.mixes_vocabulary,
        hard=thought.is_token,
        accumulates=training.gradient_accumulation_steps > 1,
        checkpointing=training.gradient_checkpointing,
        state=state,
        foreach=cuda and optimiser == "adamw_torch",
        old_logps=isinstance(training, SoftRLOOConfig)
        or training.gradient_accumulation_steps % updates != 0
        or (copy > 0 and corrects(training)),
        reference=training.beta != 0.0,
        slots=min(training.rollout_slots or rows, rows),
        cache=None if training.rollout_cache_gb is None else training.rollout_cache_gb * GB,
        attention=_attention(model),
        cuda=cuda,
        memory=None if gpu_gb is None else gpu_gb * GB,
        world=world,
    )


def _refuse(training, model: ModelConfig) -> None:
    """Raise a `ValueError` for settings that the planner does not support."""
    for name in ("deepspeed", "fsdp"):
        if getattr(training, name, None):
            raise ValueError(
                f"`{name}` is set in the recipe. Describe the devices in an accelerate config instead, and pass it as "
                "`--accelerate_config`."
            )
    if training.use_vllm:
        raise ValueError(
            "`use_vllm` is true, but the planner does not compute vLLM's memory. Colocated, vLLM keeps "
            "`vllm_gpu_memory_utilization` of the device, during training too unless it sleeps. Pass `--use_vllm false` and, "
            "if it is colocated, a `--gpu_gb` that is lower by this share."
        )
    if model.load_in_4bit or model.load_in_8bit:
        raise ValueError(
            "The planner does not support `load_in_4bit` and `load_in_8bit`. Plan without them: this gives an upper bound."
        )
    name = str(getattr(training.optim, "value", training.optim))
    if name not in _OPTIMISERS:
        raise ValueError(
            f"`optim` is {name!r}, whose states the planner does not know. It knows {', '.join(_OPTIMISERS)}."
        )


def _precision(training, shape: Shape, config, model: ModelConfig, world: World, cuda: bool) -> tuple[int, int, int]:
    """Bytes of a weight as loaded, in a product, and in the copy for rollouts (0: no copy)."""
    dtype = (training.model_init_kwargs or {}).get("dtype") or model.dtype
    if dtype == "auto":
        dtype = config.dtype or "float32"
    loaded = getattr(torch, str(dtype).removeprefix("torch."))
    half = training.bf16 or training.fp16 or world.half
    mixed = "fp16" if training.fp16 else "bf16" if half else "no"
    widest = torch.float32 if shape.adapter else loaded  # PEFT keeps the adapters of half-precision weights in float32
    copy, _ = rollout_dtype(training, Surroundings(cuda, mixed, world.backend, widest, shape.tied))
    return loaded.itemsize, 2 if half else loaded.itemsize, 0 if copy is None else copy.itemsize


def _attention(model: ModelConfig) -> str:
    name = model.attn_implementation or "sdpa"
    # Flex attention keeps no mask either.
    kinds = {"flash": "flash", "flex": "flash", "sdpa": "sdpa", "eager": "eager"}
    for part, kind in kinds.items():
        if part in name:
            return kind
    raise ValueError(
        f"`attn_implementation` is {name!r}, whose memory the planner does not know. Use sdpa, eager or flash_attention_2."
    )


def action_bytes(settings, hidden: int, dtype: torch.dtype) -> int:
    """Bytes of a thought's action at one position, measured on a drawn thought."""
    thought = settings.make_thought(Hard(settings.temperature), table_rms=1.0)
    action = blank_action(thought, max(thought.top_k, 64), hidden, dtype)
    return sum(value.nbytes for value in action.values())
