# SPDX-License-Identifier: Apache-2.0
"""How noisy a policy's score is: the mean of `||d log pi / d z||^2`, z the next-token logits.

A score has mean zero, so this is the trace of its covariance: the noise that a step of policy gradient has to average out.
For a hard token it is at most 2/T^2. For a Gaussian thought it can be thousands.
"""

import torch

from .thoughts import Action, Thought
from .vocabulary.head_logits import DenseLogits, HeadLogits, gathered, whole


_POSITIONS = (
    32  # a sample, spread over the batch, because a metric should not cost a pass over the vocabulary at every token
)


def score_variance(thought: Thought, logits: HeadLogits, action: Action) -> torch.Tensor:
    """
    Sum over a sample of positions, and their number: (2,) float32.

    Args:
        thought (`Thought`): any kind that is scored from logits. A kind scored from hidden states gives zero positions.
        logits (`HeadLogits`, N positions), action (N rows).
    """
    if thought.needs_hidden:
        return logits.hidden.new_zeros(2, dtype=torch.float32)
    n = len(logits)
    rows = torch.linspace(0, max(n - 1, 0), min(n, _POSITIONS), device=logits.hidden.device).long()
    norms = score_norms(thought, logits, action, rows)
    return torch.stack((norms.sum(), norms.new_tensor(len(rows)))).float()


def score_norms(
    thought: Thought,
    logits: HeadLogits,
    action: Action,
    rows: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """
    `||d log pi / d z||^2` of each position, (R,) of `dtype`.

    Args:
        thought (`Thought`): a kind that is scored from logits.
        logits (`HeadLogits`, N positions), action (N rows).
        rows (`torch.Tensor` of shape `(R,)`, *optional*): the positions. `None`: all N.
        dtype (`torch.dtype`):
            Of the computation. If a softmax is close to one-hot, the gradient is a small difference of large terms, so float64 is the
            default. float32 is what an update computes: a gradient that underflows there is 0.
    """
    if thought.needs_hidden:
        raise ValueError(f"A {thought.name} thought is scored from hidden states, so its score is not in logits.")
    if rows is None:
        rows = torch.arange(len(logits), device=logits.hidden.device)
    action = {name: value[rows] for name, value in action.items()}
    with torch.autocast(logits.hidden.device.type, enabled=False):
        with torch.no_grad():
            z = HeadLogits(
                logits.hidden[rows], logits.head, logits.embedding, logits.scale, logits.softcap, logits.table_scale
            ).dense()
        table = logits.embedding.weight
        with torch.enable_grad(), gathered(*([table] if thought.mixes_vocabulary else [])):
            z = z.to(dtype).requires_grad_()
            mixed = whole(table).detach() if thought.mixes_vocabulary else None
            log_prob = thought.log_prob(DenseLogits(z, mixed, logits.table_scale), action)
            (score,) = torch.autograd.grad(log_prob.sum(), z)
    return score.square().sum(-1)
