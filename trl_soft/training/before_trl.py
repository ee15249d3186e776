# SPDX-License-Identifier: Apache-2.0
"""What is chosen and refused before TRL and transformers read the settings of a run."""

import os

import torch
from transformers.utils import is_torch_bf16_gpu_available

from ..ranges import check_number
from .check_arguments import asks_for_deepspeed, refuse_missing_deepspeed


def prepare(args) -> None:
    """What comes before TRL reads the settings. It divides by `num_generations`."""
    refuse_missing_deepspeed(args)
    check_number("num_generations", args.num_generations, 1, None, whole=True)
    choose_bf16(args)
    choose_pinning(args)
    quiet_deepspeed(args)


def choose_bf16(args) -> None:
    """TRL computes in bf16 unless `bf16` is set. If it is unset and the device has no bf16, compute in float32."""
    if args.bf16 is None and (args.use_cpu or not is_torch_bf16_gpu_available()):
        args.bf16 = False


def quiet_deepspeed(args) -> None:
    """accelerate imports DeepSpeed in every run. Where there is no device and no ZeRO, spare the user its search for a device."""
    if not asks_for_deepspeed(args) and torch.accelerator.current_accelerator() is None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def choose_pinning(args) -> None:
    """Pin no memory where there is no device to copy it to: torch would only warn."""
    if args.use_cpu or torch.accelerator.current_accelerator() is None:
        args.dataloader_pin_memory = False
