# SPDX-License-Identifier: Apache-2.0
"""h_n = sum_k w_nk e_{i_nk} in one launch: the formula of `trl_soft.vocabulary.row_sums`, float32 sums in the order of k.

`mix_where` and `mix_into` replace the token's embedding by h_n, in the model's precision, where a thought is fed.
"""

import torch
import triton
import triton.language as tl

from . import bits, launch, nbytes, power_of_two
from .blocks import double


_LANES = 1024


@triton.jit
def mixed(weights, ids, table, stride, n, h, H, K, LANES: tl.constexpr):
    sums = tl.zeros((LANES,), tl.float32)
    for k in range(K):
        row = tl.load(ids + n * K + k).to(tl.int64) * stride
        e = tl.load(table + row + h, mask=h < H, other=0.0).to(tl.float32)
        sums += tl.load(weights + n * K + k).to(tl.float32) * e
    return sums


@triton.jit
def _mix(weights, ids, table, stride, out, H, K, LANES: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * LANES + tl.arange(0, LANES)
    tl.store(out + n * H + h, mixed(weights, ids, table, stride, n, h, H, K, LANES), mask=h < H)


@triton.jit(do_not_specialize=("scale",))
def _mix_where(
    weights, ids, table, stride, thinks, tokens, token_stride, out, H, K, scale, ONE: tl.constexpr, LANES: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * LANES + tl.arange(0, LANES)
    if tl.load(thinks + n) != 0:
        row = mixed(weights, ids, table, stride, n, h, H, K, LANES)
        if not ONE:
            row = row * double(scale).to(tl.float32)
        tl.store(out + n * H + h, row.to(out.dtype.element_ty), mask=h < H)
    else:
        tl.store(out + n * H + h, tl.load(tokens + n * token_stride + h, mask=h < H, other=0.0), mask=h < H)


@triton.jit(do_not_specialize=("scale",))
def _mix_into(
    weights, ids, table, stride, thinks, rows, out, out_stride, H, K, scale, ONE: tl.constexpr, LANES: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * LANES + tl.arange(0, LANES)
    if tl.load(thinks + n) != 0:
        row = mixed(weights, ids, table, stride, n, h, H, K, LANES)
        if not ONE:
            row = row * double(scale).to(tl.float32)
        tl.store(out + tl.load(rows + n) * out_stride + h, row.to(out.dtype.element_ty), mask=h < H)


def _grid(ids: torch.Tensor, table: torch.Tensor) -> tuple[int, tuple[int, int]]:
    lanes = min(_LANES, power_of_two(table.size(1)))
    return lanes, (len(ids), triton.cdiv(table.size(1), lanes))


def mix(weights: torch.Tensor, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`weights` (N, K), `ids` (N, K), `table` (V, H) -> (N, H) float32."""
    table = table if table.stride(1) == 1 else table.contiguous()
    H = table.size(1)
    out = torch.empty(len(ids), H, dtype=torch.float32, device=table.device)
    lanes, grid = _grid(ids, table)
    rows = weights.contiguous(), ids.contiguous(), table, table.stride(0), out

    def moved() -> int:
        return nbytes(weights, ids, out) + ids.numel() * H * table.element_size()

    launch(_mix, grid, *rows, H, ids.size(1), moved=moved, LANES=lanes)
    return out


def mix_where(
    weights: torch.Tensor,
    ids: torch.Tensor,
    table: torch.Tensor,
    scale: float,
    thinks: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """`scale` times `mix` at the rows in `thinks` (N,) bool, `tokens` (N, H) elsewhere, in the dtype of `tokens`."""
    table, tokens = (x if x.stride(1) == 1 else x.contiguous() for x in (table, tokens))
    H = table.size(1)
    out = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    lanes, grid = _grid(ids, table)
    rows = weights.contiguous(), ids.contiguous(), table, table.stride(0)
    others = thinks.contiguous(), tokens, tokens.stride(0), out

    def moved() -> int:
        return nbytes(weights, ids, thinks, out) + ids.numel() * H * table.element_size()  # as if every row thinks

    launch(_mix_where, grid, *rows, *others, H, ids.size(1), bits(scale), moved=moved, ONE=scale == 1.0, LANES=lanes)
    return out


def mix_into(
    weights: torch.Tensor,
    ids: torch.Tensor,
    table: torch.Tensor,
    scale: float,
    thinks: torch.Tensor,
    rows: torch.Tensor,
    target: torch.Tensor,
) -> None:
    """`scale` times `mix` at the rows in `thinks` (N,) bool, into rows `rows` (N,) int64 of `target` (T, H), in its dtype."""
    table = table if table.stride(1) == 1 else table.contiguous()
    H = table.size(1)
    lanes, grid = _grid(ids, table)
    of = weights.contiguous(), ids.contiguous(), table, table.stride(0), thinks.contiguous(), rows.contiguous()

    def moved() -> int:
        fed = ids.numel() * table.element_size() + len(ids) * target.element_size()
        return nbytes(weights, ids, thinks, rows) + fed * H  # as if every row thinks

    sizes = H, ids.size(1), bits(scale)
    launch(_mix_into, grid, *of, target, target.stride(0), *sizes, moved=moved, ONE=scale == 1.0, LANES=lanes)
