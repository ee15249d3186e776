# SPDX-License-Identifier: Apache-2.0
"""Multiplex Thinking (arXiv 2601.08808): K tokens drawn independently, their embeddings averaged.

    v_1 .. v_K ~ Categorical(softmax(z/T)), i.i.d., with replacement, on the whole vocabulary
    w_k = 1/K ("mean"), or proportional to p(v_k) ("probability"),   next input = sum_k w_k e_{v_k}
    log pi = sum_k log softmax(z/T)_{v_k}                                       (exact: a product of K categoricals)

The shadow token is the first draw, which is also the one that can end the thinking; the step then becomes its one-hot
and the other draws are discarded, so its score is log softmax(z/T)_{v_1}.

A policy ratio can be taken for the whole step (`ratio="step"`: the product over the draws, one clipping range a thought)
or for each draw (`ratio="draw"`: K ratios a thought, each clipped by itself and their losses summed, as the paper's code
does it).
"""

import torch

from .protocol import Thought


WEIGHTS = ("mean", "probability")
RATIOS = ("step", "draw")


class Multiplex(Thought):
    """
    Args:
        temperature (`float`): T. width (`int`): K, at least 1.
        weighting (`str`): `mean` or `probability`.
        ratio (`str`): `step` or `draw`.

    Action: `ids` (N, K) in the order drawn, `weights` (N, K), `closed` (N,) bool.
    """

    name = "multiplex"

    def __init__(self, temperature: float = 1.0, width: int = 3, weighting: str = "mean", ratio: str = "step"):
        self.temperature, self.width, self.weighting = temperature, width, weighting
        self.draws = width if ratio == "draw" else 1

    def sample(self, logits, noise):
        ids = logits.draw(noise.uniform(self.width), self.temperature)
        if self.weighting == "probability":
            weights = torch.softmax(logits.log_prob(ids, self.temperature)[0], dim=-1)
        else:
            weights = torch.full_like(ids, 1 / self.width, dtype=torch.float32)
        closed = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        return {"ids": ids, "weights": weights, "closed": closed}, ids[:, 0]

    def close(self, action, closed, token):
        one_hot = torch.zeros_like(action["weights"])
        one_hot[:, 0] = 1.0
        return {**action, "weights": torch.where(closed.unsqueeze(-1), one_hot, action["weights"]), "closed": closed}

    def log_prob(self, logits, action):
        return self.score(logits, action)[0]

    def entropy(self, logits, action):
        return self.score(logits, action)[1]

    def score(self, logits, action):
        log_p, entropy = self._log_p(logits, action)
        return log_p.sum(-1), entropy

    def score_draws(self, logits, action):
        log_p, entropy = self._log_p(logits, action)
        return (log_p if self.draws > 1 else log_p.sum(-1, keepdim=True)), entropy

    def draw_mask(self, action):
        first = torch.arange(self.draws, device=action["closed"].device) == 0
        return first | ~action["closed"].unsqueeze(-1)

    def _log_p(self, logits, action):
        """log p of every draw (N, K), zero at those that a closing step discarded; and the entropy (N,)."""
        log_p, entropy = logits.log_prob(action["ids"], self.temperature)
        first = torch.arange(self.width, device=log_p.device) == 0
        return torch.where(first | ~action["closed"].unsqueeze(-1), log_p, 0.0), entropy

    def embed(self, action, embed):
        return embed.mix(action["weights"], action["ids"])

    def weights(self, action):
        return action["weights"]
