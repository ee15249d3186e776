# SPDX-License-Identifier: Apache-2.0
"""What `soft_generate` drew, scored again as an update scores it: left padding, one forward, TRL's fused head."""

from contextlib import contextmanager

import torch
from trl.trainer.utils import add_fused_lm_head

from trl_soft.forward import soft_tokens_added
from trl_soft.rollout import SoftCompletions
from trl_soft.rollout.interface import left_padded, positions
from trl_soft.runs.replay import shadow_of


@contextmanager
def _scoring(net):
    """`net` with TRL's fused head and soft tokens, as it was afterwards."""
    before = vars(net).get("forward")
    add_fused_lm_head(net, 1.0, outputs=("log_probs", "entropy"))
    try:
        with soft_tokens_added(net):
            yield
    finally:
        del net.forward
        if before is not None:
            net.forward = before


@torch.no_grad()
def logp_difference(net, prompts: list[list[int]], out: SoftCompletions, shadow: bool = False) -> dict:
    """
    |drawn - re-scored| in nats of all thoughts and of all answers' tokens, `{"thinking": (n,), "answer": (m,)}`.

    Args:
        prompts: ids, one list a completion. out: drawn from them at temperature 1.
        shadow (`bool`): feed the shadow tokens in the place of the mixtures.
    """
    device, record = net.device, out.record
    length = record.shape[1]
    prompt, prompt_mask = left_padded(prompts, 0, device)
    completion = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, ids in enumerate(out.completion_ids):
        completion[row, : len(ids)], mask[row, : len(ids)] = torch.tensor(ids), 1
    ids = torch.cat([prompt, completion.to(device)], dim=1)
    attention = torch.cat([prompt_mask.long(), mask.to(device)], dim=1)
    labels = ids.masked_fill(attention == 0, -100)
    labels[:, : prompt.size(1)] = -100
    fed = record.map(lambda value: value.to(device))
    inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions(attention), "labels": labels}
    with _scoring(net):
        scores = net(**inputs, soft_tokens=shadow_of(fed) if shadow else fed, fused_lm_head=True).log_probs
    scores = scores[:, -length:].float().cpu()
    if scores.dim() == 3:  # a thought of several draws
        scores = scores.sum(-1)
    difference = (scores - record.log_probs).abs()
    own = mask.bool() & ~record.forced_mask
    return {
        "thinking": difference[own & record.thinking_mask],
        "answer": difference[own & ~record.thinking_mask],
    }
