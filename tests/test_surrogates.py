# SPDX-License-Identifier: Apache-2.0
"""Scores that are no densities and serve comparison: LEPO's soft label, and SofT-GRPO's released score."""

import math

import pytest
import torch

from tests import tiny
from trl_soft import SoftGRPOConfig, SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.thoughts import Gumbel
from trl_soft.thoughts.checks import (
    Float64Logits,
    check_density,
    finite_differences,
    in_float64,
    some_logits,
    some_noise,
)
from trl_soft.training import soft_tokens_mixin
from trl_soft.vocabulary.dense_logits import DenseLogits


LABEL = {"gumbel_density": "soft_label"}


def by_hand() -> dict[str, torch.Tensor]:
    """y = (.7, .2, .1) at tau_g = 1; the third candidate was cut."""
    weights = torch.tensor([[0.7, 0.3, 0.0]])
    return {
        "ids": torch.tensor([[0, 1, 2]]),
        "perturbed": weights.log(),
        "kept": torch.tensor([[True, True, False]]),
        "closed": torch.zeros(1, dtype=torch.bool),
    }


def test_the_soft_label_by_hand():
    """p = (.6, .4) on the support: .7 log .6 + .3 log .4, and in the logits the gradient y - p."""
    z = torch.tensor([[0.6, 0.4, 0.2]], dtype=torch.float64).log().requires_grad_()
    thought = Gumbel(density="soft_label", gumbel_temperature=1.0, top_k=3)
    value = thought.log_prob(Float64Logits(z), in_float64(by_hand()))
    assert value.item() == pytest.approx(0.7 * math.log(0.6) + 0.3 * math.log(0.4))
    value.sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([[0.1, -0.1, 0.0]], dtype=torch.float64), rtol=0, atol=1e-7)


def test_the_label_of_the_closing_step_is_its_token():
    thought = Gumbel(density="soft_label", gumbel_temperature=1.0, top_k=3)
    action = thought.close(by_hand(), torch.tensor([True]), torch.tensor([1]))
    value = thought.log_prob(DenseLogits(torch.tensor([[0.6, 0.4, 0.2]]).log()), action)
    assert value.item() == pytest.approx(math.log(0.4))


def test_a_cold_mixture_has_the_score_of_its_token():
    """tau_g towards 0: the label is one-hot, and the score is log p of the shadow token, whose mean gradient is 0."""
    z = some_logits(6).float()
    thought = Gumbel(density="soft_label", gumbel_temperature=1e-3)
    action, token = thought.sample(DenseLogits(z), some_noise(6))
    log_p = thought.log_p(DenseLogits(z), action)
    of_token = log_p.gather(-1, (action["ids"] == token.unsqueeze(-1)).long().argmax(-1, keepdim=True)).squeeze(-1)
    torch.testing.assert_close(thought.log_prob(DenseLogits(z), action), of_token)


@pytest.mark.parametrize("closing", [False, True])
def test_its_gradient_is_that_of_finite_differences(closing):
    finite_differences(Gumbel(density="soft_label", gumbel_temperature=0.5), closing)


def test_a_soft_label_is_no_density():
    """At tau_g = 2 a mixture is flatter than p, so a label pulls towards it whatever the reward is."""
    with pytest.raises(AssertionError, match="`score` is not the density of `sample`"):
        check_density(Gumbel(density="soft_label", gumbel_temperature=2.0))
    told = {density: Gumbel(density=density).surrogate for density in ("gumbel", "concrete", "softgrpo", "soft_label")}
    assert [density for density, sentence in told.items() if sentence is not None] == ["softgrpo", "soft_label"]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"num_iterations": 2}, "a rollout serves several updates"),
        ({"steps_per_generation": 2}, "Set `num_iterations: 1` and `steps_per_generation: 1`"),
        ({"beta": 0.1}, "`beta` is 0.1, whose KL"),
        ({"use_vllm": True}, "Set `vllm_importance_sampling_correction: false`"),
        ({"rollout_dtype": "bfloat16"}, "is no log-density"),
    ],
    ids=str,
)
def test_a_soft_label_is_refused_where_two_policies_are_compared(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.config(tmp_path, **LABEL, **settings)
    if "use_vllm" not in settings:
        tiny.config(tmp_path, gumbel_density="softgrpo", **settings)


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_rloo_takes_it_without_a_kl(tmp_path, beta):
    settings = {**LABEL, "beta": beta, "bf16": False, "report_to": "none", "max_completion_length": 16}
    if beta:
        with pytest.raises(ValueError, match="whose KL compares it with the reference"):
            SoftRLOOConfig(str(tmp_path), **settings)
    else:
        SoftRLOOConfig(str(tmp_path), **settings)


@pytest.mark.parametrize("kind", [(None, SoftGRPOConfig), (SoftRLOOTrainer, SoftRLOOConfig)], ids=["grpo", "rloo"])
def test_both_trainers_take_it_and_say_once_what_it_is(tmp_path, kind, monkeypatch):
    told = []
    monkeypatch.setattr(soft_tokens_mixin.logger, "warning_once", told.append)
    trainer_class, config_class = kind
    options = {} if trainer_class is None else {"trainer_class": trainer_class, "config_class": config_class}
    trainer = tiny.trainer(tmp_path, **options, **LABEL, beta=0.0, max_steps=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert sum("`gumbel_density: soft_label` is no log-density" in text for text in told) == 1
