# SPDX-License-Identifier: Apache-2.0
"""Multiplex Thinking (arXiv 2601.08808): K tokens drawn independently, their embeddings averaged.

    v_1 .. v_K ~ Categorical(softmax(z/T)), i.i.d., with replacement, on the whole vocabulary
    w_k = 1/K ("mean"), or proportional to p(v_k) ("probability"),   next input = sum_k w_k e_{v_k}
    log pi = sum_k log softmax(z/T)_{v_k}                                       (exact: a product of K categoricals)

The shadow token is the first draw. Only this draw can end the thinking. The step then becomes its one-hot, the other draws
are discarded, and the score is log softmax(z/T)_{v_1}.

There are two kinds of policy ratio:

    ratio="step"    one for the whole step: the product over the draws, one clipping range for each thought
    ratio="draw"    one for each draw: K ratios for each thought, each clipped on its own, their losses summed, as in the
                    paper's code
"""

from typing import ClassVar

import torch

from ..ranges import Range
from .option import Option
from .paper import Paper
from .protocol import Thought
from .registry import register
from .tolerance import Tolerance


WEIGHTS = ("mean", "probability")
RATIOS = ("step", "draw")


@register
class Multiplex(Thought):
    """
    Args:
        temperature (`float`): T. width (`int`): K, at least 1.
        weighting (`str`): `mean` or `probability`.
        ratio (`str`): `step` or `draw`.

    Action: `ids` (N, K) in the order drawn, `weights` (N, K), `closed` (N,) bool.
    """

    name = "multiplex"
    scores_vocabulary = True
    options: ClassVar = {
        "multiplex_width": Option(
            int,
            3,
            "multiplex: number of tokens drawn.",
            "Number of tokens a multiplex thought draws.",
            range=Range(1, 1024, whole=True),
            counts_tokens=True,
        ),
        "multiplex_weights": Option(
            str,
            "mean",
            "multiplex: mean, or probability for weights proportional to p.",
            "`mean`, or `probability` for weights proportional to the tokens' probabilities.",
            choices=WEIGHTS,
        ),
        "multiplex_ratio": Option(
            str,
            "step",
            "multiplex: one policy ratio for each step, or one for each draw.",
            "`step`: one policy ratio for each thought, the product over its draws. `draw`: one for each draw, clipped on its own, as "
            "in Multiplex Thinking's code. Each draw then counts as a token where a loss averages over a completion (`grpo`, "
            "`sapo`, `bnpo`), and as a part of one position elsewhere.",
            choices=RATIOS,
        ),
    }
    truncations = ("thinking_temperature",)
    untruncated = "draws from the whole vocabulary (arXiv 2601.08808)"
    defaults: ClassVar = {"thinking_temperature": 1.0}
    paper = Paper(
        "Multiplex Thinking: Reasoning via Token-wise Branch-and-Merge",
        "2601.08808",
        ("Yao Tang", "Li Dong", "Yaru Hao", "Qingxiu Dong", "Furu Wei", "Jiatao Gu"),
    )
    equation = "v_1 .. v_K ~ Categorical(softmax(z/T)), i.i.d.,   next input = sum_k w_k e_{v_k}"
    several_ratios = ("multiplex_ratio", "draw", "step")
    tolerances: ClassVar = {"multiplex": Tolerance(1e-3, 0.5, size=3)}

    def __init__(self, temperature: float = 1.0, width: int = 3, weighting: str = "mean", ratio: str = "step"):
        self.temperature, self.width, self.weighting = temperature, width, weighting
        self.draws = width if ratio == "draw" else 1

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        return cls(
            values.thinking_temperature, values.multiplex_width, values.multiplex_weights, values.multiplex_ratio
        )

    @classmethod
    def terms(cls, values, hidden_size):
        return values.multiplex_width

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
        """log p of every draw (N, K), zero at draws that a closing step discarded; and the entropy (N,)."""
        log_p, entropy = logits.log_prob(action["ids"], self.temperature)
        first = torch.arange(self.width, device=log_p.device) == 0
        return torch.where(first | ~action["closed"].unsqueeze(-1), log_p, 0.0), entropy

    def embed(self, action, embed):
        return embed.mix(action["weights"], action["ids"])

    def weights(self, action):
        return action["weights"]
