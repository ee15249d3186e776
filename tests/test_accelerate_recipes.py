# SPDX-License-Identifier: Apache-2.0
"""`recipes/accelerate`: read by accelerate's own loader, with every key known and every value arriving where it is meant."""

import shutil
from pathlib import Path

import pytest
import yaml
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy


FOLDER = Path(__file__).parent.parent / "recipes" / "accelerate"
TYPES = {
    "single": "NO",
    "ddp": "MULTI_GPU",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "zero3_offload": "DEEPSPEED",
    "fsdp2": "FSDP",
    "multi_node": "DEEPSPEED",
}
PARSER = launch_command_parser()
FLAGS = {action.dest for action in PARSER._actions}


def check(path: Path) -> None:
    """Raise for a key that accelerate would take and never read."""
    config = load_config_from_file(str(path))  # which refuses unknown keys at the top level, and no deeper
    for section, prefix in (("deepspeed_config", ""), ("fsdp_config", "fsdp_")):
        for key in getattr(config, section):
            if key not in FLAGS or not key.startswith(prefix):
                raise ValueError(
                    f"{path.name}: {section} has the key {key!r}, which `accelerate launch` does not know"
                )


def launched(name: str, *flags: str):
    """The arguments of `accelerate launch` with a recipe, as its launchers see them."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "script.py"]
    return _validate_launch_command(PARSER.parse_args(command))[0]


def plugin(name: str, monkeypatch):
    """What a process that was launched with a recipe builds from the environment it was given."""
    args = launched(name, "--main_process_port", "0")
    args.deepspeed_fields_from_accelerate_config = ""
    if args.use_fsdp:
        environment, make = prepare_multi_gpu_env(args), FullyShardedDataParallelPlugin
    else:
        args.machine_rank = 1  # rank 0 would look whether the port is free
        environment, make = prepare_deepspeed_cmd_env(args)[1], DeepSpeedPlugin
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return make()


def test_the_recipes_are_all_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_every_key_is_read(name):
    path = FOLDER / f"{name}.yaml"
    check(path)
    config = load_config_from_file(str(path))
    assert config.distributed_type == TYPES[name] and config.mixed_precision == "bf16" and not config.use_cpu
    machines = 2 if name == "multi_node" else 1
    assert (config.num_machines, config.num_processes) == (machines, 1 if name == "single" else 8 * machines)
    assert f"recipes/accelerate/{name}.yaml" in path.read_text()  # the command to copy
    # A key with a default of its own on the command line (`same_network`) is known, and its value in a file is lost.
    args = launched(name)
    for key, value in yaml.safe_load(path.read_text()).items():
        if key not in ("compute_environment", "distributed_type", "deepspeed_config", "fsdp_config"):
            assert getattr(args, key) == value, key


@pytest.mark.parametrize(
    "name, section", [("zero3", "deepspeed_config"), ("fsdp2", "fsdp_config"), ("ddp", None)], ids=str
)
def test_a_misspelt_key_is_found(tmp_path, name, section):
    path = tmp_path / f"{name}.yaml"
    shutil.copy(FOLDER / path.name, path)
    config = yaml.safe_load(path.read_text())
    (config[section] if section else config)["fsdp_reshard_after_foward"] = True
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="fsdp_reshard_after_foward"):
        check(path)


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload", "multi_node"])
def test_zero_means_what_it_says(monkeypatch, name):
    found = plugin(name, monkeypatch)
    zero = found.deepspeed_config["zero_optimization"]
    stage, device = 2 if name == "zero2" else 3, "cpu" if name == "zero3_offload" else "none"
    assert zero["stage"] == found.zero_stage == stage
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == device
    assert found.zero3_init_flag == (stage == 3)
    # Without it, `save_model` under ZeRO-3 leaves nothing that `from_pretrained` reads.
    assert bool(zero["stage3_gather_16bit_weights_on_model_save"]) == (stage == 3)


def test_fsdp_means_what_it_says(monkeypatch):
    found = plugin("fsdp2", monkeypatch)
    assert found.fsdp_version == 2 and found.reshard_after_forward is True
    assert found.auto_wrap_policy is transformer_auto_wrap_policy and found.cpu_ram_efficient_loading
    assert found.state_dict_type.name == "FULL_STATE_DICT"
    assert found.cpu_offload is None or type(found.cpu_offload).__name__ == "OffloadPolicy"
    assert not found.activation_checkpointing


def test_several_machines_start_their_own_processes():
    """pdsh, the default, would log in to the others by ssh from rank 0."""
    address = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1", "--main_process_port", "29500"]
    args = launched("multi_node", *address)
    args.deepspeed_fields_from_accelerate_config = ""
    command, _ = prepare_deepspeed_cmd_env(args)
    assert command is None  # torchrun here, and not `deepspeed` with a host file
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert args.rdzv_endpoint == "10.0.0.1:29500"
