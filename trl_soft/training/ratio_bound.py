# SPDX-License-Identifier: Apache-2.0
"""What a loss exponentiates, kept within reach of `exp`.

A stale Gaussian thought can be hundreds of nats from the old policy: its ratio is inf, and the masked positions are NaN.
exp(10) is already a ratio that no clipping range reaches, so beyond 10 nats a log-ratio is held at 10:

    token        exp(log pi - log pi_old) of each thought                              GRPO
    sequence     exp(mean of log pi - log pi_old over the completion's own tokens)     GRPO, `importance_sampling_level`
    completion   exp(sum of the same)                                                  RLOO
    reference    exp(log pi_ref - log pi) of each thought                              GRPO's KL

It is the other policy that is moved, never the value of the policy's own log-probability: what else a loss makes of that one
(KL, an off-policy mask) stays as it is.
"""

import torch


LOG_RATIO_BOUND = 10.0


def bounded(current: torch.Tensor, old: torch.Tensor, where: torch.Tensor | bool = True):
    """
    The old log-probabilities as the loss should see them, and where they were moved.

    Args:
        current, old (`torch.Tensor` of one shape): log-probabilities of the actions whose ratio is exponentiated.
        where (`torch.Tensor` of that shape, bool): which of them may be moved.

    Returns:
        `old`, and where `|current - old|` is above the bound `current` minus the bound; and those places (bool).
    """
    current = current.detach()
    log_ratio = current - old
    far = (log_ratio.abs() > LOG_RATIO_BOUND) & where
    return torch.where(far, current - log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND), old), far


def bounded_mean(current: torch.Tensor, old: torch.Tensor, mask: torch.Tensor):
    """
    The same where the mean over a completion is exponentiated: a completion that is too far is moved as a whole.

    Args:
        current, old (`torch.Tensor` of shape `(B, C)`): log-probabilities.
        mask (`torch.Tensor` of shape `(B, C)`): nonzero at the positions in the mean.
    """
    current = current.detach()
    log_ratio = current - old
    mean = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    far = mean.abs() > LOG_RATIO_BOUND
    moved = current - log_ratio * (LOG_RATIO_BOUND / mean.abs().clamp(min=LOG_RATIO_BOUND))
    return torch.where(far, moved, old), far.expand_as(old)


def cut(logps: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
    """Log-probabilities without a gradient where their ratio is held; exp(10) would multiply it."""
    return torch.where(far, logps.detach(), logps)
