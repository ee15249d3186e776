# SPDX-License-Identifier: Apache-2.0
"""Next-token logits as a view: a thought asks for the few it needs and only those are computed.

    at(ids)           z at K candidates          K*H a position
    dense()           z over the vocabulary      V*H a position, N x V in memory: rollouts only
    log_prob(ids, T)  log softmax(z/T) at K candidates and the entropy of softmax(z/T), in tiles: never N x V
    entropy(T)        the entropy alone, likewise
    mixture(T)        softmax(z/T) E and the entropy, likewise

Letters: N positions, K candidates, H hidden size, V vocabulary.

Every softmax here is one of (z - max z)/T. At T = 1e-4, z/T is 3e5, where neighbouring float32 numbers are 0.03 apart;
the difference of two close logits is exact.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F

from .rows import dot_rows


# Logits held at once: 2**22 float32 numbers are 16 MiB.
_TILE_ELEMENTS = 2**22
# More candidates than this are cheaper from one product with the whole head than row by row.
_MANY = 1024
# What stands for a logit of -inf in a sum: its exponential is 0, and 0 times it is 0, divided by any temperature.
_LOWEST = -1e15


def logit_transform(config) -> tuple[float, float | None]:
    """
    What a model does to `h W^T` before it calls the result logits: `(scale, softcap)`.

    Gemma caps them (`final_logit_softcapping`); Cohere, Muse, Falcon-H1 and HyperCLOVA X multiply them; Granite and
    MiniCPM3 divide them. The same reading as TRL's fused LM head, which scores the answers.
    """
    config = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"):
        value = getattr(config, name, None)
        if value is not None:
            scale = 1 / value if name == "logits_scaling" and config.model_type != "hyperclovax" else value
            break
    return scale, getattr(config, "final_logit_softcapping", None)


def gathered(*params):
    """Context in which ZeRO-3 shards of `params` are whole; no context at all elsewhere."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    # A model that was not built under ZeRO-3 has ordinary parameters even while ZeRO-3 is configured.
    shards = [param for param in params if hasattr(param, "ds_status")]
    if not shards or not is_deepspeed_zero3_enabled():
        return nullcontext()
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    return maybe_gather_lm_head_ctx(*shards)


def whole(param: torch.Tensor) -> torch.Tensor:
    """The full tensor behind an FSDP2 shard, its gradient averaged over ranks as FSDP2 does; anything else as it is."""
    if not hasattr(param, "full_tensor"):
        return param
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(param, DTensor)
    # By default a full tensor's gradient is taken to be the same on every rank, and each keeps its own rows of its own.
    mesh = param.device_mesh
    return _DividedGradient.apply(param.full_tensor(grad_placements=[Partial()] * mesh.ndim), mesh.size())


class _DividedGradient(torch.autograd.Function):
    """A tensor as it is, and its gradient divided: gloo sums over ranks, and has no mean."""

    @staticmethod
    def forward(ctx, x, ranks: int):
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g / ctx.ranks, None


def tempered(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """`(z - max z)/T` over the last dimension: what to take a softmax of in place of z/T."""
    return z if temperature == 1.0 else (z - z.detach().amax(-1, keepdim=True)) / temperature


def entropy_of(log_p: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the last dimension, at least 0 for log p <= 0; an entry of -inf has probability zero."""
    return -(log_p.exp() * log_p.clamp(min=_LOWEST)).sum(-1)


class DenseLogits:
    """
    Logits that are already there, as a rollout step has them.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`).
        table (`torch.Tensor` of shape `(V, H)`, *optional*):
            Embedding table, for `mixture`.
        table_scale (`float`): what the embedding module multiplies the table by (Gemma: sqrt(H)).
        dtype (`torch.dtype`, *optional*): in which embeddings are fed; the table may be a float32 copy.
        hidden (`torch.Tensor` of shape `(N, H)`, *optional*): what the LM head made the logits of.
        project (*optional*): from other hidden states to logits.
    """

    def __init__(self, logits, table=None, table_scale: float = 1.0, dtype=torch.float32, hidden=None, project=None):
        self.logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        self.table, self.table_scale, self.dtype = table, table_scale, dtype
        self.hidden, self.project = hidden, project

    def __len__(self) -> int:
        return self.logits.size(0)

    def __getitem__(self, rows) -> "DenseLogits":
        hidden = None if self.hidden is None else self.hidden[rows]
        return DenseLogits(self.logits[rows], self.table, self.table_scale, self.dtype, hidden, self.project)

    def of_hidden(self, hidden: torch.Tensor) -> "DenseLogits":
        """The logits of other hidden states (N, H)."""
        return DenseLogits(self.project(hidden), self.table, self.table_scale, self.dtype, hidden, self.project)

    def at(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the candidates `ids` (N, K) -> (N, K)."""
        return self.logits.gather(-1, ids.long())

    def dense(self) -> torch.Tensor:
        """All logits, (N, V), float32 at least."""
        return self.logits

    def log_softmax(self, temperature: float) -> torch.Tensor:
        """log softmax(z/T), (N, V)."""
        return torch.log_softmax(tempered(self.logits, temperature), dim=-1)

    def log_prob(self, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """log softmax(z/T) of the candidates `ids` (N, K), (N, K), and the entropy of softmax(z/T), (N,)."""
        log_p = self.log_softmax(temperature)
        return log_p.gather(-1, ids.long()), entropy_of(log_p)

    def entropy(self, temperature: float) -> torch.Tensor:
        """Entropy of softmax(z/T), (N,)."""
        return entropy_of(self.log_softmax(temperature))

    def mixture(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`h = sum_v softmax(z/T)_v e_v` (N, H) and the entropy of softmax(z/T) (N,)."""
        if self.table is None:
            raise ValueError("These logits came without an embedding table, so there is nothing to mix. Pass `table`.")
        log_p = self.log_softmax(temperature)
        mean = (log_p.exp().to(self.table.dtype) @ self.table).to(log_p.dtype)
        return mean * self.table_scale, entropy_of(log_p)


class HeadLogits:
    """
    Logits that the LM head would give, computed on demand and differentiable.

    Args:
        hidden (`torch.Tensor` of shape `(N, H)`): last hidden states.
        head (`torch.nn.Linear`): the LM head; its weight may be a ZeRO-3 or FSDP2 shard.
        embedding (`torch.nn.Embedding`): the input embedding, likewise.
        scale, softcap: as `logit_transform` reads them.
        table_scale (`float`): what the embedding module multiplies its table by.
    """

    def __init__(self, hidden, head, embedding, scale: float = 1.0, softcap: float | None = None, table_scale=1.0):
        self.hidden, self.head, self.embedding = hidden, head, embedding
        self.scale, self.softcap, self.table_scale = scale, softcap, table_scale

    def __len__(self) -> int:
        return self.hidden.size(0)

    def at(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the candidates `ids` (N, K) -> (N, K) float32: K rows of the head a position, or all V if many."""
        weight, bias = whole(self.head.weight), None if self.head.bias is None else whole(self.head.bias)
        # Outside autocast: the products are few, and the density multiplies their rounding.
        with gathered(self.head.weight, self.head.bias), torch.autocast(self.hidden.device.type, enabled=False):
            if ids.size(-1) > _MANY:
                # A copy, which stays whole for the backward where a shard does not.
                rows = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
                z = F.linear(self.hidden.to(rows.dtype), rows).gather(-1, ids.long())
            else:
                z = dot_rows(self.hidden, ids, weight, gathered)
            if bias is not None:
                z = z + F.embedding(ids, bias.unsqueeze(-1)).squeeze(-1).float()
        return _transform(z, self.scale, self.softcap)[0]

    def dense(self) -> torch.Tensor:
        """All logits, (N, V) float32: for tests and for N small."""
        with gathered(self.head.weight, self.head.bias):
            bias = None if self.head.bias is None else whole(self.head.bias)
            return _transform(F.linear(self.hidden, whole(self.head.weight), bias).float(), self.scale, self.softcap)[
                0
            ]

    def log_prob(self, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """log softmax(z/T) of the candidates `ids` (N, K), (N, K), and the entropy of softmax(z/T), (N,), both float32."""
        return self._over_vocabulary(None, ids, temperature)[1:]

    def entropy(self, temperature: float) -> torch.Tensor:
        """Entropy of softmax(z/T), (N,) float32."""
        return self._over_vocabulary(None, None, temperature)[2]

    def mixture(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`h = sum_v softmax(z/T)_v e_v` (N, H) and the entropy of softmax(z/T) (N,), both float32."""
        mean, _, entropy = self._over_vocabulary(self.embedding.weight, None, temperature)
        return mean * self.table_scale, entropy

    def _over_vocabulary(self, table, ids, temperature: float):
        weight, bias = self.head.weight, self.head.bias
        with gathered(weight, bias, table):
            return _OverVocabulary.apply(
                self.hidden,
                whole(weight),
                None if bias is None else whole(bias),
                None if table is None else whole(table),
                None if ids is None else ids.long(),
                temperature,
                self.scale,
                self.softcap,
            )


def _product(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`hidden` (N, H) times `rows` (n, H) -> (N, n) float32, not rounded to bf16 between: a candidate's logit is not."""
    if rows.dtype == torch.float32 or rows.dtype == torch.float64:
        return F.linear(hidden.to(rows.dtype), rows).float()
    if rows.is_cuda:
        return torch.mm(hidden.to(rows.dtype), rows.T, out_dtype=torch.float32)
    return F.linear(hidden.float(), rows.float())


def transformed(z: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Logits of `h W^T`: scaled, then capped."""
    return _transform(z, scale, softcap)[0]


def _transform(z: torch.Tensor, scale: float, softcap: float | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled and capped logits, and the tanh that the cap's derivative needs."""
    z = z * scale
    if softcap is None:
        return z, None
    t = torch.tanh(z / softcap)
    return softcap * t, t


class _OverVocabulary(torch.autograd.Function):
    """
    `(softmax(z/T) E or None, log softmax(z/T) at ids or None, entropy of softmax(z/T))`, `z = transform(h W^T + b)`, in
    tiles of the vocabulary: N x tile numbers at once, and each row of W, b and E is read once a pass.

    The most likely token, t, stands apart from the sums. With `x = (z - z_t)/T` and sums over v != t,

        r = sum exp(x_v),  u = sum exp(x_v) x_v,  R = sum exp(x_v) E_v
        log p_v = x_v - log(1 + r),  mean = (E_t + R)/(1 + r),  entropy = log(1 + r) - u/(1 + r) >= 0

    The backward recomputes each tile. With incoming `g` (mean), `c` (log p at ids) and `a` (entropy), sums over v != t
    again, and `c_v` the sum of c over the ids that are v,

        T dL/dz_v = c_v + p_v ( <g, E_v - mean> - sum_k c_k - a (log p_v + entropy) )
        T dL/dz_t = ( r c_t - sum c_v + <g, r E_t - R>/(1 + r) + a u/(1 + r) ) / (1 + r)

    The second line is the first at v = t. There the terms of the first cancel where p_t is close to 1, and division by T
    would make much of their rounding; in the second all terms are as small as 1 - p_t = r/(1 + r).
    """

    @staticmethod
    def _tile(hidden, weight, bias, columns, scale, softcap):
        """z of some columns (N, tile) float32, and the tanh of the cap."""
        z = _product(hidden, weight[columns])
        if bias is not None:
            # A bias of -inf suppresses a token.
            z = z.add_(bias[columns].float()).clamp_(min=_LOWEST)
        if scale != 1.0 or softcap is not None:
            return _transform(z, scale, softcap)
        return z, None

    @staticmethod
    def _within(ids, start: int, size: int):
        """Where `ids` are in a tile (N, K), any column for those elsewhere, and which are in it."""
        local = ids - start
        return local.clamp(0, size - 1), (local >= 0) & (local < size)

    @staticmethod
    def forward(ctx, hidden, weight, bias, table, ids, temperature, scale, softcap):
        n, vocabulary = hidden.size(0), weight.size(0)
        tile = max(1, _TILE_ELEMENTS // max(n, 1))
        largest = hidden.new_full((n, 1), 2 * _LOWEST, dtype=torch.float32)
        top = torch.zeros_like(largest, dtype=torch.long)
        r, u = (torch.zeros_like(largest) for _ in "ru")
        R = None if table is None else hidden.new_zeros((n, table.size(1)), dtype=torch.float32)
        z_ids = largest if ids is None else largest.expand(ids.shape)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, vocabulary, tile):
                columns = slice(start, start + tile)
                z, _ = _OverVocabulary._tile(hidden, weight, bias, columns, scale, softcap)
                if ids is not None:
                    local, inside = _OverVocabulary._within(ids, start, z.size(1))
                    z_ids = torch.where(inside, z.gather(-1, local), z_ids)
                here, index = z.max(-1, keepdim=True)
                higher = here > largest
                larger = torch.where(higher, here, largest)
                shift = (largest - larger) / temperature
                shrink = shift.exp()
                x = z.sub_(larger) if temperature == 1.0 else z.sub_(larger).div_(temperature)
                e = x.exp()
                e.scatter_(-1, index, e.gather(-1, index).masked_fill(higher, 0))
                # A token that is the most likely no more joins the sums.
                joins = shrink * higher
                if R is not None:
                    R.mul_(shrink).addcmul_(joins, table[top.squeeze(-1)].float()).addmm_(e, table[columns].float())
                u = shrink * (u + shift * r) + shift * joins
                r = shrink * r + joins + e.sum(-1, keepdim=True)
                u = u + e.mul_(x).sum(-1, keepdim=True)
                largest, top = larger, torch.where(higher, start + index, top)
        entropy = (torch.log1p(r) - u / (1 + r)).squeeze(-1)
        mean = None if R is None else (table[top.squeeze(-1)].float() + R) / (1 + r)
        log_p = None if ids is None else (z_ids - largest) / temperature - torch.log1p(r)
        ctx.save_for_backward(hidden, weight, bias, table, ids, largest, top, r, u, R)
        ctx.constants = (temperature, scale, softcap, tile)
        return mean, log_p, entropy

    @staticmethod
    def backward(ctx, g, c, a):
        hidden, weight, bias, table, ids, largest, top, r, u, R = ctx.saved_tensors
        temperature, scale, softcap, tile = ctx.constants
        total = 1 + r
        # T dL/dz: what of the bracket is the same for all tokens, and the whole of it at the most likely one.
        constant = at_top = a.unsqueeze(-1) * u / total
        if ids is not None:
            constant = constant - c.sum(-1, keepdim=True)
            at_top = at_top + (c * torch.where(ids == top, r, -1.0)).sum(-1, keepdim=True)
        with gathered(weight, bias, table), torch.autocast(hidden.device.type, enabled=False):
            if table is not None:
                row = table[top.squeeze(-1)].float()
                constant = constant - (g * (row + R)).sum(-1, keepdim=True) / total
                at_top = at_top + (g * (r * row - R)).sum(-1, keepdim=True) / total
            factor = scale / temperature / total
            slope, constant, at_top = -a.unsqueeze(-1) * factor, constant * factor, at_top * factor
            if softcap is not None:
                at_top = at_top * (1 - (largest / softcap) ** 2)
            rows = hidden.float()
            d_hidden = torch.zeros_like(rows)
            # Under LoRA head and table are frozen, and V x H gradients nobody asked for are not made.
            d_weight, d_bias, d_table = (
                torch.empty_like(x) if wanted else None
                for x, wanted in zip((weight, bias, table), ctx.needs_input_grad[1:4], strict=True)
            )
            for start in range(0, weight.size(0), tile):
                columns = slice(start, start + tile)
                z, t = _OverVocabulary._tile(hidden, weight, bias, columns, scale, softcap)
                x = z.sub_(largest) if temperature == 1.0 else z.sub_(largest).div_(temperature)
                e = x.exp()
                d_z = x.mul_(slope).add_(constant)
                if d_table is not None:
                    d_table[columns] = (e.T @ (g / total)).to(table.dtype)
                if table is not None:
                    d_z.addmm_(g * factor, table[columns].float().T)
                d_z.mul_(e)
                if ids is not None:
                    local, inside = _OverVocabulary._within(ids, start, d_z.size(1))
                    d_z.scatter_add_(-1, local, torch.where(inside, c * (scale / temperature), 0.0))
                if t is not None and softcap is not None:
                    d_z.mul_(1 - t * t)
                local, inside = _OverVocabulary._within(top, start, d_z.size(1))
                d_z.scatter_(-1, local, torch.where(inside, at_top, d_z.gather(-1, local)))
                d_hidden.addmm_(d_z, weight[columns].float())
                if d_weight is not None:
                    d_weight[columns] = (d_z.T @ rows).to(weight.dtype)
                if d_bias is not None:
                    d_bias[columns] = d_z.sum(0).to(bias.dtype)
        return d_hidden.to(hidden.dtype), d_weight, d_bias, d_table, None, None, None, None
