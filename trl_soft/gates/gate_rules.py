# SPDX-License-Identifier: Apache-2.0
"""The rules of the papers. Each is one class of a few lines."""

import math
from typing import ClassVar

import torch

from ..ranges import COUNT, Range
from ..thoughts.option import Option
from ..thoughts.paper import Paper
from .gate import Gate
from .gate_registry import register_gate


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


def _check_bound(bound: float, tokens: int, side: str) -> None:
    if bound >= math.log(tokens):
        kind = "hard" if side == "above" else "soft"
        raise ValueError(
            f"`gate_entropy` is {bound:g}, but the entropy of {tokens} tokens is at most log {tokens} = {math.log(tokens):.3g}, so "
            f"every step would be {kind}. Set a smaller bound."
        )


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
    reads_policy = True

    @classmethod
    def check(cls, values):
        if values.gate_top_k:
            _check_bound(values.gate_entropy, values.gate_top_k, values.gate_side)

    def check_vocabulary(self, vocab_size):
        if not self.values["gate_top_k"]:
            _check_bound(self.values["gate_entropy"], vocab_size, self.values["gate_side"])

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
    reads_policy = True

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
