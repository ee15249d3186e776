# SPDX-License-Identifier: Apache-2.0
"""Replay agreement: a rollout that fed something else than its record says is seen, a healthy one is left alone."""

import pytest
import torch

import trl_soft.runs.replay
from tests import tiny
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer, ThinkingSettings
from trl_soft.rollout.slots import Slots
from trl_soft.runs.replay import ReplayError, ReplayWatch, is_exact, kind_of, tolerance, tolerances
from trl_soft.thoughts import THOUGHTS, Hard


TRAINED = [settings for settings in tiny.THOUGHTS if THOUGHTS[settings["thought"]].has_density]
GRPO, RLOO = (SoftGRPOTrainer, SoftGRPOConfig), (SoftRLOOTrainer, SoftRLOOConfig)
WHOLE = {"max_steps": 1, "per_device_train_batch_size": 16, "beta": 0.0}


@pytest.fixture
def warnings(monkeypatch):
    sentences = []
    monkeypatch.setattr(trl_soft.runs.replay.logger, "warning", sentences.append)
    return sentences


@pytest.fixture
def decode_hard(monkeypatch):
    """The fault of every fork: the record says what was drawn, and the next step is fed the token."""

    def break_it():
        fed = Slots.fed
        monkeypatch.setattr(Slots, "fed", lambda self, size, position: (fed(self, size, position)[0], None))

    return break_it


@pytest.mark.parametrize("settings", TRAINED, ids=tiny.name)
def test_every_thought_is_told_from_hard_tokens(tmp_path, settings, warnings, decode_hard):
    tiny.trainer(tmp_path, **WHOLE, **settings).train()
    assert warnings == []
    decode_hard()
    tiny.trainer(tmp_path, **WHOLE, **settings).train()
    if settings["thought"] == "hard":
        assert warnings == []  # it was fed what it is
    else:
        assert len(warnings) == 1 and "fed hard tokens where the update feeds mixtures" in warnings[0]
        assert f"in a healthy run of {kind_of(ThinkingSettings(**settings))} thoughts in float32" in warnings[0]


@pytest.mark.parametrize("settings", [{"thought": "gumbel", "gumbel_density": "softgrpo"}, {"thought": "gaussian"}])
def test_bfloat16_is_told_from_hard_tokens(tmp_path, settings, warnings, decode_hard):
    """Thoughts that are nearly one token stay within what bfloat16 may round; the shadow's fit tells them all the same."""
    tiny.trainer(tmp_path, tiny.model().bfloat16(), **WHOLE, **settings).train()
    assert warnings == []
    decode_hard()
    tiny.trainer(tmp_path, tiny.model().bfloat16(), **WHOLE, **settings).train()
    assert len(warnings) == 1 and "fed hard tokens where the update feeds mixtures" in warnings[0]
    assert ("in a healthy run of" in warnings[0]) is (settings["thought"] == "gaussian")


@pytest.mark.parametrize("classes", [GRPO, RLOO])
def test_stop_ends_the_run_before_the_update(tmp_path, classes, warnings, decode_hard):
    decode_hard()
    trainer = tiny.trainer(tmp_path, None, *classes, **WHOLE, replay_disagreement="stop")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ReplayError, match="fed hard tokens where the update feeds mixtures"):
        trainer.train()
    assert trainer.state.global_step == 0 and warnings == []
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("classes", [GRPO, RLOO])
def test_another_temperature_leaves_the_range(tmp_path, classes, warnings):
    """Hard thoughts have no mixture to be told from; they are drawn at a temperature the update knows nothing of."""
    trainer = tiny.trainer(tmp_path, None, *classes, **{**WHOLE, "max_steps": 2}, thought="hard")
    trainer._plans["train"].thought = Hard(2.0)
    trainer.train()
    assert len(warnings) == 1 and "stays below 0.001 in a healthy run of hard thoughts in float32" in warnings[0]


def test_ignored_or_within_the_users_own_limit(tmp_path, warnings, decode_hard):
    decode_hard()
    tiny.trainer(tmp_path, **WHOLE, replay_disagreement="ignore").train()
    trainer = tiny.trainer(tmp_path, **WHOLE, replay_tolerance=1e6)
    assert trainer._watch.limit == 1e6
    assert warnings == []


def test_several_draws_are_summed_as_the_rollout_noted_them(tmp_path, warnings):
    tiny.trainer(tmp_path, **WHOLE, thought="multiplex", multiplex_ratio="draw").train()
    assert warnings == []


def test_what_is_drawn_afterwards_is_the_same(tmp_path, warnings):
    """Looking takes nothing from the random numbers that dropout and the sampler draw from."""
    states = []
    for action in ("warn", "ignore"):
        tiny.trainer(tmp_path, tiny.model(attention_dropout=0.1), **WHOLE, replay_disagreement=action).train()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class Alone:
    """An accelerator of one process."""

    is_main_process = True

    def reduce(self, tensor, reduction):
        return tensor


def watch(**changes) -> ReplayWatch:
    options = {"action": "warn", "limit": 0.1, "exact": True, "accelerator": Alone()}
    return ReplayWatch(ThinkingSettings(), **{**options, **changes})


def test_a_few_thoughts_wait_for_more(warnings):
    seen = watch()
    everywhere = torch.ones(1, 30, dtype=torch.bool)
    for step in range(2):
        assert seen.wants_contrast
        seen.note(torch.full((1, 30), 0.2), everywhere, torch.full((1, 30), 0.19))
        assert not seen.wants_contrast  # one look an update
        seen.judge(step)
    assert warnings == []
    seen.note(torch.full((1, 30), 0.2), everywhere, torch.full((1, 30), 0.19))
    seen.judge(2)
    # 0.2 is above the limit, and not much worse than the shadow's 0.19.
    assert len(warnings) == 1 and warnings[0].startswith(
        "Update 2: the mean of `thinking/logp_difference` is 0.2 nats over 90"
    )
    assert not seen.wants_contrast
    seen.note(torch.full((9, 30), 9.0), torch.ones(9, 30, dtype=torch.bool), None)
    seen.judge(3)
    assert len(warnings) == 1


def test_only_thoughts_are_looked_at(warnings):
    seen = watch()
    mask = torch.zeros(2, 100, dtype=torch.bool)
    mask[0] = True
    difference = torch.where(mask, 0.01, 50.0)
    seen.note(difference, mask, difference)
    seen.judge(0)
    assert warnings == []


def test_a_nan_is_left_to_nonfinite(warnings):
    seen = watch(action="stop")
    seen.note(torch.full((1, 100), torch.nan), torch.ones(1, 100, dtype=torch.bool), torch.full((1, 100), torch.nan))
    seen.judge(0)
    assert warnings == []


def test_the_range_grows_with_what_rounding_grows_with():
    def of(exact=False, hidden=576, **settings):
        return tolerance(ThinkingSettings(**settings), hidden, exact)

    rounded = {kind: row.rounded for kind, row in tolerances().items()}
    assert of(thought="gumbel") == rounded["gumbel"] and of(True, thought="gumbel") == tolerances()["gumbel"].exact
    assert of(thought="gumbel", thinking_top_k=10) == pytest.approx(2 * rounded["gumbel"])
    assert of(thought="gumbel", noise_scale=0.5) == pytest.approx(2 * rounded["gumbel"])
    softgrpo = {"thought": "gumbel", "gumbel_density": "softgrpo"}
    assert of(**softgrpo, thinking_top_k=10) == rounded["gumbel-softgrpo"]  # a mean over candidates
    assert of(thought="gaussian", hidden=2 * 576) == pytest.approx(2 * rounded["gaussian"])
    assert of(thought="gaussian", noise_scale=0.66) == pytest.approx(rounded["gaussian"] / 4)
    assert of(thought="multiplex", multiplex_width=6) == pytest.approx(2 * rounded["multiplex"])
    assert of(thought="mixture") == rounded["mixture"] and of(thought="hard") == rounded["hard"]


def test_every_trained_thought_has_a_range():
    assert {kind_of(ThinkingSettings(**settings)) for settings in TRAINED} == set(tolerances())
    assert all(0 < row.exact < row.rounded for row in tolerances().values())


@pytest.mark.parametrize(
    ("changes", "exact"),
    [({}, True), ({"bf16": True}, False), ({"use_vllm": True}, False), ({"tf32": True}, False)],
    ids=["float32", "autocast", "vllm", "tf32"],
)
def test_what_counts_as_exact(changes, exact):
    class Accelerator:
        mixed_precision = "no"

    class Arguments:
        use_vllm = bf16 = fp16 = tf32 = False

    args = Arguments()
    vars(args).update(changes)
    net = tiny.model()
    assert is_exact(args, net, Accelerator()) is exact
    assert is_exact(args, net.bfloat16(), Accelerator()) is False
