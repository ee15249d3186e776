# SPDX-License-Identifier: Apache-2.0
"""Draws from a categorical distribution by its inverse CDF."""

import torch

from .. import kernels


_BLOCK = 256


def inverse_cdf(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """
    The tokens whose slices of [0, 1) hold u: `p` (N, V), `u` (N, n) float64 -> (N, n) int64.

    It works in two levels: float64 sums run over blocks, and within the one block that holds u, but not over all of V.
    """
    vocabulary = p.size(-1)
    blocks = torch.nn.functional.pad(p, (0, -vocabulary % _BLOCK)).unflatten(-1, (-1, _BLOCK))  # (N, V/256, 256)
    block, u = _slice(blocks.sum(-1).double(), u)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK)).double()  # (N, n, 256)
    token, _ = _slice(inside, u.unsqueeze(-1))
    return (block * _BLOCK + token.squeeze(-1)).clamp(max=vocabulary - 1)


def pick(p: torch.Tensor, u: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
    """
    The candidate whose slice of [0, 1) holds u: `p` (N, K), `u` (N, 1) float64 -> its index (N,) int64.

    `order` (N, K) int64 gives the order of the slices, by numbers that differ and are at least 0. Without it the order is the
    rank.
    """
    if kernels.fused(p.device):
        from ..kernels.support import LARGEST_K
        from ..kernels.support import pick as kernel

        if p.size(-1) <= LARGEST_K:
            return kernel(p, u, order)
        kernels.passed_over(
            f"A draw from {p.size(-1)} candidates, more than {LARGEST_K}",
            f"It takes some 30 operations instead of one. Keep at most {LARGEST_K} candidates to avoid it.",
        )
    if order is None:
        return inverse_cdf(p, u).squeeze(-1)
    order = order.argsort(-1)
    return order.gather(-1, inverse_cdf(p.gather(-1, order), u)).squeeze(-1)


def _slice(p: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the slice of `p` that holds u, and the place of u in that slice, in [0, 1)."""
    cdf = p.cumsum(-1)
    total = cdf[..., -1:]
    # Strictly below the total, so that a slice of zero width at the end is never chosen.
    u = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    # No slice holds u if p is NaN, as for a policy that has diverged. An index past the end would crash the device.
    index = torch.searchsorted(cdf, u, right=True).clamp(max=p.size(-1) - 1)
    width = p.gather(-1, index)
    return index, ((u - (cdf.gather(-1, index) - width)) / width).clamp(0, 1)
