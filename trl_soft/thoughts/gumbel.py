# SPDX-License-Identifier: Apache-2.0
"""SofT-GRPO (arXiv 2511.06411): Gumbel noise on the candidates' log-probabilities, a Gumbel-softmax mixture fed back.

    p  = softmax(z/T) on the kept candidates (top-k, then top-p on the renormalised top-k)
    g' = log p + s * eps,  eps ~ Gumbel(0, 1)                                       (Eq. 9; s = noise_scale = 1 there)
    y  = softmax(g'/tau_g),   next input = sum_i y_i e_i,   shadow token = argmax g'

The action is g'. Four ways to score it, `gumbel_density`, of which the first two are densities:

    gumbel    log q = sum_i ( -r_i - exp(-r_i) ) - K log s,   r_i = (g'_i - log p_i)/s         (Eq. 12, exact)
    concrete  exact density of y in its K-1 log-odds; a shift of g' does not change it. With a_i = (log p_i - tau_g log y_i)/s
              log q = log (K-1)! + (K-1) log(tau_g/s) + sum_i ( a_i - logsumexp(a) )
              (the ExpConcrete density of Maddison et al., arXiv 1611.00712; torch's ExpRelaxedCategorical)
    softgrpo  the score of the released code. It is no density: the mean over the entries with log p > -3 of
              -r_i - exp(-r_i), r_i = clamp(g'_i - log(p_i + 1e-6), -1.5, 3).
              Its noise is clamped to [-1.5, 3] as well, in evaluation too

    soft_label
              LEPO's surrogate (arXiv 2604.17892), the cross-entropy with the mixture as a soft label: sum_i y_i log p_i, y as drawn.
              It is **not a density** and has no ratio: the update is the advantage times its gradient

In `softgrpo` all K candidates enter the mixture. Those that top-p cut have log 1e-6: weights below 1e-5 for tau_g up to 0.5.
In the released code the place of a cut candidate holds an arbitrary id (its probability is set to 0 before `torch.topk`), and
the score renormalises p over the K stored ids. Here a cut candidate keeps its id, only for the mixture, and p is renormalised
over the candidates that top-p kept. This is the released score with probability 0 at the arbitrary ids. A step with one kept
candidate has no gradient, as in the released code.

When the shadow token ends the thinking, the step becomes the one-hot of that token and g' is discarded. The event
{argmax g' = i} has probability softmax(log p / s)_i (Gumbel-max; p_i at s = 1). So `gumbel` and `concrete` score the closing
step by its logarithm, on the same support. Together this is a proper mixed density. `softgrpo` scores the closing step as an
ordinary token, as in the released code. In `soft_label` the label of the closing step is one-hot: log p of its token, on the support.
"""

import math
from typing import ClassVar

import torch

from .. import kernels
from ..ranges import POSITIVE
from .candidates import candidates, on_support, renormalised
from .option import NOISE_SCALE, Option, truncation
from .paper import Paper
from .protocol import Thought
from .registry import register
from .tolerance import Tolerance


DENSITIES = ("gumbel", "concrete", "softgrpo")  # in the order of the kernels
SOFT_LABEL = "soft_label"
_SURROGATES = {
    "softgrpo": "`gumbel_density: softgrpo` is no log-density: it is a mean of clamped residuals over the likely candidates",
    SOFT_LABEL: "`gumbel_density: soft_label` is no log-density: it is a cross-entropy with the mixture as a soft label",
}
_CLAMP = (-1.5, 3.0)
_EDGE = 1e-4
_EPSILON = 1e-6
_LOG_P_FLOOR = -3.0


@register
class Gumbel(Thought):
    """
    Args:
        temperature, top_k (K), top_p, min_p: see `candidates`.
        gumbel_temperature (`float`): tau_g. Towards 0 the mixture becomes one-hot.
        noise_scale (`float`): s. 0 means no draw (soft greedy) and no density.
        density (`str`): one of `gumbel`, `concrete`, `softgrpo`, `soft_label`.

    Action: `ids` (N, K), `perturbed` = g' (N, K) with -inf if a candidate is not part of the mixture, `kept` (N, K)
    bool, the support of the score, `closed` (N,) bool.
    """

    name = "gumbel"
    fed = ("ids", "perturbed")
    options: ClassVar = {
        "gumbel_temperature": Option(
            float,
            0.1,
            "tau_g: temperature of the Gumbel-softmax mixture, above 0.",
            "tau_g of gumbel: towards 0 the mixture is one-hot. The ratio does not depend on it.",
            range=POSITIVE,
        ),
        "gumbel_density": Option(
            str,
            "gumbel",
            "How a gumbel thought is scored: gumbel, concrete, or softgrpo and soft_label (no densities).",
            "`gumbel` (the paper's sum), `concrete` (exact density of the mixture), or for comparison `softgrpo` (the released code, "
            "which also clamps the noise to [-1.5, 3], in evaluation too) and `soft_label` (LEPO's cross-entropy).",
            choices=(*DENSITIES, SOFT_LABEL),
        ),
        "noise_scale": NOISE_SCALE,
    }
    # Of SofT-GRPO's scripts.
    defaults: ClassVar = {
        "thinking_temperature": 1.0,
        "thinking_top_k": 5,
        "thinking_top_p": 0.95,
        "thinking_min_p": 0.0,
        "noise_scale": 1.0,
    }
    paper = Paper(
        "SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via Gumbel-Reparameterized Soft-Thinking Policy "
        "Optimization",
        "2511.06411",
        ("Zhi Zheng", "Yu Gu", "Wei Liu", "Yee Whye Teh", "Wee Sun Lee"),
    )
    equation = (
        "p = softmax(z/T) on the kept candidates,   g' = log p + s * eps,   eps ~ Gumbel(0, 1)\n"
        "y = softmax(g'/tau_g),   next input = sum_i y_i e_i"
    )
    can_be_greedy = True
    tolerances: ClassVar = {
        "gumbel": Tolerance(1e-3, 0.2, size=5, power=1),
        "gumbel-concrete": Tolerance(1e-3, 0.1, size=5, power=1),
        "gumbel-softgrpo": Tolerance(1e-3, 0.06, power=1),  # a mean over candidates
        "gumbel-soft_label": Tolerance(1e-3, 0.06),  # a weighted mean of log p
    }

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 5,
        top_p: float = 0.95,
        min_p: float = 0.0,
        gumbel_temperature: float = 0.1,
        noise_scale: float = 1.0,
        density: str = "gumbel",
    ):
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.gumbel_temperature, self.noise_scale, self.density = gumbel_temperature, noise_scale, density
        self.has_density = noise_scale > 0
        self.scores_closing = density != "softgrpo"
        self.surrogate = _SURROGATES.get(density)

    @classmethod
    def no_ratio(cls, settings):
        return _SURROGATES[SOFT_LABEL] if settings.gumbel_density == SOFT_LABEL else None

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        scale = 0.0 if greedy else values.noise_scale
        return cls(*truncation(values), values.gumbel_temperature, scale, values.gumbel_density)

    @classmethod
    def label(cls, values):
        return cls.name if values.gumbel_density == "gumbel" else f"{cls.name}-{values.gumbel_density}"

    def sample(self, logits, noise):
        ids, log_p = candidates(logits, self.temperature, self.top_k, self.top_p, self.min_p)
        if kernels.fused(ids.device):
            from ..kernels import gumbel_thought

            softgrpo = self.density == "softgrpo"
            perturbed, kept, closed, token = gumbel_thought.sample(
                noise, ids, log_p, self.noise_scale, softgrpo, LOW=_CLAMP[0], HIGH=_CLAMP[1], EPSILON=_EPSILON
            )
            return {"ids": ids, "perturbed": perturbed, "kept": kept, "closed": closed}, token
        closed = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        eps, kept = noise.gumbel(ids), ~log_p.isneginf()
        if self.density == "softgrpo":
            # All K candidates enter. Those that top-p cut have log 1e-6.
            eps, log_p = eps.clamp(*_CLAMP), torch.log(log_p.exp() + _EPSILON)
        perturbed = log_p + self.noise_scale * eps
        token = ids.gather(-1, perturbed.argmax(-1, keepdim=True)).squeeze(-1)
        return {"ids": ids, "perturbed": perturbed, "kept": kept, "closed": closed}, token

    def close(self, action, closed, token):
        if kernels.fused(token.device):
            from ..kernels import gumbel_thought

            return {**action, "perturbed": gumbel_thought.close(action, closed, token), "closed": closed}
        others = closed.unsqueeze(-1) & (action["ids"] != token.unsqueeze(-1))
        return {**action, "perturbed": action["perturbed"].masked_fill(others, -torch.inf), "closed": closed}

    def log_p(self, logits, action):
        """log p on the support of the draw, (N, K), -inf off it."""
        return renormalised(logits.at(action["ids"]), action["kept"], self.temperature)

    def score(self, logits, action):
        if logits.fused and self.has_density and self.density in DENSITIES:
            from ..kernels import gumbel_thought

            constants = {"LOW": _CLAMP[0], "HIGH": _CLAMP[1], "EPSILON": _EPSILON, "EDGE": _EDGE}
            density = DENSITIES.index(self.density)
            return gumbel_thought.score(self, density, logits.logits, action, LOG_P_FLOOR=_LOG_P_FLOOR, **constants)
        log_p, entropy = on_support(logits, action["ids"], action["kept"], self.temperature)
        return self._log_prob(log_p, action), entropy

    def _log_prob(self, log_p, action):
        if not self.has_density:
            return log_p.new_zeros(len(log_p))  # a point mass
        if self.density == SOFT_LABEL:
            return (self.weights(action) * log_p.masked_fill(~action["kept"], 0.0)).sum(-1)
        kept, closed, perturbed = action["kept"], action["closed"].unsqueeze(-1), action["perturbed"]
        # Closed rows have no g'. A finite number in its place keeps infinities out of the gradient of `where`.
        alive = kept & ~closed
        safe_log_p, safe_g = log_p.masked_fill(~kept, 0.0), perturbed.masked_fill(~alive, 0.0)
        density = {"gumbel": self._gumbel, "concrete": self._concrete, "softgrpo": self._softgrpo}[self.density]
        # P(argmax_i (log p_i + s eps_i) = a) = softmax(log p / s)_a, the Gumbel-max identity.
        discrete = torch.log_softmax(log_p / self.noise_scale, dim=-1)
        token = closed & ~perturbed.isneginf()
        discrete = discrete.masked_fill(~token, 0.0).sum(-1)
        return torch.where(closed.squeeze(-1), discrete, density(safe_log_p, safe_g, alive))

    def _gumbel(self, log_p, perturbed, kept):
        r = (perturbed - log_p) / self.noise_scale
        return ((-r - torch.exp(-r) - math.log(self.noise_scale)) * kept).sum(-1)

    def _concrete(self, log_p, perturbed, kept):
        # tau log y = g' - tau logsumexp(g'/tau), over the kept candidates only.
        scaled = (perturbed / self.gumbel_temperature).masked_fill(~kept, -torch.inf)
        scaled = torch.where(kept.any(-1, keepdim=True), scaled, 0.0)
        tau_log_y = self.gumbel_temperature * (scaled - torch.logsumexp(scaled, -1, keepdim=True))
        a = ((log_p - tau_log_y.masked_fill(~kept, 0.0)) / self.noise_scale).masked_fill(~kept, -torch.inf)
        a = torch.where(kept.any(-1, keepdim=True), a, 0.0)
        size = kept.sum(-1).to(log_p.dtype)
        relative = (a - torch.logsumexp(a, -1, keepdim=True)).masked_fill(~kept, 0.0).sum(-1)
        return torch.lgamma(size) + (size - 1) * math.log(self.gumbel_temperature / self.noise_scale) + relative

    def _softgrpo(self, log_p, perturbed, kept):
        log_p = torch.log(log_p.exp() + _EPSILON)
        r = perturbed - log_p
        # Clamped noise lies exactly on an edge, where rounding would decide whether a gradient passes. Here none passes.
        low, high = r <= _CLAMP[0] + _EDGE, r >= _CLAMP[1] - _EDGE
        r = r.masked_fill(low, _CLAMP[0]).masked_fill(high, _CLAMP[1])
        mask = (log_p > _LOG_P_FLOOR) & kept
        return ((-r - torch.exp(-r)) * mask).sum(-1) / mask.sum(-1).clamp(min=1)

    def embed(self, action, embed):
        return embed.mix(self.weights(action), action["ids"])

    def without(self, action, dropped):
        return {**action, "perturbed": action["perturbed"].masked_fill(dropped, -torch.inf)}

    def weights(self, action):
        g = action["perturbed"]
        if kernels.fused(g.device) and g.dim() == 2 and g.dtype == torch.float32:
            from ..kernels import gumbel_thought

            return gumbel_thought.weights(g, self.gumbel_temperature)
        return torch.softmax(action["perturbed"] / self.gumbel_temperature, dim=-1)
