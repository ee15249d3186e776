# SPDX-License-Identifier: Apache-2.0
"""A tile of logits in one launch, forward and backward.

`trl_soft.vocabulary.tiles` has the plain functions. The tile is read once in the forward and once in
the backward. With a mixture it is read twice in the forward: `exp(x)` is relative to the largest logit, which has to be known
first. Tests compare sums over the vocabulary within a tolerance, not bit by bit, so multiplications and additions may fuse.
"""

import ctypes
import math

import torch
import triton
import triton.language as tl

from . import launch


_BLOCK = 2048  # columns at once: 8 KiB of float32
_EMPTY = tl.constexpr(-2e15)  # below every logit
_LOWEST = tl.constexpr(-1e15)  # `trl_soft.vocabulary.tiles.LOWEST`
_LN2 = tl.constexpr(math.log(2))


@triton.jit
def power(d, high, low):
    """
    `exp(d/T)`, and `d/T` in units of ln 2, for `high + low = 1/(T ln 2)`. It is 2**y, with y to more digits than float32.
    With one multiplication the relative error of y would be half an eps, and the error of the power up to 9e-6.
    """
    y = d * high
    rest = tl.fma(d, high, -y) + d * low
    e = tl.exp2(y)
    return tl.fma(e, rest * _LN2, e), y


@triton.jit
def tanh(x):
    """tanh x to one or two ulp, also for small x: there it is the series, whose next term is 1e-8 of x."""
    near = tl.abs(x) < 0.3
    s = tl.where(near, x * x, 0.0)
    series = x * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835 - s * 1382 / 155925)))))
    w = tl.exp(-2 * tl.abs(x))
    far = (1 - w) / (1 + w)
    return tl.where(near, series, tl.where(x < 0, -far, far))


@triton.jit
def logit(z, bias, token, mask, scale, softcap, BIASED: tl.constexpr, CAPPED: tl.constexpr):
    """The logit of a product, and the tanh of the cap. It uses a comparison, because a maximum would lose a NaN."""
    if BIASED:
        z += tl.load(bias + token, mask=mask, other=0.0).to(tl.float32)
        z = tl.where(z < _LOWEST, _LOWEST, z)
    z = z * scale
    if CAPPED:
        t = tanh(z / softcap)
        return softcap * t, t
    return z, z


@triton.jit
def _fold(
    z, bias, ids, table, largest, top, r, u, z_ids, R, high_part, low_part, stride, part_stride, start, size, candidates,
    width, high, low, scale, softcap, BIASED: tl.constexpr, CAPPED: tl.constexpr, IDS: tl.constexpr,
    PARTS: tl.constexpr, B: tl.constexpr, K: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """One program for each row. Each lane keeps the largest logit of its columns, and sums over its other columns."""
    row = tl.program_id(0).to(tl.int64)
    z += row * stride
    if IDS:
        for k in range(0, candidates, K):
            which = k + tl.arange(0, K)
            inside = which < candidates
            token = tl.load(ids + row * candidates + which, mask=inside, other=-1)
            inside = (token >= start) & (token < start + size)
            value, _ = logit(
                tl.load(z + token - start, mask=inside, other=0.0), bias, token, inside, scale, softcap, BIASED, CAPPED
            )
            tl.store(z_ids + row * candidates + which, value, mask=inside)
    m = tl.full((B,), _EMPTY, tl.float32)
    at = tl.zeros((B,), tl.int32)
    r_lane = tl.zeros((B,), tl.float32)
    u_lane = tl.zeros((B,), tl.float32)
    # The next columns load while these are summed.
    coming = tl.load(z + tl.arange(0, B), mask=tl.arange(0, B) < size, other=0.0)
    for first in range(0, size, B):
        column = first + tl.arange(0, B)
        mask = column < size
        value = coming
        coming = tl.load(z + column + B, mask=column + B < size, other=0.0)
        value, _ = logit(value, bias, start + column, mask, scale, softcap, BIASED, CAPPED)
        value = tl.where(mask, value, _EMPTY)
        higher = value > m
        if PARTS == 0:
            # The lower of the two joins the sums, which are relative to the higher one.
            e, y = power(-tl.abs(value - m), high, low)
            e = tl.where(mask, e, 0.0)
            shrink = tl.where(higher, e, 1.0)
            u_lane = tl.fma(u_lane, shrink, e * y * tl.where(higher, r_lane + 1, 1.0))
            r_lane = tl.fma(r_lane, shrink, e)
        m = tl.where(higher, value, m)
        at = tl.where(higher, column, at)
    here = tl.max(m, axis=0)
    index = tl.min(tl.where(m == here, at, 2147483647), axis=0)

    before = tl.load(largest + row)
    top_before = tl.load(top + row)
    r_before = tl.load(r + row)
    u_before = tl.load(u + row)
    higher = here > before
    larger = tl.where(higher, here, before)
    if PARTS == 0:
        e, y = power(m - here, high, low)
        joins = r_lane + tl.where((m == here) & (at == index), 0.0, 1.0)
        r_here = tl.sum(e * joins, axis=0)
        u_here = tl.sum(e * (u_lane + y * joins), axis=0) * _LN2
        e, y = power(-tl.abs(here - before), high, low)
        r_low = tl.where(higher, r_before, r_here) + 1
        r_new = tl.where(higher, r_here, r_before) + e * r_low
        u_low = tl.where(higher, u_before, u_here)
        u_new = tl.where(higher, u_here, u_before) + e * (u_low + y * _LN2 * r_low)
    else:
        # All threads have read the numbers that are overwritten below.
        tl.debug_barrier()
        for first in range(0, size, B):
            column = first + tl.arange(0, B)
            mask = column < size
            value, _ = logit(
                tl.load(z + column, mask=mask, other=0.0), bias, start + column, mask, scale, softcap, BIASED, CAPPED
            )
            e, y = power(value - larger, high, low)
            e = tl.where(mask & ((column != index) | (higher == 0)), e, 0.0)
            r_lane += e
            u_lane += tl.where(mask, e * y, 0.0)
            part = e.to(high_part.dtype.element_ty)
            tl.store(high_part + row * part_stride + column, part, mask=mask)
            if PARTS == 2:
                rest = (e - part.to(tl.float32)).to(low_part.dtype.element_ty)
                tl.store(low_part + row * part_stride + column, rest, mask=mask)
        shrink, y = power(before - larger, high, low)
        y = y * _LN2
        joins = tl.where(higher, shrink, 0.0)
        r_new = shrink * r_before + joins + tl.sum(r_lane, axis=0)
        u_new = shrink * (u_before + y * r_before) + y * joins + tl.sum(u_lane, axis=0) * _LN2
        if higher:
            for first in range(0, width, H):
                column = first + tl.arange(0, H)
                mask = column < width
                total = tl.load(R + row * width + column, mask=mask, other=0.0)
                gone = tl.load(table + top_before * width + column, mask=mask, other=0.0).to(tl.float32)
                tl.store(R + row * width + column, total * shrink + joins * gone, mask=mask)
    tl.store(largest + row, larger)
    tl.store(top + row, tl.where(higher, index + start, top_before))
    tl.store(r + row, r_new)
    tl.store(u + row, u_new)


@triton.jit
def _gradient(
    z, bias, g_rows, ids, candidate, z_ids, largest, top, slope, constant, factor, at_top, d_z, weights, stride,
    g_stride, d_stride, weights_stride, start, size, candidates, high, low, scale, softcap, BIASED: tl.constexpr, CAPPED: tl.constexpr,
    IDS: tl.constexpr, MIXED: tl.constexpr, WEIGHTS: tl.constexpr, B: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One program for each row and block of columns."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * B
    column = first + tl.arange(0, B)
    mask = column < size
    highest = tl.load(largest + row)
    most_likely = tl.load(top + row)
    a = tl.load(slope + row) * _LN2
    b = tl.load(constant + row)
    value, t = logit(
        tl.load(z + row * stride + column, mask=mask, other=0.0), bias, start + column, mask, scale, softcap, BIASED,
        CAPPED,
    )  # fmt: skip
    e, y = power(value - highest, high, low)
    d = tl.fma(y, a, b)
    if MIXED:
        f = tl.load(factor + row)
        d = tl.fma(tl.load(g_rows + row * g_stride + column, mask=mask, other=0.0), f, d)
    d = d * e
    if CAPPED:
        d = d * (1 - t * t)
    d = tl.where(start + column == most_likely, tl.load(at_top + row), d)
    tl.store(d_z + row * d_stride + column, d.to(d_z.dtype.element_ty), mask=mask)
    if WEIGHTS:
        tl.store(weights + row * weights_stride + column, e.to(weights.dtype.element_ty), mask=mask)
    if IDS:
        # All threads have stored their numbers before some are stored again.
        tl.debug_barrier()
        for k in range(0, candidates, K):
            which = k + tl.arange(0, K)
            inside = which < candidates
            token = tl.load(ids + row * candidates + which, mask=inside, other=-1)
            local = token - start
            inside = (token != most_likely) & (local >= first) & (local < first + B) & (local < size)
            value_at = tl.load(z_ids + row * candidates + which, mask=inside, other=0.0)
            e_at, y_at = power(value_at - highest, high, low)
            d_at = tl.fma(y_at, a, b)
            if MIXED:
                d_at = tl.fma(tl.load(g_rows + row * g_stride + local, mask=inside, other=0.0), f, d_at)
            d_at = tl.fma(d_at, e_at, tl.load(candidate + row * candidates + which, mask=inside, other=0.0))
            if CAPPED:
                t_at = value_at / softcap
                d_at = d_at * (1 - t_at * t_at)
            tl.store(d_z + row * d_stride + local, d_at.to(d_z.dtype.element_ty), mask=inside)


@triton.jit
def _of_equal(ids, c, out, candidates, K: tl.constexpr):
    """One program for each row: for each id the sum of c over all equal ids."""
    row = tl.program_id(0).to(tl.int64) * candidates
    for k in range(0, candidates, K):
        which = k + tl.arange(0, K)
        token = tl.load(ids + row + which, mask=which < candidates, other=-1)
        total = tl.zeros((K,), tl.float32)
        for j in range(0, candidates, K):
            other = j + tl.arange(0, K)
            same = token[:, None] == tl.load(ids + row + other, mask=other < candidates, other=-2)[None, :]
            add = tl.load(c + row + other, mask=other < candidates, other=0.0)
            total += tl.sum(tl.where(same, add[None, :], 0.0), axis=1)
        tl.store(out + row + which, total, mask=which < candidates)


def _power(temperature: float) -> tuple[float, float]:
    """1/(T ln 2) as the sum of two float32 numbers."""
    exact = 1 / (temperature * math.log(2))
    high = ctypes.c_float(exact).value
    return high, exact - high


def _constants(bias, ids, form) -> dict:
    candidates = 1 if ids is None else ids.size(1)
    return {
        "BIASED": bias is not None,
        "CAPPED": form.softcap is not None,
        "IDS": ids is not None,
        "B": _BLOCK,
        "K": min(32, triton.next_power_of_2(candidates)),
    }


def _size(*tensors) -> int:
    """Bytes of tensors, each touched once."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def fold(z, bias, start: int, sums, ids, table, form, parts) -> None:
    """
    `trl_soft.vocabulary.tiles.fold`, into `sums` themselves.

    Args:
        parts (tuple of tensors (N, n)): the outputs for exp(x), for a mixture: one of float32, which may be z, or two of
            bfloat16 whose sum is exp(x).
    """
    n, size = z.shape
    candidates = 0 if ids is None else ids.size(1)
    width = 0 if table is None else table.size(1)
    state = (sums.largest, sums.top, sums.r, sums.u)
    launch(
        _fold, (n,), z, bias, ids, table, *state, sums.z_ids, sums.R, *(*parts, None, None)[:2], z.stride(0),
        parts[0].stride(0) if parts else 0, start, size, candidates, width, *_power(form.temperature), form.scale,
        form.softcap or 1.0, **_constants(bias, ids, form), PARTS=len(parts), H=1024, num_warps=8, enable_fp_fusion=True,
        moved=_size(z) * (2 if parts else 1) + _size(*parts) + 2 * _size(*state, sums.R) + _size(sums.z_ids, ids),
    )  # fmt: skip


def gradient(z, bias, g_rows, start: int, row, ids, form, d_z, weights) -> None:
    """
    `trl_soft.vocabulary.tiles.gradient`, into `d_z` (N, n), which may be z, and `weights` (N, n, *optional*), both
    rounded to their dtype. `row.candidate` is the result of `of_equal`.
    """
    n, size = z.shape
    candidates = 0 if ids is None else ids.size(1)
    of_row = (row.largest, row.top, row.slope, row.constant, row.factor, row.at_top)
    launch(
        _gradient, (n, triton.cdiv(size, _BLOCK)), z, bias, g_rows, ids, row.candidate, row.z_ids, *of_row, d_z, weights,
        *(0 if x is None else x.stride(0) for x in (z, g_rows, d_z, weights)), start, size, candidates, *_power(form.temperature), form.scale,
        form.softcap or 1.0, **_constants(bias, ids, form), MIXED=g_rows is not None, WEIGHTS=weights is not None,
        num_warps=4, enable_fp_fusion=True, moved=_size(z, g_rows, d_z, weights, ids, row.candidate, row.z_ids, *of_row),
    )  # fmt: skip


def of_equal(ids: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """(N, K): the sum of `c` (N, K) over the ids of the row that equal this one."""
    out = torch.empty_like(c)
    candidates = ids.size(1)
    constants = {"K": min(32, triton.next_power_of_2(candidates)), "num_warps": 1}
    launch(_of_equal, (len(ids),), ids, c, out, candidates, **constants, moved=_size(ids, c, out))
    return out
