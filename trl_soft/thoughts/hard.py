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

from .base import Thought


_BLOCK = 256


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

    def key(self):
        return self.name, self.temperature, self.top_k, self.top_p, self.min_p

    def same_as(self, other: "Hard") -> bool:
        """Whether both draw and score alike."""
        return self.key() == other.key()

    def sample(self, logits, noise):
        z = logits.dense()
        if self.temperature == 0.0:
            token = z.argmax(-1)
        else:
            no_ids = torch.empty(len(z), 0, dtype=torch.long, device=z.device)  # no warper here looks at them
            if self.temperature != 1.0:
                z = z - z.amax(-1, keepdim=True)  # before the division by T, which would round the differences away
            z = self.warpers(no_ids, z)  # type: ignore[arg-type]
            token = inverse_cdf(torch.softmax(z, dim=-1), noise.uniform(1)).squeeze(-1)
        return {"ids": token}, token

    def close(self, action, closed, token):
        return dict(action)

    def log_prob(self, logits, action):
        return self.score(logits, action)[0]

    def entropy(self, logits, action):
        return self.score(logits, action)[1]

    def score(self, logits, action):
        temperature = self.temperature or 1.0
        log_p, entropy = logits.log_prob(action["ids"].unsqueeze(-1), temperature)
        return log_p.squeeze(-1), entropy

    def embed(self, action, embed):
        return embed(action["ids"])


def inverse_cdf(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """
    The tokens whose slices of [0, 1) hold u: `p` (N, V), `u` (N, n) float64 -> (N, n) int64.

    Two levels, so that float64 sums are taken over blocks and within the one block that holds u, not over all of V.
    """
    vocabulary = p.size(-1)
    blocks = torch.nn.functional.pad(p, (0, -vocabulary % _BLOCK)).unflatten(-1, (-1, _BLOCK))  # (N, V/256, 256)
    block, u = _slice(blocks.sum(-1).double(), u)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK)).double()  # (N, n, 256)
    token, _ = _slice(inside, u.unsqueeze(-1))
    return (block * _BLOCK + token.squeeze(-1)).clamp(max=vocabulary - 1)


def _slice(p: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the slice of `p` that u falls into, and where in that slice it falls, in [0, 1)."""
    cdf = p.cumsum(-1)
    total = cdf[..., -1:]
    # Strictly below the total, so that a slice of zero width at the end is never chosen.
    u = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    # No slice holds a NaN: logits of a policy that has diverged, and an index past the end would take the device with it.
    index = torch.searchsorted(cdf, u, right=True).clamp(max=p.size(-1) - 1)
    width = p.gather(-1, index)
    return index, ((u - (cdf.gather(-1, index) - width)) / width).clamp(0, 1)
