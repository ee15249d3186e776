# SPDX-License-Identifier: Apache-2.0
"""Kernels over K candidates, one program for each row: log p and entropy on the support, and draws by the inverse CDF.

The formulas are those of `renormalised` (`trl_soft.thoughts.candidates`), `entropy_of` (`trl_soft.vocabulary.head_logits`) and
`inverse_cdf` (`trl_soft.vocabulary.categorical`), in float64.
"""

import torch
import triton
import triton.language as tl

from . import bits, launch, nbytes, power_of_two
from .blocks import SCALARS, below, double
from .tournament import log_softmax


_LOWEST = tl.constexpr(-1e15)
# Most candidates of a draw: a program compares each with each.
LARGEST_K = 128


@triton.jit
def log_p_of(z, ids, kept, temperature):
    """log softmax(z/T) over the kept candidates of a row, -inf elsewhere, float64."""
    x = tl.load(z + ids, mask=kept, other=float("-inf")).to(tl.float64)
    return log_softmax((x - tl.max(x, 0)) / double(temperature), kept)


@triton.jit
def entropy_of(log_p):
    return -tl.sum(tl.exp(log_p) * tl.maximum(log_p, _LOWEST), 0)


@triton.jit(do_not_specialize=SCALARS)
def _support(z, stride, ids, kept, log_p, entropy, K, temperature, RANKED: tl.constexpr, WIDTH: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, inside = n * K + k, k < K
    kept = inside & (tl.load(kept + at, mask=inside, other=0) != 0)
    ids = k if RANKED else tl.load(ids + at, mask=inside, other=0)
    log = log_p_of(z + n * stride, ids, kept, temperature)
    tl.store(log_p + at, log.to(tl.float32), mask=inside)
    tl.store(entropy + n, entropy_of(log).to(tl.float32))


def support(
    logits: torch.Tensor, ids: torch.Tensor | None, kept: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `logits` (N, V), `ids` and `kept` (N, K): log p on the support (N, K) and its entropy (N,), float32. Without ids, `logits`
    (N, K) are those of the candidates.
    """
    log_p = torch.empty(kept.shape, dtype=torch.float32, device=kept.device)
    entropy = torch.empty(len(kept), dtype=torch.float32, device=kept.device)
    kept, K = kept.contiguous(), kept.size(1)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    rows = logits, logits.stride(0), kept if ids is None else ids.contiguous(), kept, log_p, entropy

    def moved() -> int:
        return nbytes(kept, log_p, entropy) + kept.numel() * (logits.element_size() + (0 if ids is None else 8))

    constants = {"RANKED": ids is None, "WIDTH": power_of_two(K)}
    launch(_support, (len(kept),), *rows, K, bits(temperature), moved=moved, **constants)
    return log_p, entropy


@triton.jit
def _centred(z, kept, out, K, WIDTH: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, inside = n * K + k, k < K
    kept = inside & (tl.load(kept + at, mask=inside, other=0) != 0)
    x = tl.load(z + at, mask=kept, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / tl.sum(kept.to(tl.float32), 0)
    tl.store(out + at, tl.where(kept, x - mean, 0.0), mask=inside)


def centred(z: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """`z` (N, K) less its mean over the kept candidates, zero elsewhere, float32."""
    out = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    launch(_centred, (len(z),), z.contiguous(), kept.contiguous(), out, z.size(1), WIDTH=power_of_two(z.size(1)))
    return out


@triton.jit
def _pick(p, order, u, index, K, RANKED: tl.constexpr, WIDTH: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, inside = n * K + k, k < K
    p = tl.load(p + at, mask=inside, other=0.0).to(tl.float64)
    order = k.to(tl.int64) if RANKED else tl.load(order + at, mask=inside, other=0)
    before = inside[None, :] & (order[None, :] <= order[:, None])
    cdf = tl.sum(tl.where(before, p[None, :], 0.0), 1)  # of each candidate and the candidates before it in the order
    total = tl.sum(p, 0)
    x = tl.minimum(tl.load(u + n) * total, below(total))
    # The first slice that ends above u. If rounding leaves none, or if p is NaN: the last slice that has a width.
    last = tl.max(tl.where(inside & (p > 0), order, -1), 0)
    first = tl.min(tl.where(inside & (cdf > x), order, last), 0)
    first = tl.where(first < 0, tl.max(tl.where(inside, order, -1), 0), first)
    tl.store(index + n, tl.max(tl.where(inside & (order == first), k, 0), 0).to(tl.int64))


def pick(p: torch.Tensor, u: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """`trl_soft.vocabulary.categorical.pick`."""
    index = torch.empty(len(p), dtype=torch.int64, device=p.device)
    rows = p.contiguous(), index if order is None else order.contiguous(), u.contiguous(), index
    constants = {"RANKED": order is None, "WIDTH": power_of_two(p.size(1))}

    def moved() -> int:
        return nbytes(p, u, index) + (0 if order is None else nbytes(order))

    launch(_pick, (len(p),), *rows, p.size(1), moved=moved, **constants)
    return index
