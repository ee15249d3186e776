# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity in a reward, a loss or a gradient: no weight is touched, and the batch is written out.

Looked at, in training: what reward functions return (`None` is TRL's "does not apply", and stays so), weighted sums and
advantages, the loss before its backward, and the norm of the gradient before the optimiser's step. What one process sees
all act on.

To skip an update, its loss is made NaN: the backward runs as ever, so that collectives match, and a gradient whose norm
is not finite is never stepped on, whoever made it so: here it is dropped, under DeepSpeed by the engine.
"""

import json
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import Trainer
from transformers.utils import logging
from trl.trainer.utils import is_async_callable

from ..settings import ThinkingSettings
from . import checkpoint


logger = logging.get_logger(__name__)

FOLDER = "nonfinite"
_MARK = "nonfinite_reward"  # (B,) bool in a batch: its rollout has a reward that is not finite
_MOST_FILES = 32  # of each process; a run that skips for days must not fill the disk with what it skipped

if not hasattr(Trainer, "_get_grad_norm"):
    raise ImportError(
        "transformers' Trainer has no `_get_grad_norm` in this version, where trl_soft looks at the gradient."
    )

if TYPE_CHECKING:
    from trl import GRPOTrainer

    _Host = GRPOTrainer  # what the mixin is mixed into, for the type checker
else:
    _Host = object


class NonfiniteError(ArithmeticError):
    """A reward, a loss or a gradient is NaN or infinite, and `nonfinite` is `stop`."""


class NonfiniteMixin(_Host):
    """The looks, over a TRL trainer."""

    args: Any
    model: Any
    model_wrapped: Any
    optimizer: Any
    thinking: ThinkingSettings

    def __init__(self, *args, **kwargs):
        self._window: list[dict] = []  # the micro-batches of this update
        self._reported = False  # whether what is wrong with this update has been told
        self._reward_problem: str | None = None
        self._rewards: Any = None
        self._written = 0
        super().__init__(*args, **kwargs)

    # Rewards

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        functions: Any = self.reward_funcs
        names = self.reward_func_names
        problems: list[str] = []
        self.reward_funcs = [_noting(f, name, problems) for f, name in zip(functions, names, strict=True)]
        try:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = functions
        models = [i for i, function in enumerate(functions) if isinstance(function, torch.nn.Module)]
        problems += [f"the reward model {names[i]} returned a NaN" for i in models if rewards[:, i].isnan().any()]
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        if not problems and not total.isfinite().all():
            problems.append("a weighted sum of rewards is infinite")
        self._reward_problem, self._rewards = (problems[0] if problems else None), rewards
        return rewards

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        advantages, problem = output["advantages"], self._reward_problem
        self._reward_problem = None
        # TRL turns infinite advantages into the largest number there is.
        if problem is None and not (advantages.abs() < torch.finfo(advantages.dtype).max).all():
            problem = "an advantage is not finite"
        problems = self._agreed(problem if self.model.training else None)
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
        if problems := self._agreed(problem):
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
            # In float16 an infinite gradient says that the loss was scaled too far: the scaler skips and scales less.
            finite = not reported
        else:
            finite = bool(torch.isfinite(torch.as_tensor(norm)))
            if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
                self.optimizer._is_overflow = not finite  # keeps `Trainer` from moving the learning rate on
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
        """Leave weights, moments and schedule as they were."""
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            # Every optimiser passes over a parameter without a gradient.
            model.zero_grad(set_to_none=True)
        elif not self.optimizer.step_was_skipped:
            raise NonfiniteError(
                "The gradient's norm is not finite, and this DeepSpeed optimiser has stepped on it: the weights are "
                "spoiled. Start again from the last checkpoint with ZeRO-2 or ZeRO-3, which leave such a step out."
            )

    # Both

    def _agreed(self, problem: str | None) -> list[str]:
        """What any process has met."""
        flag = torch.tensor(float(problem is not None), device=self.accelerator.device)
        if not self.accelerator.reduce(flag, reduction="sum").item():
            return []
        own = [] if problem is None else [f"process {self.args.process_index}: {problem}"]
        return gather_object(own)

    def _report(self, problems: list[str], batches: list[dict], rewards: torch.Tensor | None = None) -> None:
        """Write the batches out; raise if training is to stop. Called by all processes."""
        step, rank = self.state.global_step, self.args.process_index
        stem = os.path.join(self.args.output_dir, FOLDER, f"step-{step}-rank-{rank}")
        told = f"Step {step}: {'; '.join(problems)}."
        if self._written < _MOST_FILES:
            self._written += 1
            try:
                self._write(stem, problems, batches, rewards)
                told += f" The batch is in {stem}.safetensors and .json."
            except (OSError, SafetensorError) as error:  # what is told here matters more
                told += f" The batch could not be written: {checkpoint.reason(error, self.args.output_dir)}."
        if self.args.nonfinite == "stop":
            raise NonfiniteError(
                f"{told} No weight was touched. Look at it, then start again from the last checkpoint, or with "
                "`nonfinite: skip` to leave such updates out. A reward that does not apply is `None`."
            )
        logger.warning(f"{told} The update is skipped.")

    def _write(self, stem: str, problems: list[str], batches: list[dict], rewards: torch.Tensor | None) -> None:
        os.makedirs(os.path.dirname(stem), exist_ok=True)
        tensors, texts = {}, []
        decode = self._tokenizer.batch_decode
        for i, inputs in enumerate(batches):
            for key, value in inputs.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{i}.{key}"] = value.detach().to("cpu", copy=True).contiguous()
            for row in range(len(inputs["completion_ids"])):
                prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
                completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
                texts.append(
                    {
                        "batch": i,
                        "row": row,
                        "prompt": decode([prompt.tolist()])[0],
                        "completion": decode([completion.tolist()])[0],
                        "advantage": inputs["advantages"][row].tolist(),
                    }
                )
        if rewards is not None:
            first = self.args.process_index * len(texts)
            for text, row in zip(texts, rewards[first : first + len(texts)].tolist(), strict=True):
                text["rewards"] = dict(zip(self.reward_func_names, row, strict=True))
        told = {
            "step": self.state.global_step,
            "process": self.args.process_index,
            "problems": problems,
            "thinking": self.thinking.thinking_dict(),
            "tensors": "BATCH.NAME, as the loss was given them; soft_* is the record of thoughts",
            "samples": texts,
        }
        save_file(tensors, f"{stem}.safetensors")
        with open(f"{stem}.json", "w", encoding="utf-8") as file:
            json.dump(told, file, indent=1, ensure_ascii=False)


def _noting(function: Callable, name: str, problems: list[str]) -> Callable:
    """A reward function that also notes which of its values are numbers and not finite; `None` is not a number."""
    if isinstance(function, torch.nn.Module):
        return function

    def note(values):
        values = list(values)
        for row, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                problems.append(f"the reward function {name} returned {float(value)} for completion {row}")
        return values

    if is_async_callable(function):

        async def noted(*args, **kwargs):
            return note(await function(*args, **kwargs))

        return noted
    return lambda *args, **kwargs: note(function(*args, **kwargs))
