# SPDX-License-Identifier: Apache-2.0
"""Dirichlet thoughts (arXiv 2508.03440; SofT-GRPO's ablation, arXiv 2511.06411 Eq. 5): random weights around p.

    p  = softmax(z/T) on the kept candidates
    y ~ Dirichlet(alpha * p),   next input = sum_i y_i e_i,   shadow token = argmax y
    log q = log G(alpha) + sum_i ( alpha p_i log y_i - log G(alpha p_i) )          G: the gamma function

That is the Dirichlet density on the simplex, in the coordinates log y. The factor prod_i 1/y_i of the density of y is left
out: it has no parameter and would cost float32 its digits. A support of one token has no density term.

SofT-GRPO's released code scores the K gamma variates before normalisation by independent Gamma log-densities, clamped to
[-5, 3] and averaged over p > 0.05. It feeds x/sum(x) in the rollout and softmax(x/tau) in the update. This is not the
density of the mixture that was fed, and it is not done here.

The probability that a token has the largest weight has no closed form. So the step that ends the thinking stays a thought,
fed and scored as drawn.
"""

import math
from typing import ClassVar

import torch

from ..ranges import POSITIVE
from .candidates import candidates, on_support
from .option import Option, truncation
from .paper import Paper
from .protocol import Thought
from .registry import register
from .tolerance import Tolerance


@register
class Dirichlet(Thought):
    """
    Args:
        temperature, top_k (K), top_p, min_p: see `candidates`.
        concentration (`float`): alpha, above 0. Towards 0 the weights become one-hot draws from p. Towards infinity they
            become p.

    Action: `ids` (N, K), `log_weights` = log y (N, K), -inf off the support, `kept` (N, K) bool.
    """

    name = "dirichlet"
    closes_one_hot = False
    fed = ("ids", "log_weights")
    options: ClassVar = {
        "dirichlet_concentration": Option(
            float, 1.0, "dirichlet: alpha, above 0.", "alpha of dirichlet, above 0.", range=POSITIVE
        ),
    }
    defaults: ClassVar = {
        "thinking_temperature": 0.6,
        "thinking_top_k": 5,
        "thinking_top_p": 0.95,
        "thinking_min_p": 0.0,
    }
    paper = Paper(
        "LLMs are Single-threaded Reasoners: Demystifying the Working Mechanism of Soft Thinking",
        "2508.03440",
        ("Junhong Wu", "Jinliang Lu", "Zixuan Ren", "Gangqiang Hu", "Zhi Wu", "Dai Dai", "Hua Wu"),
    )
    equation = "p = softmax(z/T) on the kept candidates\ny ~ Dirichlet(alpha * p),   next input = sum_i y_i e_i"
    tolerances: ClassVar = {"dirichlet": Tolerance(1e-3, 0.4, size=5)}

    def __init__(self, temperature=0.6, top_k=5, top_p=0.95, min_p=0.0, concentration: float = 1.0):
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.concentration = concentration

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        return cls(*truncation(values), values.dirichlet_concentration)

    def sample(self, logits, noise):
        ids, log_p = candidates(logits, self.temperature, self.top_k, self.top_p, self.min_p)
        kept = log_p != -torch.inf
        log_gamma = torch.where(kept, noise.log_gamma(ids, self._alpha(log_p)), -torch.inf)
        log_y = torch.log_softmax(log_gamma, dim=-1)  # y_i = g_i / sum_j g_j, g_i ~ Gamma(alpha p_i)
        token = ids.gather(-1, log_y.argmax(-1, keepdim=True)).squeeze(-1)
        return {"ids": ids, "log_weights": log_y, "kept": kept}, token

    def _alpha(self, log_p):
        # An underflowed probability has no gamma function. It is held at 1e-30, and float32 can hold its variates.
        p = log_p.exp()
        return (p if self.concentration == 1.0 else self.concentration * p).clamp(min=1e-30)

    def score(self, logits, action):
        kept = action["kept"]
        log_p, entropy = on_support(logits, action["ids"], kept, self.temperature)
        alpha = self._alpha(log_p)
        log_y = torch.where(kept, action["log_weights"], 0.0)
        density = torch.where(kept, alpha * log_y - torch.lgamma(alpha), 0.0).sum(-1)
        if self.concentration == 1.0:
            return density, entropy  # log G(1) = 0, and the log-density of one token is 0
        density = density + math.lgamma(self.concentration)
        # The first candidate is always kept.
        return torch.where(kept[:, 1:].any(-1), density, 0.0), entropy

    def embed(self, action, embed):
        return embed.mix(self.weights(action), action["ids"])

    def without(self, action, dropped):
        log_weights = action["log_weights"].masked_fill(dropped, -torch.inf)
        return {**action, "log_weights": torch.log_softmax(log_weights, dim=-1)}

    def weights(self, action):
        return action["log_weights"].exp()
