# SPDX-License-Identifier: Apache-2.0
"""A gumbel thought in two launches, its draw and its score. Formulas and letters are those of `trl_soft.thoughts.gumbel`."""

from typing import Any

import torch
import triton
import triton.language as tl

from . import bits, launch, nbytes, power_of_two
from .blocks import SCALARS, double
from .philox import KEY, gumbel_noise, key, keyed
from .support import entropy_of, log_p_of
from .tournament import log_softmax


_SCALARS = (*SCALARS, *KEY, "scale", "tau")


@triton.jit(do_not_specialize=_SCALARS)
def _sample(
    seed,
    generation,
    sample,
    position,
    s0,
    s1,
    s2,
    ids,
    log_p,
    perturbed,
    kept,
    closed,
    token,
    K,
    scale,
    SOFTGRPO: tl.constexpr,
    KEYED: tl.constexpr,
    WIDTH: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    EPSILON: tl.constexpr,
):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, inside = n * K + k, k < K
    i = tl.load(ids + at, mask=inside, other=0)
    log = tl.load(log_p + at, mask=inside, other=float("-inf"))
    tl.store(kept + at, log != float("-inf"), mask=inside)
    tl.store(closed + n, K < 0)
    eps = gumbel_noise(i, n, seed, generation, sample, position, s0, s1, s2, KEYED)
    if SOFTGRPO:
        eps = tl.minimum(tl.maximum(eps, LOW), HIGH)
        log = tl.log(tl.exp(log) + EPSILON)
    g = log + eps * double(scale).to(tl.float32)
    tl.store(perturbed + at, g, mask=inside)
    # NaN is above all, as in torch, so there is always a largest candidate.
    g = tl.where(g == g, g, float("inf"))
    g = tl.where(inside, g, float("-inf"))
    largest = tl.min(tl.where(g == tl.max(g, 0), k, K - 1), 0)
    tl.store(token + n, tl.max(tl.where(k == largest, i, 0), 0))


@triton.jit(do_not_specialize=_SCALARS)
def _weights(perturbed, out, K, tau, WIDTH: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = k < K
    x = tl.load(perturbed + n * K + k, mask=inside, other=float("-inf")) / double(tau).to(tl.float32)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out + n * K + k, e / tl.sum(e, 0), mask=inside)


@triton.jit
def _close(ids, perturbed, closed, token, out, K, WIDTH: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, inside = n * K + k, k < K
    others = tl.load(ids + at, mask=inside, other=0) != tl.load(token + n)
    g = tl.load(perturbed + at, mask=inside, other=0.0)
    tl.store(out + at, tl.where(others & (tl.load(closed + n) != 0), float("-inf"), g), mask=inside)


@triton.jit(do_not_specialize=_SCALARS)
def _score(
    z,
    stride,
    ids,
    perturbed,
    kept,
    closed,
    log_prob,
    entropy,
    K,
    temperature,
    scale,
    tau,
    DENSITY: tl.constexpr,
    WIDTH: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    EPSILON: tl.constexpr,
    EDGE: tl.constexpr,
    LOG_P_FLOOR: tl.constexpr,
):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, inside = n * K + k, k < K
    kept = inside & (tl.load(kept + at, mask=inside, other=0) != 0)
    closed = tl.load(closed + n) != 0
    g = tl.load(perturbed + at, mask=inside, other=float("-inf")).to(tl.float64)
    log_p = log_p_of(z + n * stride, tl.load(ids + at, mask=inside, other=0), kept, temperature)
    tl.store(entropy + n, entropy_of(log_p).to(tl.float32))
    s, tau = double(scale), double(tau)
    if DENSITY == 0:
        r = (g - log_p) / s
        density = tl.sum(tl.where(kept, -r - tl.exp(-r) - tl.log(s), 0.0), 0)
    elif DENSITY == 1:
        tau_log_y = tau * log_softmax(g / tau, kept)
        relative = tl.sum(tl.where(kept, log_softmax((log_p - tau_log_y) / s, kept), 0.0), 0)
        size = tl.sum(kept.to(tl.int32), 0)
        factorial = tl.sum(tl.where((k > 0) & (k < size), tl.log(tl.maximum(k, 1).to(tl.float64)), 0.0), 0)
        density = factorial + (size - 1) * tl.log(tau / s) + relative
    else:
        log_p_e = tl.log(tl.exp(log_p) + EPSILON)
        r = g - log_p_e
        r = tl.where(r <= LOW + EDGE, LOW, tl.where(r >= HIGH - EDGE, HIGH, r))
        mask = kept & (log_p_e > LOG_P_FLOOR)
        count = tl.maximum(tl.sum(mask.to(tl.int32), 0), 1)
        density = tl.sum(tl.where(mask, -r - tl.exp(-r), 0.0), 0) / count
    # P(argmax_i (log p_i + s eps_i) = a) = softmax(log p / s)_a, at the one token of a closing step.
    discrete = tl.sum(tl.where(inside & (g != float("-inf")), log_softmax(log_p / s, kept), 0.0), 0)
    tl.store(log_prob + n, tl.where(closed, discrete, density).to(tl.float32))


def sample(noise, ids, log_p, scale: float, softgrpo: bool, **constants: Any) -> tuple[torch.Tensor, ...]:
    """
    Candidates `ids`, `log_p` (N, K): g' (N, K) float32, what is kept (N, K) bool, that no row is closed (N,) bool, the shadow token
    (N,) int64.
    """
    perturbed, kept = torch.empty_like(log_p), torch.empty_like(log_p, dtype=torch.bool)
    closed = torch.empty(len(ids), dtype=torch.bool, device=ids.device)
    token = torch.empty(len(ids), dtype=torch.int64, device=ids.device)
    rows = ids.contiguous(), log_p.contiguous(), perturbed, kept, closed, token
    options = {"SOFTGRPO": softgrpo, "KEYED": keyed(noise), "WIDTH": power_of_two(ids.size(1))}
    launch(_sample, (len(ids),), *key(noise), *rows, ids.size(1), bits(scale), **options, **constants)
    return perturbed, kept, closed, token


def weights(perturbed: torch.Tensor, tau: float) -> torch.Tensor:
    """softmax(g' / tau) of g' (N, K) float32."""
    perturbed = perturbed.contiguous()
    out = torch.empty_like(perturbed)
    K = perturbed.size(1)
    launch(_weights, (len(perturbed),), perturbed, out, K, bits(float(tau)), WIDTH=power_of_two(K))
    return out


def close(action, closed: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """g' (N, K), -inf at all but the `token` (N,) of the rows in `closed` (N,) bool."""
    ids, perturbed = action["ids"].contiguous(), action["perturbed"].contiguous()
    out = torch.empty_like(perturbed)
    rows = ids, perturbed, closed.contiguous(), token.contiguous(), out
    launch(_close, (len(ids),), *rows, ids.size(1), WIDTH=power_of_two(ids.size(1)))
    return out


def score(thought, density: int, logits: torch.Tensor, action, **constants: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`Gumbel.score` for a density, given by its number in `DENSITIES`, under logits (N, V)."""
    ids, perturbed, kept, closed = (action[name].contiguous() for name in ("ids", "perturbed", "kept", "closed"))
    log_prob, entropy = torch.empty(2, len(ids), dtype=torch.float32, device=ids.device).unbind()
    own = ids, perturbed, kept, closed, log_prob, entropy
    numbers = ids.size(1), bits(thought.temperature), bits(thought.noise_scale), bits(thought.gumbel_temperature)
    options = {"DENSITY": density, "WIDTH": power_of_two(ids.size(1))}

    def moved() -> int:
        return nbytes(*own) + ids.numel() * logits.element_size()

    launch(_score, (len(ids),), logits, logits.stride(0), *own, *numbers, moved=moved, **options, **constants)
    return log_prob, entropy
