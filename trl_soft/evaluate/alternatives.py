# SPDX-License-Identifier: Apache-2.0
"""What else a token could have been: the likeliest tokens of the distribution that it was drawn from.

A rollout keeps the token alone. So each completion is read once more, with the inputs of the rollout.
"""

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from ..rollout import Rollout
from ..rollout.interface import Plan
from ..thoughts import Hard
from ..thoughts.candidates import candidates
from ..vocabulary.dense_logits import DenseLogits
from ..vocabulary.head_logits import HeadLogits


_ROWS = 64  # positions whose logits over the vocabulary are in memory at once


@torch.no_grad()
def alternatives(
    logits: HeadLogits, prompt: list[int], rollout: Rollout, plan: Plan, count: int
) -> dict[int, list[tuple[int, float]]]:
    """
    For every position of a completion at which a token was drawn: tokens and their probabilities, the likeliest first.

    Args:
        logits (`HeadLogits`, C rows): of `trl_soft.evaluate.entropy.read_again`.
        prompt (`list[int]`), rollout (`Rollout`, one row), plan (`Plan`): of the completion.
        count (`int`): number of tokens for each position. The drawn one is always among them.

    Returns:
        By position. Soft thoughts and forced tokens are left out. Probabilities are those of the draw: after temperature, top-k,
        top-p, min-p and repetition penalty. A greedy token has the model's, at temperature 1.
    """
    ids = rollout.completion_ids[0, : len(logits)]
    thinks, forced = (mask[0, : len(logits)] for mask in (rollout.record.thinking_mask, rollout.record.forced_mask))
    hard_thoughts = isinstance(plan.thought, Hard)
    positions = (~forced & ~(thinks & (not hard_thoughts))).nonzero().squeeze(-1)
    whole = torch.cat([torch.tensor(prompt, device=ids.device), ids])
    found: dict[int, list[tuple[int, float]]] = {}
    for part in positions.split(_ROWS):
        z = HeadLogits(logits.hidden[part], logits.head, None, logits.scale, logits.softcap).dense()
        if plan.repetition_penalty != 1.0:
            punish = RepetitionPenaltyLogitsProcessor(plan.repetition_penalty)
            z = torch.cat(
                [punish(whole[None, : len(prompt) + t], row) for t, row in zip(part.tolist(), z.split(1), strict=True)]
            )
        p = torch.empty_like(z)
        for sampler, rows in ((plan.thought, thinks[part]), (plan.answer, ~thinks[part])):
            if isinstance(sampler, Hard) and rows.any():
                p[rows] = _probabilities(z[rows], sampler)
        values, names = p.topk(min(count, p.size(-1)))
        for row, (t, token) in enumerate(zip(part.tolist(), ids[part].tolist(), strict=True)):
            pairs = list(zip(names[row].tolist(), values[row].tolist(), strict=True))
            if token not in dict(pairs):
                pairs[-1] = token, p[row, token].item()
            found[t] = [(name, value) for name, value in pairs if value > 0 or name == token]
    return found


def _probabilities(z: torch.Tensor, sampler: Hard) -> torch.Tensor:
    """(N, V): what `sampler` draws from."""
    if sampler.temperature == 0.0:
        return torch.softmax(z, dim=-1)
    if sampler.top_k:
        kept, log_p = candidates(
            DenseLogits(z), sampler.temperature, min(sampler.top_k, z.size(-1)), sampler.top_p, sampler.min_p
        )
        return torch.zeros_like(z).scatter_(-1, kept, log_p.exp())
    no_ids = torch.empty(len(z), 0, dtype=torch.long, device=z.device)  # no warper here looks at them
    return torch.softmax(sampler.warpers(no_ids, z), dim=-1)  # type: ignore[arg-type]
