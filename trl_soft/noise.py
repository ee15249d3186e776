# SPDX-License-Identifier: Apache-2.0
"""Keyed noise: a counter-based generator, so that a draw depends on its key and on nothing else.

The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in plain torch
integer arithmetic: no state, no global RNG, the same numbers on every device, batch, process and resumed run.

    key      seed                                        2 x 32 bits
    counter  (index, stream | position, sample, generation)   4 x 32 bits
"""

import math

import torch

from . import kernels
from . import noise_streams as streams


_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[torch.Tensor, ...], key) -> tuple[torch.Tensor, ...]:
    """Philox-4x32-10: four words of 32 bits in int64 tensors, for four counter words (and two key words) that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64. The shift copies the sign, and the mask removes it again.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _unit(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """A float64 in the open interval (0, 1) from 52 random bits. Neither end can occur, so every logarithm is finite."""
    return (((high << 20) | (low >> 12)).double() + 0.5) * 2.0**-52


class KeyedNoise:
    """
    Noise for N draws, each with its own key.

    Args:
        seed (`int`, or `torch.Tensor` of shape `(N,)`, int64):
            Seed of the run.
        generation (`int`, or `torch.Tensor` of shape `(N,)`, int64):
            Number of the rollout within the run, in `[0, 2**32)`.
        sample (`torch.Tensor` of shape `(N,)`, int64):
            Number of the sample within the rollout, over all processes.
        position (`torch.Tensor` of shape `(N,)`, int64):
            Position in the completion, in `[0, 2**28)`.

    `seed` and `generation` are both numbers, or both tensors for draws of different runs. Every method returns float32 on
    the device of `sample`. The same key and index give the same number in any batch.
    """

    def __init__(self, seed, generation, sample: torch.Tensor, position: torch.Tensor):
        self.seed, self.generation = seed, generation
        self.sample, self.position = sample, position

    def __len__(self) -> int:
        return self.sample.numel()

    def __getitem__(self, rows) -> "KeyedNoise":
        """The noise of some of the N draws. `rows` is any index of a tensor."""
        seed, generation = (x[rows] if isinstance(x, torch.Tensor) else x for x in (self.seed, self.generation))
        return KeyedNoise(seed, generation, self.sample[rows], self.position[rows])

    @property
    def _kernels(self):
        """The kernels of the same functions, each one launch."""
        from .kernels import philox

        return philox

    def _words(self, stream: int, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        position = self.position.unsqueeze(-1) | (stream << streams.POSITION_BITS)
        seed, generation = self.seed, self.generation
        if isinstance(generation, torch.Tensor):
            seed, generation = seed.unsqueeze(-1), generation.unsqueeze(-1)
        else:
            generation = torch.full_like(position, generation)
        counter = (index, position, self.sample.unsqueeze(-1) & _MASK, generation)
        return philox(counter, (seed & _MASK, (seed >> 32) & _MASK))

    def gumbel(self, ids: torch.Tensor) -> torch.Tensor:
        """Standard Gumbel noise `-log(-log u)`, keyed by candidate: `ids` (N, K) int64 -> (N, K)."""
        if kernels.fused(self.sample.device):
            return self._kernels.gumbel(self, ids)
        w0, w1, _, _ = self._words(streams.GUMBEL, ids)
        return (-torch.log(-torch.log(_unit(w0, w1)))).float()

    def normal(self, size: int) -> torch.Tensor:
        """Standard normal noise, keyed by coordinate: (N, size), by Box and Muller."""
        if kernels.fused(self.sample.device):
            return self._kernels.normal(self, size)
        pairs = torch.arange((size + 1) // 2, device=self.sample.device).expand(len(self), -1)
        w0, w1, w2, w3 = self._words(streams.NORMAL, pairs)
        radius, angle = torch.sqrt(-2 * torch.log(_unit(w0, w1))), 2 * math.pi * _unit(w2, w3)
        both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)  # (N, pairs, 2)
        return both.flatten(1)[:, :size].float()

    def uniform(self, size: int) -> torch.Tensor:
        """Uniform noise in (0, 1), keyed by index: (N, size). It is float64, so that a tail of 1e-9 can still be drawn."""
        if kernels.fused(self.sample.device):
            return self._kernels.uniform(self, size)
        return self._uniform(streams.UNIFORM, size)

    def gate(self) -> torch.Tensor:
        """Uniform noise in (0, 1) for the decision of a gate: (N,) float64."""
        if kernels.fused(self.sample.device):
            return self._kernels.gate(self)
        return self._uniform(streams.GATE, 1).squeeze(-1)

    def _uniform(self, stream: int, size: int) -> torch.Tensor:
        w0, w1, _, _ = self._words(stream, torch.arange(size, device=self.sample.device).expand(len(self), -1))
        return _unit(w0, w1)

    def log_gamma(self, ids: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        """
        Logarithms of Gamma(shape, 1) variates, keyed by candidate: `ids` (N, K) int64, `shape` (N, K) -> (N, K).

        Marsaglia and Tsang, "A simple method for generating gamma variables" (ACM TOMS 2000), for shape + 1, multiplied
        by u**(1/shape). It works in logarithms, so that a shape of 1e-6, whose variates underflow, can be drawn too.
        """
        if kernels.fused(self.sample.device):
            return self._kernels.log_gamma(self, ids, shape)
        shape = shape.double()
        d = shape + 1 - 1 / 3
        attempts = torch.arange(streams.ATTEMPTS, device=ids.device).view(-1, 1, 1)
        w0, w1, w2, w3 = self._words(streams.GAMMA, ids | (attempts << streams.ATTEMPT_SHIFT))  # (attempts, N, K) each
        x = torch.sqrt(-2 * torch.log(_unit(w0, w1))) * torch.cos(2 * math.pi * (w2.double() + 0.5) * 2.0**-32)
        v = (1 + x / torch.sqrt(9 * d)) ** 3
        log_v = torch.log(v.clamp(min=1e-300))
        accepted = (v > 0) & (torch.log((w3.double() + 0.5) * 2.0**-32) < 0.5 * x**2 + d * (1 - v + log_v))
        first = accepted.int().argmax(0, keepdim=True)
        w0, w1, _, _ = self._words(streams.GAMMA, ids | (streams.ATTEMPTS << streams.ATTEMPT_SHIFT))
        return (torch.log(d) + log_v.gather(0, first).squeeze(0) + torch.log(_unit(w0, w1)) / shape).float()
