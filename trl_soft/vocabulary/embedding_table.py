# SPDX-License-Identifier: Apache-2.0
"""Rows of a model's embedding table, single or mixed. A thought embeds itself with them."""

import torch
from torch import nn

from .. import kernels
from .dense_logits import scaled
from .head_logits import whole
from .row_sums import mix_rows


def embedding_scale(embedding: nn.Module) -> float:
    """The factor of the embedding module on its table: 1, or `embed_scale` of Gemma's scaled embeddings."""
    return float(getattr(embedding, "embed_scale", 1.0))


def mixing_table(embedding: nn.Module, mixes_vocabulary: bool) -> tuple[torch.Tensor | None, float, torch.dtype]:
    """
    The arguments of `DenseLogits` for mixtures of the whole vocabulary in a rollout: a table, its scale, and the dtype that is
    fed.

    The table is a float32 copy. On CUDA it is the model's own table, and two numbers stand for each probability
    (`trl_soft.vocabulary.dense_logits.summed`).
    """
    weight, table = embedding.weight, None
    assert isinstance(weight, torch.Tensor)
    if mixes_vocabulary:
        table = whole(weight)
        if not kernels.fused(table.device):
            table = table.float()
    return table, embedding_scale(embedding), weight.dtype


class Lookup:
    """
    Args:
        embedding (`torch.nn.Embedding`):
            The model's input embedding. Under ZeRO-3 and FSDP its table is whole only inside the module's own call.
        forward (*optional*): the module's own forward, if a patch has replaced it.
    """

    def __init__(self, embedding: nn.Embedding, forward=None):
        self.embedding, self.forward = embedding, forward or embedding.forward

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """The module's own embeddings of `ids` (...) -> (..., H)."""
        return self.forward(ids)

    def mix(self, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """`sum_k w_k e_{i_k}` in float32 at least: `weights`, `ids` (N, K) -> (N, H)."""
        mixed = mix_rows(weights, ids, whole(self.embedding.weight), self.embedding.padding_idx)
        return scaled(mixed, embedding_scale(self.embedding))

    def fed(self, thought, action, thinks: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The input of a step: thoughts' embeddings where `thinks` (N,) bool is true, and `tokens` (N, H) elsewhere."""
        weights, table = thought.weights(action), whole(self.embedding.weight)
        if weights is not None and kernels.fused(table.device) and not torch.is_grad_enabled():
            from ..kernels.row_mixtures import mix_where

            return mix_where(weights, action["ids"], table, embedding_scale(self.embedding), thinks, tokens)
        return torch.where(thinks.unsqueeze(-1), thought.embed(action, self).to(tokens.dtype), tokens)
