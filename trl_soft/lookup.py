# SPDX-License-Identifier: Apache-2.0
"""Rows of a model's embedding table, one at a time or mixed: what a thought is given to embed itself with."""

import torch
from torch import nn

from .rows import mix_rows
from .scoring import whole


def embedding_scale(embedding: nn.Module) -> float:
    """What the embedding module multiplies its table by: 1, or `embed_scale` on Gemma's scaled embeddings."""
    return float(getattr(embedding, "embed_scale", 1.0))


class Lookup:
    """
    Args:
        embedding (`torch.nn.Embedding`):
            The model's input embedding. Under ZeRO-3 and FSDP its table is whole only inside the module's own call.
        forward (*optional*): the module's forward, where a patch has taken its place.
    """

    def __init__(self, embedding: nn.Embedding, forward=None):
        self.embedding, self.forward = embedding, forward or embedding.forward

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """The module's own embeddings of `ids` (...) -> (..., H)."""
        return self.forward(ids)

    def mix(self, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """`sum_k w_k e_{i_k}` in float32 at least: `weights`, `ids` (N, K) -> (N, H)."""
        mixed = mix_rows(weights, ids, whole(self.embedding.weight), self.embedding.padding_idx)
        return mixed * embedding_scale(self.embedding)
