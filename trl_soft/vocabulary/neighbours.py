# SPDX-License-Identifier: Apache-2.0
"""The nearest tokens of every token, by the cosine of their rows in the embedding table.

    cos(i, j) = <e_i, e_j> / (|e_i| |e_j|)

Row i of the result is i itself, then the other tokens in falling order of cos(i, .). Of equal cosines the lower id comes first.
The result depends on the table alone. So every process, engine and resumed run with one table has one result, except where
rounding orders two cosines that differ by less than a float32 product can tell.

It takes V^2 H multiplications, in tiles of some rows by V. The result is kept for as long as the numbers of the table stay
what they are.
"""

from collections import OrderedDict

import torch

from .tiles import MIXED, product


# Cosines held at once.
TILE_ELEMENTS = {"cpu": 2**22, "cuda": 2**25}
_ROWS = 2**22  # numbers of the table that are hashed at once
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd multipliers of a 64-bit hash (those of splitmix64), as signed numbers.
_FIRST, _SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64

_MADE: OrderedDict[tuple, torch.Tensor] = OrderedDict()
_MOST = 4  # results that are kept


@torch.no_grad()
def nearest_tokens(table: torch.Tensor, count: int) -> torch.Tensor:
    """
    Args:
        table (`torch.Tensor` of shape `(V, H)`): whole, in any floating-point type.
        count (`int`): k, from 1 to V, with the token itself.

    Returns:
        (V, k) int32.
    """
    rows = tile_rows(len(table), table.device.type)
    wide = torch.promote_types(table.dtype, torch.float32)
    inverse = 1 / torch.linalg.vector_norm(table, dim=-1, dtype=wide).float()
    if table.device.type not in MIXED:
        table = table.to(wide)  # once, and not for the product of each tile
    inverse = inverse.masked_fill(inverse.isinf(), 0.0)  # a row of zeros has the cosine 0 with every row
    nearest = torch.empty(len(table), count, dtype=torch.int32, device=table.device)
    for start in range(0, len(table), rows):
        tile = table[start : start + rows]
        cosine = product(tile, table).mul_(inverse)  # times |e_i|, which changes no order within a row
        token = torch.arange(start, start + len(tile), device=table.device).unsqueeze(-1)
        nearest[start : start + rows, :1] = token
        for column in range(1, count):
            cosine.scatter_(-1, token, -torch.inf)
            token = cosine.max(-1, keepdim=True).indices  # the first of equal ones
            nearest[start : start + rows, column : column + 1] = token
    return nearest


def tile_rows(vocabulary: int, device: str) -> int:
    """Rows of a tile of cosines."""
    return max(1, TILE_ELEMENTS["cpu" if device == "cpu" else "cuda"] // vocabulary)


def kept_nearest_tokens(table: torch.Tensor, count: int) -> torch.Tensor:
    """`nearest_tokens`, made again only for a table with other numbers. The device is asked once, for a hash of the table."""
    key = fingerprint(table), tuple(table.shape), table.dtype, table.device, count
    if key not in _MADE:
        _MADE[key] = nearest_tokens(table, count)
    _MADE.move_to_end(key)
    while len(_MADE) > _MOST:
        _MADE.popitem(last=False)
    return _MADE[key]


@torch.no_grad()
def fingerprint(table: torch.Tensor) -> int:
    """A 64-bit hash of the bits of a table (V, H): another number at any place is another hash, but for chance."""
    bits = table.detach().contiguous().view(_BITS[table.element_size()])
    of_columns, of_rows = (_odd(n, table.device) for n in (bits.size(1), bits.size(0)))
    rows = max(1, _ROWS // bits.size(1))
    sums = [(part.long() * of_columns).sum(-1) for part in bits.split(rows)]
    return int((torch.cat(sums) * of_rows).sum().item())


def _odd(n: int, device) -> torch.Tensor:
    """n odd numbers that look random, (n,) int64. Products overflow, as they should."""
    mixed = (torch.arange(1, n + 1, device=device) * _FIRST) >> 29
    return ((mixed ^ (mixed >> 13)) * _SECOND) | 1
