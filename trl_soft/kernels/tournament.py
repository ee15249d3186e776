# SPDX-License-Identifier: Apache-2.0
"""The K most likely tokens of each row, and the support among them: the formulas of `trl_soft.thoughts.candidates`.

The blocks of a row (`blocks.py`) hold a tournament of K rounds. In each round the block with the largest key gives up its
token. Its 256 logits are then read again to find its next token. After the rounds, temperature, top-p and min-p run on K
numbers in float64.

Of equal logits the lower id comes first. torch's `topk` states no order.
"""

import torch
import triton
import triton.language as tl

from . import bits, launch, nbytes, power_of_two
from .blocks import BLOCK, NO_KEY, SCALARS, Blocks, at, double, id_of, key_of, logit_of


# Each candidate takes one round of the tournament, about a microsecond. For more candidates torch's `topk` runs.
LARGEST_K = 128
_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def log_softmax(x, kept):
    """log softmax over the kept entries, -inf elsewhere, in the precision of x."""
    x = tl.where(kept, x, float("-inf"))
    x = x - tl.max(x, 0)
    return x - tl.log(tl.sum(tl.exp(x), 0))


@triton.jit(do_not_specialize=SCALARS)
def _candidates(
    z,
    stride,
    key,
    ids,
    logits,
    log_p,
    V,
    count,
    K,
    temperature,
    top_p,
    min_p,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    b, j, k = tl.arange(0, COUNT), tl.arange(0, _BLOCK), tl.arange(0, WIDTH)
    keys = tl.load(key + n * count + b, mask=b < count, other=NO_KEY)
    found = tl.full((WIDTH,), NO_KEY, tl.int64)
    for i in range(K):
        best = tl.max(keys, 0)
        found = tl.where(k == i, best, found)
        block = id_of(best) // _BLOCK
        v = block * _BLOCK + j
        own = key_of(tl.load(z + n * stride + v, mask=v < V, other=0.0).to(tl.float32), v)
        keys = tl.where(b == block, tl.max(tl.where((v < V) & (own < best), own, NO_KEY), 0), keys)
    inside, out = k < K, n * K + k
    tl.store(ids + out, id_of(found), mask=inside)
    tl.store(logits + out, logit_of(found), mask=inside)
    x = tl.where(inside, logit_of(found), float("-inf")).to(tl.float64)
    x = (x - at(tl.where(inside, x, 0.0), k, 0)) / double(temperature)
    x = log_softmax(x, inside)
    p = tl.exp(x)
    cut = p < double(min_p) * at(p, k, 0)
    # A token stays while the mass before it is below top_p.
    cut = cut | (tl.cumsum(p, 0) - p >= tl.where(double(top_p) < 1.0, double(top_p), float("inf")))
    x = log_softmax(x, inside & ((k == 0) | (cut == 0)))
    tl.store(log_p + out, x.to(tl.float32), mask=inside)


def candidates(
    blocks: Blocks, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids (N, K) int64, their logits and log p (N, K) float32."""
    z = blocks.z
    ids = torch.empty(len(z), top_k, dtype=torch.int64, device=z.device)
    logits, log_p = torch.empty(2, len(z), top_k, dtype=torch.float32, device=z.device).unbind()
    numbers = bits(temperature), bits(float(top_p)), bits(float(min_p))
    sizes = blocks.V, blocks.count, top_k
    constants = {"COUNT": blocks.width, "WIDTH": power_of_two(top_k)}
    rows = z, z.stride(0), blocks.key, ids, logits, log_p

    def moved() -> int:
        return nbytes(blocks.key, ids, logits, log_p) + ids.numel() * BLOCK * z.element_size()

    launch(_candidates, (len(z),), *rows, *sizes, *numbers, moved=moved, **constants)
    return ids, logits, log_p
