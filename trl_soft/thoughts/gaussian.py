# SPDX-License-Identifier: Apache-2.0
"""Soft Tokens, Hard Truths (arXiv 2509.19170): a full-vocabulary mixture with Gaussian noise on the embedding.

    h  = sum_v softmax(z/T)_v e_v                                    (Eq. 5)
    h~ = h + sigma * N(0, I_H),  sigma = noise_scale * RMS(E)        (Eq. 6), RMS over the elements of the table
    log pi = -||h~ - h||^2 / (2 sigma^2)                             (Eq. 10)

`soft` in the paper is T = 0.5, `fuzzy` is T = 1e-4. The constant -(H/2) log(2 pi sigma^2) is left out: sigma is
measured once, so it holds no parameter, and it would cost the ratio its last digits. The shadow token is argmax z.

The step whose shadow ends the thinking is a thought like any other, fed and scored with its noise, as in the paper.
"""

import torch

from .base import Thought


class Gaussian(Thought):
    """
    Args:
        temperature (`float`): T.
        sigma (`float`): standard deviation per coordinate, in the units of the embedding. 0 draws nothing (soft
            greedy) and has no density.

    Action: `embedding` = h~ (N, H).
    """

    name = "gaussian"
    closes_one_hot = False
    mixes_vocabulary = True

    def __init__(self, temperature: float = 0.5, sigma: float = 1.0):
        self.temperature, self.sigma = temperature, sigma
        self.has_density = sigma > 0

    def sample(self, logits, noise):
        mean, _ = logits.mixture(self.temperature)
        embedding = mean + self.sigma * noise.normal(mean.size(-1))
        # What is scored is what was fed: rounded to the model's precision before it is remembered.
        return {"embedding": embedding.to(logits.dtype)}, logits.dense().argmax(-1)

    def log_prob(self, logits, action):
        return self.score(logits, action)[0]

    def entropy(self, logits, action):
        return self.score(logits, action)[1]

    def score(self, logits, action):
        mean, entropy = logits.mixture(self.temperature)
        if not self.has_density:
            return torch.zeros_like(entropy), entropy  # a point mass
        squares = (action["embedding"].float() - mean).square().sum(-1)
        return -squares / (2 * self.sigma**2), entropy

    def embed(self, action, embed):
        return action["embedding"]
