# SPDX-License-Identifier: Apache-2.0
"""Logits as a whole tensor, as in a step of a rollout, and the interface of every view of logits.

On CUDA one pass over the logits computes everything (`trl_soft.kernels.blocks`). Results are kept for later calls.
"""

import torch

from .. import kernels
from .categorical import inverse_cdf
from .tiles import LOWEST


def tempered(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """`(z - max z)/T` over the last dimension. Its softmax is that of z/T, with less rounding."""
    return z if temperature == 1.0 else (z - z.detach().amax(-1, keepdim=True)) / temperature


def entropy_of(log_p: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the last dimension, at least 0 for log p <= 0. An entry of -inf has probability zero."""
    return -(log_p.exp() * log_p.clamp(min=LOWEST)).sum(-1)


class Logits:
    """
    A view of next-token logits. Letters: N positions, V vocabulary.

    Attributes:
        fused (`bool`): whether kernels compute the results of these logits, and of K candidates among them.
    """

    fused = False

    def dense(self) -> torch.Tensor:
        """All logits, (N, V), float32 at least."""
        raise NotImplementedError

    def argmax(self) -> torch.Tensor:
        """The most likely token, (N,) int64."""
        return self.dense().argmax(-1)

    def topk(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k largest logits and their ids, (N, k)."""
        return self.dense().topk(k, dim=-1)

    def draw(self, u: torch.Tensor, temperature: float) -> torch.Tensor:
        """Tokens from softmax(z/T) by its inverse CDF: `u` (N, n) float64 -> (N, n) int64."""
        return inverse_cdf(torch.softmax(tempered(self.dense(), temperature), dim=-1), u)


class DenseLogits(Logits):
    """
    Args:
        logits (`torch.Tensor` of shape `(N, V)`): not changed while this view is in use.
        table (`torch.Tensor` of shape `(V, H)`, *optional*):
            Embedding table, for `mixture`.
        table_scale (`float`): the factor of the embedding module on its table (Gemma: sqrt(H)).
        dtype (`torch.dtype`, *optional*): dtype in which embeddings are fed. The table may be a float32 copy.
        hidden (`torch.Tensor` of shape `(N, H)`, *optional*): the hidden states that gave these logits.
        project (*optional*): a function from other hidden states to logits.
        nearest (`torch.Tensor` of shape `(V, k)`, *optional*): the result of `nearest_tokens`, for `neighbours`.
    """

    def __init__(
        self,
        logits,
        table=None,
        table_scale: float = 1.0,
        dtype=torch.float32,
        hidden=None,
        project=None,
        nearest=None,
    ):
        self.logits = logits
        self.table, self.table_scale, self.dtype = table, table_scale, dtype
        self.hidden, self.project, self.nearest = hidden, project, nearest
        self._dense: torch.Tensor | None = None
        # By temperature.
        self._blocks: dict[float, kernels.blocks.Blocks] = {}
        self._mixtures: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return self.logits.size(0)

    def __getitem__(self, rows) -> "DenseLogits":
        hidden = None if self.hidden is None else self.hidden[rows]
        return DenseLogits(
            self.logits[rows], self.table, self.table_scale, self.dtype, hidden, self.project, self.nearest
        )

    def of_hidden(self, hidden: torch.Tensor) -> "DenseLogits":
        """The logits of other hidden states (N, H)."""
        z = self.project(hidden)
        return DenseLogits(z, self.table, self.table_scale, self.dtype, hidden, self.project, self.nearest)

    @property
    def fused(self) -> bool:  # type: ignore[override]
        z = self.logits
        return kernels.fused(z.device) and z.dtype != torch.float64 and not z.requires_grad

    def blocks(self, temperature: float, exactly: bool = True):
        """The sums over blocks of 256 logits at a temperature. If not `exactly`, sums at any temperature may serve."""
        from ..kernels.blocks import Blocks

        if temperature not in self._blocks:
            if self._blocks and not exactly:
                return next(iter(self._blocks.values()))
            self._blocks[temperature] = Blocks(self.logits, temperature)
        return self._blocks[temperature]

    def at(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the candidates `ids` (N, K) -> (N, K)."""
        z = self.logits.gather(-1, ids.long())
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def neighbours(self, token: torch.Tensor) -> torch.Tensor:
        """The k tokens nearest to each `token` (N,) in the embedding table, (N, k) int64, the token itself first."""
        if self.nearest is None:
            raise ValueError("These logits came without the neighbours of tokens. Pass `nearest`.")
        return self.nearest[token].long()

    def dense(self) -> torch.Tensor:
        if self._dense is None:
            self._dense = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        return self._dense

    def argmax(self) -> torch.Tensor:
        return self.blocks(1.0, exactly=False).argmax() if self.fused else super().argmax()

    def topk(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.fused:
            from ..kernels.tournament import LARGEST_K, candidates

            if k <= LARGEST_K:
                ids, z, _ = candidates(self.blocks(1.0, exactly=False), 1.0, k, 1.0, 0.0)
                return z, ids
            kernels.passed_over(
                f"The {k} most likely tokens, more than {LARGEST_K}",
                f"`topk` reads the logits several times instead of once. Keep at most {LARGEST_K} candidates to avoid it.",
            )
        return super().topk(k)

    def draw(self, u: torch.Tensor, temperature: float) -> torch.Tensor:
        return self.blocks(temperature).draw(u) if self.fused else super().draw(u, temperature)

    def draw_one(self, noise, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Where logits are `fused`: a token of softmax(z/T) from each row's own noise, as `draw(noise.uniform(1), T)` has it, its
        log-probability and the entropy of softmax(z/T), (N,) each.
        """
        return self.blocks(temperature).draw_one(noise)

    def log_softmax(self, temperature: float) -> torch.Tensor:
        """log softmax(z/T), (N, V)."""
        return torch.log_softmax(tempered(self.dense(), temperature), dim=-1)

    def log_prob(self, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """log softmax(z/T) of the candidates `ids` (N, K), (N, K), and the entropy of softmax(z/T), (N,)."""
        if self.fused:
            return self.blocks(temperature).score(ids)[:2]
        log_p = self.log_softmax(temperature)
        return log_p.gather(-1, ids.long()), entropy_of(log_p)

    def entropy(self, temperature: float) -> torch.Tensor:
        """Entropy of softmax(z/T), (N,)."""
        if self.fused:
            return self.blocks(temperature).score(None)[1]
        return entropy_of(self.log_softmax(temperature))

    def mixture(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """
        `h = sum_v softmax(z/T)_v e_v` (N, H) and the entropy of softmax(z/T) (N,).

        It is computed once, so that the draw and the score have the same numbers.
        """
        if temperature not in self._mixtures:
            self._mixtures[temperature] = self._mixed(temperature)
        return self._mixtures[temperature]

    def _mixed(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        if self.table is None:
            raise ValueError("These logits came without an embedding table, so there is nothing to mix. Pass `table`.")
        if self.fused:
            p, entropy = self.softmax(temperature, self.table.dtype)
            return scaled(summed(p, self.table), self.table_scale), entropy
        log_p = self.log_softmax(temperature)
        mean = (log_p.exp().to(self.table.dtype) @ self.table).to(log_p.dtype)
        return mean * self.table_scale, entropy_of(log_p)

    def softmax(self, temperature: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """For `fused` logits: softmax(z/T) as the sum of `parts` numbers of a dtype, (parts, N, V), and its entropy."""
        blocks = self.blocks(temperature)
        _, entropy, normaliser = blocks.score(None)
        return blocks.softmax(normaliser, dtype), entropy


def scaled(h: torch.Tensor, scale: float) -> torch.Tensor:
    """`h * scale`. Most models have scale 1."""
    return h if scale == 1.0 else h * scale


def summed(p: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """
    `sum_v p_v e_v` (N, H) float32 with sums in float32, of `p` (parts, N, V) and `table` (V, H) of one dtype.

    Two bfloat16 numbers carry 16 bits of a probability, and their products with a bfloat16 table are exact in float32. So the
    mixture differs from that of a float32 copy of the table by at most 2**-16 of each weight.
    """
    parts, n, _ = p.shape
    rows = p.flatten(0, 1)  # a view, also of some columns
    if table.dtype == torch.float32:
        return rows @ table
    if table.is_cuda or table.is_meta:
        mixed = torch.mm(rows, table, out_dtype=torch.float32)
    else:
        mixed = rows.float() @ table.float()
    return mixed.view(parts, n, -1).sum(0)
