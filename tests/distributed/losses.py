# SPDX-License-Identifier: Apache-2.0
"""Short soft trainings in whatever world this is launched in; what came of each goes to a file.

    python losses.py plain FOLDER                     one process, micro-batches of four, two of them a step
    accelerate launch ... losses.py WORLD FOLDER      two processes of four

TRL shuffles each process's rows by the global RNG; the shuffle is left out here, so that micro-batch i of one process
holds the rows of rank i and losses that average over a local batch can be compared.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
import trl.trainer.grpo_trainer
import trl.trainer.rloo_trainer
from datasets import Dataset
from peft import LoraConfig

from tests import tiny
from tests.distributed.cases import RAGGED, cases_of
from tests.distributed.fsdp_on_cpu import shard_on_cpu
from tests.distributed.world import full_weights, world_of
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer


MARKS = ("trainer", "lora", "data", "rare", "evaluate", "save", "resume", "record", "replay", "only")
LOGGED = ("loss", "grad_norm", "reward", "reward_std", "completions/mean_length", "thinking/mean_length")
LOGGED += ("thinking/logp_difference/max",)
LOGGED += tuple(
    f"refill/{name}" for name in ("replaced", "remaining", "rollouts", "groups", "tokens", "reward_before")
)


def place() -> tuple[int, int]:
    """How many processes there are, and which of them this is."""
    return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))


class Completions:
    """A reward that keeps what it was shown."""

    __name__ = "reward"

    def __init__(self, reward=tiny.reward):
        self.reward = reward
        self.calls: list[list[list[int]]] = []

    def __call__(self, completion_ids, **kwargs):
        self.calls.append(completion_ids)
        return self.reward(completion_ids)

    def everywhere(self) -> list[list[list[int]]]:
        """Each call with the rows of all ranks, in their order."""
        return [[ids for rank in call for ids in rank] for call in zip(*everywhere(self.calls), strict=True)]


def everywhere(value) -> list:
    """The value of each rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def keep_rollouts(trainer, kept: list) -> None:
    """Append what each rollout drew."""
    draw = trainer._soft_generate

    def soft_generate(*args, **kwargs):
        ids = draw(*args, **kwargs)
        kept.append(trainer._flight.rollout)
        return ids

    trainer._soft_generate = soft_generate


def replay_rollouts(trainer, recorded: list) -> None:
    """Draw, and then go on with what was recorded."""
    draw = trainer._soft_generate

    def soft_generate(model, input_ids, *args, **kwargs):
        draw(model, input_ids, *args, **kwargs)
        assert trainer._flight.rollout.entropies.isfinite().all()
        first = place()[1] * len(input_ids)
        trainer._flight.rollout = recorded.pop(0)[first : first + len(input_ids)]
        return torch.cat([input_ids, trainer._flight.rollout.completion_ids], dim=1)

    trainer._soft_generate = soft_generate


def make_trainer(case: dict, marks: dict, folder: Path, world: str):
    """The trainer of a case."""
    dataset, (processes, _) = tiny.prompts(), place()
    settings = {"per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.1, "log_level": "error", **case}
    settings["gradient_accumulation_steps"] = settings.get("gradient_accumulation_steps", 2) // processes
    classes = (SoftRLOOTrainer, SoftRLOOConfig) if marks["trainer"] == "rloo" else (SoftGRPOTrainer, SoftGRPOConfig)
    if marks["trainer"] != "rloo":
        settings.setdefault("loss_type", "grpo")
    if marks["lora"]:
        settings["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    if marks["data"] == "ragged":
        # In order and two a step, so that every second prompt is rank 1's.
        dataset, settings["shuffle_dataset"] = Dataset.from_dict({"prompt": RAGGED * 2}), False
    if marks["data"] == "odd":
        dataset = Dataset.from_dict({"prompt": ["1+2=", "3+44=", "5-6=", "7777-8=", "9+9="]})
    if marks["evaluate"]:
        settings |= {"eval_dataset": dataset, "num_generations_eval": 2, "per_device_eval_batch_size": 4 // processes}
    if marks["resume"]:
        settings |= {"save_strategy": "steps", "save_steps": marks["resume"]}
    torch.manual_seed(0)  # LoRA draws its first weights from the global RNG
    # Loading by name lets ZeRO-3 shard the weights as they are read, as it does for a model too large for one process.
    net = str(folder / ("ragged" if marks["data"] == "ragged" else "model"))
    rewards = Completions(tiny.rare_reward if marks["rare"] else tiny.reward)
    settings |= {"train_dataset": dataset, "reward_funcs": rewards}
    return tiny.trainer(folder / world, net, *classes, **settings)


def train(name: str, case: dict, folder: Path, world: str) -> dict:
    """Train, and say what came of it."""
    marks = {mark: case.get(mark) for mark in MARKS}
    case = {key: value for key, value in case.items() if key not in MARKS}
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # a config with bf16 leaves it behind
    trainer = make_trainer(case, marks, folder, world)
    kept: list = []
    before = full_weights(trainer.model) if world == "plain" else None
    if marks["record"]:
        keep_rollouts(trainer, kept)
    if marks["replay"]:
        replay_rollouts(trainer, torch.load(folder / f"rollouts-{marks['replay']}.pt", weights_only=False))
    trainer.train()
    if marks["resume"] and world != "plain":
        trainer = make_trainer(case, marks, folder, world)
        trainer.train(resume_from_checkpoint=str(folder / world / f"checkpoint-{marks['resume']}"))
    logs = [{key: row[key] for key in LOGGED if key in row} for row in trainer.state.log_history if "loss" in row]
    found = {"world": world_of(trainer), "log": logs, "before": before, "weights": full_weights(trainer.model)}
    found["dtypes"] = {
        name: str(parameter.dtype).removeprefix("torch.") for name, parameter in trainer.model.named_parameters()
    }
    if marks["evaluate"]:
        trainer.evaluate()
    if marks["save"]:
        trainer.save_model(str(folder / f"{world}-{name}"))
    if marks["record"] and world == "plain":
        torch.save(kept, folder / f"rollouts-{name}.pt")
    return {**found, "completions": trainer.reward_funcs[0].everywhere()}


def main(world: str, folder: str, *chosen: str):
    """Train all cases of a world, or those that are named."""
    transformers.logging.disable_progress_bar()
    for module in (trl.trainer.grpo_trainer, trl.trainer.rloo_trainer):
        module.shuffle_sequence_dict = lambda batch: batch
    if world == "fsdp2":
        shard_on_cpu()
    cases = {name: case for name, case in cases_of(world).items() if not chosen or name in chosen}
    found = {}
    for name, case in cases.items():
        print("case", name, flush=True)  # the last one stands in the report if this one hangs
        found[name] = train(name, case, Path(folder), world)
    if place()[1] == 0:
        torch.save(found, Path(folder) / f"{world}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
