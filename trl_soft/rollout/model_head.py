# SPDX-License-Identifier: Apache-2.0
"""From the output of a model's forward to the logits that a step draws from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..vocabulary.embedding_table import mixing_table
from ..vocabulary.head_logits import DenseLogits, logit_transform, transformed, whole
from ..vocabulary.neighbours import kept_nearest_tokens


class ModelHead:
    """
    Args:
        model: the causal LM, or a PEFT model around one.
        thought (`Thought`): what the logits are for.

    Attributes:
        hidden (`torch.Tensor` of shape `(B, H)`): the last input of the LM head, for thoughts that need it.
    """

    def __init__(self, model, thought):
        self.model, self.thought, self.hidden = model, thought, None
        embedding = model.get_input_embeddings()
        self.table = mixing_table(embedding, thought.mixes_vocabulary)
        # Of the weights as they are in this rollout.
        self.nearest = kept_nearest_tokens(whole(embedding.weight), thought.neighbours) if thought.neighbours else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the input of the LM head inside the block, for thoughts that need it."""
        if not self.thought.needs_hidden:
            yield
            return

        def keep(module, args):
            self.hidden = args[0][:, -1]

        hook = self.model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def logits(self, z: torch.Tensor) -> DenseLogits:
        """A view of next-token logits (B, V)."""
        return DenseLogits(z, *self.table, hidden=self.hidden, project=self._project, nearest=self.nearest)

    def _project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of other hidden states (N, H), through the model's own head."""
        return transformed(self.model.get_output_embeddings()(hidden).float(), *logit_transform(self.model.config))
