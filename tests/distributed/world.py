# SPDX-License-Identifier: Apache-2.0
"""What world a trainer found itself in, asked of the wrappers and not of the configuration, and its whole weights."""

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule


def world_of(trainer) -> dict:
    """Processes, wrapper, and which share of the weights and of the optimizer's state lies in this process."""
    engine = trainer.model_wrapped
    found = {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "processes": trainer.accelerator.num_processes,
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "wrapper": "FSDPModule" if isinstance(engine, FSDPModule) else type(engine).__name__,
        "own_generate": "generate" in vars(engine),
        "zero_stage": 0,
        "offload": [],
        "weights_here": _share(trainer.model),
        "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        "dtype": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
    }
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        found["zero_stage"] = engine.zero_optimization_stage()
        found["optimizer"] = type(engine.basic_optimizer).__name__
        offloads = {"optimizer": engine.zero_offload_optimizer(), "param": engine.zero_offload_param()}
        found["offload"] = [name for name, config in offloads.items() if config and config.device == "cpu"]
        masters = engine.optimizer.single_partition_of_fp32_groups if found["zero_stage"] == 2 else []
        if masters:
            trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
            found["optimizer_here"] = sum(part.numel() for part in masters) / trained
    return found


def _share(model) -> float:
    here = whole = 0
    for parameter in model.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        here += parameter.ds_tensor.numel() if hasattr(parameter, "ds_tensor") else local.numel()
        whole += parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
    return here / whole


def full_weights(model) -> dict[str, torch.Tensor]:
    """Every trained parameter, whole and in float32. All ranks must ask."""
    with torch.no_grad():
        return {
            name: _full(parameter).float().cpu().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }


def _full(parameter: torch.Tensor) -> torch.Tensor:
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        # DeepSpeed's float32 master: ZeRO-3's parameter is elsewhere, and with bf16 it is rounded.
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()
