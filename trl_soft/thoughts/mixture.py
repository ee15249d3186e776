# SPDX-License-Identifier: Apache-2.0
"""Mixture of Inputs (arXiv 2505.14827): a token is sampled, and the posterior mean of the weights, given it, is fed back.

    p = softmax(z/T) on the kept candidates,   x ~ Categorical(p),   H = entropy(p) / log n in [0, 1]
    w_i = ( H p_i + (beta + 1 - H) 1{i = x} ) / (beta + 1),   next input = sum_i w_i e_i

n is the number of candidates in the settings (top_k). w is a function of p and x, so only x is drawn: log pi = log p_x, on the
support of the draw. The weights of the rollout are data, and the update feeds them again. beta = -1 + H would be plain Soft
Thinking; use `soft` for that.
"""

import math
from typing import ClassVar

import torch

from ..ranges import POSITIVE
from ..vocabulary.categorical import pick
from .candidates import candidates, on_support
from .option import Option, truncation
from .paper import Paper
from .protocol import Thought
from .registry import register
from .tolerance import Tolerance


@register
class Mixture(Thought):
    """
    Args:
        temperature, top_k (n), top_p, min_p: see `candidates`.
        beta (`float`): above 0. A larger beta brings the mixture closer to the sampled token's embedding.

    Action: `ids` (N, K), `weights` (N, K), `kept` (N, K) bool, `drawn` (N,) int64, the index of x in `ids`.
    """

    name = "mixture"
    options: ClassVar = {
        "mixture_beta": Option(
            float,
            1.0,
            "mixture: beta, above 0; the larger, the closer to the sampled token.",
            "beta of mixture, above 0; the larger, the closer to the sampled token.",
            range=POSITIVE,
        ),
    }
    defaults: ClassVar = {
        "thinking_temperature": 1.0,
        "thinking_top_k": 20,
        "thinking_top_p": 1.0,
        "thinking_min_p": 0.0,
    }
    paper = Paper(
        "Text Generation Beyond Discrete Token Sampling",
        "2505.14827",
        ("Yufan Zhuang", "Liyuan Liu", "Chandan Singh", "Jingbo Shang", "Jianfeng Gao"),
    )
    equation = (
        "p = softmax(z/T) on the kept candidates,   x ~ Categorical(p),   H = entropy(p) / log n\n"
        "w_i = (H p_i + (beta + 1 - H) 1{i = x}) / (beta + 1),   next input = sum_i w_i e_i"
    )
    tolerances: ClassVar = {"mixture": Tolerance(1e-3, 0.1)}

    def __init__(self, temperature=1.0, top_k=20, top_p=0.95, min_p=0.0, beta: float = 1.0):
        self.temperature, self.top_k, self.top_p, self.min_p, self.beta = temperature, top_k, top_p, min_p, beta

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        return cls(*truncation(values), values.mixture_beta)

    def sample(self, logits, noise):
        ids, log_p = candidates(logits, self.temperature, self.top_k, self.top_p, self.min_p)
        p, kept = log_p.exp(), log_p != -torch.inf
        drawn = pick(p, noise.uniform(1))
        # h/(beta + 1), the share of p: w = share p + (1 - share) 1{i = x}
        share = torch.special.entr(p).sum(-1, keepdim=True) / (math.log(max(self.top_k, 2)) * (self.beta + 1))
        weights = torch.lerp(_one_hot(drawn, p), p, share)
        token = ids.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        return {"ids": ids, "weights": weights, "kept": kept, "drawn": drawn}, token

    def close(self, action, closed, token):
        one_hot = _one_hot(action["drawn"], action["weights"])
        return {**action, "weights": torch.where(closed.unsqueeze(-1), one_hot, action["weights"])}

    def score(self, logits, action):
        log_p, entropy = on_support(logits, action["ids"], action["kept"], self.temperature)
        return log_p.gather(-1, action["drawn"].unsqueeze(-1)).squeeze(-1), entropy

    def embed(self, action, embed):
        return embed.mix(action["weights"], action["ids"])

    def weights(self, action):
        return action["weights"]


def _one_hot(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(N,) -> (N, K) of the type of `like` (N, K). torch's `one_hot` makes int64 and, off CUDA, reads the largest index."""
    return torch.zeros_like(like).scatter_(-1, index.unsqueeze(-1), 1.0)
