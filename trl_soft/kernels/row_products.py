# SPDX-License-Identifier: Apache-2.0
"""Products of K rows of a table with a position's hidden state, in one launch.

`trl_soft.vocabulary.row_sums` has the plain function.
"""

import torch
import triton
import triton.language as tl

from . import launch


_BLOCK = 1024


@triton.jit
def _dot(hidden, ids, table, z, width, B: tl.constexpr):
    """One program for each position and candidate."""
    row = tl.program_id(0).to(tl.int64)
    place = row * tl.num_programs(1) + tl.program_id(1)
    token = tl.load(ids + place)
    total = tl.zeros((B,), tl.float32)
    for first in range(0, width, B):
        column = first + tl.arange(0, B)
        mask = column < width
        h = tl.load(hidden + row * width + column, mask=mask, other=0.0).to(tl.float32)
        e = tl.load(table + token * width + column, mask=mask, other=0.0).to(tl.float32)
        total = tl.fma(h, e, total)
    tl.store(z + place, tl.sum(total, axis=0))


def _touched(ids: torch.Tensor, table: torch.Tensor) -> int:
    """Bytes of the rows that are read. A row counts as often as it occurs."""
    return ids.numel() * table.size(1) * table.element_size()


def _size(*tensors: torch.Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def dot(hidden: torch.Tensor, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`z_nk = <e_{i_nk}, h_n>`: contiguous (N, H), (N, K) int64 and (V, H) -> (N, K) float32."""
    z = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    moved = _touched(ids, table) + _size(hidden, ids, z)
    launch(_dot, tuple(ids.shape), hidden, ids, table, z, table.size(1), B=_BLOCK, num_warps=4, moved=moved)
    return z
