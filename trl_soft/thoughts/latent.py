# SPDX-License-Identifier: Apache-2.0
"""Coconut (arXiv 2412.06769): the last hidden state itself is fed back.

    next input = h, the last hidden state as the LM head sees it;   shadow token = argmax z

A latent thought is deterministic, so it has no density and serves only evaluation. (Coconut trains it with one forward and
backward pass for every thought.) A model that was not trained for it reads hidden states at a scale that its embeddings never
have. They are not rescaled here.
"""

from typing import ClassVar

import torch

from .paper import Paper
from .protocol import Thought
from .registry import register


@register
class Latent(Thought):
    """Action: `embedding` = h (N, H), `entropy` (N,) of the prediction from h."""

    name = "latent"
    has_density = False
    closes_one_hot = False
    needs_hidden = True
    fed = ("embedding",)
    scores_vocabulary = True
    truncations = ("thinking_temperature",)
    untruncated = "feeds the hidden state back and mixes nothing (arXiv 2412.06769)"
    defaults: ClassVar = {"thinking_temperature": 1.0}
    paper = Paper(
        "Training Large Language Models to Reason in a Continuous Latent Space",
        "2412.06769",
        (
            "Shibo Hao", "Sainbayar Sukhbaatar", "DiJia Su", "Xian Li", "Zhiting Hu", "Jason Weston", "Yuandong Tian",
        ),
    )  # fmt: skip
    equation = "next input = h, the last hidden state"
    can_be_greedy = True

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        return cls(values.thinking_temperature)

    def sample(self, logits, noise):
        return {"embedding": logits.hidden, "entropy": logits.entropy(self.temperature)}, logits.argmax()

    def score(self, logits, action):
        return torch.zeros_like(action["entropy"]), action["entropy"]  # a point mass

    def embed(self, action, embed):
        return action["embedding"]
