# SPDX-License-Identifier: Apache-2.0
"""One tile of logits over the vocabulary: how wide it is, what is read off it, and the products that make and take it.

Letters: N positions, K candidates, H hidden size, V vocabulary, W (V, H) the LM head, E (V, H) the embedding table.

These are the plain functions: the CPU's path, and the reference of the Triton kernels in `trl_soft.kernels.softmax_tiles`.
`trl_soft.vocabulary.tiled_softmax` goes over the tiles.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


# Logits held at once. On a CPU 2**22 float32 numbers are 16 MiB, about one cache. On CUDA 2**27 are 512 MiB, as many logits
# as TRL's fused head holds. Their gradient in bfloat16 is 256 MiB more.
TILE = {"cpu": 2**22, "cuda": 2**27}
# Tiles on CUDA have a multiple of this many columns. Rows of a matrix then begin where tensor cores read whole lines.
_COLUMNS = 128
# This number replaces a logit of -inf in a sum: at any temperature its exponential is 0, and 0 times the number is 0.
LOWEST = -1e15
# Devices on which a product of bfloat16 numbers can be float32 (`out_dtype`). `meta` counts what CUDA would do.
MIXED = ("cuda", "meta")


def tile_columns(n: int, vocabulary: int, device: str) -> int:
    """Columns of a tile for `n` positions. On CUDA all tiles have about the same width."""
    if device not in MIXED:
        return min(vocabulary, max(1, TILE["cpu"] // max(n, 1)))
    tiles = -(-n * vocabulary // TILE["cuda"])
    return min(vocabulary, -(-vocabulary // max(tiles, 1) // _COLUMNS) * _COLUMNS)


@dataclass(frozen=True)
class Form:
    """The transform of `h W^T` before the softmax: `softcap tanh(scale z / softcap) / temperature`."""

    temperature: float
    scale: float = 1.0
    softcap: float | None = None


@dataclass
class Sums:
    """
    The sums of a sweep so far, for each row. t is the most likely token, `x = (z - z_t)/T`, sums are over v != t.

    Attributes:
        largest: z_t (N, 1). top: t (N, 1) int64. r: sum exp(x_v) (N, 1). u: sum exp(x_v) x_v (N, 1).
        z_ids: z of the candidates (N, K). R: sum exp(x_v) E_v (N, H).
    """

    largest: torch.Tensor
    top: torch.Tensor
    r: torch.Tensor
    u: torch.Tensor
    z_ids: Any  # None where there are none to look at
    R: Any

    @classmethod
    def empty(cls, hidden: torch.Tensor, ids, table) -> "Sums":
        n = hidden.size(0)
        largest = hidden.new_full((n, 1), 2 * LOWEST, dtype=torch.float32)
        top = torch.zeros_like(largest, dtype=torch.long)
        r, u = (torch.zeros_like(largest) for _ in "ru")
        z_ids = None if ids is None else hidden.new_full(ids.shape, 2 * LOWEST, dtype=torch.float32)
        R = None if table is None else hidden.new_zeros((n, table.size(1)), dtype=torch.float32)
        return cls(largest, top, r, u, z_ids, R)


@dataclass
class RowGradient:
    """
    The parts of the gradient of a row's logits, all float32. With `e = exp((z - largest)/T)`,

        dL/d(h W^T)_v = (e_v (slope x_v + constant + factor <g, E_v>) + candidate_v) (1 - tanh^2),  at_top at v = t

    Attributes:
        largest, slope, constant, factor, at_top (N, 1). top (N, 1) int64.
        candidate: the term of each of `ids` (N, K). z_ids: z at `ids` (N, K).
    """

    largest: torch.Tensor
    top: torch.Tensor
    slope: torch.Tensor
    constant: torch.Tensor
    factor: torch.Tensor
    at_top: torch.Tensor
    candidate: Any  # None where there are none to look at
    z_ids: Any


def transform(z: torch.Tensor, scale: float, softcap: float | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled and capped logits, and the tanh that the cap's derivative needs."""
    z = z * scale
    if softcap is None:
        return z, None
    t = torch.tanh(z / softcap)
    return softcap * t, t


def _formed(z: torch.Tensor, bias, form: Form) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits of a product (N, n), in place, and the tanh of the cap."""
    if bias is not None:
        # A bias of -inf suppresses a token.
        z = z.add_(bias.float()).clamp_(min=LOWEST)
    if form.scale != 1.0 or form.softcap is not None:
        return transform(z, form.scale, form.softcap)
    return z, None


def _tempered(z: torch.Tensor, largest: torch.Tensor, temperature: float) -> torch.Tensor:
    x = z.sub_(largest)
    return x if temperature == 1.0 else x.div_(temperature)


def _within(ids: torch.Tensor, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of `ids` in a tile (N, K), with any column for ids outside it, and whether each id is in the tile."""
    local = ids - start
    return local.clamp(0, size - 1), (local >= 0) & (local < size)


def fold(z: torch.Tensor, bias, start: int, sums: Sums, ids, table, form: Form) -> torch.Tensor:
    """
    Add the tile `z` (N, n), whose first column is token `start`, to `sums`.

    Returns `exp(x)` (N, n), 0 at the most likely token. It overwrites z. `sums.R` is rescaled for its product.
    """
    z, _ = _formed(z, bias, form)
    if ids is not None:
        local, inside = _within(ids, start, z.size(1))
        sums.z_ids = torch.where(inside, z.gather(-1, local), sums.z_ids)
    here, index = z.max(-1, keepdim=True)
    higher = here > sums.largest
    larger = torch.where(higher, here, sums.largest)
    shift = (sums.largest - larger) / form.temperature
    shrink = shift.exp()
    x = _tempered(z, larger, form.temperature)
    e = x.exp()
    e.scatter_(-1, index, e.gather(-1, index).masked_fill(higher, 0))
    # A token that is no longer the most likely one joins the sums.
    joins = shrink * higher
    if table is not None:
        sums.R.mul_(shrink).addcmul_(joins, table[sums.top.squeeze(-1)].float())
    u = shrink * (sums.u + shift * sums.r) + shift * joins
    sums.r = shrink * sums.r + joins + e.sum(-1, keepdim=True)
    sums.u = u + x.mul_(e).sum(-1, keepdim=True)
    sums.largest, sums.top = larger, torch.where(higher, start + index, sums.top)
    return e


def gradient(
    z: torch.Tensor, bias, g_rows, start: int, row: RowGradient, ids, form: Form
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The gradient of the product of a tile (N, n), float32, and `exp(x)` (N, n), from the product `z` (N, n).

    Args:
        g_rows (*optional*): <g, E_v> of the tile's tokens (N, n).
    """
    z, t = _formed(z, bias, form)
    x = _tempered(z, row.largest, form.temperature)
    e = x.exp()
    d_z = x.mul_(row.slope).add_(row.constant)
    if g_rows is not None:
        d_z.addcmul_(g_rows, row.factor)
    d_z.mul_(e)
    if ids is not None:
        local, inside = _within(ids, start, d_z.size(1))
        d_z.scatter_add_(-1, local, torch.where(inside, row.candidate, 0.0))
    if t is not None:
        d_z.mul_(1 - t * t)
    local, inside = _within(row.top, start, d_z.size(1))
    d_z.scatter_(-1, local, torch.where(inside, row.at_top, d_z.gather(-1, local)))
    return d_z, e


def _mixed(a: torch.Tensor, rows: torch.Tensor) -> bool:
    return a.dtype == rows.dtype and a.dtype in (torch.bfloat16, torch.float16) and rows.device.type in MIXED


def product(a: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`a rows^T`: (N, H) and (n, H) in one dtype -> (N, n) float32, without rounding in between. On CUDA into `out`, if given."""
    if _mixed(a, rows):
        return torch.mm(a, rows.T, out_dtype=torch.float32, out=out)
    if rows.dtype == torch.float32 and out is not None:
        return torch.mm(a, rows.T, out=out)
    # The sum stays float64.
    wide = torch.promote_types(rows.dtype, torch.float32)
    return F.linear(a.to(wide), rows.to(wide)).float()


def add_product(total: torch.Tensor, a: torch.Tensor, rows: torch.Tensor) -> None:
    """`total += a rows`: (N, H) float32, (N, n) and (n, H)."""
    if _mixed(a, rows):
        torch.addmm(total, a, rows, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), rows.float())


def put_product(out: torch.Tensor, a: torch.Tensor, x: torch.Tensor) -> None:
    """`out = a^T x`: (n, H), (N, n) and (N, H). The sum is rounded once, to the dtype of `out`."""
    if _mixed(a, x) and out.dtype == x.dtype:
        torch.mm(a.T, x, out=out)
    elif _mixed(a, x) and out.dtype == torch.float32:
        torch.mm(a.T, x, out_dtype=torch.float32, out=out)
    else:
        out.copy_(a.float().T @ x.float())
