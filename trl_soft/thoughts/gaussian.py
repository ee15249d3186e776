# SPDX-License-Identifier: Apache-2.0
"""Soft Tokens, Hard Truths (arXiv 2509.19170): a mixture with Gaussian noise, on the embedding or, ablated, before it.

    h  = sum_v softmax(z/T)_v e_v                                    (Eq. 5)
    h~ = h + sigma * N(0, I_H)                                       (Eq. 6)
    log pi = -||h~ - h||^2 / (2 sigma^2)                             (Eq. 10)

`soft` in the paper is T = 0.5, `fuzzy` is T = 1e-4. `noise_placement` says what the noise is added to, and what is scored:

    embedding      h, the mixture of the whole vocabulary            sigma = noise_scale * RMS of the table's elements
    hidden         the last hidden state; its mixture is fed back    the same sigma (the paper states none; ours)
    logits         z of the top-k candidates, y = softmax(z~/T)      sigma = noise_scale, in logits (none stated; ours: 1)
    probabilities  p of the kept candidates, y = x / sum(x)          sigma = noise_scale (SofT-GRPO's ablation: 0.05)

The constant -(n/2) log(2 pi sigma^2) is left out: sigma holds no parameter, and it would cost the ratio its last digits.
What is remembered is h~, which is fed again: h of the policy that drew it is a function of all thoughts before, so it
could only be had by a second rollout. The noise itself is kept nowhere.

The shadow token is argmax z (embedding, hidden) or argmax y. The step whose shadow ends the thinking is a thought like
any other, fed and scored with its noise, as in the paper.
"""

import torch

from .candidates import candidates, on_support, softmax_on
from .protocol import Thought


class Gaussian(Thought):
    """
    Noise on the embedding.

    Args:
        temperature (`float`): T.
        sigma (`float`): standard deviation per coordinate, in the units of the embedding. 0 draws nothing (soft
            greedy) and has no density.

    Action: `embedding` = h~ (N, H).
    """

    name = "gaussian"
    closes_one_hot = False
    mixes_vocabulary = True
    fed: tuple[str, ...] = ("embedding",)

    def __init__(self, temperature: float = 0.5, sigma: float = 1.0):
        self.temperature, self.sigma = temperature, sigma
        self.has_density = sigma > 0

    def sample(self, logits, noise):
        mean, _ = logits.mixture(self.temperature)
        embedding = torch.add(mean, noise.normal(mean.size(-1)), alpha=self.sigma)
        # What is scored is what was fed: rounded to the model's precision before it is remembered.
        return {"embedding": embedding.to(logits.dtype)}, logits.argmax()

    def log_prob(self, logits, action):
        return self.score(logits, action)[0]

    def entropy(self, logits, action):
        return self.score(logits, action)[1]

    def score(self, logits, action):
        mean, entropy = logits.mixture(self.temperature)
        return self._density(action["embedding"], mean), entropy

    def _density(self, drawn: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        if not self.has_density:
            return torch.zeros(len(mean), device=mean.device)  # a point mass
        return (drawn.to(mean.dtype) - mean).square().sum(-1) / (-2 * self.sigma**2)

    def embed(self, action, embed):
        return action["embedding"]


class HiddenGaussian(Gaussian):
    """
    Noise on the last hidden state. Action: `hidden` = h' (N, H), and `embedding` (N, H), the mixture that h' predicts,
    which is fed again as it was fed.
    """

    needs_hidden = True

    def sample(self, logits, noise):
        hidden = logits.hidden.float()
        noisy = torch.add(hidden, noise.normal(hidden.size(-1)), alpha=self.sigma).to(logits.hidden.dtype)
        view = logits.of_hidden(noisy)
        mean, _ = view.mixture(self.temperature)
        return {"hidden": noisy, "embedding": mean.to(logits.dtype)}, view.argmax()

    def score(self, logits, action):
        return self._density(action["hidden"], logits.hidden.float()), logits.entropy(self.temperature)


class LogitsGaussian(Gaussian):
    """
    Noise on the logits of the `top_k` most likely candidates. Action: `ids` (N, K), `noisy` = z~ (N, K) less its mean,
    and so is z when it is scored, since a shift of all logits is no prediction; `kept` (N, K) bool, False at suppressed
    tokens, whose logits are -inf.
    """

    mixes_vocabulary = False
    fed = ("ids", "noisy", "kept")

    def __init__(self, temperature: float = 0.5, sigma: float = 1.0, top_k: int = 50):
        super().__init__(temperature, sigma)
        self.top_k = top_k

    def sample(self, logits, noise):
        z, ids = logits.topk(self.top_k)
        kept = z > -torch.inf
        noisy = torch.add(z, noise.normal(z.size(-1)), alpha=self.sigma)
        token = ids.gather(-1, noisy.argmax(-1, keepdim=True)).squeeze(-1)
        return {"ids": ids, "noisy": _centred(noisy, kept, logits.fused), "kept": kept}, token

    def score(self, logits, action):
        z, kept = logits.at(action["ids"]), action["kept"]
        _, entropy = on_support(logits, action["ids"], kept, self.temperature)
        return self._density(action["noisy"], _centred(z, kept, logits.fused)), entropy

    def embed(self, action, embed):
        return embed.mix(self.weights(action), action["ids"])

    def weights(self, action):
        return softmax_on(action["noisy"], action["kept"], self.temperature)


def _centred(z: torch.Tensor, kept: torch.Tensor, fused: bool) -> torch.Tensor:
    """z less its mean over what is kept, zero elsewhere."""
    if fused:
        from ..kernels.support import centred

        return centred(z, kept)
    z = torch.where(kept, z, 0.0)
    return torch.where(kept, z - z.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True), 0.0)


class ProbabilitiesGaussian(Gaussian):
    """
    Noise on the probabilities of the kept candidates. Action: `ids` (N, K), `noisy` = x (N, K), zero off the support,
    `kept` (N, K) bool. x can be negative, and so can a weight, as in the ablation; a sum of x close to zero is held at
    0.1, so that what is fed stays bounded.

    SofT-GRPO's released code perturbs all K slots. A slot that top-p cut holds an arbitrary id there, and gets a weight
    of about +-sigma: 5 % of an unrelated token. Here only the kept candidates are perturbed.
    """

    mixes_vocabulary = False
    fed = ("ids", "noisy")

    def __init__(self, temperature=1.0, sigma=0.05, top_k=5, top_p=0.95, min_p=0.0):
        super().__init__(temperature, sigma)
        self.top_k, self.top_p, self.min_p = top_k, top_p, min_p

    def sample(self, logits, noise):
        ids, log_p = candidates(logits, self.temperature, self.top_k, self.top_p, self.min_p)
        kept = log_p != -torch.inf
        noisy = torch.add(log_p.exp(), noise.normal(ids.size(-1)), alpha=self.sigma) * kept
        token = ids.gather(-1, torch.where(kept, noisy, -torch.inf).argmax(-1, keepdim=True)).squeeze(-1)
        return {"ids": ids, "noisy": noisy, "kept": kept}, token

    def score(self, logits, action):
        log_p, entropy = on_support(logits, action["ids"], action["kept"], self.temperature)
        return self._density(action["noisy"], log_p.exp()), entropy

    def embed(self, action, embed):
        return embed.mix(self.weights(action), action["ids"])

    def weights(self, action):
        return action["noisy"] / action["noisy"].sum(-1, keepdim=True).clamp(min=0.1)


PLACEMENTS = {
    "embedding": Gaussian,
    "hidden": HiddenGaussian,
    "logits": LogitsGaussian,
    "probabilities": ProbabilitiesGaussian,
}
