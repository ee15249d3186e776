# SPDX-License-Identifier: Apache-2.0
"""Bound the log-ratios that a loss exponentiates.

A stale Gaussian thought can be hundreds of nats from the old policy. Its ratio is then inf, and the masked positions are NaN.
No clipping range reaches exp(10), so a log-ratio beyond 10 nats is held at 10:

    token        exp(log pi - log pi_old) of each thought                              GRPO
    sequence     exp(mean of log pi - log pi_old over the completion's own tokens)     GRPO, `importance_sampling_level`
    completion   exp(sum of the same)                                                  RLOO
    reference    exp(log pi_ref - log pi) of each thought                              GRPO's KL

The bound changes the log-probability of the other policy, never that of the policy itself. So the other terms of a loss (KL,
an off-policy mask) stay as they are.
"""

import torch


LOG_RATIO_BOUND = 10.0


def bounded(current: torch.Tensor, old: torch.Tensor, where: torch.Tensor | bool = True):
    """
    The old log-probabilities for the loss, and the places where they were changed.

    Args:
        current, old (`torch.Tensor` of one shape): log-probabilities of the actions whose ratio is exponentiated.
        where (`torch.Tensor` of that shape, bool): True where they may be changed.

    Returns:
        `old`, moved to the bound where `|current - old|` is above it; and these places (bool).
    """
    current = current.detach()
    log_ratio = current - old
    far = (log_ratio.abs() > LOG_RATIO_BOUND) & where
    return torch.where(far, current - log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND), old), far


def bounded_mean(current: torch.Tensor, old: torch.Tensor, mask: torch.Tensor):
    """
    The same for a loss that exponentiates the mean over a completion: a completion beyond the bound is moved as a whole.

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
    """Log-probabilities, without a gradient where their ratio is held. exp(10) would multiply that gradient."""
    return torch.where(far, logps.detach(), logps)
