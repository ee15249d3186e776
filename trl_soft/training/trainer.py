# SPDX-License-Identifier: Apache-2.0
"""`SoftGRPOTrainer` and `SoftRLOOTrainer`: TRL's trainers with thoughts made of soft tokens."""

import inspect

import torch

from ..runs.nonfinite import NonfiniteMixin
from ..runs.resume import ResumableMixin
from .config import SoftGRPOConfig, SoftRLOOConfig
from .in_flight import InFlight, Phase
from .metrics import own_lengths, share
from .model_card import ModelCardMixin
from .ratio_bound import LOG_RATIO_BOUND, bounded, bounded_mean, cut
from .refill import RefillMixin
from .soft_tokens_mixin import SoftTokensMixin
from .trl_trainers import GRPOTrainer, RLOOTrainer


# Losses with a detached weight. In these a thought whose ratio is held keeps its gradient.
_DETACHED_WEIGHTS = ("cispo", "vespo")


class SoftGRPOTrainer(ResumableMixin, NonfiniteMixin, RefillMixin, ModelCardMixin, SoftTokensMixin, GRPOTrainer):
    """
    Drop-in for [`~trl.GRPOTrainer`] whose policy thinks in soft tokens. It takes the same arguments in the same order. `args`
    is a [`SoftGRPOConfig`].

    ```python
    from datasets import Dataset
    from trl.rewards import accuracy_reward
    from trl_soft import SoftGRPOConfig, SoftGRPOTrainer

    trainer = SoftGRPOTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=accuracy_reward,
        args=SoftGRPOConfig("outputs/soft", thought="gumbel"),
        train_dataset=dataset,  # with a `prompt` column
    )
    trainer.train()
    ```

    Raises:
        ValueError, TypeError: for settings that cannot work with soft thoughts, before anything is generated.
    """

    _config_class = SoftGRPOConfig
    _tag_names = ["trl", "grpo", "trl_soft"]  # noqa: RUF012 (as TRL declares it)
    _name = "SoftGRPO"
    _completions = 3

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    __init__.__signature__ = inspect.signature(GRPOTrainer.__init__)  # type: ignore[attr-defined]

    def _add_soft_tokens(self) -> None:
        super()._add_soft_tokens()
        # In TRL's words, forced tokens belong to the environment: fed, but not scored and not counted. Only a rollout
        # function may mark such tokens.
        self.rollout_func = self._roll_out

    def _roll_out(self, prompts: list, trainer) -> dict:
        """As TRL without a rollout function; and a mask of the policy's own tokens if some tokens are forced."""
        mode = self._mode
        prompt_ids, images, fields = self._tokenize_prompts(prompts)
        count = self.num_generations if mode == "train" else self.num_generations_eval
        completion_ids, logprobs = self._generate_single_turn(prompt_ids, images, fields, count)
        if self._weights.dtype is not None:
            drawn = self._in_flight.rollout.record.log_probs.tolist()
            logprobs = [row[: len(ids)] for row, ids in zip(drawn, completion_ids, strict=True)]
        output = {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}
        if any(self._plans[mode].forced):
            own = (~self._in_flight.rollout.record.forced_mask).int().tolist()
            output["env_mask"] = [mask[: len(ids)] for mask, ids in zip(own, completion_ids, strict=True)]
        return output

    def _compared_rewards(self, rewards: torch.Tensor) -> torch.Tensor:
        if self.multi_objective_aggregation == "normalize_then_sum":
            # Each function is normalised within the group, so one that differs is enough.
            return rewards[:, self.reward_weights.to(rewards.device) != 0]
        return super()._compared_rewards(rewards)

    def _bound(self, logps: torch.Tensor, flight: InFlight) -> torch.Tensor:
        batch, thoughts = flight.batch, flight.thoughts
        old, ref = flight.old_logps, batch.get("ref_per_token_logps")
        keeps = self.loss_type in _DETACHED_WEIGHTS
        if old is not None:
            if self.importance_sampling_level == "sequence":
                own = batch["completion_mask"] * batch.get("tool_mask", 1)
                batch["old_per_token_logps"], flight.held = bounded_mean(logps, old, own)
            else:
                batch["old_per_token_logps"], flight.held = bounded(logps, old, thoughts)
            logps = logps if keeps else cut(logps, flight.held)
        if ref is not None:
            delta = ref - logps.detach()
            # A constant distance: the estimate exp(delta) - delta - 1 stays finite and has no gradient beyond the bound.
            near = logps + delta.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
            ref = torch.where(thoughts & (delta.abs() > LOG_RATIO_BOUND), near, ref)
            # A gradient beyond the bound is kept only for the policy's loss, not for KL's exp(10).
            batch["ref_per_token_logps"] = torch.where(flight.held, logps, ref) if keeps else ref
        return logps

    # In these two methods TRL sums log-ratios and bounds the sums itself. So they get the original log-probabilities.

    def get_off_policy_mask(self, **arguments):  # type: ignore[override]
        old = self._unmoved(self._in_flight)
        if old is not None and "sampling_per_token_logps" not in self._in_flight.batch:
            arguments["sampling_per_token_logps"] = old
        return super().get_off_policy_mask(**arguments)

    def get_gamma_weights(self, **arguments):  # type: ignore[override]
        old = self._unmoved(self._in_flight)
        if old is not None:
            arguments["log_ratio_per_token"] = self._in_flight.logps - old
        return super().get_gamma_weights(**arguments)

    @staticmethod
    def _unmoved(flight: InFlight) -> torch.Tensor | None:
        """The original log-probabilities of the old policy. `_bound` may have changed those of the batch."""
        return None if flight.record.thought.is_token else flight.old_logps


class SoftRLOOTrainer(ResumableMixin, NonfiniteMixin, RefillMixin, ModelCardMixin, SoftTokensMixin, RLOOTrainer):
    """
    Drop-in for [`~trl.RLOOTrainer`] whose policy thinks in soft tokens, with `args` a [`SoftRLOOConfig`].

    The action of RLOO is the whole completion. Its log-ratio is the sum over thoughts and answer tokens, without forced tokens.
    The objective of Soft Tokens, Hard Truths (arXiv 2509.19170, Eq. 12-14) is `beta=0`, `normalize_advantages=False` and one
    update per rollout. The ratio is then 1 and unclipped, and the gradient is that of `-mean_g A_g * sum_t log pi_t` with the
    leave-one-out advantage.

    Raises:
        ValueError, TypeError: for settings that cannot work with soft thoughts, before anything is generated.
    """

    _config_class = SoftRLOOConfig
    _tag_names = ["trl", "rloo", "trl_soft"]  # noqa: RUF012 (as TRL declares it)
    _name = "SoftRLOO"
    _completions = 2

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    __init__.__signature__ = inspect.signature(RLOOTrainer.__init__)  # type: ignore[attr-defined]

    def _compared_rewards(self, rewards: torch.Tensor) -> torch.Tensor:
        values = super()._compared_rewards(rewards)
        return values.clamp(*self.reward_clip_range) if self.reward_clip_range else values

    # TRL's RLOO assumes that all tokens are the policy's, so lengths, entropy and KL would count forced tokens. (GRPO has
    # `tool_mask` for this. If RLOO gets such a mask, these overrides can go.)

    def _note_rollout(self, flight: InFlight, completion_ids: list[list[int]]) -> None:
        super()._note_rollout(flight, completion_ids)
        if not any(self._plans[self._mode].forced):
            return
        own = (~flight.record.forced_mask).int().tolist()
        lengths = [sum(mask[: len(ids)]) for mask, ids in zip(own, completion_ids, strict=True)]
        ended = [ids[-1] in (*self.eos_token_ids, self._tokenizer.pad_token_id) for ids in completion_ids]
        metrics = self._metrics[self._mode]
        for name, value in own_lengths(lengths, ended, self.accelerator).items():
            metrics[name][-1] = value
        if self._mode == "train":
            forced = torch.tensor(sum(map(len, completion_ids)) - sum(lengths), device=self.accelerator.device)
            self.state.num_input_tokens_seen -= self.accelerator.reduce(forced, reduction="sum").item()
            metrics["num_tokens"] = [self.state.num_input_tokens_seen]

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        flight = self._flight
        if flight is not None:
            # `_compute_loss` takes forced tokens out of the mask, but the model still reads them.
            mask = attention_mask[:, -logits_to_keep:]
            fed = flight.record.to_length(logits_to_keep).forced_mask & mask.any(1, keepdim=True)
            attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], mask | fed.to(mask.dtype)], dim=1)
        logps, *rest = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if flight is not None and flight.phase is Phase.SCORING and flight.old_logps is None:
            # TRL asks for the old log-probs first, then for the reference's, and keeps only sums of the old.
            flight.old_logps = logps
        return logps, *rest

    def _to_batch(self, flight: InFlight, output: dict) -> dict:
        further, mode = super()._to_batch(flight, output), self._mode
        own = output["completion_mask"] * ~further["soft_forced_mask"]
        if self.beta != 0.0 and any(self._plans[mode].forced):
            self._metrics[mode]["kl"][-1] /= share(own, output["completion_mask"], self.accelerator)
        return {**further, "old_per_token_logps": flight.old_logps}

    def _compute_loss(self, model, inputs):
        return super()._compute_loss(
            model, inputs | {"completion_mask": inputs["completion_mask"] * ~inputs["soft_forced_mask"]}
        )

    def _bound(self, logps: torch.Tensor, flight: InFlight) -> torch.Tensor:
        total = (logps * flight.batch["completion_mask"]).sum(1)  # as TRL sums it
        flight.batch["old_logps"], far = bounded(total, flight.batch["old_logps"])
        flight.held = far.unsqueeze(1).expand_as(logps)
        return cut(logps, flight.held)
