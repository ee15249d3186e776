# SPDX-License-Identifier: Apache-2.0
"""Keyed noise with one launch for each call: the formulas of `trl_soft.noise`, with Philox's words in registers.

The words equal those of `trl_soft.noise.philox` bit by bit. The noise is float64 arithmetic, as there.
"""

import torch
import triton
import triton.language as tl

from .. import noise_streams as streams
from . import launch, power_of_two


GUMBEL, NORMAL = tl.constexpr(streams.GUMBEL), tl.constexpr(streams.NORMAL)
UNIFORM, GAMMA = tl.constexpr(streams.UNIFORM), tl.constexpr(streams.GAMMA)
GATE = tl.constexpr(streams.GATE)
_POSITION_BITS = tl.constexpr(streams.POSITION_BITS)
_ATTEMPTS, _ATTEMPT_SHIFT = tl.constexpr(streams.ATTEMPTS), tl.constexpr(streams.ATTEMPT_SHIFT)
_TWO_PI = tl.constexpr(6.283185307179586)
_LANES = 256
# Numbers of a run that change from rollout to rollout. Kernels are not compiled again for them.
KEY = ("seed", "generation")


@triton.jit
def words(stream: tl.constexpr, index, n, seed, generation, sample, position, s0, s1, s2, KEYED: tl.constexpr):
    """Four words of 32 bits for draw `n` and `index`. KEYED: seed and generation have a number for each draw.

    s0, s1, s2: strides of seed and generation, of sample, and of position, which are columns of an engine's state.
    """
    if KEYED:
        seed, generation = tl.load(seed + n * s0), tl.load(generation + n * s0)
    seed, generation = tl.cast(seed, tl.int64), tl.cast(generation, tl.int64)
    position = tl.load(position + n * s2) | (stream << _POSITION_BITS)
    zero = tl.zeros_like(index)
    c0, c1 = index.to(tl.uint32), (zero + position).to(tl.uint32)
    c2, c3 = (zero + tl.load(sample + n * s1)).to(tl.uint32), (zero + generation).to(tl.uint32)
    k0, k1 = (zero + seed).to(tl.uint32), (zero + (seed >> 32)).to(tl.uint32)
    return tl.philox_impl(c0, c1, c2, c3, k0, k1)


@triton.jit
def unit(high, low):
    """A float64 in (0, 1) of 52 bits."""
    bits = (high.to(tl.int64) << 20) | (low.to(tl.int64) >> 12)
    return (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2**-52


@triton.jit
def gumbel_noise(ids, n, seed, generation, sample, position, s0, s1, s2, KEYED: tl.constexpr):
    """-log(-log u), float32."""
    w0, w1, _, _ = words(GUMBEL, ids, n, seed, generation, sample, position, s0, s1, s2, KEYED)
    return (-tl.log(-tl.log(unit(w0, w1)))).to(tl.float32)


@triton.jit
def uniform_noise(index, n, seed, generation, sample, position, s0, s1, s2, KEYED: tl.constexpr):
    """In (0, 1), float64."""
    w0, w1, _, _ = words(UNIFORM, index, n, seed, generation, sample, position, s0, s1, s2, KEYED)
    return unit(w0, w1)


@triton.jit
def normal_pair(pair, n, seed, generation, sample, position, s0, s1, s2, KEYED: tl.constexpr):
    """Two of a standard normal, float32, by Box and Muller."""
    w0, w1, w2, w3 = words(NORMAL, pair, n, seed, generation, sample, position, s0, s1, s2, KEYED)
    radius, angle = tl.sqrt(-2 * tl.log(unit(w0, w1))), unit(w2, w3) * _TWO_PI
    return (radius * tl.cos(angle)).to(tl.float32), (radius * tl.sin(angle)).to(tl.float32)


@triton.jit(do_not_specialize=KEY)
def _gumbel(
    seed, generation, sample, position, s0, s1, s2, ids, out, count, K, KEYED: tl.constexpr, LANES: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = i < count
    i = tl.where(inside, i, 0)
    eps = gumbel_noise(tl.load(ids + i), i // K, seed, generation, sample, position, s0, s1, s2, KEYED)
    tl.store(out + i, eps, mask=inside)


@triton.jit(do_not_specialize=KEY)
def _uniform(seed, generation, sample, position, s0, s1, s2, out, count, K, KEYED: tl.constexpr, LANES: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = i < count
    i = tl.where(inside, i, 0)
    u = uniform_noise(i % K, i // K, seed, generation, sample, position, s0, s1, s2, KEYED)
    tl.store(out + i, u, mask=inside)


@triton.jit(do_not_specialize=KEY)
def _gate(seed, generation, sample, position, s0, s1, s2, out, count, KEYED: tl.constexpr, LANES: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = i < count
    i = tl.where(inside, i, 0)
    w0, w1, _, _ = words(GATE, tl.zeros_like(i), i, seed, generation, sample, position, s0, s1, s2, KEYED)
    tl.store(out + i, unit(w0, w1), mask=inside)


@triton.jit(do_not_specialize=KEY)
def _normal(
    seed, generation, sample, position, s0, s1, s2, out, count, size, KEYED: tl.constexpr, LANES: tl.constexpr
):
    pairs = (size + 1) // 2
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = i < count
    i = tl.where(inside, i, 0)
    n, pair = i // pairs, i % pairs
    first, second = normal_pair(pair, n, seed, generation, sample, position, s0, s1, s2, KEYED)
    out += n * size + 2 * pair
    tl.store(out, first, mask=inside)
    tl.store(out + 1, second, mask=inside & (2 * pair + 1 < size))


@triton.jit(do_not_specialize=KEY)
def _log_gamma(
    seed, generation, sample, position, s0, s1, s2, ids, shape, out, count, K, KEYED: tl.constexpr, LANES: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = i < count
    i = tl.where(inside, i, 0)
    n, ids = i // K, tl.load(ids + i)
    shape = tl.load(shape + i).to(tl.float64)
    d = shape + 1 - 1 / 3
    # The first accepted attempt, or the first attempt if none is accepted.
    log_v, done = tl.zeros_like(d), i < 0
    for attempt in range(_ATTEMPTS):
        index = ids | (tl.zeros_like(ids) + attempt << _ATTEMPT_SHIFT)
        w0, w1, w2, w3 = words(GAMMA, index, n, seed, generation, sample, position, s0, s1, s2, KEYED)
        angle = (w2.to(tl.float64) + 0.5) * 2.3283064365386963e-10 * _TWO_PI  # 2**-32
        x = tl.sqrt(-2 * tl.log(unit(w0, w1))) * tl.cos(angle)
        v = 1 + x / tl.sqrt(9 * d)
        v = v * v * v
        log = tl.log(tl.maximum(v, 1e-300))
        u = (w3.to(tl.float64) + 0.5) * 2.3283064365386963e-10
        accepted = (v > 0) & (tl.log(u) < 0.5 * x * x + d * (1 - v + log))
        log_v = tl.where((accepted & (done == 0)) | (attempt == 0), log, log_v)
        done = done | accepted
    index = ids | (tl.zeros_like(ids) + _ATTEMPTS << _ATTEMPT_SHIFT)
    w0, w1, _, _ = words(GAMMA, index, n, seed, generation, sample, position, s0, s1, s2, KEYED)
    log_gamma = tl.log(d) + log_v + tl.log(unit(w0, w1)) / shape
    tl.store(out + i, log_gamma.to(tl.float32), mask=inside)


def key(noise) -> tuple:
    """The arguments of a kernel for the key of the noise."""
    seed, generation, stride = noise.seed, noise.generation, 0
    if keyed(noise):
        if seed.stride() != generation.stride():
            seed, generation = seed.contiguous(), generation.contiguous()
        stride = seed.stride(0)
    return seed, generation, noise.sample, noise.position, stride, noise.sample.stride(0), noise.position.stride(0)


def keyed(noise) -> bool:
    return isinstance(noise.generation, torch.Tensor)


def _each(kernel, noise, count: int, *args) -> None:
    """Launch one lane for each of `count` numbers."""
    lanes = min(_LANES, power_of_two(count))
    launch(kernel, (triton.cdiv(count, lanes),), *key(noise), *args, KEYED=keyed(noise), LANES=lanes)


def gumbel(noise, ids: torch.Tensor) -> torch.Tensor:
    """`KeyedNoise.gumbel`."""
    ids = ids.expand(len(noise), -1).contiguous()
    out = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    _each(_gumbel, noise, ids.numel(), ids, out, ids.numel(), ids.size(-1))
    return out


def uniform(noise, size: int) -> torch.Tensor:
    """`KeyedNoise.uniform`."""
    out = torch.empty(len(noise), size, dtype=torch.float64, device=noise.sample.device)
    _each(_uniform, noise, out.numel(), out, out.numel(), size)
    return out


def gate(noise) -> torch.Tensor:
    """`KeyedNoise.gate`."""
    out = torch.empty(len(noise), dtype=torch.float64, device=noise.sample.device)
    _each(_gate, noise, len(noise), out, len(noise))
    return out


def normal(noise, size: int) -> torch.Tensor:
    """`KeyedNoise.normal`."""
    out = torch.empty(len(noise), size, dtype=torch.float32, device=noise.sample.device)
    count = len(noise) * ((size + 1) // 2)
    _each(_normal, noise, count, out, count, size)
    return out


def log_gamma(noise, ids: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """`KeyedNoise.log_gamma`."""
    ids, shape = ids.contiguous(), shape.contiguous()
    out = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    _each(_log_gamma, noise, ids.numel(), ids, shape, out, ids.numel(), ids.size(-1))
    return out
