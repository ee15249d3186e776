# SPDX-License-Identifier: Apache-2.0
"""Which tensors the action of a thought has: what it draws from blank logits shows it, before there is a model."""

import torch

from ..noise import KeyedNoise
from ..thoughts import Thought
from ..vocabulary.head_logits import DenseLogits
from .interface import packed


class _Blank(DenseLogits):
    """Logits of nothing, for one position."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype, neighbours: int):
        hidden = torch.zeros(1, hidden_size, dtype=dtype)
        nearest = torch.zeros(1, neighbours, dtype=torch.int32).expand(vocab_size, -1)
        super().__init__(torch.zeros(1, vocab_size), dtype=dtype, hidden=hidden, nearest=nearest)

    def mixture(self, temperature: float):
        assert self.hidden is not None
        return torch.zeros(self.hidden.shape), torch.zeros(1)

    def of_hidden(self, hidden):
        return self


def blank_action(thought: Thought, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """
    An action of one position, (1, ...), as a record keeps it; its values mean nothing.

    Args:
        thought: with at most `vocab_size` candidates (`Thought.bound`).
        dtype (`torch.dtype`): in which embeddings are fed.
    """
    one = torch.zeros(1, dtype=torch.long)
    action, _ = thought.sample(_Blank(vocab_size, hidden_size, dtype, thought.neighbours), KeyedNoise(0, 0, one, one))
    return packed(action)
