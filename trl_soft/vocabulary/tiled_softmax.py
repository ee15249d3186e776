# SPDX-License-Identifier: Apache-2.0
"""Softmax over the vocabulary in tiles: N x tile logits at once, never N x V.

Letters: N positions, K candidates, H hidden size, V vocabulary, W (V, H) the LM head, E (V, H) the embedding table.

A sweep is one pass over the tiles. A product makes the logits of a tile. One function reads them: `fold` in the forward,
`gradient` in the backward. Further products use its results. On CUDA this function is one Triton kernel
(`trl_soft.kernels.softmax_tiles`). The plain functions of `trl_soft.vocabulary.tiles` are its reference, and the CPU runs them.

Rounding of the products:

    z = h W^T          inputs in the weights' dtype, sums and z in float32. Under autocast to bfloat16 on CUDA, float32
                       weights and hidden states are first rounded to bfloat16, as in the earlier layers and in a rollout
    softmax(z/T) E     sums in float32. With E in bfloat16 on CUDA, each exp(x) is two bfloat16 numbers, that is 16 bits
    dL/dz              computed in float32. With a product in bfloat16 on CUDA it is rounded to bfloat16 once, when it is
                       written, for the two products that read it. Their sums are in float32
    <g, E_v>           with E in bfloat16 on CUDA, g is rounded to bfloat16. Every use of g has the same rounded number, so
                       the result is the gradient of a g that is 2**-8 away, at any T
"""

from contextlib import nullcontext

import torch
from transformers.utils import logging

from .. import kernels
from .sharding import gathered
from .tiles import MIXED, Form, RowGradient, Sums, add_product, fold, gradient, product, put_product, tile_columns


logger = logging.get_logger(__name__)


def without_autocast(device: torch.device):
    """Products without autocast, because a density multiplies the rounding of its inputs."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def product_dtype(weight: torch.Tensor) -> torch.dtype:
    """The dtype of the product `h W^T`: that of the weights, or for float32 weights on tensor cores that of autocast."""
    kind = weight.device.type
    if weight.dtype != torch.float32 or not _on_tensor_cores(weight.device):
        return weight.dtype
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return weight.dtype
    if torch.get_autocast_dtype(kind) == torch.bfloat16:
        return torch.bfloat16
    # float16 does not hold dL/dz, see `_Sweep`.
    logger.warning_once(
        "Autocast is to float16, whose range does not hold gradients divided by a low temperature. Scores over the vocabulary therefore "
        "multiply the float32 weights in float32, outside the tensor cores, which takes several times as long. Set `bf16: true`."
    )
    return weight.dtype


def _on_tensor_cores(device: torch.device) -> bool:
    """Whether to use bfloat16 products in spite of their rounding. The kernels round in the interpreter too."""
    return device.type in MIXED or kernels.fused(device)


class _Sweep:
    """
    The tiles of one call.

    Attributes:
        fused (`bool`): tiles go through the Triton kernels.
        low, low_table (`bool`): products of W and of E have bfloat16 on both sides.
        hidden: h (N, H) in the dtype of the product.
    """

    def __init__(self, hidden, weight, bias, table, ids, form: Form, dtype: torch.dtype):
        kind = hidden.device.type
        self.fused = kernels.fused(hidden.device)
        tensor_cores = _on_tensor_cores(hidden.device)
        self.low = tensor_cores and dtype == torch.bfloat16
        self.low_table = tensor_cores and table is not None and table.dtype == torch.bfloat16
        self.hidden, self.weight, self.bias, self.table = hidden.to(dtype), weight, bias, table
        self.ids, self.form = ids, form
        self.rows, self.vocabulary = hidden.size(0), weight.size(0)
        self.width = tile_columns(self.rows, self.vocabulary, kind)
        # One buffer for all tiles. A CPU's allocator reuses the memory by itself.
        self.buffer = self.empty(torch.float32) if kind in MIXED else None
        if kind == "cuda" and weight.dtype == torch.float16:
            logger.warning_once(
                "The LM head is float16, whose range does not hold gradients divided by a low temperature. The backward of "
                "the scores therefore multiplies in float32, which takes several times as long. Load the model in bfloat16."
            )

    def __iter__(self):
        """The columns of each tile."""
        for start in range(0, self.vocabulary, self.width):
            yield slice(start, min(start + self.width, self.vocabulary))

    def empty(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty((self.rows, self.width), dtype=dtype, device=self.weight.device)

    def of_head(self, columns: slice) -> torch.Tensor:
        """Rows of W (n, H) in the dtype of the product."""
        return self.weight[columns].to(self.hidden.dtype)

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """`h W^T` of a tile (N, n) float32."""
        return product(self.hidden, rows, None if self.buffer is None else self.buffer[:, : len(rows)])


class _Forward(_Sweep):
    def __init__(self, *args):
        super().__init__(*args)
        two = self.fused and self.low_table
        self.parts = [self.empty(torch.bfloat16) for _ in "hl"] if two else []

    def run(self) -> Sums:
        sums = Sums.empty(self.hidden, self.ids, self.table)
        for columns in self:
            for part in self._fold(self.product(self.of_head(columns)), columns, sums):
                add_product(sums.R, part, self.table[columns])
        return sums

    def _fold(self, z, columns: slice, sums: Sums) -> list[torch.Tensor]:
        """Add a tile to the sums. Returns exp(x), in one part or two, for the product with its rows of E."""
        start, size = columns.start, columns.stop - columns.start
        if self.fused:
            from ..kernels import softmax_tiles

            parts = [part[:, :size] for part in self.parts] or ([z] if self.table is not None else [])
            softmax_tiles.fold(z, self.bias, start, sums, self.ids, self.table, self.form, parts)
            return parts
        bias = None if self.bias is None else self.bias[columns]
        e = fold(z, bias, start, sums, self.ids, self.table, self.form)
        if self.table is None:
            return []
        if not self.low_table:
            return [e]
        high = e.to(torch.bfloat16)
        return [high, e.sub_(high).to(torch.bfloat16)]


class _Backward(_Sweep):
    """
    Args:
        g: dL/dmean (N, H), or None without a mixture.
        wanted (four `bool`): which of h, W, b and E get a gradient. Under LoRA head and table are frozen, and V x H
            gradients that nobody needs are not computed.
    """

    def __init__(self, *args, g, wanted):
        super().__init__(*args)
        self.g = g if g is None or not self.low_table else g.to(torch.bfloat16)
        of_hidden, of_weight, of_bias, of_table = wanted
        self.d_hidden = torch.zeros_like(self.hidden, dtype=torch.float32) if of_hidden else None
        self.d_weight = torch.empty_like(self.weight) if of_weight else None
        self.d_bias = torch.empty_like(self.bias) if of_bias else None
        self.d_table = torch.empty_like(self.table) if of_table else None
        self.d_z = self.empty(torch.bfloat16) if self.fused and self.low else None
        self.g_rows = self.empty(torch.float32) if self.buffer is not None and self.g is not None else None
        self.weights = None
        if self.fused and self.d_table is not None:
            self.weights = self.empty(torch.bfloat16 if self.low_table else torch.float32)

    def row(self, sums: Sums, c, a) -> RowGradient:
        """The parts of the gradient that all tokens of a row share, and the whole gradient at the most likely token."""
        r, total = sums.r, 1 + sums.r
        constant = at_top = a.unsqueeze(-1) * sums.u / total
        factor = self.form.scale / self.form.temperature / total
        candidate = None
        if self.ids is not None:
            constant = constant - c.sum(-1, keepdim=True)
            at_top = at_top + (c * torch.where(self.ids == sums.top, r, -1.0)).sum(-1, keepdim=True)
            candidate = (c * (self.form.scale / self.form.temperature)).contiguous()
            if self.fused:
                from ..kernels import softmax_tiles

                candidate = softmax_tiles.of_equal(self.ids, candidate)
        if self.g is not None:
            g, row = self.g.float(), self.table[sums.top.squeeze(-1)].float()
            constant = constant - (g * (row + sums.R)).sum(-1, keepdim=True) / total
            at_top = at_top + (g * (r * row - sums.R)).sum(-1, keepdim=True) / total
        slope, constant, at_top = -a.unsqueeze(-1) * factor, constant * factor, at_top * factor
        if self.form.softcap is not None:
            at_top = at_top * (1 - (sums.largest / self.form.softcap) ** 2)
        return RowGradient(sums.largest, sums.top, slope, constant, factor, at_top, candidate, sums.z_ids)

    def run(self, sums: Sums, c, a):
        row = self.row(sums, c, a)
        # Each row's share of g, for E.
        share = None if self.g is None else (self.g.float() / (1 + sums.r)).to(self.g.dtype)
        for columns in self:
            rows = self.of_head(columns)
            z, g_rows = self.product(rows), None
            if self.g is not None:
                out = None if self.g_rows is None else self.g_rows[:, : z.size(1)]
                g_rows = product(self.g, self.table[columns], out)
            d_z, e = self._gradient(z, g_rows, columns, row)
            if share is not None and self.d_table is not None:
                put_product(self.d_table[columns], e, share)
            if self.d_hidden is not None:
                add_product(self.d_hidden, d_z, rows)
            if self.d_weight is not None:
                put_product(self.d_weight[columns], d_z, self.hidden)
            if self.d_bias is not None:
                self.d_bias[columns] = d_z.sum(0, dtype=torch.float32)
        return self.d_hidden, self.d_weight, self.d_bias, self.d_table

    def _gradient(self, z, g_rows, columns: slice, row: RowGradient):
        start, size = columns.start, columns.stop - columns.start
        if self.fused:
            from ..kernels import softmax_tiles

            d_z, e = (None if x is None else x[:, :size] for x in (self.d_z, self.weights))
            d_z = z if d_z is None else d_z
            softmax_tiles.gradient(z, self.bias, g_rows, start, row, self.ids, self.form, d_z, e)
            return d_z, e
        bias = None if self.bias is None else self.bias[columns]
        d_z, e = gradient(z, bias, g_rows, start, row, self.ids, self.form)
        return d_z.to(torch.bfloat16) if self.low else d_z, e.to(torch.bfloat16) if self.low_table else e


class OverVocabulary(torch.autograd.Function):
    """
    `(softmax(z/T) E or None, log softmax(z/T) at ids or None, entropy of softmax(z/T))`, `z = form(h W^T + b)`.

    The sums leave out the most likely token, t. With `x = (z - z_t)/T` and sums over v != t,

        r = sum exp(x_v),  u = sum exp(x_v) x_v,  R = sum exp(x_v) E_v
        log p_v = x_v - log(1 + r),  mean = (E_t + R)/(1 + r),  entropy = log(1 + r) - u/(1 + r) >= 0

    The backward computes each tile again. With incoming `g` (mean), `c` (log p at ids) and `a` (entropy), sums over v != t
    again, and `c_v` the sum of c over the ids that equal v,

        T dL/dz_v = c_v + p_v ( <g, E_v - mean> - sum_k c_k - a (log p_v + entropy) )
        T dL/dz_t = ( r c_t - sum c_v + <g, r E_t - R>/(1 + r) + a u/(1 + r) ) / (1 + r)

    The second line is the first at v = t. There the terms of the first line cancel if p_t is close to 1, and division by T
    would magnify their rounding. In the second line all terms are as small as 1 - p_t = r/(1 + r).

    A head that is tied to the table gets both gradients, and autograd adds them.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, table, ids, form: Form):
        dtype = product_dtype(weight)
        with without_autocast(hidden.device):
            sums = _Forward(hidden, weight, bias, table, ids, form, dtype).run()
        r = sums.r
        entropy = (torch.log1p(r) - sums.u / (1 + r)).squeeze(-1)
        mean = None if table is None else (table[sums.top.squeeze(-1)].float() + sums.R) / (1 + r)
        log_p = None if ids is None else (sums.z_ids - sums.largest) / form.temperature - torch.log1p(r)
        ctx.save_for_backward(hidden, weight, bias, table, ids, *vars(sums).values())
        ctx.form, ctx.dtype = form, dtype
        return mean, log_p, entropy

    @staticmethod
    def backward(ctx, g, c, a):
        hidden, weight, bias, table, ids, *sums = ctx.saved_tensors
        with gathered(weight, bias, table), without_autocast(hidden.device):
            sweep = _Backward(
                hidden, weight, bias, table, ids, ctx.form, ctx.dtype, g=g, wanted=ctx.needs_input_grad[:4]
            )
            d_hidden, *of_weights = sweep.run(Sums(*sums), c, a)
        return None if d_hidden is None else d_hidden.to(hidden.dtype), *of_weights, None, None
