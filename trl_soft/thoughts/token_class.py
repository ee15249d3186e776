# SPDX-License-Identifier: Apache-2.0
"""Tokens that stay hard in any mixture: the class C of `hard_tokens` and `hard_token_pattern`, around any kind of thought.

    shadow token x in C         the step is fed as x alone
    shadow token x not in C     the members of C leave the mixture, and the rest is renormalised

Both are functions of what was drawn, so the likelihood stays that of the draw, and it is exact. For a step that is fed as its token,
there are two cases:

- A kind whose closing step is a one-hot (gumbel, mixture, multiplex, neighbour) closes such a step in the same way. The step is
  scored by the log-probability of the event that x is the shadow token. For gumbel, P(argmax g' = x) = softmax(log p / s)_x.
  The other draws are not fed, and their score would only add noise.
- Elsewhere (dirichlet, gaussian on logits or probabilities, `gumbel_density: softgrpo`) the event has no closed form, or its score
  is not one. The score is that of the whole draw, of which the token that was fed is a function.

A thought that feeds an embedding (gaussian, `hidden`, latent) has no mixture to leave and no token that follows from its draw.
It is refused.
"""

import hashlib

import torch

from ..ranges import LISTS, check_pattern, check_text, shown
from .protocol import Thought


SETTINGS = ("hard_tokens", "hard_token_pattern")


def can_keep(kind: type[Thought]) -> bool:
    """Whether a kind of thought mixes candidates, so that some of them can stay hard."""
    return not kind.is_token and kind.weights is not Thought.weights


def read_by(kinds: list[type[Thought]]) -> bool:
    """Whether thoughts of all these kinds can keep tokens hard, and one of them has a mixture."""
    return all(can_keep(kind) or kind.is_token for kind in kinds) and not all(kind.is_token for kind in kinds)


def check_names(tokens, pattern) -> None:
    """Raise a `ValueError` unless `hard_tokens` is a list of texts and `hard_token_pattern` a regular expression, or `None`."""
    most = LISTS["hard_tokens"]
    if tokens is not None and not (isinstance(tokens, (list, tuple)) and 1 <= len(tokens) <= most):
        raise ValueError(
            f"`hard_tokens` is {shown(tokens)}, but it must be a list of 1 to {most} texts, each of one token. Name more tokens by "
            "`hard_token_pattern`."
        )
    for text in tokens or ():
        check_text("hard_tokens", text)
    if pattern is not None:
        check_text("hard_token_pattern", pattern)
        check_pattern("hard_token_pattern", pattern)


def check(kinds: list[type[Thought]]) -> None:
    """Raise a `ValueError` if one of these kinds of thought cannot keep tokens hard, or if none has to."""
    given = "`hard_tokens` or `hard_token_pattern` is set"
    for kind in kinds:
        if not kind.is_token and not can_keep(kind):
            raise ValueError(
                f"{given} with a {kind.name} thought, which feeds an embedding and no mixture of candidates. Its shadow token does not "
                "follow from what was drawn, so a step that is fed as this token would have no likelihood. Leave both unset, or "
                "choose a kind that mixes candidates (gaussian does with `noise_placement: logits` or `probabilities`)."
            )
    if all(kind.is_token for kind in kinds):
        raise ValueError(
            f"{given}, but every step of a {kinds[0].name} thought is a hard token. Leave both unset, or choose another thought."
        )


class HardTokens(Thought):
    """
    A thought with a class of hard tokens.

    Args:
        thought (`Thought`): of a kind that `can_keep` them.
        members (`torch.Tensor` of shape `(V,)`, bool, *optional*):
            The class. `None`: no token. This serves to find the size of an action before there is a tokenizer.

    Action: that of the thought, and `dropped` (N, K) bool, the candidates that are not fed.
    """

    def __init__(self, thought: Thought, members: torch.Tensor | None = None):
        self.thought, self.members = thought, members
        for name in (
            "name", "has_density", "closes_one_hot", "scores_closing", "mixes_vocabulary", "neighbours", "needs_hidden",
            "scores_vocabulary", "draws", "surrogate", "temperature", "top_k",
        ):  # fmt: skip
            setattr(self, name, getattr(thought, name))
        self.fed = (*thought.fed, "dropped")
        self._closes = thought.closes_one_hot and thought.scores_closing
        self._digest = None if members is None else hashlib.sha256(members.cpu().numpy().tobytes()).hexdigest()
        self._on: dict[torch.device, torch.Tensor] = {}

    def bound(self, vocab_size):
        self.thought.bound(vocab_size)
        self.top_k = self.thought.top_k
        return self

    def key(self):
        return "hard tokens", self._digest, self.thought.key(), self.detach_inputs

    def _members(self, ids: torch.Tensor) -> torch.Tensor:
        """Which of some tokens belong to the class."""
        if self.members is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        if ids.device not in self._on:
            members = self.members.pin_memory() if ids.is_cuda else self.members
            self._on[ids.device] = members.to(ids.device, non_blocking=True)
        return self._on[ids.device][ids]

    def sample(self, logits, noise):
        action, token = self.thought.sample(logits, noise)
        hard, ids = self._members(token), action["ids"]
        if self._closes:
            action = self.thought.close(action, hard, token)
        others = ids != token.unsqueeze(-1)
        return {**action, "dropped": others & (self._members(ids) | hard.unsqueeze(-1))}, token

    def close(self, action, closed, token):
        return self.thought.close(action, closed | self._members(token) if self._closes else closed, token)

    def score(self, logits, action):
        return self.thought.score(logits, action)

    def score_draws(self, logits, action):
        return self.thought.score_draws(logits, action)

    def draw_mask(self, action):
        return self.thought.draw_mask(action)

    def embed(self, action, embed):
        return embed.mix(self.weights(action), action["ids"])

    def weights(self, action):
        return self.thought.weights(self.thought.without(action, action["dropped"]))
