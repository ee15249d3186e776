# SPDX-License-Identifier: Apache-2.0
"""The protocol of a gate: a rule over what it may read of N thinking steps. Letters: N steps, V vocabulary."""

import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from ..noise import KeyedNoise
from ..thoughts.option import Option
from ..thoughts.paper import Paper
from ..vocabulary.dense_logits import DenseLogits, entropy_of, tempered


class GateStep:
    """
    What a gate may read: N steps of thoughts before their draw.

    Args:
        logits (`DenseLogits`, N rows): the model's prediction.
        noise (`KeyedNoise`, N rows): of the step.
        temperature (`float`): T of the thought.
        run (`torch.Tensor` of shape `(N,)`, int64): steps in a row of one kind before this step: above 0 soft, below 0 hard, 0 none.
        reference (`torch.Tensor` of shape `(N,)`, int64): the bits of `reference`, which an engine keeps among whole numbers.

    Attributes:
        remembers (`bool`): whether the rule has read one of the following, which an engine then keeps from step to step.
        is_first (`torch.Tensor` of shape `(N,)`, bool): whether no step of the thought came before.
        was_soft (`torch.Tensor` of shape `(N,)`, bool): whether the step before was soft. False at the first step.
        dwell (`torch.Tensor` of shape `(N,)`, int64): number of steps since the kind last changed. 0 at the first step.
        reference (`torch.Tensor` of shape `(N,)`, float64):
            `entropy` at the step that began the present run. 0 at the first step.
    """

    def __init__(self, logits: DenseLogits, noise: KeyedNoise, temperature: float, run, reference):
        self.logits, self.noise, self.temperature = logits, noise, temperature
        self._run, self._reference = run, reference
        self.remembers = False

    @property
    def _memory(self) -> torch.Tensor:
        self.remembers = True
        return self._run

    @property
    def is_first(self) -> torch.Tensor:
        return self._memory == 0

    @property
    def was_soft(self) -> torch.Tensor:
        return self._memory > 0

    @property
    def dwell(self) -> torch.Tensor:
        return self._memory.abs()

    @functools.cached_property
    def reference(self) -> torch.Tensor:
        return self._reference.view(torch.float64)

    @property
    def position(self) -> torch.Tensor:
        """Tokens of the completion before this step, (N,) int64."""
        return self.noise.position

    def uniform(self) -> torch.Tensor:
        """Noise in (0, 1) for gates alone, keyed like every draw: (N,) float64."""
        return self.noise.gate()

    @functools.cached_property
    def entropy(self) -> torch.Tensor:
        """Entropy of softmax(z/T) over the vocabulary in nats, (N,) float32."""
        return self.logits.entropy(self.temperature)

    def entropy_of_top(self, k: int) -> torch.Tensor:
        """Entropy of softmax(z/T) on the k most likely tokens, renormalised, in nats: (N,) float32, at most log k."""
        values, _ = self.logits.topk(min(k, self.logits.logits.size(-1)))
        return entropy_of(torch.log_softmax(tempered(values, self.temperature), dim=-1))

    @functools.cached_property
    def top_probability(self) -> torch.Tensor:
        """The largest probability of softmax(z/T), (N,) float32."""
        most_likely = self.logits.argmax().unsqueeze(-1)
        return self.logits.log_prob(most_likely, self.temperature)[0].squeeze(-1).exp()

    def memory(self, soft: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        What the rule needs of `run` and `reference` at the next step, (N,) int64, after a decision `soft` (N,) bool. A rule that
        has read neither needs nothing.
        """
        compares = "reference" in vars(self)  # the rule has read it
        if not (self.remembers or compares):
            return {}
        changes = self.is_first | (soft != self.was_soft)
        ran = torch.where(changes, 1, self.dwell + 1)
        after = {"run": torch.where(soft, ran, -ran)}
        if compares:
            after["reference"] = torch.where(changes, self.entropy.double(), self.reference).view(torch.int64)
        return after


class Gate:
    """
    Base of all gates. `__init__` takes the values of `options` by name.

    Attributes:
        name (`str`): the value of `thinking_gate`.
        options (`Mapping[str, Option]`): the fields of `ThinkingSettings` that this gate reads. A field without a default must be set.
        reads_policy (`bool`):
            Whether the decision depends on the model's prediction. If so, the update holds the decisions of the rollout fixed, and its
            gradient leaves out how the weights move them. If not, the likelihood of a gated completion is exact. Model cards say
            which.
        paper (`Paper`, *optional*): where the rule comes from. Model cards cite it.
    """

    name: str
    options: ClassVar[Mapping[str, Option]] = {}
    reads_policy = False
    paper: Paper | None = None

    def __init__(self, **values: Any):
        self.values = values

    @classmethod
    def check(cls, values: SimpleNamespace) -> None:
        """Raise a `ValueError` if the values cannot work together."""

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise a `ValueError` if the rule decides the same for every step of a model with so many tokens."""

    def soft(self, step: GateStep) -> torch.Tensor:
        """Which steps are soft, (N,) bool."""
        raise NotImplementedError

    def decide(self, step: GateStep) -> torch.Tensor:
        """`soft`, with a sentence for a rule that does not return a decision for each step."""
        soft = self.soft(step)
        if not isinstance(soft, torch.Tensor) or soft.dtype != torch.bool or soft.shape != step.position.shape:
            found = (
                f"{soft.dtype} of shape {tuple(soft.shape)}" if isinstance(soft, torch.Tensor) else type(soft).__name__
            )
            raise TypeError(
                f"`soft` of the gate {self.name!r} returned {found}, but it decides about {len(step.position)} steps. Return a "
                f"bool tensor of shape ({len(step.position)},)."
            )
        return soft

    def key(self) -> tuple:
        """The rule and its values. Gates with one key decide alike."""
        return self.name, *sorted(self.values.items())

    def __eq__(self, other) -> bool:
        return isinstance(other, Gate) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())
