# SPDX-License-Identifier: Apache-2.0
"""Noise around a mean and its density, a launch each: the formulas of `trl_soft.thoughts.gaussian`."""

import torch
import triton
import triton.language as tl

from . import bits, launch, nbytes, power_of_two
from .blocks import double
from .philox import KEY, key, keyed, normal_pair


_LANES = 256
_WIDEST = 1024


@triton.jit(do_not_specialize=(*KEY, "sigma"))
def _around(
    seed,
    generation,
    sample,
    position,
    s0,
    s1,
    s2,
    mean,
    stride,
    out,
    pairs,
    H,
    sigma,
    KEYED: tl.constexpr,
    LANES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = pair < pairs
    first, second = normal_pair(pair, n, seed, generation, sample, position, s0, s1, s2, KEYED)
    s, h = double(sigma).to(tl.float32), 2 * pair
    m = tl.load(mean + n * stride + h, mask=inside, other=0.0).to(tl.float32)
    # Rounded once, as torch's `add` with a factor rounds.
    tl.store(out + n * H + h, tl.fma(first, s, m).to(out.dtype.element_ty), mask=inside)
    inside = inside & (h + 1 < H)
    m = tl.load(mean + n * stride + h + 1, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + n * H + h + 1, tl.fma(second, s, m).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("scale",))
def _density(drawn, mean, stride, log_prob, H, scale, LANES: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    sums = tl.zeros((LANES,), tl.float32)
    for first in range(0, H, LANES):
        h = first + tl.arange(0, LANES)
        m = tl.load(mean + n * stride + h, mask=h < H, other=0.0).to(tl.float32)
        d = tl.load(drawn + n * H + h, mask=h < H, other=0.0).to(tl.float32) - m
        sums += d * d
    tl.store(log_prob + n, (tl.sum(sums, 0) / double(scale)).to(tl.float32))


def around(noise, mean: torch.Tensor, sigma: float, dtype: torch.dtype) -> torch.Tensor:
    """`mean` (N, H) + sigma * N(0, I), in float32 and rounded to a dtype once."""
    mean = mean if mean.stride(1) == 1 else mean.contiguous()
    n, H = mean.shape
    out = torch.empty(n, H, dtype=dtype, device=mean.device)
    pairs = (H + 1) // 2
    lanes = min(_LANES, power_of_two(pairs))
    rows = mean, mean.stride(0), out, pairs, H, bits(float(sigma))
    options = {"KEYED": keyed(noise), "LANES": lanes}
    launch(_around, (n, triton.cdiv(pairs, lanes)), *key(noise), *rows, moved=nbytes(mean, out), **options)
    return out


def density(drawn: torch.Tensor, mean: torch.Tensor, sigma: float) -> torch.Tensor:
    """-||drawn - mean||^2 / (2 sigma^2) of rows (N, H), (N,) float32."""
    drawn, mean = drawn.contiguous(), mean if mean.stride(1) == 1 else mean.contiguous()
    n, H = mean.shape
    out = torch.empty(n, dtype=torch.float32, device=mean.device)
    rows = drawn, mean, mean.stride(0), out, H, bits(-2.0 * sigma**2)
    launch(_density, (n,), *rows, moved=nbytes(drawn, mean, out), LANES=min(_WIDEST, power_of_two(H)))
    return out
