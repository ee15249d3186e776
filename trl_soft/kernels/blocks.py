# SPDX-License-Identifier: Apache-2.0
"""All results of a step from one pass over the logits: the largest entry and two sums of each block of 256.

For every block b of a row, with m_b its largest logit,

    key_b = (m_b, the lowest id that has it)       s_b = sum_v e^((z_v - m_b)/T)       t_b = sum_v e^((z_v - m_b)/T) (z_v - m_b)/T

These V/256 numbers of a row give its argmax, its K largest (`tournament.py`), and with M = max m_b, d_b = (m_b - M)/T,

    S = sum_b s_b e^(d_b)      log p_v = (z_v - M)/T - log S      entropy = log S - sum_b (t_b + d_b s_b) e^(d_b) / S

They also give draws, by the two levels of `trl_soft.vocabulary.categorical.inverse_cdf`: s_b e^(d_b) finds the block that
holds u, and the 256 logits of this block are read again to find the token. Sums over blocks are float64, sums within a block
float32.

A key is an integer, so that every order is an order of integers. It is the order of floats, with NaN above all as in torch.
Of equal logits the lower id has the larger key.
"""

import torch
import triton
import triton.language as tl

from . import bits, launch, nbytes, power_of_two
from .philox import KEY, key, keyed, uniform_noise


BLOCK = 256
_BLOCK = tl.constexpr(BLOCK)
_ROWS = 8  # blocks that one program reads
# A key below every other, and the number that replaces a logit of -inf in a sum.
NO_KEY = tl.constexpr(-(2**63))
_LOWEST = tl.constexpr(-1e15)
_LAST_ID = tl.constexpr(2**31 - 1)
SCALARS = ("temperature", "top_p", "min_p")


@triton.jit
def double(x):
    """The float64 with the `bits` x."""
    return tl.cast(x, tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def key_of(z, v):
    """Logits (float32) and their ids as keys."""
    z = tl.where(z == 0, 0.0, z)  # -0.0 and 0.0 are equal
    order = z.to(tl.int32, bitcast=True)
    order = tl.where(z == z, order ^ ((order >> 31) & _LAST_ID), _LAST_ID)
    return (order.to(tl.int64) << 32) | (v ^ _LAST_ID).to(tl.int64)


@triton.jit
def logit_of(key):
    order = (key >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & _LAST_ID)).to(tl.float32, bitcast=True)


@triton.jit
def id_of(key):
    return (key & _LAST_ID) ^ _LAST_ID


@triton.jit
def below(x):
    """The float64 before x > 0."""
    return (x.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)


@triton.jit
def at(values, i, index):
    """values[i == index], for an index that occurs once in i."""
    return tl.sum(tl.where(i == index, values, tl.zeros_like(values)), 0)


@triton.jit(do_not_specialize=SCALARS)
def _blocks(z, stride, key, s, t, V, count, temperature, ROWS: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    v = b[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    inside = v < V
    x = tl.load(z + n * stride + v, mask=inside, other=float("-inf")).to(tl.float32)
    largest = tl.max(tl.where(inside, key_of(x, v), NO_KEY), 1)
    m = tl.max(x, 1)
    m = tl.where(m == float("-inf"), 0.0, m)[:, None]
    x = (x - m) / double(temperature).to(tl.float32)
    e = tl.exp(x)
    out = n * count + b
    tl.store(key + out, largest, mask=b < count)
    tl.store(s + out, tl.sum(e, 1), mask=b < count)
    tl.store(t + out, tl.sum(e * tl.maximum(x, _LOWEST), 1), mask=b < count)


@triton.jit
def sums_of(n, key, s, count, temperature, COUNT: tl.constexpr):
    """For row n: b, m_b, M, d_b and s_b, all float64 except b."""
    b = tl.arange(0, COUNT)
    keys = tl.load(key + n * count + b, mask=b < count, other=NO_KEY)
    m = tl.where(b < count, logit_of(keys), float("-inf")).to(tl.float64)
    M = tl.max(m, 0)
    d = tl.maximum((m - M) / double(temperature), _LOWEST)
    return b, m, M, d, tl.load(s + n * count + b, mask=b < count, other=0.0).to(tl.float64)


@triton.jit
def entropy_of_sums(S, d, s, t):
    return (tl.log(S) - tl.sum((t + d * s) * tl.exp(d), 0) / S).to(tl.float32)


@triton.jit
def _argmax(key, token, count, COUNT: tl.constexpr):
    n, b = tl.program_id(0).to(tl.int64), tl.arange(0, COUNT)
    keys = tl.load(key + n * count + b, mask=b < count, other=NO_KEY)
    tl.store(token + n, id_of(tl.max(keys, 0)))


@triton.jit(do_not_specialize=SCALARS)
def _score(
    z,
    stride,
    key,
    s,
    t,
    ids,
    log_p,
    normaliser,
    entropy,
    count,
    K,
    temperature,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    b, _, M, d, s = sums_of(n, key, s, count, temperature, COUNT)
    t = tl.load(t + n * count + b, mask=b < count, other=0.0).to(tl.float64)
    S = tl.sum(s * tl.exp(d), 0)
    log_S = tl.log(S)
    tl.store(entropy + n, entropy_of_sums(S, d, s, t))
    tl.store(normaliser + 2 * n, M)
    tl.store(normaliser + 2 * n + 1, log_S)
    k = tl.arange(0, WIDTH)
    v = tl.load(ids + n * K + k, mask=k < K, other=0)
    x = tl.load(z + n * stride + v, mask=k < K, other=0.0).to(tl.float64)
    tl.store(log_p + n * K + k, ((x - M) / double(temperature) - log_S).to(tl.float32), mask=k < K)


@triton.jit
def drawn(z, b, m, w, u, V, count, temperature):
    """A token of softmax(z/T) by u, of a row at `z` with m_b and w_b = s_b e^(d_b)."""
    cdf, j = tl.cumsum(w, 0), tl.arange(0, _BLOCK)
    total = at(cdf, b, count - 1)
    x = tl.minimum(u * total, below(total))
    block = tl.minimum(tl.sum((cdf <= x).to(tl.int32), 0), count - 1)
    width = at(w, b, block)
    inner = (x - (at(cdf, b, block) - width)) / width
    inner = tl.minimum(tl.maximum(inner, 0.0), 1.0)
    v = block * _BLOCK + j
    e = tl.load(z + v, mask=v < V, other=float("-inf")).to(tl.float64)
    e = tl.exp((e - at(m, b, block)) / double(temperature))
    within = tl.cumsum(e, 0)
    whole = at(within, j, _BLOCK - 1)
    x = tl.minimum(inner * whole, below(whole))
    index = tl.minimum(tl.sum((within <= x).to(tl.int32), 0), _BLOCK - 1)
    return tl.minimum(block * _BLOCK + index, V - 1).to(tl.int64)


@triton.jit(do_not_specialize=SCALARS)
def _draw(z, stride, key, s, u, token, V, count, size, temperature, COUNT: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    b, m, _, d, s = sums_of(n, key, s, count, temperature, COUNT)
    w = s * tl.exp(d)
    for draw in range(size):
        u_d = tl.load(u + n * size + draw)
        tl.store(token + n * size + draw, drawn(z + n * stride, b, m, w, u_d, V, count, temperature))


@triton.jit(do_not_specialize=(*SCALARS, *KEY))
def _draw_one(
    seed,
    generation,
    sample,
    position,
    s0,
    s1,
    s2,
    z,
    stride,
    key,
    s,
    t,
    token,
    log_p,
    entropy,
    V,
    count,
    temperature,
    KEYED: tl.constexpr,
    COUNT: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    b, m, M, d, s = sums_of(n, key, s, count, temperature, COUNT)
    t = tl.load(t + n * count + b, mask=b < count, other=0.0).to(tl.float64)
    w = s * tl.exp(d)
    S = tl.sum(w, 0)
    tl.store(entropy + n, entropy_of_sums(S, d, s, t))
    u = uniform_noise(n * 0, n, seed, generation, sample, position, s0, s1, s2, KEYED)
    v = drawn(z + n * stride, b, m, w, u, V, count, temperature)
    tl.store(token + n, v)
    x = tl.load(z + n * stride + v).to(tl.float64)
    tl.store(log_p + n, ((x - M) / double(temperature) - tl.log(S)).to(tl.float32))


@triton.jit(do_not_specialize=SCALARS)
def _softmax(z, stride, normaliser, p, rest, V, temperature, SPLIT: tl.constexpr, LANES: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * LANES + tl.arange(0, LANES)
    M, log_S = tl.load(normaliser + 2 * n).to(tl.float32), tl.load(normaliser + 2 * n + 1).to(tl.float32)
    x = tl.load(z + n * stride + v, mask=v < V, other=float("-inf")).to(tl.float32)
    e = tl.exp((x - M) / double(temperature).to(tl.float32) - log_S)
    if SPLIT:
        first = e.to(p.dtype.element_ty)
        e = (e - first.to(tl.float32)).to(p.dtype.element_ty)
        tl.store(rest + n * V + v, e, mask=v < V)
        e = first
    tl.store(p + n * V + v, e, mask=v < V)


class Blocks:
    """
    The blocks of logits (N, V), read once.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): float32, bfloat16 or float16. temperature (`float`): T.
    """

    def __init__(self, logits: torch.Tensor, temperature: float):
        self.z = logits if logits.stride(-1) == 1 else logits.contiguous()
        self.temperature = temperature
        (n, self.V), device = logits.shape, logits.device
        self.count = triton.cdiv(self.V, BLOCK)
        self.key = torch.empty(n, self.count, dtype=torch.int64, device=device)
        self.s, self.t = torch.empty(2, n, self.count, dtype=torch.float32, device=device).unbind()
        grid = (n, triton.cdiv(self.count, _ROWS))
        sums = self.key, self.s, self.t
        launch(_blocks, grid, self.z, self.z.stride(0), *sums, self.V, self.count, bits(temperature), ROWS=_ROWS)

    @property
    def width(self) -> int:
        """Number of lanes for the blocks of a row."""
        return power_of_two(self.count)

    def argmax(self) -> torch.Tensor:
        """(N,) int64."""
        token = torch.empty(len(self.z), dtype=torch.int64, device=self.z.device)
        launch(_argmax, (len(self.z),), self.key, token, self.count, COUNT=self.width)
        return token

    def score(self, ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log softmax(z/T) at `ids` (N, K), (N, K); its entropy (N,); M and log S (N, 2) float64."""
        n, device = len(self.z), self.z.device
        ids = self.key[:, :0] if ids is None else ids.contiguous()
        log_p = torch.empty(ids.shape, dtype=torch.float32, device=device)
        normaliser = torch.empty(n, 2, dtype=torch.float64, device=device)
        entropy = torch.empty(n, dtype=torch.float32, device=device)
        sums, out = (self.key, self.s, self.t), (log_p, normaliser, entropy)
        sizes = self.count, ids.size(1), bits(self.temperature)
        constants = {"COUNT": self.width, "WIDTH": power_of_two(ids.size(1))}

        def moved() -> int:
            return nbytes(*sums, ids, *out) + ids.numel() * self.z.element_size()

        launch(_score, (n,), self.z, self.z.stride(0), *sums, ids, *out, *sizes, moved=moved, **constants)
        return log_p, entropy, normaliser

    def draw(self, u: torch.Tensor) -> torch.Tensor:
        """Tokens from softmax(z/T): `u` (N, n) float64 -> (N, n) int64."""
        token = torch.empty(u.shape, dtype=torch.int64, device=u.device)
        rows = self.z, self.z.stride(0), self.key, self.s, u.contiguous(), token
        sizes = self.V, self.count, u.size(1), bits(self.temperature)

        def moved() -> int:
            return nbytes(self.key, self.s, u, token) + u.numel() * BLOCK * self.z.element_size()

        launch(_draw, (len(u),), *rows, *sizes, moved=moved, COUNT=self.width)
        return token

    def draw_one(self, noise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A token of softmax(z/T) from each row's own noise, its log-probability and the entropy of softmax(z/T), (N,) each."""
        n, device = len(self.z), self.z.device
        token = torch.empty(n, dtype=torch.int64, device=device)
        log_p, entropy = torch.empty(2, n, dtype=torch.float32, device=device).unbind()
        sums, out = (self.key, self.s, self.t), (token, log_p, entropy)
        sizes = self.V, self.count, bits(self.temperature)
        options = {"KEYED": keyed(noise), "COUNT": self.width}

        def moved() -> int:
            return nbytes(*sums, *out) + n * (BLOCK + 1) * self.z.element_size()

        launch(_draw_one, (n,), *key(noise), self.z, self.z.stride(0), *sums, *out, *sizes, moved=moved, **options)
        return token, log_p, entropy

    def softmax(self, normaliser: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """
        softmax(z/T) in a dtype: (1, N, V) for float32. Otherwise (2, N, V): two numbers whose sum has twice the digits.
        """
        parts = 1 if dtype == torch.float32 else 2
        p = torch.empty(parts, *self.z.shape, dtype=dtype, device=self.z.device)
        lanes = BLOCK * _ROWS
        grid = (len(self.z), triton.cdiv(self.V, lanes))
        rows = self.z, self.z.stride(0), normaliser, p[0], p[-1], self.V
        constants = {"SPLIT": parts == 2, "LANES": lanes}
        launch(_softmax, grid, *rows, bits(self.temperature), moved=lambda: nbytes(self.z, normaliser, p), **constants)
        return p
