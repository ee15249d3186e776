# SPDX-License-Identifier: Apache-2.0
"""Each thought's likelihood: finite differences, mean score zero, normalisation, and what each paper does at its edge."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Gumbel as TorchGumbel
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from trl_soft import KeyedNoise, ThinkingSettings
from trl_soft.thoughts import Dirichlet, Gaussian, Gumbel, Hard, Latent, Mixture, Multiplex, Neighbour, Soft
from trl_soft.thoughts.candidates import candidates
from trl_soft.thoughts.checks import HIDDEN as H
from trl_soft.thoughts.checks import VOCAB as V
from trl_soft.thoughts.checks import Float64Logits as Float64
from trl_soft.thoughts.checks import check_density, drawn_from, finite_differences, score_of_mean_zero
from trl_soft.thoughts.checks import in_float64 as to_double
from trl_soft.thoughts.checks import some_logits as logits
from trl_soft.thoughts.checks import some_noise as noise
from trl_soft.thoughts.checks import some_table as table
from trl_soft.thoughts.gaussian import HiddenGaussian, LogitsGaussian, ProbabilitiesGaussian
from trl_soft.vocabulary.categorical import inverse_cdf
from trl_soft.vocabulary.embedding_table import Lookup
from trl_soft.vocabulary.head_logits import DenseLogits, HeadLogits
from trl_soft.vocabulary.tiles import TILE


EXACT = {
    "gumbel": lambda **k: Gumbel(density="gumbel", **k),
    "concrete": lambda **k: Gumbel(density="concrete", **k),
    "gumbel-scaled": lambda **k: Gumbel(density="gumbel", noise_scale=0.7, **k),
    "concrete-scaled": lambda **k: Gumbel(density="concrete", noise_scale=0.7, **k),
    "gaussian": lambda **k: Gaussian(0.5, 0.3),
    "gaussian-logits": lambda **k: LogitsGaussian(0.5, 0.7, top_k=5),
    "gaussian-probabilities": lambda **k: ProbabilitiesGaussian(1.0, 0.05),
    "dirichlet": lambda **k: Dirichlet(concentration=2.0),
    "hard": lambda **k: Hard(0.8),
    "mixture": lambda **k: Mixture(0.9, top_k=6, beta=1.5),
    "multiplex": lambda **k: Multiplex(0.8, width=3),
    "neighbour": lambda **k: Neighbour(0.8),
    "multiplex-probability": lambda **k: Multiplex(0.8, width=3, weighting="probability"),
}
STOCHASTIC = {**EXACT, "softgrpo": lambda **k: Gumbel(density="softgrpo", **k)}


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("closing", [False, True])
def test_gradient_is_that_of_finite_differences(name, closing):
    thought = STOCHASTIC[name]()
    finite_differences(thought, closing and thought.closes_one_hot)


@pytest.mark.parametrize("name", EXACT)
def test_the_score_has_mean_zero(name):
    score_of_mean_zero(EXACT[name]())


def test_a_score_that_is_no_density_is_found():
    class Wrong(Gumbel):
        def score(self, logits, action):
            log_prob, entropy = super().score(logits, action)
            return log_prob + logits.at(action["ids"])[:, 0], entropy

    with pytest.raises(AssertionError, match="`score` is not the density of `sample`"):
        check_density(Wrong())


@pytest.mark.parametrize("name", ["gumbel", "concrete", "gumbel-scaled", "mixture", "multiplex"])
def test_the_mixed_measure_of_closing_has_mean_score_zero(name):
    """With the most likely token ending the thought, density and discrete part together still integrate to one."""
    n, thought = 40_000, EXACT[name]()
    z = logits(1).expand(n, V).clone().requires_grad_()
    action, token = thought.sample(DenseLogits(z.detach()), noise(n))
    action = thought.close(action, token == z[0].argmax(), token)
    thought.log_prob(Float64(z), to_double(action)).sum().backward()
    assert (z.grad.mean(0).abs() <= 5 * z.grad.std(0) / math.sqrt(n) + 1e-7).all()


def test_gumbel_is_the_sum_of_torch_gumbel_densities():
    thought, z = Gumbel(top_k=4, top_p=1.0, noise_scale=0.7), logits(6)
    action, _ = thought.sample(DenseLogits(z), noise(6))
    _, log_p = candidates(z.float(), 1.0, 4)
    expected = TorchGumbel(log_p.double(), 0.7).log_prob(action["perturbed"].double()).sum(-1)
    torch.testing.assert_close(thought.log_prob(DenseLogits(z), action).double(), expected, rtol=1e-5, atol=1e-5)


def test_concrete_is_the_relaxed_categorical_density_of_log_y():
    thought, z = Gumbel(top_k=4, top_p=1.0, gumbel_temperature=0.5, density="concrete"), logits(6)
    action, _ = thought.sample(DenseLogits(z), noise(6))
    _, log_p = candidates(z.float(), 1.0, 4)
    log_y = torch.log_softmax(action["perturbed"].double() / 0.5, dim=-1)
    expected = ExpRelaxedCategorical(torch.tensor(0.5).double(), logits=log_p.double(), validate_args=False).log_prob(
        log_y
    )
    torch.testing.assert_close(thought.log_prob(DenseLogits(z), action).double(), expected, rtol=1e-5, atol=1e-5)


def test_gaussian_is_the_normal_density_up_to_its_constant():
    thought, z = Gaussian(0.5, 0.3), logits(6)
    view = Float64(z, table())
    action = to_double(thought.sample(DenseLogits(z, table().float()), noise(6))[0])
    mean, _ = view.mixture(0.5)
    full = torch.distributions.Normal(mean, 0.3).log_prob(action["embedding"]).sum(-1)
    constant = -H / 2 * math.log(2 * math.pi * 0.3**2)
    # log_prob takes the action in float32.
    torch.testing.assert_close(thought.log_prob(view, action) + constant, full, rtol=1e-5, atol=1e-5)


LOG_ODDS = torch.linspace(-60, 60, 24_001, dtype=torch.float64)


def on_the_simplex(name: str) -> torch.Tensor:
    """Density of a K = 2 mixture in its one free dimension, the log-odds u = log(y_1/y_2), over LOG_ODDS."""
    u, n = LOG_ODDS, len(LOG_ODDS)
    z = torch.tensor([[1.0, 0.3]], dtype=torch.float64).expand(n, 2)
    log_y = torch.stack((-torch.nn.functional.softplus(-u), -torch.nn.functional.softplus(u)), -1)
    action = {"ids": torch.tensor([[0, 1]]).expand(n, 2), "kept": torch.ones(n, 2, dtype=torch.bool)}
    action["closed"] = torch.zeros(n, dtype=torch.bool)
    if name == "dirichlet":
        thought = Dirichlet(1.0, top_k=2, top_p=1.0, concentration=1.5)
        action["log_weights"] = log_y
    else:
        thought = Gumbel(top_k=2, top_p=1.0, gumbel_temperature=0.5, noise_scale=0.7, density="concrete")
        action["perturbed"] = 0.5 * log_y
    # The density of y times prod_k y_k is that of the K-1 log-odds, since dy_1 = y_1 y_2 du at K = 2.
    return thought.log_prob(Float64(z), action).exp()


@pytest.mark.parametrize("name", ["concrete", "dirichlet"])
def test_densities_on_the_simplex_integrate_to_one(name):
    assert torch.trapezoid(on_the_simplex(name), LOG_ODDS).item() == pytest.approx(1.0, abs=1e-6)


def test_the_density_of_the_perturbed_integrates_to_one_and_so_does_the_mixed_measure():
    """K = 2 `gumbel` over the plane of g'; where token 0 ends the thought, its half of the plane is one point mass."""
    axis = torch.linspace(-8, 32, 2_001, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    n = len(plane)
    z = torch.tensor([[1.0, 0.3]], dtype=torch.float64).expand(n, 2)
    thought = Gumbel(top_k=2, top_p=1.0, noise_scale=0.7)
    action = {"ids": torch.tensor([[0, 1]]).expand(n, 2), "kept": torch.ones(n, 2, dtype=torch.bool)}
    action |= {"perturbed": plane, "closed": torch.zeros(n, dtype=torch.bool)}
    density = thought.log_prob(Float64(z), action).exp()
    cell = (axis[1] - axis[0]).item() ** 2
    assert (density.sum() * cell).item() == pytest.approx(1.0, abs=1e-5)
    one = {name: value[:1] for name, value in action.items()}
    closed = thought.close(one, torch.tensor([True]), torch.tensor([0]))
    atom = thought.log_prob(Float64(z[:1]), closed).exp().item()
    # The diagonal belongs to neither half; counting half of it halves the error of the grid.
    weight = (plane[:, 1] > plane[:, 0]).double() + 0.5 * (plane[:, 1] == plane[:, 0])
    assert (density * weight).sum().item() * cell + atom == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("kind", ["hard", "mixture", "multiplex", "multiplex-draw"])
def test_discrete_thoughts_sum_to_one(kind):
    z = logits(1)[:, :4]
    tuples = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    n = 16 if kind.startswith("multiplex") else 4
    view = Float64(z.expand(n, 4))
    if kind == "hard":
        total = Hard(0.7).log_prob(view, {"ids": torch.arange(4)}).exp().sum()
    elif kind == "mixture":
        action = {"ids": torch.arange(4).expand(4, 4), "kept": torch.ones(4, 4, dtype=torch.bool)}
        total = Mixture(0.7, top_k=4).log_prob(view, {**action, "drawn": torch.arange(4)}).exp().sum()
    else:
        thought = Multiplex(0.7, width=2, ratio="draw" if kind.endswith("draw") else "step")
        action = {"ids": tuples, "closed": torch.zeros(16, dtype=torch.bool)}
        log_probs, _ = thought.score_draws(view, action)
        assert log_probs.shape == (16, thought.draws)
        torch.testing.assert_close(log_probs.sum(-1), thought.log_prob(view, action))
        total = log_probs.sum(-1).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_likelihood_ratios_have_mean_one(name):
    """E_old[new/old] = 1 for distributions of one support, mixed measures among them: five standard errors."""
    n, thought = 40_000, EXACT[name]()
    old = (logits(1) / 2).expand(n, V)
    new = old + 0.1 * logits(1, seed=1)
    action, token = thought.sample(drawn_from(old, thought), noise(n))
    if thought.closes_one_hot and name != "dirichlet":
        action = thought.close(action, token == old[0].argmax(), token)
    action = to_double(action)
    new, old = (Float64(z, table() / 4 if name == "gaussian" else table()) for z in (new, old))
    if name == "gaussian":  # sigma is wide against a quarter of the table, so that the ratio has a variance
        action = to_double(thought.sample(DenseLogits(old.logits, old.table.float()), noise(n))[0])
    ratio = (thought.log_prob(new, action) - thought.log_prob(old, action)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(n) + 1e-6 and ratio.std() > 1e-3


def test_gumbel_max_frequencies():
    """The shadow token of a gumbel thought is a draw from p: chi-squared with 3 degrees of freedom, p-value 1e-4."""
    n, p = 50_000, torch.tensor([0.6, 0.2, 0.15, 0.05])
    _, token = Gumbel(top_k=4, top_p=1.0).sample(DenseLogits(p.log().expand(n, 4)), noise(n))
    observed = torch.bincount(token, minlength=4)
    assert ((observed - n * p) ** 2 / (n * p)).sum() < 21.1


def test_hard_frequencies_and_warpers():
    n, p = 50_000, torch.tensor([0.6, 0.2, 0.15, 0.05])
    view = DenseLogits(p.log().expand(n, 4))
    _, token = Hard().sample(view, noise(n))
    assert ((torch.bincount(token, minlength=4) - n * p) ** 2 / (n * p)).sum() < 21.1
    _, token = Hard(top_k=2).sample(view, noise(n))
    assert set(token.tolist()) == {0, 1}
    _, token = Hard(top_p=0.7).sample(view, noise(n))
    assert set(token.tolist()) == {0, 1}
    assert Hard(temperature=0.0).sample(view, noise(n))[1].unique().tolist() == [0]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_p": 0.9, "min_p": 0.02}], ids=str)
def test_hard_with_top_k_draws_from_what_the_warpers_of_generate_leave(options):
    """The slices of the kept tokens, in the order of ids, are those of the warped vocabulary."""
    z = torch.randn(300, 600, generator=torch.Generator().manual_seed(1)) * 3
    keep = [TopKLogitsWarper(12)]
    keep += [TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
    keep += [MinPLogitsWarper(options["min_p"])] if "min_p" in options else []
    warped = z / 0.7
    for warper in keep:
        warped = warper(None, warped)
    expected = inverse_cdf(torch.softmax(warped, -1), noise(300).uniform(1)).squeeze(-1)
    _, token = Hard(temperature=0.7, top_k=12, **options).sample(DenseLogits(z), noise(300))
    assert torch.equal(token, expected) and len(token.unique()) > 100


def test_hard_with_top_k_keeps_as_many_tokens_where_logits_are_equal():
    _, token = Hard(top_k=2).sample(DenseLogits(torch.zeros(50, 9)), noise(50))
    assert len(token.unique()) == 2
    _, token = Hard(top_k=20).sample(DenseLogits(torch.zeros(50, 3)), noise(50))
    assert set(token.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("density", ["gumbel", "concrete", "softgrpo"])
def test_the_ratio_does_not_depend_on_the_gumbel_temperature(density):
    old, new = logits(6), logits(6) + 0.1 * logits(6, seed=1)
    ratios = []
    for tau in (0.1, 1.0):
        thought = Gumbel(gumbel_temperature=tau, density=density)
        action, _ = thought.sample(DenseLogits(old), noise(6))
        ratios.append(thought.log_prob(DenseLogits(new), action) - thought.log_prob(DenseLogits(old), action))
    torch.testing.assert_close(ratios[0], ratios[1], rtol=0, atol=2e-5)
    assert ratios[0].abs().max() > 1e-2


def test_concrete_is_blind_to_a_shift_of_the_perturbed_and_gumbel_is_not():
    z = logits(6)
    for density, blind in (("concrete", True), ("gumbel", False)):
        thought = Gumbel(density=density, top_p=1.0)
        action, _ = thought.sample(DenseLogits(z), noise(6))
        shifted = {**action, "perturbed": action["perturbed"] + 0.5}
        difference = (thought.log_prob(DenseLogits(z), shifted) - thought.log_prob(DenseLogits(z), action)).abs()
        assert (difference.max() < 1e-4) == blind


def test_softgrpo_by_hand():
    """Three candidates, p = (.6, .37, .03): the last is below e^-3 and leaves the mean; one residual is clamped."""
    p = torch.tensor([[0.6, 0.37, 0.03]])
    eps = torch.tensor([[0.5, 3.0, 1.0]])  # as the clamped noise could be
    action = {
        "ids": torch.tensor([[0, 1, 2]]),
        "perturbed": torch.log(p + 1e-6) + eps + torch.tensor([[0.0, 0.4, 0.0]]),  # pushed over the clamp by a stale p
        "kept": torch.ones(1, 3, dtype=torch.bool),
        "closed": torch.zeros(1, dtype=torch.bool),
    }
    # mean of  -0.5 - e^-0.5 = -1.106531  and  -3 - e^-3 = -3.049787
    value = Gumbel(density="softgrpo").log_prob(DenseLogits(p.log()), action)
    assert value.item() == pytest.approx(-2.078159, abs=1e-5)
    # The gradient shows the mask and the clamp.
    z = p.log().double().requires_grad_()
    Gumbel(density="softgrpo").log_prob(Float64(z), to_double(action)).sum().backward()
    w = (1 - math.exp(-0.5)) * 0.6 / (0.6 + 1e-6) / 2
    expected = torch.tensor([[w * (1 - 0.6), -w * 0.37, -w * 0.03]]).double()
    torch.testing.assert_close(z.grad, expected, rtol=1e-5, atol=1e-7)


def test_softgrpo_by_hand_has_its_1e_6():
    """p = (.94, .06), g' = log p + (0.2, 0.5): r = (0.2 - log(1 + 1e-6/.94), 0.5 - log(1 + 1e-6/.06)), in float64."""
    p, eps = torch.tensor([[0.94, 0.06]], dtype=torch.float64), torch.tensor([[0.2, 0.5]], dtype=torch.float64)
    action = {
        "ids": torch.tensor([[0, 1]]),
        "perturbed": p.log() + eps,
        "kept": torch.ones(1, 2, dtype=torch.bool),
        "closed": torch.zeros(1, dtype=torch.bool),
    }
    r = [0.2 - math.log1p(1e-6 / 0.94), 0.5 - math.log1p(1e-6 / 0.06)]
    expected = sum(-x - math.exp(-x) for x in r) / 2
    without = sum(-x - math.exp(-x) for x in (0.2, 0.5)) / 2
    value = Gumbel(density="softgrpo").log_prob(Float64(p.log()), action).item()
    assert value == pytest.approx(expected, abs=1e-9) and abs(value - without) > 1e-6


def test_softgrpo_mixes_every_slot_and_scores_what_top_p_kept():
    """One survivor, p = (.96, .03, ...): the released p is 1 there and 0 at the fillers, so no gradient passes at all."""
    p = torch.tensor([[0.96, 0.03, 0.006, 0.003, 0.001]], dtype=torch.float64)
    z = p.log().requires_grad_()
    thought = Gumbel(density="softgrpo")
    action, token = thought.sample(DenseLogits(z.detach().float()), noise(1))
    assert action["kept"].tolist() == [[True, False, False, False, False]] and token.item() == 0
    assert action["perturbed"].isfinite().all() and (thought.weights(action) >= 0).all()
    assert thought.weights(action)[0, 1:].max() < 1e-8
    thought.log_prob(Float64(z), to_double(action)).sum().backward()
    assert (z.grad == 0).all()
    # Two survivors share the mass among themselves: p = (.7, .3) whatever stands in the other slots.
    z = torch.tensor([[0.686, 0.294, 0.012, 0.005, 0.003]], dtype=torch.float64).log()
    action, _ = thought.sample(DenseLogits(z.float()), noise(1))
    two = {name: value[:, :2] if value.dim() > 1 else value for name, value in to_double(action).items()}
    alone = thought.log_prob(Float64(torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()), two)
    torch.testing.assert_close(thought.log_prob(Float64(z), to_double(action)), alone, rtol=0, atol=1e-12)


def test_softgrpo_clamps_its_noise_in_every_slot():
    n = 20_000
    z = torch.tensor([[4.0, 1.0, 0.0, -9.0, -9.0, -9.0]]).expand(n, 6)
    action, _ = Gumbel(density="softgrpo").sample(DenseLogits(z), noise(n))
    assert action["perturbed"].isfinite().all()
    _, log_p = candidates(z, 1.0, 5, 0.95)
    eps = action["perturbed"] - torch.log(log_p.exp() + 1e-6)
    assert eps.min() >= -1.5 - 1e-5 and eps.max() <= 3 + 1e-5
    # 1.13 % of the mass lies on the lower edge and 4.86 % on the upper: five standard errors are 0.8 %.
    assert (eps < -1.5 + 1e-4).float().mean() == pytest.approx(0.0113, abs=0.004)
    assert (eps > 3 - 1e-4).float().mean() == pytest.approx(0.0486, abs=0.008)


def test_support_is_honoured():
    """No gradient reaches a token outside the support, and one survivor has no gradient at all."""
    thought, z = Gumbel(top_k=4, top_p=0.9), logits(6).requires_grad_()
    action, _ = thought.sample(DenseLogits(z.detach()), noise(6))
    thought.log_prob(Float64(z), to_double(action)).sum().backward()
    outside = torch.ones(6, V, dtype=torch.bool)
    for row in range(6):
        outside[row, action["ids"][row][action["kept"][row]]] = False
    assert (z.grad[outside] == 0).all() and (z.grad[~outside] != 0).any()
    peaked = torch.zeros(1, V, dtype=torch.float64)
    peaked[0, 3] = 30.0
    peaked.requires_grad_()
    action, token = Gumbel().sample(DenseLogits(peaked.detach()), noise(1))
    assert token.item() == 3 and action["kept"].sum() == 1
    Gumbel().log_prob(Float64(peaked), to_double(action)).sum().backward()
    assert (peaked.grad == 0).all()


def test_kl_between_gumbel_locations_has_its_closed_form():
    """KL(Gumbel(0), Gumbel(delta)) = e^delta - 1 - delta, within five standard errors of 200,000 draws."""
    n, delta = 200_000, 0.3
    eps = noise(n).gumbel(torch.zeros(n, 1, dtype=torch.long)).double().squeeze()
    log_ratio = (-eps - torch.exp(-eps)) - (-(eps - delta) - torch.exp(-(eps - delta)))
    assert abs(log_ratio.mean() - (math.exp(delta) - 1 - delta)) < 5 * log_ratio.std() / math.sqrt(n)


def test_lock_the_closing_step_is_one_hot_and_scored_on_its_support():
    thought, z = Gumbel(top_k=4, top_p=1.0), logits(3)
    action, token = thought.sample(DenseLogits(z), noise(3))
    closed = thought.close(action, torch.tensor([True, False, True]), token)
    weights = thought.weights(closed)
    assert weights[0].max() == 1 and weights[2].max() == 1 and weights[1].max() < 1
    log_p = thought.log_p(DenseLogits(z), action)
    of_token = log_p[action["ids"] == token.unsqueeze(-1)]
    torch.testing.assert_close(thought.log_prob(DenseLogits(z), closed)[[0, 2]], of_token[[0, 2]])


def test_lock_softgrpo_scores_its_closing_step_as_an_ordinary_token():
    assert not Gumbel(density="softgrpo").scores_closing
    assert Gumbel(density="gumbel").scores_closing and Gumbel(density="concrete").scores_closing


def test_lock_gaussian_closes_with_a_thought():
    assert not Gaussian().closes_one_hot


def test_soft_is_the_renormalised_mixture():
    z = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    thought = Soft(temperature=1.0, top_k=3, top_p=0.8)
    action, token = thought.sample(DenseLogits(z), noise(1))
    # top-3 renormalised: .556 .278 .167; top-p .8 keeps the first two: 2/3 and 1/3.
    torch.testing.assert_close(thought.weights(action), torch.tensor([[2 / 3, 1 / 3, 0.0]]))
    embedding = torch.nn.Embedding(4, H)
    expected = embedding.weight[0] * 2 / 3 + embedding.weight[1] / 3
    torch.testing.assert_close(thought.embed(action, Lookup(embedding))[0], expected)
    assert token.item() == 0 and not thought.has_density


def test_soft_mixes_the_ten_largest_of_what_top_30_top_p_and_min_p_keep():
    """Soft Thinking's defaults, in its order: the n = 10 are cut last, so top-p is a share of the top 30."""
    thought = ThinkingSettings(thought="soft").make_thought(Hard())
    assert (thought.temperature, thought.top_k, thought.top_p, thought.min_p, thought.width) == (
        0.6,
        30,
        0.95,
        0.001,
        10,
    )
    flat = torch.zeros(1, 40)
    action, _ = thought.sample(DenseLogits(flat), noise(1))
    torch.testing.assert_close(thought.weights(action), torch.full((1, 10), 0.1))
    # Below .001 of the largest: log(.001) * T = -4.14 under it.
    falling = torch.tensor([[0.0, -4.0, -4.3] + [-30.0] * 37])
    action, _ = Soft(0.6, 30, 1.0, 0.001).sample(DenseLogits(falling), noise(1))
    assert (thought.weights(action) > 0).sum() == 2


def test_soft_with_a_contrast_is_pushed_away_from_its_most_likely_token():
    """SeLaR's step by hand: h + H(p)/log n (h - e_1); a certain mixture and a closing step stay as they are."""
    z = torch.log(torch.tensor([[0.5, 0.3, 0.2], [1 - 2e-9, 1e-9, 1e-9]], dtype=torch.float64))
    thought = Soft(temperature=1.0, top_k=3, width=3, contrast=1.0)
    action, token = thought.sample(DenseLogits(z), noise(2))
    weights = thought.weights(action).double()
    push = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2)) / math.log(3)
    expected = [0.5 - push * 0.5, 0.3 + push * 0.3, 0.2 + push * 0.2]
    torch.testing.assert_close(weights[0], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights[1], torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    table = torch.nn.Embedding(3, H)
    h, e1 = torch.tensor([0.5, 0.3, 0.2]) @ table.weight, table.weight[0]
    torch.testing.assert_close(thought.embed(action, Lookup(table))[0], h + push * (h - e1))
    assert token.tolist() == [0, 0]
    closed = thought.close(action, torch.tensor([True, False]), torch.tensor([1, 0]))
    torch.testing.assert_close(thought.weights(closed)[0], torch.tensor([0.0, 1.0, 0.0]))
    # One candidate has no entropy to speak of.
    single = Soft(temperature=1.0, top_k=1, width=1, contrast=1.0)
    assert single.weights(single.sample(DenseLogits(z), noise(2))[0]).tolist() == [[1.0], [1.0]]


def test_min_p_drops_the_unlikely():
    z = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    _, log_p = candidates(z, 1.0, 4, 1.0, 0.4)
    torch.testing.assert_close(log_p.exp(), torch.tensor([[2 / 3, 1 / 3, 0.0, 0.0]]))


def _any_thought(kind: str, temperature: float, top_k: int, top_p: float, min_p: float):
    truncated = (temperature, top_k, top_p, min_p)
    return {
        "gumbel": lambda: Gumbel(*truncated),
        "concrete": lambda: Gumbel(*truncated, density="concrete"),
        "softgrpo": lambda: Gumbel(*truncated, density="softgrpo"),
        "dirichlet": lambda: Dirichlet(*truncated, concentration=0.7),
        "mixture": lambda: Mixture(*truncated),
        "multiplex": lambda: Multiplex(temperature),
        "logits": lambda: LogitsGaussian(temperature, 0.5, top_k),
        "probabilities": lambda: ProbabilitiesGaussian(temperature, 0.05, *truncated[1:]),
        "gaussian": lambda: Gaussian(temperature, 0.3),
        "soft": lambda: Soft(*truncated),
        "hard": lambda: Hard(temperature, top_k, top_p, min_p),
    }[kind]()


KINDS = ["gumbel", "concrete", "softgrpo", "dirichlet", "mixture", "multiplex", "logits", "probabilities", "gaussian"]


@given(
    kind=st.sampled_from([*KINDS, "soft", "hard"]),
    n=st.integers(0, 5),
    top_k=st.integers(1, V),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 1.0),
    temperature=st.floats(0.05, 5.0),
    suppressed=st.integers(0, V - 1),
    ties=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_support_gives_finite_scores_and_gradients(
    kind, n, top_k, top_p, min_p, temperature, suppressed, ties, seed
):
    """Ties, one-token supports, suppressed tokens (-inf logits) and empty batches are ordinary for every thought."""
    z = logits(n, seed).round() if ties else logits(n, seed)
    z[:, :suppressed] = -torch.inf
    z = z.float().requires_grad_()
    thought, view = _any_thought(kind, temperature, top_k, top_p, min_p), DenseLogits(z, table().float())
    with torch.no_grad():
        action, token = thought.sample(DenseLogits(z, table().float()), noise(n))
    if thought.closes_one_hot:
        action = thought.close(action, torch.arange(n) % 2 == 0, token)
    log_prob, entropy = thought.score(view, action)
    if z.numel() and (log_prob + entropy).requires_grad:
        (log_prob + entropy).sum().backward()
        assert z.grad.isfinite().all()
    assert log_prob.isfinite().all() and (entropy >= 0).all()
    weights = thought.weights(action)
    if weights is not None and kind != "probabilities":
        torch.testing.assert_close(weights.sum(-1), torch.ones(n))
    assert token.shape == (n,) and (token >= suppressed).all()
    embedding = torch.nn.Embedding.from_pretrained(table().float())
    assert thought.embed(action, Lookup(embedding)).isfinite().all()


def test_kl_of_gaussian_thoughts_has_its_closed_form():
    """KL = ||h - h'||^2 / (2 sigma^2), within five standard errors of 20,000 draws."""
    n, sigma = 20_000, 0.5
    thought = Gaussian(0.7, sigma)
    old, new = (Float64(logits(1, seed).expand(n, V), table()) for seed in (0, 1))
    action = to_double(thought.sample(DenseLogits(old.logits, table().float()), noise(n))[0])
    log_ratio = thought.log_prob(old, action) - thought.log_prob(new, action)
    distance = (old.mixture(0.7)[0][0] - new.mixture(0.7)[0][0]).square().sum() / (2 * sigma**2)
    assert abs(log_ratio.mean() - distance) < 5 * log_ratio.std() / math.sqrt(n)


def test_bfloat16_weights_are_scored_in_float32():
    """The same rounded numbers give the same logits to float32; rounding them costs what the format says, no more."""
    hidden, head, embedding, _ = _head()
    ids = torch.arange(V).expand(7, -1)
    rounded = HeadLogits(hidden.bfloat16(), head.bfloat16(), embedding.bfloat16()).at(ids)
    exact = hidden.bfloat16().float() @ head.weight.float().T + head.bias.float()
    torch.testing.assert_close(rounded, exact.detach(), rtol=1e-5, atol=1e-5, check_dtype=False)
    hidden, head, embedding, _ = _head()
    error = (rounded - head(hidden).float()).abs()
    # Relative rounding of bf16 is 2**-9 for each factor and for the bias; second order left out.
    bound = 2.0**-9 * (2 * hidden.abs() @ head.weight.abs().T + head.bias.abs()).float() * 1.01
    assert (error <= bound).all() and error.max() > 1e-4


def _head(softcap=None):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(4)
    head, embedding = torch.nn.Linear(H, V, bias=True).double(), torch.nn.Embedding(V, H).double()
    hidden = torch.randn(7, H, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, head, embedding, HeadLogits(hidden, head, embedding, 0.5, softcap, 2.0)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_lazy_view_equals_the_dense_one(softcap, monkeypatch):
    """Values to float32's rounding and every gradient, over several tiles."""
    monkeypatch.setitem(TILE, "cpu", 3 * V)
    hidden, head, embedding, lazy = _head(softcap)
    z = head(hidden) * 0.5
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    ids = torch.randint(0, V, (7, 3), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lazy.at(ids).double(), z.gather(-1, ids), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lazy.dense().double(), z, rtol=1e-6, atol=1e-6)
    log_p = torch.log_softmax(z / 0.7, -1)
    mean, entropy = log_p.exp() @ embedding.weight * 2.0, -(log_p.exp() * log_p).sum(-1)
    leaves = (hidden, head.weight, head.bias, embedding.weight)
    g = torch.randn(7, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad((mean * g).sum() + entropy.sum(), leaves, retain_graph=True)
    lazy_mean, lazy_entropy = lazy.mixture(0.7)
    got = torch.autograd.grad((lazy_mean * g).sum() + lazy_entropy.sum(), leaves)
    torch.testing.assert_close(lazy_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lazy_entropy.double(), entropy, rtol=1e-5, atol=1e-6)
    for have, want in zip(got, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    at = torch.autograd.grad(lazy.at(ids).sum(), leaves[:3])
    for have, want in zip(at, torch.autograd.grad(z.gather(-1, ids).sum(), leaves[:3]), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mixture_is_the_weighted_sum_of_rows(dtype):
    """Value and gradient against an einsum in float64: exact but for float32 sums and the table's own rounding."""
    n, K = 40, 5
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(V, H, padding_idx=0).to(dtype)
    ids, w = torch.randint(0, V, (n, K)), torch.softmax(torch.randn(n, K), -1)
    g = torch.randn(n, H, dtype=torch.float64)
    mixed = Lookup(embedding).mix(w, ids)
    assert mixed.dtype == torch.promote_types(dtype, torch.float32)
    (mixed.double() * g).sum().backward()
    table = embedding.weight.detach().double().requires_grad_()
    expected = torch.einsum("nk,nkh->nh", w.double(), torch.nn.functional.embedding(ids, table, padding_idx=0))
    (expected * g).sum().backward()
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-6, atol=1e-6)
    # The gradient is rounded once, to the table's dtype: half a unit in the last place.
    rounding = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(embedding.weight.grad.double(), table.grad, rtol=rounding, atol=1e-6)
    assert (embedding.weight.grad[0] == 0).all()


def test_dirichlet_is_torch_dirichlet():
    """Up to the Jacobian prod_i 1/y_i, which holds no parameter."""
    thought, z = Dirichlet(temperature=1.0, top_k=4, top_p=1.0, concentration=3.0), logits(6)
    action, _ = thought.sample(DenseLogits(z), noise(6))
    p = candidates(z.float(), 1.0, 4)[1].exp().double()
    log_y = action["log_weights"].double()
    expected = torch.distributions.Dirichlet(3.0 * p, validate_args=False).log_prob(log_y.exp()) + log_y.sum(-1)
    torch.testing.assert_close(thought.log_prob(DenseLogits(z), action).double(), expected, rtol=1e-4, atol=1e-4)


def test_dirichlet_means_and_one_survivor():
    """E[y] = p, within five standard errors of 40,000 draws; one survivor has weight one and no density term."""
    n = 40_000
    p = torch.tensor([0.6, 0.3, 0.1])
    thought = Dirichlet(temperature=1.0, top_k=3, top_p=1.0, concentration=0.7)
    action, _ = thought.sample(DenseLogits(p.log().expand(n, 3)), noise(n))
    y = thought.weights(action).double()
    assert ((y.mean(0) - p).abs() < 5 * y.std(0) / math.sqrt(n)).all()
    peaked = torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    thought = Dirichlet(top_k=3)
    action, _ = thought.sample(DenseLogits(peaked.detach()), noise(1))
    value = thought.log_prob(Float64(peaked), to_double(action))
    value.sum().backward()
    assert value.item() == 0 and (peaked.grad == 0).all() and thought.weights(action)[0, 0] == 1


def test_mixture_weights_by_hand():
    """p = (.5, .25, .25), x = 1, beta = 1: H = 1.0397/log 3 = .9464; w = (H p + (2 - H) 1{x}) / 2."""
    p = torch.tensor([[0.5, 0.25, 0.25]])
    thought = Mixture(temperature=1.0, top_k=3, top_p=1.0, beta=1.0)
    for n in range(50):
        action, token = thought.sample(DenseLogits(p.log()), noise(1, generation=n))
        if token.item() == 1:
            break
    h = 0.9463946
    expected = torch.tensor([[h * 0.5 / 2, (h * 0.25 + 2 - h) / 2, h * 0.25 / 2]])
    torch.testing.assert_close(action["weights"].sort()[0], expected.sort()[0], rtol=1e-5, atol=1e-6)
    assert thought.log_prob(DenseLogits(p.log()), action).item() == pytest.approx(math.log(0.25), abs=1e-6)


def test_multiplex_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.2]])
    for weighting in ("mean", "probability"):
        thought = Multiplex(1.0, width=2, weighting=weighting)
        action, token = thought.sample(DenseLogits(p.log()), noise(1))
        drawn = p[0][action["ids"][0]]
        assert thought.log_prob(DenseLogits(p.log()), action).item() == pytest.approx(
            drawn.log().sum().item(), abs=1e-6
        )
        weights = torch.full((2,), 0.5) if weighting == "mean" else drawn / drawn.sum()
        torch.testing.assert_close(thought.weights(action)[0], weights)
        assert token.item() == action["ids"][0, 0]


def test_one_draw_is_a_multiplex_thought_too():
    thought, z = Multiplex(1.0, width=1), logits(4)
    action, token = thought.sample(DenseLogits(z), noise(4))
    expected = torch.log_softmax(z, -1).gather(-1, token.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(thought.log_prob(DenseLogits(z), action).double(), expected, rtol=0, atol=1e-5)


def test_bfloat16_normalisers_round_as_their_candidates_do():
    """The log-probabilities of all tokens sum to one: the normaliser sees the logits that the numerator sees."""
    torch.manual_seed(0)
    n, size, vocabulary = 32, 64, 300
    head, embedding = torch.nn.Linear(size, vocabulary, bias=False), torch.nn.Embedding(vocabulary, size)
    hidden = 4 * torch.randn(n, size)
    view = HeadLogits(hidden.bfloat16(), head.bfloat16(), embedding.bfloat16())
    log_p, _ = view.log_prob(torch.arange(vocabulary).expand(n, -1), 1.0)
    torch.testing.assert_close(torch.logsumexp(log_p, -1), torch.zeros(n), rtol=0, atol=1e-5)


def test_dirichlet_candidates_too_unlikely_for_a_gamma_function():
    """Kept by top_p = 1 though their probability underflows: finite, and without a gradient."""
    z = torch.full((500, 6), -95.0)
    z[:, :3] = logits(500)[:, :3].float()
    z.requires_grad_()
    for alpha in (1.0, 1e-3):
        thought = Dirichlet(temperature=1.0, top_k=5, top_p=1.0, concentration=alpha)
        action, _ = thought.sample(DenseLogits(z.detach()), noise(500))
        value = thought.log_prob(DenseLogits(z), action)
        value.sum().backward()
        assert value.isfinite().all() and z.grad.isfinite().all() and action["kept"][:, 3:].any()


def test_inverse_cdf_in_two_levels():
    """Every token of a vocabulary of several blocks is drawn in proportion: chi-squared at 99.99 %, and never at p = 0."""
    p = torch.rand(700, generator=torch.Generator().manual_seed(0))
    p[100:400] = 0
    p /= p.sum()
    n = 200_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = inverse_cdf(p.expand(1, -1), u.unsqueeze(0))[0]
    count = torch.bincount(drawn, minlength=700)
    assert (count[100:400] == 0).all() and (drawn.diff() >= 0).all()
    # An even grid of u gives every token its share but for one grid point at either end.
    assert ((count - n * p).abs() <= 1.5).all()


def test_noise_on_the_hidden_state():
    """Finite differences and mean score zero in the hidden state; what was drawn is fed again as it was fed."""
    hidden, head, embedding, _ = _head()
    n = 20_000

    def view(h):
        return DenseLogits(
            head(h), embedding.weight.detach(), 1.0, torch.float64, h, lambda x: head(x.to(head.weight.dtype))
        )

    thought, many = HiddenGaussian(0.5, 0.3), hidden.detach()[:1].expand(n, H)
    with torch.no_grad():
        action, _ = thought.sample(view(many), noise(n))
    leaf = many.clone().requires_grad_()
    thought.log_prob(HeadLogits(leaf, head, embedding), action).sum().backward()
    assert (leaf.grad.mean(0).abs() < 5 * leaf.grad.std(0) / math.sqrt(n)).all()
    again = torch.softmax(head(action["hidden"][:3]) / 0.5, -1) @ embedding.weight
    torch.testing.assert_close(
        thought.embed(action, Lookup(embedding))[:3].double(), again.detach(), rtol=1e-4, atol=1e-5
    )


def test_latent_feeds_the_hidden_state():
    hidden, head, embedding, _ = _head()
    action, token = Latent().sample(DenseLogits(head(hidden), hidden=hidden), noise(7))
    assert torch.equal(Latent().embed(action, embedding), hidden) and torch.equal(token, head(hidden).argmax(-1))
    assert not Latent().has_density


def test_thoughts_know_their_base():
    for name, make in STOCHASTIC.items():
        assert make().has_density, name
    assert not Gumbel(noise_scale=0.0).has_density and not Gaussian(sigma=0.0).has_density


def test_logits_that_are_nan_draw_some_token():
    """An index past the vocabulary would end the process, and on a device every other completion with it."""
    z = torch.full((2, 300), torch.nan)
    noise = KeyedNoise(0, 0, torch.arange(2), torch.zeros(2, dtype=torch.long))
    _, token = Hard().sample(DenseLogits(z), noise)
    assert ((token >= 0) & (token < 300)).all()
