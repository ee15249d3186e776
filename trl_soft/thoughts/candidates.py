# SPDX-License-Identifier: Apache-2.0
"""The candidate tokens of a thought: temperature, then top-k, then top-p and min-p on the renormalised top-k."""

import torch

from .. import kernels
from ..vocabulary.dense_logits import DenseLogits, Logits, entropy_of, tempered


def candidates(
    logits: Logits, temperature: float, top_k: int, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The support of each row: the candidates that top-k, top-p and min-p keep.

    Args:
        logits (`Logits`, N rows).
        temperature (`float`), top_k (`int`, in `[1, V]`), top_p (`float`, in `(0, 1]`), min_p (`float`, in `[0, 1]`).

    Returns:
        ids (N, K) int64, most likely first, and log p (N, K) float32, renormalised over the kept candidates, -inf for
        candidates that top-p or min-p cut. The most likely token is always kept.
    """
    if isinstance(logits, DenseLogits) and logits.fused:
        from ..kernels import tournament

        if top_k <= tournament.LARGEST_K:
            blocks = logits.blocks(temperature, exactly=False)
            ids, _, log_p = tournament.candidates(blocks, temperature, top_k, top_p, min_p)
            return ids, log_p
        _too_many(top_k, tournament.LARGEST_K)
    values, ids = logits.topk(top_k)
    log_p = torch.log_softmax(tempered(values.double(), temperature), dim=-1)
    p = log_p.exp()
    cut = p < min_p * p[:, :1]
    if top_p < 1.0:
        # A token stays while the mass before it is below top_p. This is the smallest set with mass top_p.
        cut |= p.cumsum(-1) - p >= top_p
    cut[:, 0] = False
    return ids, torch.log_softmax(log_p.masked_fill(cut, -torch.inf), dim=-1).float()


def _too_many(top_k: int, largest: int) -> None:
    kernels.passed_over(
        f"{top_k} candidates, more than {largest}",
        f"`topk` reads the logits several times, and log p takes some 20 more operations. Keep at most {largest} candidates to avoid it.",
    )


def renormalised(z: torch.Tensor, kept: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    log p of the kept candidates under (other) logits: `z` (N, K), `kept` (N, K) bool -> (N, K) float32, -inf off `kept`.

    The support is that of the draw. A token outside it has no gradient.
    """
    # In float64: if one p is close to 1, the gradient is a difference of almost equal numbers, divided by T.
    z64 = z.double().masked_fill(~kept, -torch.inf)
    return torch.log_softmax(tempered(z64, temperature), dim=-1).to(z.dtype)


def softmax_on(z: torch.Tensor, kept: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(z/T) of the kept candidates (N, K), for weights that are data. Zero off `kept`."""
    if kernels.fused(z.device) and not z.requires_grad and z.dtype == torch.float32:
        from ..kernels.support import support

        return support(z, None, kept, temperature)[0].exp()
    return renormalised(z, kept, temperature).exp()


def on_support(logits, ids: torch.Tensor, kept: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`renormalised` for the logits of `ids` (N, K), and its entropy (N,)."""
    if logits.fused:
        from ..kernels.support import support

        return support(logits.logits, ids, kept, temperature)
    log_p = renormalised(logits.at(ids), kept, temperature)
    return log_p, entropy_of(log_p)
