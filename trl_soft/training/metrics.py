# SPDX-License-Identifier: Apache-2.0
"""The metrics `thinking/...` and `answer/...`, beside TRL's own metrics.

    thinking/mean_length       thoughts in a completion, with the closing step
    thinking/clipped_ratio     share of completions whose thought reached a cap
    thinking/entropy           nats, of the distribution that thoughts are made from
    thinking/top1_weight       weight of the heaviest candidate in the mixture
    thinking/effective_support exp of the mixture weights' entropy: how many tokens a thought is made of
    thinking/log_ratio/mean    mean |log pi - log pi_old| before any bound; /max is the largest
    thinking/clip_ratio        share outside the clipping range
    thinking/clamped_ratio     share whose log-ratio was bounded before `exp`. RLOO and GRPO's sequence level bound the
                               log-ratio of a completion
    thinking/score_variance    mean ||d log pi / d logits||^2 over a sample of positions: the noise of the gradient. Not
                               logged for noise on the hidden state, whose score is not in logits
    thinking/kl                k3 estimate against the reference
    thinking/logp_difference   |drawn - re-scored|, mean and max. `runs/replay.py` checks the mean
    thinking/soft_ratio        share of a thought's steps that are soft, with a `thinking_gate`
    hard_step/...              the same over the steps of thoughts that a gate makes hard
    answer/...                 the same over the answer's tokens. `answer/mean_length` counts the tokens after the closing step
    nonfinite/skipped          share of updates skipped because of a NaN or an infinity, with `nonfinite: skip`

All are means over the tokens of all processes. `max` is over all processes.
"""

import torch

from ..rollout import Rollout
from .in_flight import InFlight


LENGTH = "soft_thinking_length"  # in a batch, (B,): steps of each thought, where a gate makes some of them hard


def rollout_metrics(drawn: Rollout, accelerator, gated: bool = False) -> dict[str, float]:
    """Metrics of one rollout. `gated`: whether a gate decides which steps of thoughts are soft."""
    thoughts = drawn.record.thinking_mask & drawn.completion_mask
    own = drawn.completion_mask & ~drawn.record.forced_mask
    hard_steps = _before_closing(own, drawn.thinking_length) & ~thoughts
    answers = own & ~thoughts & ~hard_steps
    sums = {
        "thinking/mean_length": (drawn.thinking_length.sum(), drawn.thinking_length.numel()),
        "thinking/clipped_ratio": (drawn.thinking_cut.sum(), drawn.thinking_cut.numel()),
        "thinking/entropy": (drawn.entropies[thoughts].sum(), thoughts.sum()),
        # A closing step is counted once, whether it is scored as a thought or as a token.
        "answer/mean_length": (own.sum() - drawn.thinking_length.sum(), len(own)),
        "answer/entropy": (drawn.entropies[answers].sum(), answers.sum()),
    }
    action = drawn.record.flat_action(thoughts)
    weights = drawn.record.thought.weights(action)
    if weights is not None:
        # A weight with Gaussian noise on it can be negative.
        y = _of_tokens(action["ids"], weights.float()).clamp(min=0)
        support = torch.exp(torch.special.entr(y / y.sum(-1, keepdim=True).clamp(min=1e-9)).sum(-1))
        sums["thinking/top1_weight"] = (y.amax(-1).sum(), thoughts.sum())
        sums["thinking/effective_support"] = (support.sum(), thoughts.sum())
    if gated:
        sums["thinking/soft_ratio"] = (thoughts.sum(), thoughts.sum() + hard_steps.sum())
        sums["hard_step/entropy"] = (drawn.entropies[hard_steps].sum(), hard_steps.sum())
    return _means(sums, accelerator)


def update_metrics(flight: InFlight, epsilon: tuple[float, float], accelerator) -> dict[str, float]:
    """Metrics of one loss, after its forward. A thought of D draws has D columns for each position."""
    record, batch, logps = flight.record, flight.batch, flight.logps
    draws, thinking = record.thought.draws, flight.thoughts
    forced = record.forced_mask.repeat_interleave(draws, dim=1)
    mask = batch["completion_mask"].bool() & ~forced
    log_ratio = (logps - (logps if flight.old_logps is None else flight.old_logps)).float()
    outside = (log_ratio < _log(1 - epsilon[0])) | (log_ratio > _log(1 + epsilon[1]))
    difference = flight.difference.repeat_interleave(draws, dim=1)
    sums, maxima = {}, {}
    parts = {"thinking": mask & thinking, "answer": mask & ~thinking}
    if LENGTH in batch:
        parts["hard_step"] = parts["answer"] & _before_closing(mask, batch[LENGTH], draws)
        parts["answer"] = parts["answer"] & ~parts["hard_step"]
    for name, part in parts.items():
        count = part.sum()
        sums[f"{name}/log_ratio/mean"] = (log_ratio[part].abs().sum(), count)
        sums[f"{name}/clip_ratio"] = (outside[part].sum(), count)
        sums[f"{name}/logp_difference/mean"] = (difference[part].sum(), count)
        maxima[f"{name}/log_ratio/max"] = _max(log_ratio[part].abs())
        maxima[f"{name}/logp_difference/max"] = _max(difference[part])
        if "ref_per_token_logps" in batch:
            delta = (batch["ref_per_token_logps"] - logps)[part]
            sums[f"{name}/kl"] = ((delta.exp() - delta - 1).sum(), count)
        if not record.thought.is_token:
            sums[f"{name}/clamped_ratio"] = ((flight.held & part).sum(), count)
    variance = flight.score_variance
    if variance is not None:
        sums["thinking/score_variance"], sums["answer/score_variance"] = variance
    return _means(sums, accelerator) | _maxima(maxima, accelerator)


def _of_tokens(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weights (N, K) of distinct tokens, then zeros, from the weights of `ids` (N, K), where a token can stand several times."""
    ids, order = ids.long().sort(dim=-1)
    places = torch.nn.functional.pad((ids[:, 1:] != ids[:, :-1]).long().cumsum(-1), (1, 0))
    return torch.zeros_like(weights).scatter_add_(-1, places, weights.gather(-1, order))


def _before_closing(mask: torch.Tensor, length: torch.Tensor, draws: int = 1) -> torch.Tensor:
    """Where `mask` (B, C*D) holds among the first `length` - 1 (B,) positions: before the step that ended a thought."""
    position = torch.arange(mask.size(1), device=mask.device) // draws
    return mask & (position < length.unsqueeze(1) - 1)


def own_lengths(lengths: list[int], ended: list[bool], accelerator) -> dict[str, float]:
    """
    TRL's `completions/*_length` over all processes. The completions have `lengths` tokens of the policy's own. `ended` is True
    for a completion with an end of sequence.
    """
    both = torch.tensor([lengths, ended], device=accelerator.device).T.contiguous()
    every, terminated = accelerator.gather(both).unbind(-1)
    parts = {"": every, "terminated_": every[terminated.bool()]}
    metrics = {}
    for name, part in parts.items():
        part = part.float() if len(part) else torch.zeros(1)
        for kind in ("mean", "min", "max"):
            metrics[f"completions/{kind}_{name}length"] = getattr(part, kind)().item()
    return metrics


def share(part: torch.Tensor, whole: torch.Tensor, accelerator) -> float:
    """The share of the positions of `whole` that are in `part`, over all processes."""
    counts = accelerator.reduce(torch.stack([part.sum(), whole.sum()]).float(), reduction="sum")
    return (counts[0] / counts[1].clamp(min=1)).item()


def _log(value: float) -> float:
    return float("-inf") if value <= 0 else float(torch.tensor(value).log())


def _max(values: torch.Tensor) -> torch.Tensor:
    return values.amax() if values.numel() else values.new_zeros(())


def _means(sums: dict, accelerator) -> dict[str, float]:
    """Means over all processes. A mean over nothing is nan, which TRL leaves out of its averages."""
    pairs = torch.stack(
        [torch.stack([torch.as_tensor(x, device=accelerator.device).float() for x in pair]) for pair in sums.values()]
    )
    total, count = accelerator.reduce(pairs, reduction="sum").unbind(-1)
    return dict(zip(sums, (total / count).tolist(), strict=True))


def _maxima(values: dict, accelerator) -> dict[str, float]:
    gathered = accelerator.gather(torch.stack([v.float() for v in values.values()]).unsqueeze(0))
    return dict(zip(values, gathered.amax(0).tolist(), strict=True))
