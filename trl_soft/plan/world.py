# SPDX-License-Identifier: Apache-2.0
"""The devices of a run, and how an accelerate config spreads the model over them."""

import json
from dataclasses import dataclass

import yaml


@dataclass(frozen=True)
class World:
    """
    Devices, and what each of them holds.

    Args:
        backend (`str`): `single`, `ddp`, `zero0` to `zero3` or `fsdp2`.
        gpus (`int`): number of GPUs of all machines together.
        offload_optimizer, offload_parameters (`bool`): whether DeepSpeed offloads them to the host.
        half (`bool`): whether the accelerate config sets bf16 or fp16. It overrides the recipe.
    """

    backend: str = "single"
    gpus: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    half: bool = False

    @property
    def deepspeed(self) -> bool:
        return self.backend.startswith("zero")

    @property
    def stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
        return int(self.backend[-1]) if self.deepspeed else 0

    @property
    def fsdp(self) -> bool:
        return self.backend == "fsdp2"

    @property
    def replicated(self) -> bool:
        """Whether each device holds and trains the whole model, as torch loads it."""
        return self.backend in ("single", "ddp")

    @property
    def sharded(self) -> bool:
        """Whether a device holds only a part of the weights."""
        return self.backend in ("zero3", "fsdp2") and self.gpus > 1


def read_world(path: str | None, gpus: int | None) -> World:
    """The world of an accelerate config. Without a config: one process, or DDP if `gpus` is above 1."""
    if path is None:
        return World("ddp" if (gpus or 1) > 1 else "single", gpus or 1)
    with open(path, encoding="utf-8") as file:
        values = yaml.safe_load(file)
    kind, half = str(values.get("distributed_type", "NO")), values.get("mixed_precision") in ("bf16", "fp16")
    count = gpus or int(values.get("num_processes", 1))
    if kind == "DEEPSPEED":
        return _deepspeed_world(dict(values.get("deepspeed_config") or {}), count, half)
    if kind == "FSDP":
        options = values.get("fsdp_config") or {}
        if int(options.get("fsdp_version", 1)) != 2 or options.get("fsdp_offload_params"):
            raise ValueError(
                f"{path} asks for FSDP1 or for offloaded parameters, which the planner does not support. Set "
                "`fsdp_version: 2` and `fsdp_offload_params: false`, or plan for recipes/accelerate/zero3_offload.yaml."
            )
        return World("fsdp2", count, half=half)
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise ValueError(f"{path} has `distributed_type: {kind}`. Plan for NO, MULTI_GPU, DEEPSPEED or FSDP.")
    return World("ddp" if count > 1 else "single", count, half=half)


def _deepspeed_world(options: dict, count: int, half: bool) -> World:
    """The world of DeepSpeed's options, which are in the accelerate config or in the DeepSpeed file that it names."""
    stage = options.get("zero_stage", 2)
    devices = [options.get(f"{name}_device") for name in ("offload_optimizer", "offload_param")]
    if options.get("deepspeed_config_file"):
        with open(options["deepspeed_config_file"], encoding="utf-8") as file:
            zero = json.load(file).get("zero_optimization", {})
        stage = zero.get("stage", 0)
        devices = [zero.get(name, {}).get("device") for name in ("offload_optimizer", "offload_param")]
    optimizer, parameters = (device not in (None, "none") for device in devices)
    return World(f"zero{int(stage)}", count, optimizer, parameters, half)
