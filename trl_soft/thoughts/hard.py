# SPDX-License-Identifier: Apache-2.0
"""Hard tokens: ordinary tokens as thoughts. Every answer is sampled in this way too.

    x ~ Categorical(softmax(z/T)),   log pi = log softmax(z/T)_x

top-k, top-p and min-p shape the sampling but not the score, as everywhere in TRL.
"""

from typing import ClassVar

import torch
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopPLogitsWarper

from .. import kernels
from ..vocabulary.categorical import inverse_cdf, pick
from .candidates import candidates
from .option import TRUNCATION, truncation
from .protocol import Thought
from .registry import register
from .tolerance import Tolerance


@register
class Hard(Thought):
    """
    Args:
        temperature (`float`): 0 is greedy.
        top_k (`int`): 0 keeps the whole vocabulary. top_p (`float`), min_p (`float` or `None`): as in `generate`.
    """

    name = "hard"
    is_token = True
    fed = ("ids",)
    equation = "x ~ Categorical(softmax(z/T)),   next input = e_x"
    can_be_greedy = True
    tolerances: ClassVar = {"hard": Tolerance(1e-3, 0.15)}

    def __init__(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float | None = None):
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k or 0, top_p, min_p or 0.0
        # Without top_k, the warpers run in the order of `generate`.
        self.warpers = LogitsProcessorList()
        if temperature not in (0.0, 1.0):
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(top_p))
        if self.min_p:
            self.warpers.append(MinPLogitsWarper(self.min_p))

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        """Unset values are those of the answer."""
        if greedy:
            return cls(0.0)
        of_answer = answer.temperature, answer.top_k, answer.top_p, answer.min_p
        return cls(
            *(theirs if own is None else own for own, theirs in zip(truncation(values), of_answer, strict=True))
        )

    @classmethod
    def check_training(cls, args):
        for name in TRUNCATION:
            answer = getattr(args, name.removeprefix("thinking_"))
            if getattr(args, name) not in (None, answer):
                raise ValueError(
                    f"`{name}` is {getattr(args, name)} with `thought: hard`, but a hard thought is TRL's own token, "
                    f"sampled and scored like the answer ({answer}). Set `{name.removeprefix('thinking_')}` "
                    f"instead, and leave `{name}` unset."
                )

    def key(self):
        return self.name, self.temperature, self.top_k, self.top_p, self.min_p

    def same_as(self, other: "Hard") -> bool:
        """Whether both objects draw and score alike."""
        return self.key() == other.key()

    @property
    def _whole(self) -> bool:
        """Whether tokens are drawn from the whole vocabulary."""
        return not self.top_k and self.top_p == 1.0 and not self.min_p

    def sample(self, logits, noise):
        if self.temperature == 0.0:
            token = logits.argmax()
        elif self.top_k:
            # This sorts K numbers. The warpers of `generate` sort V numbers for the same result.
            top_k = min(self.top_k, logits.logits.size(-1))
            ids, log_p = candidates(logits, self.temperature, top_k, self.top_p, self.min_p)
            index = pick(log_p.exp(), noise.uniform(1), ids)
            token = ids.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        elif self._whole:
            token = logits.draw(noise.uniform(1), self.temperature).squeeze(-1)
        else:
            z = logits.dense()
            if kernels.fused(z.device):
                kernels.passed_over(
                    "Hard tokens with top-p or min-p and without top-k",
                    "Each step sorts the vocabulary: about 40 more operations, and tens of passes over the logits instead of one. Set "
                    "top-k as well (at most 128) to avoid it.",
                )
            no_ids = torch.empty(len(z), 0, dtype=torch.long, device=z.device)  # no warper here reads them
            if self.temperature != 1.0:
                z = z - z.amax(
                    -1, keepdim=True
                )  # before the division by T, which would lose the differences by rounding
            z = self.warpers(no_ids, z)  # type: ignore[arg-type]
            token = inverse_cdf(torch.softmax(z, dim=-1), noise.uniform(1)).squeeze(-1)
        return {"ids": token}, token

    def sample_and_score(self, logits, noise):
        """`sample` and `score` of the same logits: action, token, and log-probability and entropy (N,)."""
        if logits.fused and self._whole and self.temperature:
            token, *score = logits.draw_one(noise, self.temperature)
            return {"ids": token}, token, tuple(score)
        action, token = self.sample(logits, noise)
        return action, token, self.score(logits, action)

    def close(self, action, closed, token):
        return dict(action)

    def score(self, logits, action):
        temperature = self.temperature or 1.0
        log_p, entropy = logits.log_prob(action["ids"].unsqueeze(-1), temperature)
        return log_p.squeeze(-1), entropy

    def embed(self, action, embed):
        return embed(action["ids"])
