# SPDX-License-Identifier: Apache-2.0
"""What is bounded is what is exponentiated, and nothing else."""

import pytest
import torch

from tests import tiny
from trl_soft import SoftRLOOConfig, SoftRLOOTrainer


def gradients(trainer, batch) -> tuple[float, torch.Tensor]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


def rolled_out(tmp_path, **settings):
    """A trainer whose weights are those that drew its batch."""
    rloo = {"trainer_class": SoftRLOOTrainer, "config_class": SoftRLOOConfig} if settings.pop("rloo", False) else {}
    options = {"thought": "gaussian", "num_iterations": 2, "max_steps": 1, "beta": 0.0, "learning_rate": 0.0}
    trainer = tiny.trainer(tmp_path, **rloo, **{**options, **settings})
    batches = []
    original = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(original(inputs)) or batches[-1]
    trainer.train()
    return trainer, batches[0]


def moved(batch, nats: float):
    """The old policy, with two thoughts of each completion that has them moved by opposite numbers of nats."""
    old = batch["old_per_token_logps"].clone()
    for row, thoughts in enumerate(batch["soft_thinking_mask"]):
        places = thoughts.nonzero().flatten().tolist()
        if len(places) > 1:
            old[row, places[0]] += nats
            old[row, places[1]] -= nats
    return batch | {"old_per_token_logps": old}


@pytest.mark.parametrize(
    "settings",
    [
        {"rloo": True},
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"importance_sampling_level": "sequence", "loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "vespo"},
    ],
    ids=["rloo", "sequence", "sequence-cispo", "vespo"],
)
def test_a_far_thought_in_a_near_completion_is_untouched(tmp_path, settings, monkeypatch):
    """The completion's ratio is 1 though single thoughts are 15 nats off, so loss and gradient are those without a bound."""
    trainer, batch = rolled_out(tmp_path, **settings)
    batch = moved(batch, 15.0)
    loss, gradient = gradients(trainer, batch)
    monkeypatch.setattr("trl_soft.training.ratio_bound.LOG_RATIO_BOUND", 1e9)
    expected = gradients(trainer, batch)
    assert gradient.norm() > 1e-2 and loss == expected[0] and torch.equal(gradient, expected[1])


@pytest.mark.parametrize(
    "settings", [{"rloo": True}, {"importance_sampling_level": "sequence"}], ids=["rloo", "sequence"]
)
def test_a_far_completion_is_held(tmp_path, settings):
    """A mean (or sum) of hundreds of nats has neither an infinite loss nor a gradient; the others keep theirs."""
    trainer, batch = rolled_out(tmp_path, **settings)
    far = dict(batch)
    far["old_per_token_logps"] = batch["old_per_token_logps"] - 500.0
    if "old_logps" in batch:
        far["old_logps"] = batch["old_logps"] - 500.0
    loss, gradient = gradients(trainer, far)
    assert torch.tensor(loss).isfinite() and gradient.abs().max() == 0
    # One row of them far: the rest's gradient is what it is without that row's.
    rows = torch.arange(len(batch["advantages"])) > 0
    for name in ("old_per_token_logps", "old_logps"):
        if name in batch:
            far[name] = torch.where(rows.view(-1, *[1] * (batch[name].dim() - 1)), batch[name], far[name])
    _, gradient = gradients(trainer, far)
    _, expected = gradients(trainer, batch | {"advantages": batch["advantages"] * rows})
    assert expected.norm() > 1e-2
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)  # float32 sums in another order


def test_an_off_policy_mask_sees_the_true_distance(tmp_path):
    """Sequences are left out by the mean of their log-ratios, of which none is exponentiated."""
    trainer, batch = rolled_out(tmp_path, off_policy_mask_threshold=12.0, delta=4.0)
    far = batch["old_per_token_logps"] + 400.0 * batch["soft_thinking_mask"]
    seen, original = [], trainer.get_off_policy_mask
    trainer.get_off_policy_mask = lambda **given: seen.append(original(**given)) or seen[-1]
    gradients(trainer, batch | {"old_per_token_logps": far, "advantages": -torch.ones_like(batch["advantages"])})
    assert seen[0].sum() == 0
