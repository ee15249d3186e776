# SPDX-License-Identifier: Apache-2.0
"""Hard tokens: the identity case, and what every answer is sampled with.

    x ~ Categorical(softmax(z/T)),   log pi = log softmax(z/T)_x

top-k, top-p and min-p shape the sampling and not the score, as everywhere in TRL.
"""

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..scoring import entropy_of
from .base import Thought


class Hard(Thought):
    """
    Args:
        temperature (`float`): 0 is greedy.
        top_k (`int`): 0 keeps the whole vocabulary. top_p (`float`), min_p (`float` or `None`): as in `generate`.
    """

    name = "hard"
    is_token = True

    def __init__(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float | None = None):
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k or 0, top_p, min_p or 0.0
        # The order in which `generate` applies them.
        self.warpers = LogitsProcessorList()
        if temperature not in (0.0, 1.0):
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
        if self.top_k:
            self.warpers.append(TopKLogitsWarper(self.top_k))
        if top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(top_p))
        if self.min_p:
            self.warpers.append(MinPLogitsWarper(self.min_p))

    def sample(self, logits, noise):
        z = logits.dense()
        if self.temperature == 0.0:
            token = z.argmax(-1)
        else:
            no_ids = torch.empty(len(z), 0, dtype=torch.long, device=z.device)  # no warper here looks at them
            z = self.warpers(no_ids, z)  # type: ignore[arg-type]
            token = inverse_cdf(torch.softmax(z, dim=-1), noise.uniform(1))
        return {"ids": token}, token

    def close(self, action, closed, token):
        return dict(action)

    def log_prob(self, logits, action):
        return self.score(logits, action)[0]

    def entropy(self, logits, action):
        return self.score(logits, action)[1]

    def score(self, logits, action):
        log_p = torch.log_softmax(logits.dense() / (self.temperature or 1.0), dim=-1)
        return log_p.gather(-1, action["ids"].unsqueeze(-1)).squeeze(-1), entropy_of(log_p)

    def embed(self, action, embed):
        return embed(action["ids"])


def inverse_cdf(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The token whose slice of [0, 1) holds u: `p` (N, V), `u` (N, 1) float64 -> (N,) int64."""
    cdf = p.double().cumsum(-1)
    # Strictly below the total, so that a slice of zero width at the end is never chosen.
    u = torch.minimum(u * cdf[:, -1:], torch.nextafter(cdf[:, -1:], torch.zeros_like(u)))
    return torch.searchsorted(cdf, u, right=True).squeeze(-1)
