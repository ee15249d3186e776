# SPDX-License-Identifier: Apache-2.0
"""Soft Tokens, Hard Truths (arXiv 2509.19170): a mixture with Gaussian noise on the embedding, or (ablations) before it.

    h  = sum_v softmax(z/T)_v e_v                                    (Eq. 5)
    h~ = h + sigma * N(0, I_H)                                       (Eq. 6)
    log pi = -||h~ - h||^2 / (2 sigma^2)                             (Eq. 10)

`soft` in the paper is T = 0.5, `fuzzy` is T = 1e-4. `noise_placement` says what gets the noise and is scored:

    embedding      h, the mixture of the whole vocabulary            sigma = noise_scale * RMS of the table's elements
    hidden         the last hidden state; its mixture is fed back    the same sigma (the paper states none; ours)
    logits         z of the top-k candidates, y = softmax(z~/T)      sigma = noise_scale, in logits (none stated; ours: 1)
    probabilities  p of the kept candidates, y = x / sum(x)          sigma = noise_scale (SofT-GRPO's ablation: 0.05)

The constant -(n/2) log(2 pi sigma^2) is left out: sigma has no parameter, and the constant would cost the ratio its last
digits. The record keeps h~, which the update feeds again. It cannot keep only the noise: h of the policy that drew depends on
all earlier thoughts, so only a second rollout could compute it.

The shadow token is argmax z (embedding, hidden) or argmax y. The closing step is a thought like any other, fed and scored
with its noise, as in the paper.
"""

from typing import ClassVar

import torch

from ..ranges import POSITIVE
from .candidates import candidates, on_support, softmax_on
from .option import NOISE_SCALE, TRUNCATION, Option, truncation
from .paper import Paper
from .protocol import Thought
from .registry import register
from .tolerance import Tolerance


_PLACEMENT = Option(
    str,
    "embedding",
    "gaussian: noise on the embedding, hidden, logits or probabilities.",
    "gaussian: where the noise is added, to `embedding`, `hidden`, `logits` or `probabilities`. On logits `None` means "
    "`thinking_top_k` 50 and `noise_scale` 1.0 (ours), on probabilities temperature 1.0, top-k 5, top-p 0.95 and `noise_scale` "
    "0.05 (SofT-GRPO's ablation).",
    choices=("embedding", "hidden", "logits", "probabilities"),
)
_RMS = Option(
    float | None,
    None,
    "gaussian: the RMS that noise_scale multiplies; unset: that of the table at the start.",
    "gaussian, on embedding and hidden: the RMS that `noise_scale` multiplies. `None`: it is measured over the embedding table when "
    "training starts, and saved with the weights, so that a resumed run and an evaluation use the same sigma as training.",
    range=POSITIVE,
)


@register
class Gaussian(Thought):
    """
    Noise on the embedding.

    Args:
        temperature (`float`): T.
        sigma (`float`): standard deviation per coordinate, in the units of the embedding. 0 means no draw (soft greedy)
            and no density.

    Action: `embedding` = h~ (N, H).
    """

    name = "gaussian"
    closes_one_hot = False
    mixes_vocabulary = True
    scores_vocabulary = True
    fed: tuple[str, ...] = ("embedding",)
    options: ClassVar = {"noise_scale": NOISE_SCALE, "noise_placement": _PLACEMENT, "noise_rms": _RMS}
    truncations: tuple[str, ...] = ("thinking_temperature",)
    untruncated = (
        "mixes the whole vocabulary (arXiv 2509.19170, Eq. 6), or with `noise_placement: logits` its `thinking_top_k` "
        "candidates. With `noise_placement: probabilities` it reads every truncation"
    )
    # `soft` of 2509.19170.
    defaults: ClassVar = {"thinking_temperature": 0.5, "noise_scale": 0.33}
    paper = Paper(
        "Soft Tokens, Hard Truths",
        "2509.19170",
        ("Natasha Butt", "Ariel Kwiatkowski", "Ismail Labiad", "Julia Kempe", "Yann Ollivier"),
    )
    equation = (
        "h = sum_v softmax(z/T)_v e_v over the whole vocabulary\n"
        "next input = h + sigma * eps,   eps ~ N(0, 1) for each coordinate"
    )
    can_be_greedy = True
    exact_weights = "a gaussian thought's density multiplies the rounding of a copy by 1/sigma^2"
    # The density multiplies the rounding of H coordinates by 1/sigma^2. `hidden` compares hidden states themselves.
    tolerances: ClassVar = {
        "gaussian": Tolerance(1e-2, 20.0, size=576, noise=0.33, power=2),
        "gaussian-hidden": Tolerance(0.1, 2000.0, size=576, noise=0.33, power=2),
        "gaussian-logits": Tolerance(1e-3, 4.0, size=50, power=2),
        "gaussian-probabilities": Tolerance(1e-3, 3.0, size=5, noise=0.05, power=2),
    }

    def __init__(self, temperature: float = 0.5, sigma: float = 1.0):
        self.temperature, self.sigma = temperature, sigma
        self.has_density = sigma > 0

    @classmethod
    def variant(cls, settings):
        placement = settings.noise_placement
        return PLACEMENTS.get(placement, cls) if isinstance(placement, str) else cls

    @classmethod
    def check(cls, settings):
        if settings.noise_rms is not None and "noise_rms" not in cls.options:
            raise ValueError(
                f"`noise_rms` is {settings.noise_rms} with `noise_placement: {settings.noise_placement}`, where `noise_scale` "
                "is sigma itself. Leave it unset."
            )

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        rms = table_rms if values.noise_rms is None else values.noise_rms
        if rms is None:
            raise ValueError("A gaussian thought's sigma is a share of the embedding table's RMS: pass table_rms.")
        return cls(values.thinking_temperature, 0.0 if greedy else values.noise_scale * rms)

    @classmethod
    def label(cls, values):
        return cls.name if values.noise_placement == "embedding" else f"{cls.name}-{values.noise_placement}"

    @classmethod
    def terms(cls, values, hidden_size):
        return hidden_size

    def sample(self, logits, noise):
        mean, _ = logits.mixture(self.temperature)
        # The score is that of the fed embedding, so it is rounded to the model's precision before it is recorded.
        return {"embedding": self._around(mean, noise, logits.dtype, logits.fused)}, logits.argmax()

    def score(self, logits, action):
        mean, entropy = logits.mixture(self.temperature)
        return self._density(action["embedding"], mean, logits.fused), entropy

    def _around(self, mean: torch.Tensor, noise, dtype: torch.dtype, fused: bool) -> torch.Tensor:
        """`mean` (N, n) with noise, in float32 at least until it is rounded to a dtype."""
        if fused:
            from ..kernels import gaussian_thought

            return gaussian_thought.around(noise, mean, self.sigma, dtype)
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
        return torch.add(mean, noise.normal(mean.size(-1)), alpha=self.sigma).to(dtype)

    def _density(self, drawn: torch.Tensor, mean: torch.Tensor, fused: bool) -> torch.Tensor:
        """Of rows (N, n), in float32 at least."""
        if not self.has_density:
            return torch.zeros(len(mean), device=mean.device)  # a point mass
        if fused:
            from ..kernels import gaussian_thought

            return gaussian_thought.density(drawn, mean, self.sigma)
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
        return (drawn.to(mean.dtype) - mean).square().sum(-1) / (-2 * self.sigma**2)

    def embed(self, action, embed):
        return action["embedding"]


class HiddenGaussian(Gaussian):
    """
    Noise on the last hidden state. Action: `hidden` = h' (N, H), and `embedding` (N, H), the mixture that h' predicts. The
    update feeds this embedding again.
    """

    needs_hidden = True
    equation = (
        "h' = h + sigma * eps, h the last hidden state,   eps ~ N(0, 1) for each coordinate\n"
        "next input = sum_v softmax(z(h')/T)_v e_v over the whole vocabulary"
    )

    def sample(self, logits, noise):
        noisy = self._around(logits.hidden, noise, logits.hidden.dtype, logits.fused)
        view = logits.of_hidden(noisy)
        mean, _ = view.mixture(self.temperature)
        return {"hidden": noisy, "embedding": mean.to(logits.dtype)}, view.argmax()

    def score(self, logits, action):
        return self._density(action["hidden"], logits.hidden, logits.fused), logits.entropy(self.temperature)


class LogitsGaussian(Gaussian):
    """
    Noise on the logits of the `top_k` most likely candidates.

    Action: `ids` (N, K); `noisy` (N, K), z~ less its mean; `kept` (N, K) bool, False at suppressed tokens, whose logits are
    -inf. The score also uses z less its mean, because a shift of all logits does not change the prediction.
    """

    mixes_vocabulary = False
    scores_vocabulary = False
    fed = ("ids", "noisy", "kept")
    equation = (
        "z~ = z + sigma * eps on the K most likely candidates,   eps ~ N(0, 1)\nnext input = sum_i softmax(z~/T)_i e_i"
    )
    options: ClassVar = {"noise_scale": NOISE_SCALE, "noise_placement": _PLACEMENT}
    truncations = ("thinking_temperature", "thinking_top_k")
    defaults: ClassVar = {"thinking_temperature": 0.5, "thinking_top_k": 50, "noise_scale": 1.0}

    def __init__(self, temperature: float = 0.5, sigma: float = 1.0, top_k: int = 50):
        super().__init__(temperature, sigma)
        self.top_k = top_k

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        return cls(values.thinking_temperature, 0.0 if greedy else values.noise_scale, values.thinking_top_k)

    @classmethod
    def terms(cls, values, hidden_size):
        return values.thinking_top_k

    def sample(self, logits, noise):
        z, ids = logits.topk(self.top_k)
        kept = z > -torch.inf
        noisy = self._around(z, noise, z.dtype, logits.fused)
        token = ids.gather(-1, noisy.argmax(-1, keepdim=True)).squeeze(-1)
        return {"ids": ids, "noisy": _centred(noisy, kept, logits.fused), "kept": kept}, token

    def score(self, logits, action):
        z, kept = logits.at(action["ids"]), action["kept"]
        _, entropy = on_support(logits, action["ids"], kept, self.temperature)
        return self._density(action["noisy"], _centred(z, kept, logits.fused), logits.fused), entropy

    def embed(self, action, embed):
        return embed.mix(self.weights(action), action["ids"])

    def without(self, action, dropped):
        return {**action, "kept": action["kept"] & ~dropped}

    def weights(self, action):
        return softmax_on(action["noisy"], action["kept"], self.temperature)


def _centred(z: torch.Tensor, kept: torch.Tensor, fused: bool) -> torch.Tensor:
    """z less its mean over the kept candidates, zero elsewhere."""
    if fused:
        from ..kernels.support import centred

        return centred(z, kept)
    z = torch.where(kept, z, 0.0)
    return torch.where(kept, z - z.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True), 0.0)


class ProbabilitiesGaussian(Gaussian):
    """
    Noise on the probabilities of the kept candidates.

    Action: `ids` (N, K), `noisy` = x (N, K), zero off the support, `kept` (N, K) bool. x can be negative, and so can a weight,
    as in the ablation. A sum of x close to zero is held at 0.1, so that the mixture stays bounded.

    SofT-GRPO's released code perturbs all K places. A place that top-p cut holds an arbitrary id there, and gets a weight of
    about +-sigma: 5 % of an unrelated token. Here only the kept candidates are perturbed.
    """

    mixes_vocabulary = False
    scores_vocabulary = False
    fed = ("ids", "noisy")
    equation = (
        "x = p + sigma * eps, p = softmax(z/T) on the kept candidates,   eps ~ N(0, 1)\n"
        "next input = sum_i x_i / sum_j x_j e_i"
    )
    options: ClassVar = {"noise_scale": NOISE_SCALE, "noise_placement": _PLACEMENT}
    truncations = TRUNCATION
    # Of SofT-GRPO's ablation.
    defaults: ClassVar = {
        "thinking_temperature": 1.0,
        "thinking_top_k": 5,
        "thinking_top_p": 0.95,
        "thinking_min_p": 0.0,
        "noise_scale": 0.05,
    }

    def __init__(self, temperature=1.0, sigma=0.05, top_k=5, top_p=0.95, min_p=0.0):
        super().__init__(temperature, sigma)
        self.top_k, self.top_p, self.min_p = top_k, top_p, min_p

    @classmethod
    def build(cls, values, answer, table_rms, greedy):
        temperature, *cut = truncation(values)
        return cls(temperature, 0.0 if greedy else values.noise_scale, *cut)

    @classmethod
    def terms(cls, values, hidden_size):
        return values.thinking_top_k

    def sample(self, logits, noise):
        ids, log_p = candidates(logits, self.temperature, self.top_k, self.top_p, self.min_p)
        kept = log_p != -torch.inf
        noisy = self._around(log_p.exp(), noise, log_p.dtype, logits.fused) * kept
        token = ids.gather(-1, torch.where(kept, noisy, -torch.inf).argmax(-1, keepdim=True)).squeeze(-1)
        return {"ids": ids, "noisy": noisy, "kept": kept}, token

    def score(self, logits, action):
        log_p, entropy = on_support(logits, action["ids"], action["kept"], self.temperature)
        return self._density(action["noisy"], log_p.exp(), logits.fused), entropy

    def embed(self, action, embed):
        return embed.mix(self.weights(action), action["ids"])

    def without(self, action, dropped):
        left = action["noisy"].masked_fill(dropped, 0.0)
        # A candidate that is alone has the weight 1, however small its x is.
        alone = (~dropped).sum(-1, keepdim=True) == 1
        return {**action, "noisy": torch.where(alone & ~dropped, 1.0, left)}

    def weights(self, action):
        return action["noisy"] / action["noisy"].sum(-1, keepdim=True).clamp(min=0.1)


PLACEMENTS = {
    "embedding": Gaussian,
    "hidden": HiddenGaussian,
    "logits": LogitsGaussian,
    "probabilities": ProbabilitiesGaussian,
}
