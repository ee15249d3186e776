# SPDX-License-Identifier: Apache-2.0
"""Coconut (arXiv 2412.06769): the last hidden state itself is fed back.

    next input = h, the last hidden state as the LM head sees it;   shadow token = argmax z

Deterministic, so it has no density: it serves evaluation, and as the costly contrast, since training it takes one
forward and backward pass for every thought. A model that was not trained for it reads hidden states of a scale its
embeddings never have; nothing here rescales them.
"""

import torch

from .protocol import Thought


class Latent(Thought):
    """Action: `embedding` = h (N, H), `entropy` (N,) of the prediction it was taken from."""

    name = "latent"
    has_density = False
    closes_one_hot = False
    needs_hidden = True
    fed = ("embedding",)

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def sample(self, logits, noise):
        return {"embedding": logits.hidden, "entropy": logits.entropy(self.temperature)}, logits.argmax()

    def log_prob(self, logits, action):
        return torch.zeros_like(action["entropy"])  # a point mass

    def entropy(self, logits, action):
        return action["entropy"]

    def embed(self, action, embed):
        return action["embedding"]
