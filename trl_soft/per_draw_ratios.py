# SPDX-License-Identifier: Apache-2.0
"""Batches whose positions have D ratios each, so that TRL's losses clip every draw of a thought by itself."""

import torch

from .record import SoftTokens


def spread(inputs: dict, record: SoftTokens) -> dict:
    """
    The batch with D columns for each of its C positions: log-probabilities (B, C, D) become (B, C*D), ids repeat, and
    `completion_mask` is True where there was a draw. A token, and a thought that closed, have one: the first.
    """
    D = record.thought.draws
    drawn = torch.zeros(*record.shape, D, dtype=torch.bool, device=record.thinking_mask.device)
    drawn[..., 0] = True
    drawn[record.thinking_mask] = record.thought.draw_mask(record.flat_action(record.thinking_mask))
    inputs = dict(inputs)
    for name in ("completion_ids", "completion_mask", "tool_mask"):
        if name in inputs:
            inputs[name] = inputs[name].repeat_interleave(D, dim=1)
    inputs["completion_mask"] = inputs["completion_mask"] * drawn.flatten(1)
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        if inputs.get(name) is not None:
            inputs[name] = inputs[name].flatten(1)
    return inputs


def gather(tensor: torch.Tensor, length: int, D: int) -> torch.Tensor:
    """`spread` undone for ids or a mask (B, P + C*D) whose last `length` = C*D columns were spread: (B, P + C)."""
    prompt = tensor.size(1) - length
    return torch.cat([tensor[:, :prompt], tensor[:, prompt::D]], dim=1)
