# SPDX-License-Identifier: Apache-2.0
"""Soft Thinking (arXiv 2505.15778): the mixture itself is fed back, without a draw.

    p = softmax(z/T) on the kept candidates (top-k, then top-p and min-p)
    next input = sum_i p_i e_i over the n most likely of them, renormalised

With a contrast c (SeLaR, arXiv 2604.08299), the mixture h is pushed away from its most likely token, the more so the less
certain it is:

    next input = h + c H(p)/log n (h - e_1) = sum_i w_i e_i,   w_i = (1 + c H(p)/log n) p_i - [i = 1] c H(p)/log n

These weights sum to 1, and w_1 may be negative.

A deterministic thought has no density. It serves evaluation, and training refuses it.
"""

import math
from typing import ClassVar

import torch

from ..ranges import COUNT, Range
from ..vocabulary.dense_logits import entropy_of
from .candidates import candidates
from .option import Option, truncation
from .paper import Paper
from .protocol import Thought
from .registry import register


@register
class Soft(Thought):
    """
    Args:
        temperature, top_k (K), top_p, min_p: see `candidates`.
        width (`int`): n, the number of tokens in the mixture; all K if K is less.
        contrast (`float`): c.

    Action: `ids` (N, n), `log_weights` (N, n), -inf if a candidate is not part of the mixture.
    """

    name = "soft"
    has_density = False
    fed = ("ids", "log_weights")
    options: ClassVar = {
        "soft_width": Option(
            int,
            10,
            "soft: number of candidates in the mixture, the most likely of the kept ones.",
            "n of soft: how many candidates the mixture has, the most likely ones (Soft Thinking: 5 to 20).",
            range=COUNT,
        ),
        "soft_contrast": Option(
            float,
            0.0,
            "soft: pushes the mixture away from its most likely token, scaled by its entropy. 0 is off.",
            "c of soft: how far the mixture is pushed away from its most likely token, times its entropy over log n (SeLaR: 1). 0 is off.",
            range=Range(0, 1e6),
        ),
    }
    # Soft Thinking's defaults: top-30, top-p and min-p, then the 10 largest of the rest.
    defaults: ClassVar = {
        "thinking_temperature": 0.6,
        "thinking_top_k": 30,
        "thinking_top_p": 0.95,
        "thinking_min_p": 0.001,
    }
    paper = Paper(
        "Soft Thinking: Unlocking the Reasoning Potential of LLMs in Continuous Concept Space",
        "2505.15778",
        (
            "Zhen Zhang", "Xuehai He", "Weixiang Yan", "Ao Shen", "Chenyang Zhao", "Shuohang Wang", "Yelong Shen",
            "Xin Eric Wang",
        ),
    )  # fmt: skip
    equation = "p = softmax(z/T) on the kept candidates,   next input = sum_i p_i e_i over the n most likely"
    can_be_greedy = True

    def __init__(
        self,
        temperature: float,
        top_k: int,
        top_p: float = 1.0,
        min_p: float = 0.0,
        width: int = 10,
        contrast: float = 0.0,
    ):
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.width, self.contrast = width, contrast

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        return cls(*truncation(values), values.soft_width, values.soft_contrast)

    def sample(self, logits, noise):
        ids, log_p = candidates(logits, self.temperature, self.top_k, self.top_p, self.min_p)
        ids, log_p = ids[:, : self.width], log_p[:, : self.width]
        return {"ids": ids, "log_weights": torch.log_softmax(log_p, dim=-1)}, ids[:, 0]

    def close(self, action, closed, token):
        one_hot = torch.zeros_like(action["log_weights"]).masked_fill(action["ids"] != token.unsqueeze(-1), -torch.inf)
        return {**action, "log_weights": torch.where(closed.unsqueeze(-1), one_hot, action["log_weights"])}

    def score(self, logits, action):
        # A point mass: probability one, no gradient.
        return action["log_weights"].new_zeros(len(action["log_weights"])), entropy_of(action["log_weights"])

    def embed(self, action, embed):
        return embed.mix(self.weights(action), action["ids"])

    def without(self, action, dropped):
        log_weights = action["log_weights"].masked_fill(dropped, -torch.inf)
        return {**action, "log_weights": torch.log_softmax(log_weights, dim=-1)}

    def weights(self, action):
        p = action["log_weights"].exp()
        if not self.contrast or p.size(-1) == 1:
            return p
        push = self.contrast / math.log(p.size(-1)) * entropy_of(action["log_weights"]).unsqueeze(-1)
        most_likely = torch.arange(p.size(-1), device=p.device) == 0  # candidates are in the order of p
        return p + push * (p - most_likely.to(p.dtype))
