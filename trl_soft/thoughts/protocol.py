# SPDX-License-Identifier: Apache-2.0
"""The protocol of a thought: one object samples, scores and embeds N flat positions. Its class declares its settings.

A thought does not depend on batch, time or model. It reads next-token logits (`trl_soft.vocabulary.head_logits`) and keyed noise
(`trl_soft.noise`). It returns its *action*: a dict of tensors with N rows, which is enough to feed the same thought again and to
score it under other weights.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from ..noise import KeyedNoise
from ..vocabulary.embedding_table import Lookup
from .option import TRUNCATION, Option
from .paper import Paper
from .tolerance import Tolerance


Action = Mapping[str, torch.Tensor]


class Thought:
    """
    Base of all thoughts. Letters: N positions, K candidates, H hidden size, V vocabulary.

    Attributes of the thought:

    Attributes:
        name (`str`): the value of `thought` in a config.
        has_density (`bool`): whether `score` can train a policy. A deterministic thought has none.
        is_token (`bool`): whether the thought *is* its token, so that the model is fed and scored as in TRL.
        closes_one_hot (`bool`): whether the step that ends the thinking becomes the one-hot of its token (SofT-GRPO,
            Soft Thinking) or stays an ordinary thought (2509.19170).
        scores_closing (`bool`): whether the closing one-hot is scored by `score` or as an ordinary answer token.
        mixes_vocabulary (`bool`): whether it asks the logits for a `mixture` of the whole embedding table.
        neighbours (`int`): k, the number of nearest tokens that it asks the logits for (`neighbours`), with the token itself.
            0 means none.
        needs_hidden (`bool`): whether it asks the logits for the `hidden` state they were made from.
        scores_vocabulary (`bool`): whether its score reads the logits of all V tokens, not only those of its candidates.
        detach_inputs (`bool`): whether its embedding passes no gradient to the embedding table.
        surrogate (`str`, *optional*): what the score is where it is no log-density, as a sentence without its stop. A trainer says it once.
        fed (`tuple` of `str`): the tensors of the action that `embed` reads.
        draws (`int`): D, the number of ratios of a position in the loss. Above 1 only for thoughts of independent draws.
        temperature (`float`): T. 0 for a greedy hard thought.
        top_k (`int`): K, the number of candidates. 0 means the whole vocabulary.

    Attributes of the class, about its settings:

    Attributes:
        options (`Mapping[str, Option]`): fields of `ThinkingSettings` that this kind reads and not every kind does.
        truncations (`tuple` of `str`): the fields of `TRUNCATION` that it reads. To set one of the others is an error.
        untruncated (`str`): why it does not read the others. It continues a sentence after "a ... thought".
        defaults (`Mapping[str, Any]`): what `None` means for a field of `TRUNCATION` or an option. The fields belong to the
            trained thought. If `eval_thought` is another kind, that kind has these defaults.
        can_be_greedy (`bool`): whether `build` can leave out the noise, for `eval_greedy`.
        several_ratios (`tuple` of three `str`, *optional*): the option that gives a position several ratios, its value for
            several ratios, and its value for a single ratio.
        exact_weights (`str`, *optional*): why a rollout must not run on weights of less precision, as a clause.
        tolerances (`Mapping[str, Tolerance]`): by the result of `label`.
        paper (`Paper`, *optional*): where the kind comes from. Model cards cite it.
        equation (`str`): what is drawn and fed back, in one or two lines, for model cards.
    """

    name: str
    has_density = True
    is_token = False
    closes_one_hot = True
    scores_closing = True
    mixes_vocabulary = False
    neighbours = 0
    needs_hidden = False
    scores_vocabulary = False
    detach_inputs = False
    surrogate: str | None = None
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
    paper: Paper | None = None
    equation = ""

    @classmethod
    def variant(cls, settings) -> type["Thought"]:
        """The class for these settings, if one kind has several classes. Called before `settings` are checked."""
        return cls

    @classmethod
    def check(cls, settings) -> None:
        """Raise a `ValueError` if options contradict each other. Called when the ranges are checked."""

    @classmethod
    def check_training(cls, args) -> None:
        """Raise a `ValueError` if this config cannot train such a thought."""

    @classmethod
    def no_ratio(cls, settings) -> str | None:
        """Why the scores of two policies must not be compared by a ratio, as a clause. `None` if they can."""
        return None

    @classmethod
    def build(cls, values: SimpleNamespace, answer, table_rms: float | None, greedy: bool) -> "Thought":
        """
        Make a thought from settings.

        Args:
            values: the fields of `TRUNCATION` and `options`, as attributes. Unset fields have their defaults.
            answer (`Hard`): how answers are sampled.
            table_rms (`float`, *optional*): per-element RMS of the embedding table.
            greedy (`bool`): without noise. Only if the class `can_be_greedy`.
        """
        raise NotImplementedError

    @classmethod
    def label(cls, values: SimpleNamespace) -> str:
        """The key of `tolerances` for these values."""
        return cls.name

    @classmethod
    def terms(cls, values: SimpleNamespace, hidden_size: int) -> int:
        """The number of terms of the density. Each term rounds."""
        return values.thinking_top_k

    def bound(self, vocab_size: int) -> "Thought":
        """This thought, with at most as many candidates as the vocabulary has tokens."""
        if self.top_k > vocab_size:
            self.top_k = vocab_size
        return self

    def key(self) -> tuple:
        """The settings of this object. Thoughts with one key draw, score and feed alike, and one call may draw them."""
        return type(self).__name__, *sorted(vars(self).items())

    def sample(self, logits, noise: KeyedNoise) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Draw. Returns the action, and the shadow token of each row (N,) int64."""
        raise NotImplementedError

    def close(self, action: Action, closed: torch.Tensor, token: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        The action with the rows in `closed` (N,) bool turned into the one-hot of their `token` (N,). A second call may name
        further rows, with those of the first.
        """
        raise NotImplementedError

    def score(self, logits, action: Action) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Score the action under these logits.

        Returns:
            The log-density of the action, (N,) float32, differentiable in the logits; and the entropy in nats of the token
            distribution that the thought is made from, (N,) float32.
        """
        raise NotImplementedError

    def log_prob(self, logits, action: Action) -> torch.Tensor:
        """The first part of `score`."""
        return self.score(logits, action)[0]

    def entropy(self, logits, action: Action) -> torch.Tensor:
        """The second part of `score`."""
        return self.score(logits, action)[1]

    def score_draws(self, logits, action: Action) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N, D) of each draw, zero without a draw, and the entropy (N,). The first sum to `log_prob`."""
        log_prob, entropy = self.score(logits, action)
        return log_prob.unsqueeze(-1), entropy

    def draw_mask(self, action: Action) -> torch.Tensor:
        """True where there was a draw, (N, D) bool."""
        return torch.ones(
            len(next(iter(action.values()))), 1, dtype=torch.bool, device=next(iter(action.values())).device
        )

    def embed(self, action: Action, embed: Lookup) -> torch.Tensor:
        """The embedding to feed back, (N, H). `embed` looks up or mixes rows of the model's table."""
        raise NotImplementedError

    def without(self, action: Action, dropped: torch.Tensor) -> Action:
        """The action to feed if some candidates are not fed, `dropped` (N, K) bool: the weights of the others sum to 1."""
        weights = action["weights"].masked_fill(dropped, 0.0)
        return {
            **action,
            "weights": weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny),
        }

    def weights(self, action: Action) -> torch.Tensor | None:
        """Mixture weights (N, K), or `None` if the action does not hold them."""
        return None
