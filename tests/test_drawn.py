# SPDX-License-Identifier: Apache-2.0
"""What was not drawn is never trained on, counted or scored: neither padding, nor what was forced."""

from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from trl_soft import SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.rollout import Key
from trl_soft.rollout.engines import ENGINES
from trl_soft.rollout.interface import assemble
from trl_soft.training.in_flight import Phase


KINDS = {"grpo": {}, "rloo": {"trainer_class": SoftRLOOTrainer, "config_class": SoftRLOOConfig}}
CAPPED = {"end_of_thinking": "a", "max_thinking_length": 12, "max_completion_length": 20, "max_answer_length": 3}
FORCED = {"max_thinking_length": 3, "answer_prefill": ["1234", "3+44"]}


def watched(kind: str, tmp_path, **changes):
    """A trainer that keeps its last rollout and batch."""
    given = dict(KINDS[kind])
    base = given.pop("trainer_class", SoftGRPOTrainer)

    class Watched(base):
        def _generate_single_turn(self, *args, **kwargs):
            output = super()._generate_single_turn(*args, **kwargs)
            self.drawn = self._flight.rollout
            return output

        def _generate_and_score_completions(self, inputs):
            self.batch = super()._generate_and_score_completions(inputs)
            return self.batch

    settings = {"max_steps": 1, "per_device_train_batch_size": 8, "beta": 0.0} | changes
    return tiny.trainer(tmp_path, trainer_class=Watched, **given, **settings)


def pad_is_eos():
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("grpo", {}),
        ("grpo", {"rollout_engine": "simple"}),
        ("grpo", {"processing_class": pad_is_eos()}),
        ("rloo", {}),
        ("rloo", {"processing_class": pad_is_eos()}),
    ],
    ids=["grpo", "simple", "grpo-pad-is-eos", "rloo", "rloo-pad-is-eos"],
)
def test_what_ends_a_completion_ends_it_in_the_loss(tmp_path, kind, changes):
    """By an end of sequence, by the cap of answers, or by that of completions."""
    trainer = watched(kind, tmp_path, **CAPPED, **changes)
    trainer.train()
    drawn, batch, log = trainer.drawn, trainer.batch, trainer.state.log_history[0]
    lengths = drawn.completion_mask.sum(1)
    ids = [row[mask] for row, mask in zip(drawn.completion_ids, drawn.completion_mask, strict=True)]
    ended = torch.tensor([row[-1].item() == 1 for row in ids])
    capped = ~ended & (lengths < lengths.max())
    assert capped.any() and ended.any()
    assert torch.equal(batch["completion_mask"].sum(1), lengths)
    for row, mask, expected in zip(batch["completion_ids"], batch["completion_mask"].bool(), ids, strict=True):
        assert torch.equal(row[mask], expected)
    own = (drawn.completion_mask & ~drawn.record.forced_mask).sum(1).float()
    assert log["completions/mean_length"] == own.mean() and log["completions/max_length"] == own.max()
    assert log["completions/clipped_ratio"] == (~ended).float().mean()
    assert log["completions/max_terminated_length"] == own[ended].max()
    assert log["num_tokens"] == own.sum() + batch["prompt_mask"].sum()
    assert log["answer/logp_difference/max"] < 1e-5 and log["thinking/logp_difference/max"] < 1e-5


def test_a_completion_that_the_answers_cap_ended_is_truncated(tmp_path):
    """It has no end of sequence, so `mask_truncated_completions` leaves it out, as one that the longest length ended."""
    trainer = watched("grpo", tmp_path, **CAPPED, mask_truncated_completions=True)
    trainer.train()
    drawn = trainer.drawn
    ended = ((drawn.completion_ids == 1) & drawn.completion_mask).any(1)
    assert torch.equal(trainer.batch["completion_mask"].sum(1), drawn.completion_mask.sum(1) * ended)


def test_vllms_completions_are_cut_alike(tmp_path):
    """A stand-in for vLLM, whose ids go on after the cap of answers with the end of sequence that told it to stop."""
    trainer = watched("grpo", tmp_path, **CAPPED)

    def generate(prompts, **ignored):
        plan = trainer._plans["train"]
        key, options = Key(7, 0, torch.arange(len(prompts))), trainer.args.engine_options(len(prompts))
        drawn = assemble(ENGINES["slots"](trainer.model, prompts, plan, key, options), len(prompts), plan)
        trainer._flight.rollout = drawn
        ids = [[*row[mask].tolist(), 1] for row, mask in zip(drawn.completion_ids, drawn.completion_mask)]
        return prompts, ids, [[[0.0]] * len(row) for row in ids], None

    trainer.vllm_generation = SimpleNamespace(generate=generate, sync_weights=lambda: None)
    trainer._last_loaded_step = 0
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, False
    with trainer._flying(Phase.ROLLOUT):
        ids, _ = trainer._generate_single_turn([[4, 5]] * 8, None, {}, 4)
    assert [len(row) for row in ids] == trainer.drawn.completion_mask.sum(1).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_forced_tokens_are_not_counted(tmp_path, kind):
    """Lengths, entropy and KL are of the policy's own tokens, in TRL's metrics as in ours."""
    tiny.model().save_pretrained(tmp_path / "model")
    net = type(tiny.model()).from_pretrained(tmp_path / "model")  # the reference is loaded from there
    trainer = watched(kind, tmp_path / "out", net=net, num_iterations=2, max_steps=2, beta=0.05, **FORCED)
    trainer.train()
    drawn, log = trainer.drawn, trainer.state.log_history[0]
    own = drawn.completion_mask & ~drawn.record.forced_mask
    lengths, ended = own.sum(1).float(), (drawn.completion_ids == 1).any(1)
    assert drawn.record.forced_mask.any()
    for name, of in (("", lengths), ("terminated_", lengths[ended] if ended.any() else torch.zeros(1))):
        for kind_of in ("mean", "min", "max"):
            assert log[f"completions/{kind_of}_{name}length"] == getattr(of, kind_of)().item(), (kind_of, name)
    assert log["num_tokens"] == lengths.sum() + trainer.batch["prompt_mask"].sum()
    thoughts = (own & drawn.record.thinking_mask).sum()
    entropy = (log["thinking/entropy"] * thoughts + log["answer/entropy"] * (own.sum() - thoughts)) / own.sum()
    assert log["entropy"] == pytest.approx(entropy.item(), rel=1e-4)


def test_rloos_kl_is_a_mean_over_own_tokens(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    net = type(tiny.model()).from_pretrained(tmp_path / "model")
    seen = []

    class Seen(SoftRLOOTrainer):
        rolling_out = False

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if self.rolling_out:
                seen.append((output[0], self._flight.record))
            return output

        def _generate_and_score_completions(self, inputs):
            self.rolling_out = True
            output = super()._generate_and_score_completions(inputs)
            self.rolling_out = False
            return output

    settings = {"beta": 0.05, "max_steps": 2, "learning_rate": 1e-2, **FORCED}
    trainer = tiny.trainer(tmp_path / "out", net, Seen, SoftRLOOConfig, **settings)
    trainer.train()
    (old, record), (ref, _) = seen[2:]
    own = (record.log_probs != 0) & ~record.forced_mask
    expected = ((old - ref) * own).sum() / own.sum()
    assert expected != 0 and trainer.state.log_history[1]["kl"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("settings", [{"gumbel_density": "softgrpo"}, {"thought": "gaussian"}, {"thought": "hard"}])
def test_every_own_token_is_a_thoughts_or_an_answers(tmp_path, settings):
    """`softgrpo` scores the step that ends a thought as a token; it is a step of the thought all the same."""
    trainer = watched("grpo", tmp_path, **settings, end_of_thinking="a")
    trainer.train()
    log, drawn = trainer.state.log_history[0], trainer.drawn
    assert not drawn.thinking_cut.all()
    own = (drawn.completion_mask & ~drawn.record.forced_mask).sum(1).float()
    assert log["thinking/mean_length"] + log["answer/mean_length"] == pytest.approx(own.mean().item(), rel=1e-6)
