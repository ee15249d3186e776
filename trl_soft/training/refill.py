# SPDX-License-Identifier: Apache-2.0
"""Groups without an advantage are replaced by groups of fresh prompts, before TRL scores the batch.

This is the dynamic sampling of DAPO (arXiv 2503.14476, section 3.2), up to a number of rollouts:

    draw the batch, and reward it
    up to `max_refill_rollouts` times, while a group has no advantage:
        draw one fresh prompt for each such group, and reward its completions
        a fresh group with an advantage takes the place of a group without one

All of this happens when TRL asks for the completions of a batch. TRL then pads, scores, normalises and logs one batch, as if
its prompts had been these from the start. When it asks for the rewards, it gets those that are known. So log-probabilities
under the old policy and the reference are computed for the final batch alone.

Every process takes the same decision, from the rewards of all of them. A further rollout is divided among the processes as
TRL divides any rollout, so a fresh group can be on other processes than the group that it replaces. It is sent there.
"""

import functools
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import gather_object

from ..rollout import assemble
from ..runs.fresh_prompts import FreshPrompts, prompt_key
from ..runs.processes import any_process
from .drawn_samples import DrawnSamples
from .in_flight import Phase


if TYPE_CHECKING:
    from .soft_tokens_mixin import SoftTokensMixin as _Host  # the type checker sees the class that this is mixed into
else:
    _Host = object


class RefillMixin(_Host):
    """The overrides, over a TRL trainer that thinks in soft tokens."""

    reward_weights: torch.Tensor
    _reward_problem: str | None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        dataset: Any = self.train_dataset
        size = len(dataset) if hasattr(dataset, "__len__") else 0
        self._fresh_prompts = FreshPrompts(self.args.seed, size, self.args.shuffle_dataset)

    @property
    def _group_size(self) -> int:
        return cast(int, self.num_generations)  # unset only in a config that was not checked

    @functools.cached_property
    def _fresh_rows(self) -> Any:
        """The training set with the columns that the data loader gives."""
        if hasattr(self.train_dataset, "column_names"):
            return self._remove_unused_columns(self.train_dataset, description="refill")
        return self.train_dataset

    # What TRL calls

    def _draw(self, prompts: list) -> list:
        flight = self._in_flight
        if not self.args.max_refill_rollouts or self._mode == "eval" or flight.inputs is None:
            return super()._draw(prompts)
        batch, rewards = self._draw_samples(flight.inputs, prompts)
        before = self._weighted(rewards).nanmean().item()
        with self._logs_of_first_rollout():
            metrics = self._refill(batch, rewards)
        for name, value in {"reward_before": before, **metrics}.items():
            self._metrics["train"][f"refill/{name}"].append(value)
        self._pending_extra_logs.update(batch.logged())
        # TRL keeps these two lists, and logs the prompts and rewards the rows that they hold.
        prompts[:], flight.inputs[:] = batch.prompts, batch.inputs
        join = functools.partial(assemble, plan=self._plans["train"])
        flight.rollout, flight.answer_phases, flight.rewards = batch.rollout(join), batch.answer_phases, rewards
        flight.score()
        return batch.outputs()

    def _calculate_rewards(self, inputs, *args, **kwargs):
        flight = self._flight
        if flight is not None and flight.rewards is not None:
            return flight.rewards
        return super()._calculate_rewards(inputs, *args, **kwargs)

    # Rollouts

    def _draw_samples(self, inputs: list[dict], prompts: list) -> tuple[DrawnSamples, torch.Tensor]:
        """One rollout, and the rewards (N, F) of its completions on all processes."""
        with self._flying(Phase.ROLLOUT) as flight:
            flight.inputs = inputs
            outputs = super()._draw(prompts)
            logged = self._pending_extra_logs = defaultdict(list)
            rewards = self._calculate_rewards(inputs, prompts, outputs[self._completions], outputs[1])
            return DrawnSamples(inputs, prompts, outputs, flight.rollout, flight.answer_phases, logged), rewards

    def _refill(self, batch: DrawnSamples, rewards: torch.Tensor) -> dict[str, float]:
        """Replace groups of the batch, and their `rewards`. Returns the metrics."""
        start, tokens = time.perf_counter(), self.state.num_input_tokens_seen
        idle = self._without_advantage(batch, rewards)
        replaced = rollouts = groups = 0
        used = self._prompts_of(batch) if idle.any() else set()
        # A bad reward stops the run or skips the update, so nothing more is drawn for it.
        while idle.any() and rollouts < self.args.max_refill_rollouts and not self._has_bad_reward():
            rows = self._take_rows(int(idle.sum()), used)
            if not rows:
                break
            fresh, fresh_rewards = self._draw_samples(rows, [row["prompt"] for row in rows])
            rollouts += 1
            groups += len(fresh_rewards) // self._group_size
            teaching = (~self._without_advantage(fresh, fresh_rewards)).nonzero().flatten().tolist()
            # A rollout over several processes can have more groups than are needed.
            places = list(zip(teaching, idle.nonzero().flatten().tolist(), strict=False))
            self._move(fresh, fresh_rewards, batch, rewards, places)
            idle[[place for _, place in places]] = False
            replaced += len(places)
        return {
            "replaced": float(replaced),
            "remaining": float(idle.sum()),
            "rollouts": float(rollouts),
            "groups": float(groups),
            "tokens": float(self.state.num_input_tokens_seen - tokens),
            "seconds": time.perf_counter() - start,
        }

    def _has_bad_reward(self) -> bool:
        return any_process(self.accelerator, self._reward_problem is not None)

    def _take_rows(self, wanted: int, used: set[str]) -> list[dict]:
        """The rows of this process of a rollout of at least `wanted` prompts that are not in `used`; `used` gets them too."""
        size, processes = self._group_size, self.accelerator.num_processes
        # Each process has the same number of completions.
        multiple = processes // math.gcd(size, processes)

        def fresh(place: int) -> bool:
            key = prompt_key(self._fresh_rows[place]["prompt"])
            known = key in used
            used.add(key)
            return not known

        places = self._fresh_prompts.take(math.ceil(wanted / multiple) * multiple, multiple, fresh)
        rows = len(places) * size // processes
        first = self.accelerator.process_index * rows
        return [dict(self._fresh_rows[places[i // size]]) for i in range(first, first + rows)]

    def _prompts_of(self, batch: DrawnSamples) -> set[str]:
        return set(gather_object([prompt_key(prompt) for prompt in batch.prompts]))

    def _move(
        self, source: DrawnSamples, theirs: torch.Tensor, target: DrawnSamples, ours: torch.Tensor, places: list
    ) -> None:
        """Let groups of `target` be groups of `source`. `places` has pairs of their numbers over all processes."""
        size, rank = self._group_size, self.accelerator.process_index
        rows = [(i * size + k, j * size + k) for i, j in places for k in range(size)]
        for i, j in rows:
            ours[j] = theirs[i]
        here = [(j, source[i % len(source)]) for i, j in rows if i // len(source) == rank]
        if self.accelerator.num_processes > 1:
            here = gather_object([(j, (values, drawn.to("cpu"))) for j, (values, drawn) in here])
        for j, (values, drawn) in here:
            if j // len(target) == rank:
                target[j % len(target)] = values, drawn.to(self.accelerator.device)

    # Rewards

    def _weighted(self, rewards: torch.Tensor) -> torch.Tensor:
        """The weighted sums (N,) of rewards (N, F), as TRL computes them: NaN where no function applies."""
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return total.masked_fill(rewards.isnan().all(1), torch.nan)

    def _compared_rewards(self, rewards: torch.Tensor) -> torch.Tensor:
        """What must differ within a group for an advantage: rewards (N, F) -> (N, R)."""
        return self._weighted(rewards).unsqueeze(1)

    def _without_advantage(self, samples: DrawnSamples, rewards: torch.Tensor) -> torch.Tensor:
        """Which groups of all processes teach nothing, (groups,) bool: all rewards are equal, or all completions are masked."""
        values = self._compared_rewards(rewards)
        groups = values.view(-1, self._group_size, values.size(1))
        known = ~groups.isnan()
        low = groups.masked_fill(~known, torch.inf).amin(1)
        high = groups.masked_fill(~known, -torch.inf).amax(1)
        # Equal up to the rounding of a float32 sum.
        equal = (known.sum(1) < 2) | torch.isclose(high, low, rtol=1e-6, atol=1e-8)
        idle = equal.all(1)
        if self.mask_truncated_completions:
            ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            cut = torch.tensor([ids[-1] not in ends for ids in samples.completion_ids], device=rewards.device)
            idle |= self.accelerator.gather(cut).view(-1, self._group_size).all(1)
        return idle

    # Logs

    @contextmanager
    def _logs_of_first_rollout(self) -> Iterator[None]:
        """
        Inside the block, no rollout adds to the metrics: those of a batch are then of the prompts that the data loader gave,
        as without refill. The number of tokens counts every rollout.
        """
        metrics, pending = self._metrics["train"], (self._pending_metrics, self._pending_extra_logs)
        counts = {name: len(values) for name, values in metrics.items()}
        self._pending_metrics, self._pending_extra_logs = defaultdict(list), defaultdict(list)
        try:
            yield
        finally:
            self._pending_metrics, self._pending_extra_logs = pending
            for name in list(metrics):
                if name in counts:
                    del metrics[name][counts[name] :]
                else:
                    del metrics[name]
