# SPDX-License-Identifier: Apache-2.0
"""K rows of a (V, H) table for each position, mixed or multiplied, without N x K x H numbers in memory.

    mix_rows   h_n  = sum_k w_nk e_{i_nk}       dL/de_v = sum over n, k with i_nk = v of w_nk dL/dh_n
    dot_rows   z_nk = <e_{i_nk}, h_n>           dL/de_v = sum over n, k with i_nk = v of dL/dz_nk h_n

Sums are float32 at least, whatever the table's precision. torch's `embedding_bag` needs weights in the table's dtype and has
no bf16 backward for them. A lookup with an einsum would write the N x K x H rows twice.
"""

import torch

from .. import kernels


def mix_rows(weights: torch.Tensor, ids: torch.Tensor, table: torch.Tensor, padding_idx: int | None = None):
    """`weights`, `ids` (N, K), `table` (V, H) -> (N, H). The table gets a gradient. The weights are data."""
    return _Mix.apply(weights, ids, table, padding_idx)


def dot_rows(hidden: torch.Tensor, ids: torch.Tensor, table: torch.Tensor, gathered) -> torch.Tensor:
    """`hidden` (N, H), `ids` (N, K), `table` (V, H) -> (N, K). `gathered` makes the table whole in the backward."""
    return _Dot.apply(hidden, ids, table, gathered)


def _columns(*tensors):
    """For each k, the k-th column of each (N, K) tensor."""
    return zip(*(tensor.unbind(-1) for tensor in tensors), strict=True)


def _row_gradient(coefficients: torch.Tensor, ids: torch.Tensor, vectors: torch.Tensor, like) -> torch.Tensor:
    """sum over n, k with i_nk = v of c_nk x_n, for every row v of a table of shape and dtype `like`."""
    shape, dtype = like
    d_table = torch.zeros(shape, dtype=dtype, device=ids.device)
    if dtype == vectors.dtype:
        rows = d_table
    else:
        # Sums in float32 need float32 rows, but only for tokens that occur.
        tokens, ids = ids.unique(return_inverse=True)
        rows = torch.zeros(len(tokens), shape[1], dtype=vectors.dtype, device=ids.device)
    for c, i in _columns(coefficients, ids):
        rows.index_add_(0, i, c.unsqueeze(-1) * vectors)
    if rows is not d_table:
        d_table[tokens] = rows.to(dtype)
    return d_table


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, ids, table, padding_idx):
        dtype = torch.promote_types(table.dtype, torch.float32)
        weights = weights.to(dtype)
        ctx.save_for_backward(weights, ids)
        # The table itself is not kept, because ZeRO-3 shards it again before the backward.
        ctx.like, ctx.padding_idx = (table.shape, table.dtype), padding_idx
        if kernels.fused(table.device) and dtype == torch.float32:
            from ..kernels.row_mixtures import mix

            return mix(weights, ids, table)
        mixed = torch.zeros(len(ids), table.size(1), dtype=dtype, device=table.device)
        for w, i in _columns(weights, ids):
            mixed.addcmul_(w.unsqueeze(-1), table.index_select(0, i).to(dtype))
        return mixed

    @staticmethod
    def backward(ctx, g):
        if not ctx.needs_input_grad[2]:
            return None, None, None, None
        weights, ids = ctx.saved_tensors
        d_table = _row_gradient(weights, ids, g.contiguous(), ctx.like)
        if ctx.padding_idx is not None:
            d_table[ctx.padding_idx] = 0  # as in torch.nn.Embedding
        return None, None, d_table, None


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, ids, table, gathered):
        x = hidden.to(torch.promote_types(table.dtype, torch.float32))
        ctx.save_for_backward(hidden, ids, table)
        ctx.gathered = gathered
        if x.dtype == torch.float32 and kernels.fused(table.device):
            from ..kernels import row_products

            return row_products.dot(hidden.contiguous(), ids.long().contiguous(), table.contiguous())
        z = [(table.index_select(0, i).to(x.dtype) * x).sum(-1) for (i,) in _columns(ids)]
        return torch.stack(z, dim=-1)

    @staticmethod
    def backward(ctx, g):
        hidden, ids, table = ctx.saved_tensors
        d_hidden = d_table = None
        with ctx.gathered(table):
            x = hidden.to(g.dtype)
            if ctx.needs_input_grad[0] and x.dtype == torch.float32 and kernels.fused(table.device):
                from ..kernels.row_mixtures import mix

                d_hidden = mix(g, ids.long(), table).to(hidden.dtype)
            elif ctx.needs_input_grad[0]:
                d_hidden = torch.zeros_like(x)
                for c, i in _columns(g, ids):
                    d_hidden.addcmul_(c.unsqueeze(-1), table.index_select(0, i).to(x.dtype))
                d_hidden = d_hidden.to(hidden.dtype)
            if ctx.needs_input_grad[2]:
                d_table = _row_gradient(g, ids, x, (table.shape, table.dtype))
        return d_hidden, None, d_table, None
