# SPDX-License-Identifier: Apache-2.0
"""A batch with D ratios for each position, one for each draw of its thought, so that TRL's losses clip each on its own."""

import torch

from ..record import SoftTokens


def spread(inputs: dict, record: SoftTokens) -> dict:
    """
    Give each position of a batch D columns, where D is the number of draws in a thought.

    Log-probabilities (B, C, D) become (B, C*D). Ids repeat D times. `completion_mask` is True in a column that has a draw. A
    token has one draw, in its first column. So has a thought that closed the thinking.

    Args:
        inputs (`dict`): the batch; it is not changed.
        record (`SoftTokens`): its thoughts, of shape `(B, C)`.

    Returns:
        `dict`: the batch with C*D columns.
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
    """
    Undo `spread` for ids or a mask.

    Args:
        tensor (`torch.Tensor` of shape `(B, P + C*D)`): the last `length` columns are spread.
        length (`int`): C*D.
        D (`int`): draws in a thought.

    Returns:
        `torch.Tensor` of shape `(B, P + C)`.
    """
    prompt = tensor.size(1) - length
    return torch.cat([tensor[:, :prompt], tensor[:, prompt::D]], dim=1)
