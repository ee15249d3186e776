# SPDX-License-Identifier: Apache-2.0
"""The precision of a trainer's rollouts: the training weights, or a copy of them for each rollout.

Under autocast each forward casts the float32 weights again. An update casts twice per micro-batch, a rollout at every token. The
copy is cast once and exists only during the rollout. It equals the model loaded in that type: without autocast, and with keys
and values in that type too.

The log-probabilities of the copy differ from those of the update more than those of the training weights do. This is the same
mismatch as with vLLM, and TRL corrects it: its `vllm_importance_sampling_*` fields apply to the copy.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate.utils import DistributedType
from transformers.utils import logging

from ..rollout.weights import weights_in, widest


logger = logging.get_logger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CHOICES = ("auto", "training", *DTYPES)
_TIED = (
    "with `cast_lm_head_to_fp32` and a head that is also the embedding table, TRL feeds embeddings in the trained type"
)
_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Surroundings:
    """
    The facts besides the config on which the choice depends.

    Args:
        cuda (`bool`). mixed (`str`): accelerate's `mixed_precision`.
        backend (`str`): `single`, `ddp`, `zero0` to `zero3`, `fsdp1` or `fsdp2`.
        widest (`torch.dtype`): widest type of the weights, with adapters.
        tied (`bool`): the head is also the embedding table.
    """

    cuda: bool
    mixed: str
    backend: str
    widest: torch.dtype
    tied: bool = False


def surroundings(accelerator, model) -> Surroundings:
    """The surroundings of a trainer that is being built."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        backend = f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    elif accelerator.distributed_type == DistributedType.FSDP:
        backend = "fsdp2" if accelerator.is_fsdp2 else "fsdp1"
    else:
        backend = "ddp" if accelerator.num_processes > 1 else "single"
    cuda, tied = accelerator.device.type == "cuda", _own_head(model) is None
    return Surroundings(cuda, accelerator.mixed_precision, backend, widest(model), tied)


def _own_head(model):
    """The weight of the head, if it is not also the embedding table."""
    head = model.get_output_embeddings().weight
    return None if head is model.get_input_embeddings().weight else head


def corrects(args) -> bool:
    """Whether TRL corrects for a difference between the policy that draws and the policy that is scored. RLOO never does."""
    return bool(getattr(args, "vllm_importance_sampling_correction", False))


def no_correction(args) -> str | None:
    """Why the correction in the settings is not possible, as a clause, or `None`."""
    if not corrects(args):
        return None
    if several := args.several_ratios():
        return f"{several[0]}, and the correction for the copy's mismatch has one ratio for each position"
    if reason := args.kinds()[0].no_ratio(args):
        return reason
    if args.loss_type == "vespo" and args.vllm_importance_sampling_mode.startswith("sequence"):
        return (
            f"`vllm_importance_sampling_mode` is {args.vllm_importance_sampling_mode}, and `loss_type: vespo` takes "
            "token_truncate or token_mask"
        )
    return None


def rollout_dtype(args, where: Surroundings) -> tuple[torch.dtype | None, str | None]:
    """
    The type of the copy (`None` for no copy), and a sentence for the log or `None`.

    Raises:
        ValueError: if the settings ask for a copy that cannot be made.
    """
    asked, autocast = args.rollout_dtype, _MIXED.get(where.mixed)
    tied = getattr(args, "cast_lm_head_to_fp32", False) and where.tied
    if args.use_vllm or asked == "training":
        return None, None
    if asked == "auto":
        if autocast is None or not where.cuda or where.backend not in ("single", "ddp"):
            return None, None
        if args.rollout_engine != "slots" or where.widest.itemsize <= autocast.itemsize:
            return None, None
        reason = no_correction(args)
        reason = args.kinds()[0].exact_weights or reason
        if tied:
            reason = _TIED
        if reason is None:
            return autocast, _told(args, autocast)
        return None, (
            f"Rollouts run on the training weights, which autocast casts again at every token, because {reason}. "
            "Change that setting, or set `vllm_importance_sampling_correction: false` if the correction is the reason. "
            "`rollout_dtype: training` has the same effect without this message."
        )
    dtype = DTYPES[asked]
    if where.backend not in ("single", "ddp", "fsdp1") and autocast == dtype:
        return (
            None,
            f"`rollout_dtype: {asked}` changes nothing: rollouts under {where.backend} have such weights already.",
        )
    if where.backend in ("zero3", "fsdp1", "fsdp2"):
        raise ValueError(
            f"`rollout_dtype` is {asked}, but under {where.backend} a rollout runs on weights that are gathered from shards, "
            "in the precision of training, and these cannot be copied. Set `mixed_precision: bf16` in the accelerate config "
            "of ZeRO or FSDP2, which then gathers them in bfloat16, or leave `rollout_dtype` unset."
        )
    if tied:
        raise ValueError(f"`rollout_dtype` is {asked}, but {_TIED}. Leave one of the two unset.")
    if where.widest.itemsize <= dtype.itemsize:
        return None, f"`rollout_dtype: {asked}` changes nothing: no weight is wider than that."
    return dtype, _told(args, dtype)


def _told(args, dtype: torch.dtype) -> str:
    correction = "TRL's RLOO has no correction for the mismatch, as with vLLM"
    if hasattr(args, "vllm_importance_sampling_correction"):
        how = args.vllm_importance_sampling_mode if corrects(args) else "not corrected"
        correction = f"its mismatch is treated as vLLM's (`vllm_importance_sampling_correction`, {how})"
    return (
        f"Rollouts run on a {_name(dtype)} copy of the weights, made for each rollout; {correction}. "
        "Set `rollout_dtype: training` to use the training weights."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class RolloutWeights:
    """
    The weights of a trainer's rollouts.

    Args:
        args: the trainer's config. accelerator.
        model: the trained model, before accelerate wraps anything around its forward.

    Attributes:
        dtype (`torch.dtype`, *optional*): type of the copy. `None`: rollouts run on the training weights.
        name (`str`): the value of `rollout_dtype` that means the same.
        corrects (`bool`): whether TRL corrects the mismatch of the copy.
    """

    def __init__(self, args, model, accelerator):
        self.dtype, told = rollout_dtype(args, surroundings(accelerator, model))
        self.name = "training" if self.dtype is None else _name(self.dtype)
        self.corrects = self.dtype is not None and corrects(args)
        self._forward = model.forward
        head = _own_head(model)
        self._keep = (head,) if getattr(args, "cast_lm_head_to_fp32", False) and head is not None else ()
        if told and accelerator.is_main_process:
            logger.warning_once(told)

    def of(self, model) -> AbstractContextManager[None]:
        """Inside the block `model`, without wrappers, has these weights."""
        return nullcontext() if self.dtype is None else weights_in(model, self.dtype, self._forward, self._keep)


@contextmanager
def as_vllm(trainer) -> Iterator[None]:
    """Inside the block TRL corrects as after a rollout in vLLM, because it decides by `use_vllm`."""
    before, trainer.use_vllm = trainer.use_vllm, True
    try:
        yield
    finally:
        trainer.use_vllm = before
