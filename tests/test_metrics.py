# SPDX-License-Identifier: Apache-2.0
"""What an update logs of its thoughts and of its answers, by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from trl_soft.record import SoftTokens
from trl_soft.rollout import Rollout
from trl_soft.thoughts import Hard, Multiplex
from trl_soft.training.in_flight import InFlight, Phase
from trl_soft.training.metrics import rollout_metrics, update_metrics


# One process.
ALONE = SimpleNamespace(device="cpu", reduce=lambda value, reduction: value, gather=lambda value: value)


def test_thoughts_and_answers_are_measured_apart():
    draw = torch.Generator().manual_seed(0)
    seen, old, ref, drawn = (-torch.rand(2, 4, generator=draw) for _ in range(4))
    thinking = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    forced = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    record = SoftTokens(Hard(), thinking, {}, drawn, forced)
    batch = {"completion_ids": mask, "completion_mask": mask, "old_per_token_logps": old, "ref_per_token_logps": ref}
    flight = InFlight(Phase.LOSS, record, batch)
    flight.see(seen)
    found = update_metrics(flight, (0.2, 0.3), ALONE)
    parts = {"thinking": [(0, 0), (0, 1), (1, 0)], "answer": [(0, 3), (1, 1)]}
    for name, places in parts.items():
        rows, columns = zip(*places, strict=True)
        now, before, reference, first = (x[rows, columns] for x in (seen, old, ref, drawn))
        ratio, delta = (now - before).exp(), reference - now
        expected = {
            "log_ratio/mean": (now - before).abs().mean(),
            "log_ratio/max": (now - before).abs().max(),
            "clip_ratio": ((ratio < 0.8) | (ratio > 1.3)).float().mean(),
            "logp_difference/mean": (before - first).abs().mean(),
            "logp_difference/max": (before - first).abs().max(),
            # The estimate k3 of Schulman, "Approximating KL divergence" (2020).
            "kl": (delta.exp() - delta - 1).mean(),
        }
        for metric, value in expected.items():
            assert found[f"{name}/{metric}"] == pytest.approx(value.item(), rel=1e-5, abs=1e-6), metric


def test_a_token_that_was_drawn_twice_has_both_weights():
    """Three draws of one completion: one token thrice, then two tokens."""
    ids = torch.tensor([[[7, 7, 7], [7, 3, 7]]], dtype=torch.int32)
    weights = torch.full((1, 2, 3), 1 / 3)
    thought = Multiplex(width=3)
    action = {"ids": ids, "weights": weights, "closed": torch.zeros(1, 2, dtype=torch.bool)}
    thinks, zeros = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    record = SoftTokens(thought, thinks, action, zeros)
    length, flag = torch.tensor([2]), torch.tensor([False])
    drawn = Rollout(ids[..., 0].long(), thinks, record, zeros, length, length * 0, flag)
    found = rollout_metrics(drawn, ALONE)
    assert found["thinking/top1_weight"] == pytest.approx((1 + 2 / 3) / 2)
    two = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found["thinking/effective_support"] == pytest.approx((1 + math.exp(two)) / 2)
