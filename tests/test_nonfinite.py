# SPDX-License-Identifier: Apache-2.0
"""A NaN or an infinity in reward, loss or gradient stops a run or is skipped, and never touches a weight."""

import json
import math
import re
import resource

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

import trl_soft.runs.nonfinite
from tests import tiny
from tests.test_algorithms import rloo_config
from trl_soft import SoftGRPOTrainer, SoftRLOOTrainer
from trl_soft.runs.nonfinite import NonfiniteError
from trl_soft.training.in_flight import Phase


SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}


def reward_with(value, at: int = 2):
    """The tiny reward, whose third value is `value` in rollout number `at`."""
    rollouts = []

    def reward(completion_ids, **kwargs):
        rollouts.append(1)
        values = tiny.reward(completion_ids)
        return [*values[:2], value, *values[3:]] if len(rollouts) == at else values

    return reward


class BadLoss(SoftGRPOTrainer):
    """The loss of the second step, or the gradient that it gives, is not finite."""

    where = "loss"

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        logps, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._flight.phase is Phase.LOSS and self.state.global_step == 1:
            if self.where == "loss":
                logps = logps * math.nan
            else:
                logps.register_hook(lambda gradient: gradient * math.inf)
        return logps, *rest


class BadGradient(BadLoss):
    where = "gradient"


class Rates(TrainerCallback):
    def __init__(self):
        self.rates = []

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        self.rates.append(lr_scheduler.get_last_lr()[0])


BAD = {
    "nan-reward": (
        {"reward_funcs": reward_with(math.nan)},
        "the reward function reward returned nan for completion 2",
    ),
    "inf-reward": ({"reward_funcs": reward_with(-math.inf)}, "returned -inf for completion 2"),
    "loss": ({"trainer_class": BadLoss}, "the loss is nan"),
    "gradient": ({"trainer_class": BadGradient}, "the norm of the gradient is"),
}


def run(folder, name: str, **changes):
    settings, _ = BAD[name]
    settings = dict(settings)
    if "reward_funcs" in settings:
        settings["reward_funcs"] = reward_with(math.nan if name == "nan-reward" else -math.inf)
    return tiny.trainer(folder, **{**SAVING, **settings, **changes})


@pytest.mark.parametrize("name", BAD)
def test_stop(tmp_path, name):
    """An error in a sentence, before a weight is touched; the batch is there with its texts and its record."""
    trainer = run(tmp_path, name)
    with pytest.raises(NonfiniteError, match=f"Step 1: .*{BAD[name][1]}.*No weight was touched"):
        trainer.train()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1").state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in trainer.model.state_dict().items())
    content = json.loads((tmp_path / "nonfinite" / "step-1-rank-0.json").read_text())
    tensors = load_file(tmp_path / "nonfinite" / "step-1-rank-0.safetensors")
    assert BAD[name][1] in content["problems"][0] and len(content["samples"]) == 8
    assert content["samples"][0]["prompt"].endswith("=") and content["samples"][0]["completion"]
    assert {"0.completion_ids", "0.advantages", "0.soft_thinking_mask", "0.soft_log_probs"} <= set(tensors)
    if "reward" in name:
        assert not math.isfinite(content["samples"][2]["rewards"]["reward"])


# With two micro-batches an update, one alone is not finite. A reward marks each micro-batch of its rollout by itself, so one
# kind of bad reward shows it.
@pytest.mark.parametrize(
    ("name", "accumulation"), [("nan-reward", 2), ("inf-reward", 1), ("loss", 1), ("loss", 2), ("gradient", 2)]
)
def test_skip(tmp_path, name, accumulation):
    """Weights, moments and learning rate are those of the step before; the steps around it move them."""
    rates = Rates()
    rows = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = run(tmp_path, name, nonfinite="skip", callbacks=[rates], **rows)
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["nonfinite/skipped"] for row in log] == [0.0, 1.0, 0.0, 0.0]
    folders = [tmp_path / f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    moments = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in folders]
    for step, same in ((1, True), (2, False), (3, False)):
        before, after = weights[step - 1 : step + 1]
        assert all(torch.equal(before[key], after[key]) for key in before) == same
        before, after = moments[step - 1 : step + 1]
        assert all(torch.equal(before[i]["exp_avg"], after[i]["exp_avg"]) for i in before) == same
    assert rates.rates[0] == rates.rates[1] > rates.rates[2] > rates.rates[3]
    assert all(value.isfinite().all() for value in weights[-1].values())
    assert len(list((tmp_path / "nonfinite").glob("step-1-rank-0.*"))) == 2


def test_a_bad_reward_leaves_out_every_update_of_its_rollout(tmp_path):
    trainer = run(tmp_path, "nan-reward", nonfinite="skip", num_iterations=2, max_steps=6)
    trainer.train()
    log = [row["nonfinite/skipped"] for row in trainer.state.log_history if "loss" in row]
    assert log == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    # A run that goes on in between leaves out the second one as well.
    again = tiny.trainer(tmp_path, **{**SAVING, "nonfinite": "skip", "num_iterations": 2, "max_steps": 6})
    again.train(str(tmp_path / "checkpoint-3"))
    assert [row["nonfinite/skipped"] for row in again.state.log_history if "loss" in row] == log


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_batch_that_cannot_be_written_is_told_beside_the_nan(tmp_path, monkeypatch, nonfinite):
    """safetensors' own error too, which is no `OSError`: here of a file that may not be as large."""
    before, warnings = resource.getrlimit(resource.RLIMIT_FSIZE), []

    class Limited(SoftGRPOTrainer):
        def _report(self, *args, **kwargs):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
            try:
                super()._report(*args, **kwargs)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    reward = reward_with(math.nan, at=1)
    trainer = tiny.trainer(
        tmp_path, trainer_class=Limited, reward_funcs=reward, nonfinite=nonfinite, **{**SAVING, "max_steps": 1}
    )
    monkeypatch.setattr(trl_soft.runs.nonfinite.logger, "warning", warnings.append)
    sentence = "returned nan.*could not be written: SafetensorError.*0.0 MB at most, by `ulimit -f`"
    if nonfinite == "stop":
        with pytest.raises(NonfiniteError, match=sentence):
            trainer.train()
    else:
        trainer.train()
        assert re.search(f"{sentence}.*The update is skipped", warnings[0])


def test_none_still_says_that_a_reward_does_not_apply(tmp_path):
    def sometimes(completion_ids, **kwargs):
        return [None if i % 2 else 1.0 for i in range(len(completion_ids))]

    trainer = tiny.trainer(tmp_path, reward_funcs=[tiny.reward, sometimes], max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/sometimes/mean"] == 1.0
    assert trainer.reward_funcs == [tiny.reward, sometimes] and not (tmp_path / "nonfinite").exists()


def test_rloo_and_reward_functions_that_are_awaited(tmp_path):
    async def reward(completion_ids, **kwargs):
        return reward_with(math.inf, at=1)(completion_ids)

    args = rloo_config(tmp_path)
    trainer = SoftRLOOTrainer(tiny.model(), reward, args, tiny.prompts(), processing_class=tiny.tokenizer())
    with pytest.raises(NonfiniteError, match="the reward function reward returned inf"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"nonfinite": "ignore"}, "Choose one of stop, skip"),
        ({"optim": "lomo"}, "changes weights during the backward"),
        ({"optim": "galore_adamw_layerwise"}, "changes weights during the backward"),
    ],
)
def test_refused(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.config(tmp_path, **settings)
