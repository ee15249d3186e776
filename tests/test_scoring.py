# SPDX-License-Identifier: Apache-2.0
"""Softmax over the vocabulary at any temperature: values and gradients against float64, whose logits are the same numbers."""

import math
from contextlib import nullcontext

import pytest
import torch

from trl_soft import KeyedNoise, kernels
from trl_soft.score_variance import score_norms, score_variance
from trl_soft.thoughts import Dirichlet, Gaussian, Gumbel, Hard, Mixture, Multiplex, Neighbour
from trl_soft.thoughts.candidates import candidates, renormalised
from trl_soft.thoughts.gaussian import PLACEMENTS, HiddenGaussian, LogitsGaussian, ProbabilitiesGaussian
from trl_soft.vocabulary.head_logits import DenseLogits, HeadLogits
from trl_soft.vocabulary.neighbours import nearest_tokens
from trl_soft.vocabulary.tiles import TILE


V, N = 300, 24
TEMPERATURES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
# A float32 exponential of less than this is 0.
UNDERFLOW = 104
# Rounding of float64 to either side of a difference that cancels; ours, in float32, does not.
FLOOR = 1e-15


# Over the vocabulary: the plain functions of a CPU, and the kernels of CUDA in Triton's interpreter.
PATHS = {"plain": nullcontext, "kernels": kernels.interpreted}


def random(*shape, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class World:
    """
    A head whose float32 logits are exact: hidden states and weights are multiples of 2**-7, and their products and sums
    have at most 24 bits. Tokens come in pairs, whose logits are 0, 1, 2, ... steps of 6.1e-5 apart in row 0, 1, 2, ...,
    8 or 64 times that in two rows of three: at T = 1e-4 some rows are undecided and others one-hot to the last bit.
    """

    def __init__(self, size: int, scale: float = 1.0, softcap: float | None = None, dtype=torch.float32):
        def rounded(x):
            return (x * 2**7).round() / 2**7

        self.hidden = rounded(random(N, size, seed=0))
        self.hidden[:, 0] = torch.arange(N) * torch.tensor([1, 8, 64]).repeat(N // 3) * 2.0**-7
        self.hidden = self.hidden.to(dtype).float()
        weight = rounded(random(V // 2, size, seed=1) * 4 / math.sqrt(size)).repeat_interleave(2, 0)
        weight[1::2, 0] += 2.0**-7
        self.head, self.embedding = torch.nn.Linear(size, V, bias=False), torch.nn.Embedding(V, size)
        self.head.weight.data, self.embedding.weight.data = weight, random(V, size, seed=2) / 50
        self.head, self.embedding = self.head.to(dtype), self.embedding.to(dtype)
        weight = self.head.weight.detach().float()
        self.leaf = self.hidden.to(dtype, copy=True).requires_grad_()
        self.logits = HeadLogits(self.leaf, self.head, self.embedding, scale, softcap)
        self.leaf64, self.weight64 = self.hidden.double().requires_grad_(), weight.double().requires_grad_()
        raw = self.leaf64 @ self.weight64.T
        assert torch.equal(raw.float().double(), raw)
        self.z64 = raw * scale
        if softcap is not None:
            self.z64 = softcap * torch.tanh(self.z64 / softcap)
        self.z64.retain_grad()
        self.table64 = self.embedding.weight.detach().double().requires_grad_()
        self.reference = DenseLogits(self.z64, self.table64)
        self.largest = self.hidden.norm(dim=1).max() * weight.norm(dim=1).max()
        self.gap = self.z64.detach().topk(2)[0].diff().abs().squeeze(-1)

    def gradients(self, losses, unsigned: torch.Tensor):
        """
        Of the hidden states and of the head, for the loss of `logits` and that of `reference`: ours, the reference's, and
        the norms of what they are sums of, with dL/dz and `unsigned` (N, V) for what cancels in it.
        """
        for loss in losses:
            loss.sum().backward()
        each, weight, hidden = self.z64.grad.abs() + unsigned, self.weight64.detach(), self.hidden.double()
        return (
            (self.leaf.grad.double(), self.leaf64.grad, each @ weight.norm(dim=1)),
            (self.head.weight.grad.double(), self.weight64.grad, each.T @ hidden.norm(dim=1)),
        )


@pytest.mark.parametrize("path, size", [("plain", 256), ("plain", 4096), ("kernels", 256), ("bfloat16", 256)])
@pytest.mark.parametrize("kind", ["mixture", "log_prob", "entropy"])
def test_tiled_gradients_are_those_of_float64_at_any_temperature(kind, size, path, monkeypatch):
    """
    Within 1e-5 of the sum of |dL/dz_v| |w_v|, where dL/dz_v is summed without its signs: the relative rounding of
    exp(x_v) is half a float32 eps times |x_v|, which is at most 6e-6 before the exponential underflows. All that is in
    the bound is as small as 1 - max p.

    In bfloat16, by the kernels: values as in float32, of the same bfloat16 numbers. A device rounds to 2**-8, Triton's
    interpreter cuts off, to 2**-7: so much of the same sum for dL/dz, which is rounded once, and for a mixture as much
    for its incoming gradient; and of the gradient itself.
    """
    monkeypatch.setitem(TILE, "cpu", N * 128)
    ids = torch.randint(0, V, (N, 3), generator=torch.Generator().manual_seed(4))
    g, c = random(N, size, seed=3), random(N, 3, seed=5)
    rounding = 2.0**-7 if path == "bfloat16" else 0.0
    for temperature in TEMPERATURES if path == "plain" else TEMPERATURES[::2]:
        world = World(size, dtype=torch.bfloat16 if rounding else torch.float32)
        ids[:, 0] = world.z64.argmax(-1)
        unsigned = torch.zeros(N, V, dtype=torch.float64)
        log_p = world.reference.log_softmax(temperature).detach()
        p = log_p.exp()
        if kind == "mixture":
            # |<g, E_v - mean>| <= |g| sum_k p_k |E_v - E_k|
            distances = torch.cdist(world.table64.detach(), world.table64.detach())
            unsigned = g.double().norm(dim=1, keepdim=True) * p * (p @ distances) / temperature
        elif kind == "entropy":
            entropy = -(p * log_p).nan_to_num().sum(-1, keepdim=True)
            unsigned = p * (1 - p) * (entropy - log_p) / temperature

        def value_and_loss(view, temperature=temperature):
            if kind == "mixture":
                value = view.mixture(temperature)[0]
                return value, value * g
            if kind == "log_prob":
                value = view.log_prob(ids, temperature)[0]
                return value, value * c
            value = view.entropy(temperature)
            return value, value

        theirs, their_loss = value_and_loss(world.reference)
        with PATHS.get(path, kernels.interpreted)():
            ours, our_loss = value_and_loss(world.logits)
            gradients = world.gradients((our_loss, their_loss), unsigned)
        assert kind != "log_prob" or (ours <= 0).all()
        assert kind != "entropy" or (ours >= 0).all()
        # A weight of a mixture is the sum of two bfloat16 numbers.
        lost = rounding**2 * (p @ world.table64.detach().abs()) if rounding and kind == "mixture" else 0.0
        assert ((ours - theirs).abs() <= 1e-6 + 1e-6 * theirs.abs() + lost).all()
        times = 2 if kind == "mixture" else 1
        for have, want, bound in gradients:
            error = (have - want).norm(dim=1)
            limit = (1e-5 + times * rounding) * bound + rounding * want.norm(dim=1)
            assert (error <= limit + FLOOR / temperature * world.largest).all()
        one_hot = world.gap / temperature > UNDERFLOW
        if kind != "log_prob":
            assert (world.leaf.grad[one_hot] == 0).all()
        assert temperature > 1e-4 or 5 < one_hot.sum() < N


@pytest.mark.parametrize("path", PATHS)
def test_capped_logits_at_low_temperature(path, monkeypatch):
    """As above, with what a softcap's own rounding adds: float32's eps times the largest logit over T."""
    monkeypatch.setitem(TILE, "cpu", N * 128)
    g = random(N, 256, seed=3)
    for temperature in TEMPERATURES if path == "plain" else TEMPERATURES[::2]:
        world = World(256, scale=0.5, softcap=32.0)
        theirs = world.reference.mixture(temperature)[0] * g
        p = torch.softmax(world.z64.detach() / temperature, -1)
        distances = torch.cdist(world.table64.detach(), world.table64.detach())
        unsigned = g.double().norm(dim=1, keepdim=True) * p * (p @ distances) / temperature
        rounding = torch.finfo(torch.float32).eps * world.z64.abs().max().item() / temperature
        with PATHS[path]():
            gradients = world.gradients((world.logits.mixture(temperature)[0] * g, theirs), unsigned)
        for ours, reference, bound in gradients:
            error = (ours - reference).norm(dim=1)
            assert (error <= (1e-5 + rounding) * bound + FLOOR / temperature * world.largest).all()
        assert (world.leaf.grad[world.gap / temperature > UNDERFLOW + 32] == 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_a_fuzzy_thought_that_is_one_hot_has_no_gradient(path):
    """T = 1e-4: a lead of .05 in the logits leaves the others exp(-500)."""
    size, temperature = 3072, 1e-4
    hidden = random(64, size, seed=0).requires_grad_()
    head, embedding = torch.nn.Linear(size, 512, bias=False), torch.nn.Embedding(512, size)
    head.weight.data, embedding.weight.data = random(512, size, seed=1) / 50, random(512, size, seed=2) / 50
    view, thought = HeadLogits(hidden, head, embedding), Gaussian(temperature, 0.33 / 50)
    noise = KeyedNoise(0, 0, torch.arange(64), torch.zeros(64, dtype=torch.long))
    with torch.no_grad():
        action, _ = thought.sample(DenseLogits(view.dense(), embedding.weight), noise)
    with PATHS[path]():
        log_prob, entropy = thought.score(view, action)
        (log_prob + entropy).sum().backward()
    decided = view.dense().topk(2)[0].diff().abs().squeeze(-1) > 0.05
    assert decided.sum() > 50 and (hidden.grad[decided] == 0).all() and (entropy[decided] == 0).all()


LOW = 1e-4
NOISE = KeyedNoise(0, 0, torch.arange(N), torch.zeros(N, dtype=torch.long))
SCORED = {
    "hard": lambda: Hard(LOW),
    "multiplex": lambda: Multiplex(LOW),
    "neighbour": lambda: Neighbour(LOW),
    "hidden": lambda: PLACEMENTS["hidden"](LOW, 0.3),
    "logits": lambda: LogitsGaussian(LOW, 0.5, 6),
    "probabilities": lambda: ProbabilitiesGaussian(LOW, 0.05, 6, 1.0),
    "gumbel": lambda: Gumbel(LOW, 6, 1.0),
    "concrete": lambda: Gumbel(LOW, 6, 1.0, density="concrete"),
    "softgrpo": lambda: Gumbel(LOW, 6, 1.0, density="softgrpo"),
    "dirichlet": lambda: Dirichlet(LOW, 6, 1.0),
    "mixture": lambda: Mixture(LOW, 6, 1.0),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SCORED)
def test_every_thought_scores_at_a_low_temperature(name, path, monkeypatch):
    """
    Log-prob, entropy and the gradient of both at T = 1e-4 against the same thought on float64 logits, to the bounds of the
    tiled gradients; 1e-2 for values and 2e-3 for gradients of Gumbel densities, whose noise is what is left of
    g' - log p: at -1e4, neighbouring float32 numbers are 1e-3 apart.
    """
    monkeypatch.setitem(TILE, "cpu", N * 128)
    world, thought = World(256), SCORED[name]()
    with torch.no_grad():
        z, table = world.logits.dense(), world.embedding.weight
        nearest = nearest_tokens(table, thought.neighbours) if thought.neighbours else None
        project = lambda x: x @ world.head.weight.T  # noqa: E731
        drawn_from = DenseLogits(z, table, hidden=world.hidden, project=project, nearest=nearest)
        action, _ = thought.sample(drawn_from, NOISE)
    world.reference.hidden = world.leaf64
    theirs = thought.score(world.reference, action)
    with PATHS[path]():
        ours = thought.score(world.logits, action)
    assert (ours[1] >= 0).all() and ours[1].max() > 0.1
    small = name in ("gumbel", "concrete")
    for have, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-2 if small else 1e-5, check_dtype=False)
    losses = [log_prob + entropy for log_prob, entropy in (ours, theirs)]
    with PATHS[path]():
        ours, reference, bound = world.gradients(losses, torch.zeros(N, V))[0]
    error = (ours - reference).norm(dim=1)
    # `hidden` has a gradient beside that of the logits: (h' - h) / sigma^2, rounded to float32.
    rounding = 2**-23 * reference.norm(dim=1) if name == "hidden" else 0.0
    assert (error <= (2e-3 if small else 1e-5) * bound + FLOOR / LOW * world.largest + rounding).all()


def test_score_variance_of_fuzzy_thoughts():
    """The sum of ||dL/dz||^2 over all positions, 24 of 24, against float64."""
    world, thought = World(256), Gaussian(LOW, 0.3)
    with torch.no_grad():
        action, _ = thought.sample(DenseLogits(world.logits.dense(), world.embedding.weight), NOISE)
    thought.log_prob(world.reference, action).sum().backward()
    total, count = score_variance(thought, world.logits, action)
    expected = world.z64.grad.square().sum()
    assert count == N and total.item() == pytest.approx(expected.item(), rel=1e-5)
    norms = score_norms(thought, world.logits, action)
    torch.testing.assert_close(norms, world.z64.grad.square().sum(-1), rtol=1e-5, atol=0.0)
    some = torch.tensor([3, 0])
    torch.testing.assert_close(score_norms(thought, world.logits, action, some), norms[some], rtol=1e-5, atol=0.0)
    decided = World(256)
    rows = decided.gap / LOW > UNDERFLOW
    decided.logits.hidden = decided.leaf[rows]
    action = {name: value[rows] for name, value in action.items()}
    assert score_variance(thought, decided.logits, action)[0] == 0
    assert score_norms(thought, decided.logits, action, dtype=torch.float32).tolist() == [0.0] * int(rows.sum())


def test_score_norms_of_hidden_states_are_refused():
    world = World(256)
    with pytest.raises(ValueError, match="its score is not in logits"):
        score_norms(HiddenGaussian(0.5, 1.0), world.logits, {})


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_supports_do_not_hang_on_rounding(temperature):
    """top-p against float64 over a large offset, which a division of the logits by T would round away; 1 cuts nothing."""
    z = 20 + torch.arange(1, 65)[:, None] * torch.arange(6) * -(2.0**-15)  # exact in float32
    ids, log_p = candidates(z, temperature, 6, 0.9)
    p = torch.softmax((z.double() - 20) / temperature, -1)
    kept = (p.cumsum(-1) - p) < 0.9
    assert (ids == torch.arange(6)).all() and torch.equal(~log_p.isneginf(), kept)
    again = renormalised(z, kept, temperature)
    torch.testing.assert_close(again, log_p, rtol=0, atol=0)
    torch.testing.assert_close(
        log_p.exp().double(), p * kept / (p * kept).sum(-1, keepdim=True), rtol=1e-5, atol=1e-30
    )
    assert not candidates(z, temperature, 6, 1.0)[1].isneginf().any()


@pytest.mark.parametrize("make", [lambda: Hard(LOW), lambda: Multiplex(LOW, width=1)])
def test_tokens_at_a_low_temperature_are_drawn_from_what_is_scored(make):
    """Two logits of 20 that differ by 1.2e-4: frequencies within five standard errors of the probability scored."""
    n, z = 20_000, torch.tensor([20.0, 20.0 - 2.0**-13])
    view = DenseLogits(z.expand(n, 2))
    thought = make()
    noise = KeyedNoise(0, 0, torch.arange(n), torch.zeros(n, dtype=torch.long))
    action, token = thought.sample(view, noise)
    p = 1 / (1 + math.exp(2.0**-13 / LOW))
    assert abs(token.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    log_p = torch.where(token == 1, math.log(p), math.log(1 - p))
    torch.testing.assert_close(thought.log_prob(view, action), log_p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_suppressed_tokens_at_a_low_temperature(path):
    """A bias of -inf takes a token out, whatever T is: finite values and gradients, none of them the token's."""
    hidden = random(5, 8, seed=0).requires_grad_()
    head, embedding = torch.nn.Linear(8, 12), torch.nn.Embedding(12, 8)
    head.weight.data, embedding.weight.data = random(12, 8, seed=1), random(12, 8, seed=2)
    head.bias.data = random(12, seed=3).index_fill(0, torch.tensor([0, 1, 7]), -torch.inf)
    for temperature in TEMPERATURES[::2]:
        view = HeadLogits(hidden, head, embedding)
        expected, of_dense = DenseLogits(view.dense(), embedding.weight).mixture(temperature)
        with PATHS[path]():
            mean, entropy = view.mixture(temperature)
            (mean.sum() + entropy.sum()).backward()
            log_p, _ = view.log_prob(torch.arange(12).expand(5, -1), temperature)
        torch.testing.assert_close((mean, entropy), (expected, of_dense), rtol=1e-5, atol=1e-5)
        assert hidden.grad.isfinite().all() and (head.weight.grad[[0, 1, 7]] == 0).all()
        assert (log_p[:, [0, 1, 7]] < -1e9).all() and log_p.isfinite().all()
