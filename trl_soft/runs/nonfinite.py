# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity in a reward, a loss or a gradient: no weight changes, and the batch is written out.

In training the mixin checks

    rewards     what each reward function returns; `None` stays TRL's "does not apply"
    sums        the weighted sums of rewards, and the advantages
    losses      before the backward
    gradients   their norm, before the optimiser's step

All processes act on what one of them meets.

To skip an update, its loss is set to NaN. The backward runs as usual, so the collectives of all processes match. A gradient
whose norm is not finite is never used, whatever made it so: this mixin drops it, and under DeepSpeed the engine does.
"""

import json
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import logging
from trl.trainer.utils import is_async_callable

from ..settings import ThinkingSettings
from . import disk
from .host import Host, require
from .processes import any_process, gather_sentences
from .progress import tensors_to_save


logger = logging.get_logger(__name__)

FOLDER = "nonfinite"
_MARK = "nonfinite_reward"  # (B,) bool in a batch: its rollout has a reward that is not finite
_MOST_FILES = 32  # of each process; a run that skips updates for days must not fill the disk with their batches

require("_get_grad_norm", purpose="check the gradient")


class NonfiniteError(ArithmeticError):
    """A reward, a loss or a gradient is NaN or infinite, and `nonfinite` is `stop`."""


class NonfiniteMixin(Host):
    """The checks, over a TRL trainer."""

    args: Any
    model: Any
    model_wrapped: Any
    optimizer: Any
    thinking: ThinkingSettings

    def __init__(self, *args, **kwargs):
        self._window: list[dict] = []  # the micro-batches of this update
        self._reported = False  # the problem of this update has been reported
        self._reward_problem: str | None = None
        self._rewards: Any = None
        self._written = 0
        super().__init__(*args, **kwargs)

    # Rewards

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        functions: Any = self.reward_funcs
        names = self.reward_func_names
        problems: list[str] = []
        self.reward_funcs = [_with_check(f, name, problems) for f, name in zip(functions, names, strict=True)]
        try:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = functions
        models = [i for i, function in enumerate(functions) if isinstance(function, torch.nn.Module)]
        problems += [f"the reward model {names[i]} returned a NaN" for i in models if rewards[:, i].isnan().any()]
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        if not problems and not total.isfinite().all():
            problems.append("a weighted sum of rewards is infinite")
        # A batch may be of several rollouts, each of which is rewarded. Its problem is the first of theirs.
        self._reward_problem = self._reward_problem or (problems[0] if problems else None)
        self._rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs):
        self._reward_problem = None
        output = super()._generate_and_score_completions(inputs)
        advantages, problem = output["advantages"], self._reward_problem
        # TRL replaces an infinite advantage by the largest number of its type.
        if problem is None and not (advantages.abs() < torch.finfo(advantages.dtype).max).all():
            problem = "an advantage is not finite"
        problems = self._all_problems(problem if self.model.training else None)
        if problems:
            self._report(problems, [output], self._rewards)
            output[_MARK] = torch.ones(len(advantages), dtype=torch.bool, device=advantages.device)
        return output

    # Loss

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if not self.model.training:
            return loss
        self._window.append(inputs)
        if _MARK in inputs:
            self._reported = True
            return loss * torch.nan
        problem = None if torch.isfinite(loss) else f"the loss is {loss.item()}"
        if problems := self._all_problems(problem):
            self._reported = True
            self._report(problems, [inputs])
            return loss * torch.nan
        return loss

    # Gradient

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        window, reported = self._window, self._reported
        self._window, self._reported = [], False
        if self._scales_loss:
            # In float16 an infinite gradient shows that the loss was scaled too far. The scaler skips the update and then
            # scales less.
            finite = not reported
        else:
            finite = bool(torch.isfinite(torch.as_tensor(norm)))
            if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
                self.optimizer._is_overflow = not finite  # `Trainer` then leaves the learning rate where it is
            if not finite:
                self._drop_update(model)
        if not finite and not reported:
            self._report([f"the norm of the gradient is {float(norm)}"], window)
        if self.args.nonfinite == "skip":
            self._metrics["train"]["nonfinite/skipped"].append(float(not finite))
        return norm

    @property
    def _scales_loss(self) -> bool:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self.model_wrapped.fp16_enabled()
        return self.accelerator.scaler is not None

    def _drop_update(self, model) -> None:
        """Leave weights, moments and schedule unchanged."""
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            # Every optimiser leaves out a parameter that has no gradient.
            model.zero_grad(set_to_none=True)
        elif not self.optimizer.step_was_skipped:
            raise NonfiniteError(
                "The gradient's norm is not finite, and this DeepSpeed optimiser has stepped on it: the weights are "
                "spoiled. Start again from the last checkpoint with ZeRO-2 or ZeRO-3, which leave such a step out."
            )

    # All checks

    def _all_problems(self, problem: str | None) -> list[str]:
        """The problems of all processes. Every process must call this."""
        if not any_process(self.accelerator, problem is not None):
            return []
        return gather_sentences(None if problem is None else f"process {self.args.process_index}: {problem}")

    def _report(self, problems: list[str], batches: list[dict], rewards: torch.Tensor | None = None) -> None:
        """Write the batches out. Raise if the run must stop. Every process calls this."""
        step, rank = self.state.global_step, self.args.process_index
        stem = os.path.join(self.args.output_dir, FOLDER, f"step-{step}-rank-{rank}")
        message = f"Step {step}: {'; '.join(problems)}."
        if self._written < _MOST_FILES:
            self._written += 1
            try:
                self._write(stem, problems, batches, rewards)
                message += f" The batch is in {stem}.safetensors and .json."
            except (OSError, SafetensorError) as error:  # the problem itself matters more than the file
                message += f" The batch could not be written: {disk.reason(error, self.args.output_dir)}."
        if self.args.nonfinite == "stop":
            raise NonfiniteError(
                f"{message} No weight was touched. Look at it, then start again from the last checkpoint, or with "
                "`nonfinite: skip` to leave such updates out. A reward that does not apply is `None`."
            )
        logger.warning(f"{message} The update is skipped.")

    def _write(self, stem: str, problems: list[str], batches: list[dict], rewards: torch.Tensor | None) -> None:
        os.makedirs(os.path.dirname(stem), exist_ok=True)
        tensors = {
            f"{number}.{key}": value
            for number, batch in enumerate(batches)
            for key, value in batch.items()
            if isinstance(value, torch.Tensor)
        }
        content = {
            "step": self.state.global_step,
            "process": self.args.process_index,
            "problems": problems,
            "thinking": self.thinking.thinking_dict(),
            "tensors": "BATCH.NAME, as the loss was given them; soft_* is the record of thoughts",
            "samples": self._samples(batches, rewards),
        }
        save_file(tensors_to_save(tensors), f"{stem}.safetensors")
        with open(f"{stem}.json", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)

    def _samples(self, batches: list[dict], rewards: torch.Tensor | None) -> list[dict[str, Any]]:
        """The samples of some batches, as texts. `rewards` are those of all processes, with one column per function."""
        samples: list[dict[str, Any]] = []
        decode = self._tokenizer.batch_decode
        for number, batch in enumerate(batches):
            for row in range(len(batch["completion_ids"])):
                prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
                completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
                sample: dict[str, Any] = {"batch": number, "row": row}
                sample |= {"prompt": decode([prompt.tolist()])[0], "completion": decode([completion.tolist()])[0]}
                samples.append(sample | {"advantage": batch["advantages"][row].tolist()})
        if rewards is not None:
            first = self.args.process_index * len(samples)
            for sample, row in zip(samples, rewards[first : first + len(samples)].tolist(), strict=True):
                sample["rewards"] = dict(zip(self.reward_func_names, row, strict=True))
        return samples


def _with_check(function: Callable, name: str, problems: list[str]) -> Callable:
    """
    A reward function that adds a sentence to `problems` for each of its values that is a number and not finite.

    A reward model is returned as it is, because TRL calls its parts.
    """
    if isinstance(function, torch.nn.Module):
        return function

    def check(values):
        values = list(values)
        for row, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                problems.append(f"the reward function {name} returned {float(value)} for completion {row}")
        return values

    if is_async_callable(function):

        async def call(*args, **kwargs):
            return check(await function(*args, **kwargs))

        return call
    return lambda *args, **kwargs: check(function(*args, **kwargs))
