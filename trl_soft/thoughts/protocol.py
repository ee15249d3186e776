# SPDX-License-Identifier: Apache-2.0
"""The protocol of a thought: one object samples, scores and embeds, over N flat positions, and its class says what is set for it.

A thought knows no batch, no time and no model. It sees next-token logits (`trl_soft.vocabulary.head_logits`) and keyed noise
(`trl_soft.noise`), and it returns its *action*: a dict of tensors with N rows, all that is needed to feed the same
thought again and to score it under other weights.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from ..noise import KeyedNoise
from ..vocabulary.embedding_table import Lookup
from .option import TRUNCATION, Option
from .tolerance import Tolerance


Action = Mapping[str, torch.Tensor]


class Thought:
    """
    Base of all thoughts. Letters: N positions, K candidates, H hidden size, V vocabulary.

    What it is:

    Attributes:
        name (`str`): the value of `thought` in a config.
        has_density (`bool`): whether `score` can train a policy. A deterministic thought has none.
        is_token (`bool`): whether the thought *is* its token, so that the model is fed and scored as without us.
        closes_one_hot (`bool`): whether the step that ends the thinking becomes the one-hot of its token (SofT-GRPO,
            Soft Thinking) or stays a thought like any other (2509.19170).
        scores_closing (`bool`): whether the closing one-hot is scored by `score` or as an ordinary answer token.
        mixes_vocabulary (`bool`): whether it asks the logits for a `mixture` of the whole embedding table.
        needs_hidden (`bool`): whether it asks the logits for the `hidden` state they were made from.
        scores_vocabulary (`bool`): whether its score reads the logits of all V tokens, not those of its candidates alone.
        detach_inputs (`bool`): whether what it feeds passes no gradient to the embedding table.
        fed (`tuple` of `str`): the tensors of the action that `embed` reads.
        draws (`int`): D, the ratios a position has in the loss; above 1 only for thoughts of independent draws.
        temperature (`float`): T, 0 where a hard thought is greedy.
        top_k (`int`): K, the number of candidates; 0 is the whole vocabulary.

    What is set for it, of the class alone:

    Attributes:
        options (`Mapping[str, Option]`): the fields of `ThinkingSettings` that only some kinds read, this one among them.
        truncations (`tuple` of `str`): those of `TRUNCATION` that it reads. One of the others is refused if it is set.
        untruncated (`str`): why it does not read the others; goes on after "a ... thought".
        defaults (`Mapping[str, Any]`): what `None` means for a field of `TRUNCATION` or an option. Such a field is the trained
            thought's: evaluated beside another kind, a thought has these.
        can_be_greedy (`bool`): whether `build` can leave out the noise, as `eval_greedy` asks.
        several_ratios (`tuple` of three `str`, *optional*): the option by which a position gets several ratios, the value of
            it that does so, and the value for a single ratio.
        exact_weights (`str`, *optional*): why a rollout must not run on weights of less precision, in a clause.
        tolerances (`Mapping[str, Tolerance]`): by what `label` returns.
    """

    name: str
    has_density = True
    is_token = False
    closes_one_hot = True
    scores_closing = True
    mixes_vocabulary = False
    needs_hidden = False
    scores_vocabulary = False
    detach_inputs = False
    fed: tuple[str, ...] = ("ids", "weights")
    draws = 1
    temperature: float = 1.0
    top_k: int = 0

    options: ClassVar[Mapping[str, Option]] = {}
    truncations: tuple[str, ...] = TRUNCATION
    untruncated = "does not read it"
    defaults: ClassVar[Mapping[str, Any]] = {}
    can_be_greedy = False
    several_ratios: tuple[str, str, str] | None = None
    exact_weights: str | None = None
    tolerances: ClassVar[Mapping[str, Tolerance]] = {}

    @classmethod
    def variant(cls, settings) -> type["Thought"]:
        """The class that serves these settings, where several classes are one kind. Called before `settings` are checked."""
        return cls

    @classmethod
    def check(cls, settings) -> None:
        """Raise a `ValueError` where options contradict each other. Called when the ranges are checked."""

    @classmethod
    def check_training(cls, args) -> None:
        """Raise a `ValueError` where this config cannot train such a thought."""

    @classmethod
    def build(cls, values: SimpleNamespace, answer, table_rms: float | None, greedy: bool) -> "Thought":
        """
        A thought of these settings.

        Args:
            values: the fields of `TRUNCATION` and `options`, as attributes; what is unset has its default.
            answer (`Hard`): how answers are sampled.
            table_rms (`float`, *optional*): per-element RMS of the embedding table.
            greedy (`bool`): without noise; only where the class `can_be_greedy`.
        """
        raise NotImplementedError

    @classmethod
    def label(cls, values: SimpleNamespace) -> str:
        """Which of `tolerances` holds for these values."""
        return cls.name

    @classmethod
    def terms(cls, values: SimpleNamespace, hidden_size: int) -> int:
        """How many terms the density has, each of which rounds."""
        return values.thinking_top_k

    def bound(self, vocab_size: int) -> "Thought":
        """This thought, with no more candidates than there are tokens."""
        if self.top_k > vocab_size:
            self.top_k = vocab_size
        return self

    def key(self) -> tuple:
        """What it was made of. Thoughts of one key draw, score and feed alike, and may be drawn in one call."""
        return type(self).__name__, *sorted(vars(self).items())

    def sample(self, logits, noise: KeyedNoise) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Draw: the action, and the shadow token of each row (N,) int64."""
        raise NotImplementedError

    def close(self, action: Action, closed: torch.Tensor, token: torch.Tensor) -> dict[str, torch.Tensor]:
        """The action with the rows in `closed` (N,) bool turned into the one-hot of their `token` (N,)."""
        raise NotImplementedError

    def score(self, logits, action: Action) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Under these logits: log-density of the action, (N,) float32, differentiable in the logits, and the entropy in nats of the
        token distribution the thought was made from, (N,) float32.
        """
        raise NotImplementedError

    def log_prob(self, logits, action: Action) -> torch.Tensor:
        """The first part of `score`."""
        return self.score(logits, action)[0]

    def entropy(self, logits, action: Action) -> torch.Tensor:
        """The second part of `score`."""
        return self.score(logits, action)[1]

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
