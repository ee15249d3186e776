# SPDX-License-Identifier: Apache-2.0
"""One process of a run that will be killed: plain, DDP or ZeRO-3, over the tiny world, leaving a trail of what it does."""

import errno
import math
import os
import signal

from tests import tiny
from trl_soft import SoftGRPOTrainer


WORLDS = {"plain": 1, "ddp": 2, "zero3": 2}
PHASES = ("start", "rollout", "update", "save", "between", "end")
# What `accelerate launch` says to its processes under ZeRO-3.
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,zero3_init_flag,zero3_save_16bit_model,offload_optimizer_device,"
    "offload_param_device,mixed_precision",
}


class Traced(SoftGRPOTrainer):
    """Writes what it is doing to a file that outlives it."""

    trail: int
    begun = None
    # What happens to the last process, in which phase, and in which step: ("kill" or "signal" or "full", phase, step).
    interruption: tuple[str, str, int] | None = None
    bad_reward_at = None  # the step in which the last process's rewards are NaN

    def note(self, phase: str) -> None:
        if self.begun is not None:
            self.begun.send(None)
            self.begun = None
        os.pwrite(self.trail, f"{phase} {self.state.global_step}".ljust(32).encode(), 0)

    def _within(self, phase: str, method, *args, **kwargs):
        self.note(phase)
        try:
            return method(*args, **kwargs)
        finally:
            self.note("between")

    def _meets(self, step: int | None, at: int | None) -> bool:
        return step == at and self.accelerator.process_index == self.accelerator.num_processes - 1

    def _interrupt(self, phase: str) -> None:
        if self.interruption is None or self.interruption[1] != phase:
            return
        what, _, step = self.interruption
        if self._meets(self.state.global_step + (phase != "save"), step):
            if what == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)

    def _generate_and_score_completions(self, inputs):
        self._interrupt("rollout")
        return self._within("rollout", super()._generate_and_score_completions, inputs)

    def _compute_loss(self, model, inputs):
        self.note("update")
        self._interrupt("update")
        return super()._compute_loss(model, inputs)

    def _save_rng_state(self, output_dir):
        with self._collect_errors():
            self._interrupt("save")
        super()._save_rng_state(output_dir)

    def _save_checkpoint(self, model, trial):
        return self._within("save", super()._save_checkpoint, model, trial)


def phase_of(folder, rank: int) -> tuple[str, int]:
    """What a process was doing last, and after how many steps."""
    path = os.path.join(folder, f"trail_{rank}")
    words = open(path).read().split() if os.path.exists(path) else []
    return (words[0], int(words[1])) if words else ("start", 0)


def settings_of(world: str, changes: dict) -> dict:
    """Eight completions a batch in every world, two batches and two passes a rollout, a checkpoint a step."""
    rows = 8 // WORLDS[world]
    schedule = {"per_device_train_batch_size": rows, "steps_per_generation": 2, "num_iterations": 2}
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3, "logging_steps": 3}
    # Sixteen prompts are sixteen steps, so the order of the data is drawn again on the way.
    prompts = tiny.distinct_prompts(16) if "max_refill_rollouts" in changes else tiny.prompts(4)
    other = {"max_steps": 24, "gradient_accumulation_steps": 1, "train_dataset": prompts}
    return {**schedule, **saving, **other, **changes}


def train(folder: str, world: str, changes: dict, begun) -> None:
    """
    Start or continue the run in `folder` as one of its processes, until the end. `begun` is sent to at the first rollout
    or update.
    """
    rank = int(os.environ.get("RANK", 0))
    trail = os.open(os.path.join(folder, f"trail_{rank}"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    changes = dict(changes)
    given = {name: changes.pop(name, None) for name in ("interruption", "bad_reward_at")}
    values = tiny.rare_reward if "max_refill_rollouts" in changes else tiny.reward
    # ZeRO-3 shards a model as it is read from a folder.
    net = os.path.join(os.path.dirname(folder), "model")

    def reward(completion_ids, trainer_state, **kwargs):
        bad = trainer._meets(trainer_state.global_step + 1, trainer.bad_reward_at)
        return [math.nan if bad else value for value in values(completion_ids)]

    changes.setdefault("reward_funcs", reward)
    trainer = tiny.trainer(os.path.join(folder, "out"), net, Traced, **settings_of(world, changes))
    vars(trainer).update(given, trail=trail, begun=begun if rank == 0 else None)
    trainer.train("auto")
    expected = {"plain": "Qwen2ForCausalLM", "ddp": "DistributedDataParallel", "zero3": "DeepSpeedEngine"}[world]
    # accelerate can start one process, or another wrapper, without a word.
    assert type(trainer.model_wrapped).__name__ == expected, type(trainer.model_wrapped)
    assert trainer.accelerator.num_processes == WORLDS[world]
    os.pwrite(trail, f"end {trainer.state.global_step}".ljust(32).encode(), 0)
