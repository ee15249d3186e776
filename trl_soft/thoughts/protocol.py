# SPDX-License-Identifier: Apache-2.0
"""The protocol of a thought: one object samples, scores and embeds, over N flat positions.

A thought knows no batch, no time and no model. It sees next-token logits (`trl_soft.vocabulary.head_logits`) and keyed noise
(`trl_soft.noise`), and it returns its *action*: a dict of tensors with N rows, all that is needed to feed the same
thought again and to score it under other weights.
"""

from collections.abc import Mapping

import torch

from ..noise import KeyedNoise
from ..vocabulary.embedding_table import Lookup


Action = Mapping[str, torch.Tensor]


class Thought:
    """
    Base of all thoughts. Letters: N positions, K candidates, H hidden size, V vocabulary.

    Attributes:
        name (`str`): the value of `thought` in a config.
        has_density (`bool`): whether `log_prob` can train a policy. A deterministic thought has none.
        is_token (`bool`): whether the thought *is* its token, so that the model is fed and scored as without us.
        closes_one_hot (`bool`): whether the step that ends the thinking becomes the one-hot of its token (SofT-GRPO,
            Soft Thinking) or stays a thought like any other (2509.19170).
        scores_closing (`bool`): whether the closing one-hot is scored by `log_prob` or as an ordinary answer token.
        mixes_vocabulary (`bool`): whether it asks the logits for a `mixture` of the whole embedding table.
        needs_hidden (`bool`): whether it asks the logits for the `hidden` state they were made from.
        detach_inputs (`bool`): whether what it feeds passes no gradient to the embedding table.
        fed (`tuple` of `str`): the tensors of the action that `embed` reads.
        draws (`int`): D, the ratios a position has in the loss; above 1 only for thoughts of independent draws.
    """

    name: str
    has_density = True
    is_token = False
    closes_one_hot = True
    scores_closing = True
    mixes_vocabulary = False
    needs_hidden = False
    detach_inputs = False
    fed: tuple[str, ...] = ("ids", "weights")
    draws = 1

    def key(self) -> tuple:
        """What it was made of. Thoughts of one key draw, score and feed alike, and may be drawn in one call."""
        return type(self).__name__, *sorted(vars(self).items())

    def sample(self, logits, noise: KeyedNoise) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Draw: the action, and the shadow token of each row (N,) int64."""
        raise NotImplementedError

    def close(self, action: Action, closed: torch.Tensor, token: torch.Tensor) -> dict[str, torch.Tensor]:
        """The action with the rows in `closed` (N,) bool turned into the one-hot of their `token` (N,)."""
        raise NotImplementedError

    def log_prob(self, logits, action: Action) -> torch.Tensor:
        """Log-density of the action under these logits, (N,) float32, differentiable in the logits."""
        raise NotImplementedError

    def entropy(self, logits, action: Action) -> torch.Tensor:
        """Entropy in nats of the token distribution the thought was made from, (N,) float32."""
        raise NotImplementedError

    def score(self, logits, action: Action) -> tuple[torch.Tensor, torch.Tensor]:
        """`(log_prob, entropy)`, for thoughts that can share the work."""
        return self.log_prob(logits, action), self.entropy(logits, action)

    def score_draws(self, logits, action: Action) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N, D) of each draw, zero where there was none, and the entropy (N,). They sum to `log_prob`."""
        log_prob, entropy = self.score(logits, action)
        return log_prob.unsqueeze(-1), entropy

    def draw_mask(self, action: Action) -> torch.Tensor:
        """Where there was a draw, (N, D) bool."""
        return torch.ones(
            len(next(iter(action.values()))), 1, dtype=torch.bool, device=next(iter(action.values())).device
        )

    def embed(self, action: Action, embed: Lookup) -> torch.Tensor:
        """What is fed back, (N, H); `embed` looks up or mixes rows of the model's own table."""
        raise NotImplementedError

    def weights(self, action: Action) -> torch.Tensor | None:
        """Mixture weights (N, K), or `None` where the action does not hold them."""
        return None
