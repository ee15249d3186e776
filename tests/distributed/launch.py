# SPDX-License-Identifier: Apache-2.0
"""How the tests launch several processes: by `accelerate launch`, or forked and told what it tells them."""

import os
import sys
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from tests.forked import operators


ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "tests" / "distributed"
RECIPES = ROOT / "recipes" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def environment() -> dict[str, str]:
    """Of a launched world: on the CPU, one thread a process, with DeepSpeed's operators built."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **operators()}


def told(recipe: str, processes: int) -> dict[str, str]:
    """The variables by which `accelerate launch` tells a process of a recipe what to wrap the model in."""
    flags = ["--config_file", str(RECIPES / f"{recipe}.yaml"), "--num_processes", str(processes)]
    flags += ["--mixed_precision", "no", "--main_process_port", "0", "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join([*defaults.deepspeed_config, "mixed_precision"])
        args.machine_rank = 1  # rank 0 would look whether the port is free
        told = prepare_deepspeed_cmd_env(args)[1]
    elif processes > 1:
        told = prepare_multi_gpu_env(args)
    else:
        told = prepare_simple_launcher_cmd_env(args)[1]
    return {name: value for name, value in told.items() if name.startswith(("ACCELERATE_", "FSDP_", "OMP_"))}
