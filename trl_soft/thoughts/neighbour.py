# SPDX-License-Identifier: Apache-2.0
"""N-GRPO (arXiv 2606.10768): a sampled token and its nearest tokens in the embedding table, mixed by their probabilities.

    x ~ Categorical(softmax(z/T))                                     the anchor
    S = { x and the k - 1 tokens with the largest cos(e_x, e_i) }     in the input embedding table
    w_i = softmax(z/T)_i / sum_{j in S} softmax(z/T)_j,   next input = sum_{i in S} w_i e_i
    log pi = log softmax(z/T)_x

The mixture is a function of x and z, so only x is drawn, and log pi is the exact log-probability of the draw. The update feeds the
recorded mixtures again: they are data, as the inputs of a model are. So the gradient credits the choice of x, with the inputs held
fixed. It leaves out that the policy also shapes the later inputs through w. (For a hard token there is no such part: the next input
depends on the policy through x alone.) A ratio compares two policies on the same recorded inputs, as for tokens.

The anchor is drawn as a hard token is: top-k, top-p and min-p shape its sampling but not its score, as everywhere in TRL. The
weights are those of the whole distribution, because a truncation would leave out most neighbours. The step that ends the thinking is fed
as its token alone. With k = 1 every step is a hard token.
"""

from typing import ClassVar

import torch

from ..ranges import Range
from ..vocabulary.dense_logits import tempered
from .hard import Hard
from .option import Option
from .paper import Paper
from .protocol import Thought
from .registry import register
from .tolerance import Tolerance


@register
class Neighbour(Thought):
    """
    Args:
        temperature (`float`): T. 0 takes the most likely token as the anchor, with weights at T = 1.
        top_k, top_p, min_p: of the anchor, as for `Hard`.
        width (`int`): k, the tokens of the mixture with the anchor.
        greedy (`bool`): take the most likely token as the anchor. The weights stay at T.

    Action: `ids` (N, k), the anchor first, and `weights` (N, k).
    """

    name = "neighbour"
    scores_vocabulary = True
    options: ClassVar = {
        "neighbour_width": Option(
            int,
            3,
            "neighbour: number of tokens in the mixture, with the sampled one.",
            "k of neighbour: tokens in the mixture, the sampled one among them (N-GRPO: 3). 1 is a hard token.",
            range=Range(1, 64, whole=True),
            counts_tokens=True,
        ),
    }
    paper = Paper(
        "N-GRPO: Embedding-Level Neighbor Mixing for Enhanced Policy Optimization",
        "2606.10768",
        ("Xukun Zhu", "Hang Yu", "Peng Di", "Linchao Zhu"),
    )
    equation = (
        "x ~ Categorical(softmax(z/T)),   S = x and its k - 1 nearest tokens by cosine in the embedding table\n"
        "next input = sum_i w_i e_i over S,   w = softmax(z/T) renormalised on S"
    )
    can_be_greedy = True
    tolerances: ClassVar = {"neighbour": Tolerance(1e-3, 0.15)}

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float | None = None,
        width: int = 3,
        greedy: bool = False,
    ):
        self.anchor = Hard(0.0 if greedy else temperature, top_k, top_p, min_p)
        self.temperature, self.top_k = temperature or 1.0, self.anchor.top_k
        self.neighbours = width

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        """Unset values are those of the answer."""
        anchor = Hard.build(values, answer, table_rms, greedy=False)
        return cls(anchor.temperature, anchor.top_k, anchor.top_p, anchor.min_p, values.neighbour_width, greedy)

    def key(self):
        return self.name, self.anchor.key(), self.temperature, self.neighbours, self.detach_inputs

    def sample(self, logits, noise):
        _, token = self.anchor.sample(logits, noise)
        ids = logits.neighbours(token)
        weights = torch.softmax(tempered(logits.at(ids), self.temperature), dim=-1)
        return {"ids": ids, "weights": weights}, token

    def close(self, action, closed, token):
        anchor = torch.zeros_like(action["weights"])
        anchor[:, 0] = 1.0
        return {**action, "weights": torch.where(closed.unsqueeze(-1), anchor, action["weights"])}

    def score(self, logits, action):
        log_p, entropy = logits.log_prob(action["ids"][:, :1], self.temperature)
        return log_p.squeeze(-1), entropy

    def embed(self, action, embed):
        return embed.mix(action["weights"], action["ids"])

    def weights(self, action):
        return action["weights"]
