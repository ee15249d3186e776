# SPDX-License-Identifier: Apache-2.0
"""
When a thinking step is soft. A *gate* decides it before each step of a thought, around any kind of thought.

A step that the gate makes hard is an ordinary token: it is drawn, fed and scored like a token of the answer, and the record's
`thinking_mask` is False there. So the update reads the decision from the record and never takes it again. A rule is one function
of a [`GateStep`]. A rule of your own:

    @register_gate
    class Alternate(Gate):
        name = "alternate"

        def soft(self, step):
            return step.position % 2 == 0

Letters: N thinking steps, V vocabulary.
"""

import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from .noise import KeyedNoise
from .ranges import COUNT, RANGES, Range
from .thoughts.option import Option
from .thoughts.paper import Paper
from .vocabulary.dense_logits import DenseLogits, entropy_of, tempered


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
        is_first (`torch.Tensor` of shape `(N,)`, bool): whether no step of the thought came before.
        was_soft (`torch.Tensor` of shape `(N,)`, bool): whether the step before was soft. False at the first step.
        dwell (`torch.Tensor` of shape `(N,)`, int64): number of steps since the kind last changed. 0 at the first step.
        reference (`torch.Tensor` of shape `(N,)`, float64):
            The entropy at the step that began the present run, in nats. It is kept only if the rule reads `entropy`.
    """

    def __init__(self, logits: DenseLogits, noise: KeyedNoise, temperature: float, run, reference):
        self.logits, self.noise, self.temperature = logits, noise, temperature
        self.is_first, self.was_soft, self.dwell, self.reference = (
            run == 0,
            run > 0,
            run.abs(),
            reference.view(torch.float64),
        )

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
        """`run` and `reference` of the next step, (N,) int64, after a decision `soft` (N,) bool."""
        changes = self.is_first | (soft != self.was_soft)
        ran = torch.where(changes, 1, self.dwell + 1)
        after = {"run": torch.where(soft, ran, -ran)}
        if "entropy" in vars(self):  # the rule has read it
            after["reference"] = torch.where(changes, self.entropy.double(), self.reference).view(torch.int64)
        return after


class Gate:
    """
    Base of all gates. `__init__` takes the values of `options` by name.

    Attributes:
        name (`str`): the value of `thinking_gate`.
        options (`Mapping[str, Option]`): the fields of `ThinkingSettings` that this gate reads. A field without a default must be set.
        has_memory (`bool`): whether the rule reads `is_first`, `was_soft`, `dwell` or `reference`.
        reads_policy (`bool`):
            Whether the decision depends on the model's prediction. If so, the update holds the decisions of the rollout fixed, and its
            gradient leaves out how the weights move them. If not, the likelihood of a gated completion is exact.
        paper (`Paper`, *optional*): where the rule comes from. Model cards cite it.
    """

    name: str
    options: ClassVar[Mapping[str, Option]] = {}
    has_memory = False
    reads_policy = False
    paper: Paper | None = None

    def __init__(self, **values: Any):
        self.values = values

    @classmethod
    def check(cls, values: SimpleNamespace) -> None:
        """Raise a `ValueError` if the values cannot work together."""

    def soft(self, step: GateStep) -> torch.Tensor:
        """Which steps are soft, (N,) bool."""
        raise NotImplementedError

    def key(self) -> tuple:
        """The rule and its values. Gates with one key decide alike."""
        return self.name, *sorted(self.values.items())

    def __eq__(self, other) -> bool:
        return isinstance(other, Gate) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())


GATES: dict[str, type[Gate]] = {}
_fields: dict[str, Option] | None = None  # the fields of `ThinkingSettings`, once it is made


def register_gate(kind: type[Gate]) -> type[Gate]:
    """
    Class decorator: `kind.name` becomes a value of `thinking_gate`.

    Raises:
        ValueError: if another gate has the name, or if one of its options is the field of something else or comes too late to become
            a field of `ThinkingSettings`.
    """
    if kind.name in GATES:
        raise ValueError(f"There is already a gate named {kind.name!r}. Give yours another `name`.")
    known = gate_options()
    for name, option in kind.options.items():
        if known.get(name, option) != option or (name in RANGES and name not in known):
            raise ValueError(f"`{name}` of the gate {kind.name!r} is taken by another field. Rename the option.")
        if _fields is not None and name not in _fields:
            raise ValueError(
                f"The gate {kind.name!r} has the option `{name}`, but `ThinkingSettings` is already made, without a field for it. "
                "Import the file of your gate before the configs of trl_soft."
            )
    RANGES.update({name: option.range for name, option in kind.options.items() if option.range is not None})
    GATES[kind.name] = kind
    return kind


def gate_options() -> dict[str, Option]:
    """The options of all gates, by name."""
    return {name: option for kind in GATES.values() for name, option in kind.options.items()}


def gate_options_for_settings() -> dict[str, Option]:
    """The options for the fields of `ThinkingSettings`. After this call no further option can be added."""
    global _fields
    _fields = gate_options()
    return _fields


_SHARE = Range(0, 1)
_DWELL = Option(
    int,
    1,
    "Steps of one kind in a row before the gate may change it.",
    "entropy, entropy_trend: steps of one kind in a row before the gate may change it (SwiReasoning: 512 hard steps).",
    range=COUNT,
)


@register_gate
class Always(Gate):
    """Every step of a thought is soft."""

    name = "always"

    def soft(self, step):
        return torch.ones_like(step.position, dtype=torch.bool)


@register_gate
class First(Gate):
    """The first L tokens of the completion are soft (LEPO, arXiv 2604.17892: L = 32 and 64)."""

    name = "first"
    options: ClassVar = {
        "gate_length": Option(
            int,
            32,
            "L of the gate first: the first L tokens of the completion are soft.",
            "first: L, the number of soft tokens at the beginning of the completion (LEPO: 32 and 64).",
            range=COUNT,
        )
    }
    paper = Paper(
        "LEPO: Latent Reasoning Policy Optimization for Large Language Models",
        "2604.17892",
        ("Yuyan Zhou", "Jiarui Yu", "Hande Dong", "Zhezheng Hao", "Hong Wang", "Jianqing Zhang", "Qiang Lin"),
    )

    def soft(self, step):
        return step.position < self.values["gate_length"]


@register_gate
class Random(Gate):
    """A step is soft with probability rho, by keyed noise that is independent of everything else (N-GRPO, arXiv 2606.10768)."""

    name = "random"
    options: ClassVar = {
        "gate_probability": Option(
            float,
            0.1,
            "rho of the gate random: the probability that a step is soft.",
            "random: rho, the probability that a step is soft (N-GRPO: 0.1).",
            range=_SHARE,
        )
    }

    paper = Paper(
        "N-GRPO: Embedding-Level Neighbor Mixing for Enhanced Policy Optimization",
        "2606.10768",
        ("Xukun Zhu", "Hang Yu", "Peng Di", "Linchao Zhu"),
    )

    def soft(self, step):
        return step.uniform() < self.values["gate_probability"]


@register_gate
class Entropy(Gate):
    """
    A step is soft where the entropy H of the prediction is on one side of a bound: above it, where the model is unsure (SeLaR, arXiv
    2604.08299), or below it. A kind lasts for at least `gate_dwell` steps.
    """

    name = "entropy"
    options: ClassVar = {
        "gate_entropy": Option(
            float | None,
            None,
            "Bound of the gate entropy, in nats.",
            "entropy: the bound in nats, at `thinking_temperature`. It must be set.",
            range=Range(0, 1e6),
        ),
        "gate_top_k": Option(
            int,
            0,
            "The gate entropy reads the entropy of the k most likely tokens, renormalised. 0: of the whole vocabulary.",
            "entropy: k, to read the entropy of the k most likely tokens, renormalised (SeLaR: 3). 0 reads that of the whole vocabulary.",
            range=Range(0, 2**31 - 1, whole=True),
        ),
        "gate_side": Option(
            str,
            "above",
            "The gate entropy makes steps soft above or below its bound.",
            "entropy: `above` (soft where the model is unsure: SeLaR) or `below`.",
            choices=("above", "below"),
        ),
        "gate_dwell": _DWELL,
    }
    paper = Paper(
        "SeLaR: Selective Latent Reasoning in Large Language Models",
        "2604.08299",
        ("Renyu Fu", "Guibo Luo"),
    )
    has_memory = reads_policy = True

    def soft(self, step):
        bound, k = self.values["gate_entropy"], self.values["gate_top_k"]
        entropy = step.entropy_of_top(k) if k else step.entropy
        wanted = entropy > bound if self.values["gate_side"] == "above" else entropy < bound
        return torch.where(step.is_first | (step.dwell >= self.values["gate_dwell"]), wanted, step.was_soft)


@register_gate
class EntropyTrend(Gate):
    """
    SwiReasoning's rule (arXiv 2510.05069): soft at first; hard as soon as the entropy falls below its value at the last change; soft again
    when it rises above that value, after at least `gate_dwell` hard steps.
    """

    name = "entropy_trend"
    options: ClassVar = {"gate_dwell": _DWELL}
    paper = Paper(
        "SwiReasoning: Switch-Thinking in Latent and Explicit for Pareto-Superior Reasoning LLMs",
        "2510.05069",
        ("Dachuan Shi", "Abedelkadir Asi", "Keying Li", "Xiangchi Yuan", "Leyan Pan", "Wenke Lee", "Wen Xiao"),
    )
    has_memory = reads_policy = True

    def soft(self, step):
        stays = step.entropy >= step.reference
        returns = (step.entropy > step.reference) & (step.dwell >= self.values["gate_dwell"])
        return step.is_first | torch.where(step.was_soft, stays, returns)


@register_gate
class Confidence(Gate):
    """A step is hard where the largest probability is below a bound (ThinkRouter, arXiv 2602.11683)."""

    name = "confidence"
    options: ClassVar = {
        "gate_confidence": Option(
            float | None,
            None,
            "Bound of the gate confidence: a step is hard if the largest probability is below it.",
            "confidence: the bound of the largest probability, at `thinking_temperature`. A step below it is hard. It must be set.",
            range=_SHARE,
        )
    }
    paper = Paper(
        "ThinkRouter: Efficient Reasoning via Routing Thinking between Latent and Discrete Spaces",
        "2602.11683",
        ("Xin Xu", "Tong Yu", "Xiang Chen", "Haoliang Wang", "Julian McAuley", "Saayan Mitra"),
    )
    reads_policy = True

    def soft(self, step):
        return step.top_probability >= self.values["gate_confidence"]
