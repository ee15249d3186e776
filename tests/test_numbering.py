# SPDX-License-Identifier: Apache-2.0
"""No two rollouts of a run draw the same noise, and a resumed run draws what the lost one would have drawn."""

import json

import pytest
import torch

from tests import tiny
from trl_soft.noise import KeyedNoise
from trl_soft.runs.checkpoint import CheckpointError
from trl_soft.runs.progress import load_progress
from trl_soft.training import soft_tokens_mixin as trainer


@pytest.fixture
def keys(monkeypatch) -> list[tuple]:
    """(seed, generation, sample) of every completion that has begun, in order."""
    seen: list[tuple] = []
    slots = trainer.ENGINES["slots"]

    def engine(model, prompts, plan, key, options):
        seen.extend((key.seed, key.generation, sample) for sample in key.sample.tolist())
        return slots(model, prompts, plan, key, options)

    monkeypatch.setitem(trainer.ENGINES, "slots", engine)
    return seen


UNEVEN = {
    "train_dataset": tiny.prompts(1),
    "max_completion_length": 4,
    "max_thinking_length": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3,
    "steps_per_generation": 2,
    "max_steps": -1,
    "num_train_epochs": 5,
}


def test_rollouts_that_do_not_fill_an_update_have_keys_of_their_own(tmp_path, keys):
    """Two batches a rollout and three an update, of which an epoch's last has fewer."""
    tiny.trainer(tmp_path, **UNEVEN).train()
    assert len(keys) == len(set(keys)) >= 80


def test_a_resumed_run_goes_on_counting(tmp_path, keys):
    settings = {**UNEVEN, "save_strategy": "steps", "save_steps": 5}
    tiny.trainer(tmp_path / "out", **settings).train()
    whole = list(keys)
    keys.clear()
    tiny.trainer(tmp_path / "resumed", **settings).train(str(tmp_path / "out" / "checkpoint-5"))
    assert keys and keys == whole[-len(keys) :]


def test_a_checkpoint_without_a_count_is_told(tmp_path):
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_completion_length": 4}
    settings |= {"max_thinking_length": 2}
    counted = tiny.trainer(tmp_path, **settings)
    counted.train()
    folder = tmp_path / "checkpoint-1"
    progress = json.loads((folder / "progress_0.json").read_text())
    assert progress.pop("rollouts") == 1
    (folder / "progress_0.json").write_text(json.dumps(progress))
    with pytest.raises(CheckpointError, match="kept no count of rollouts"):
        load_progress(counted, str(folder))


def test_evaluation_sets_draw_apart(tmp_path, keys):
    """Each as it would alone, and again the same."""
    sets = {"a": tiny.prompts(1), "b": tiny.prompts(1)}
    options = {"per_device_eval_batch_size": 4, "num_generations_eval": 2}
    evaluated = tiny.trainer(tmp_path, eval_dataset=sets, **options)
    evaluated.evaluate()
    both = list(keys)
    assert len(both) == len(set(both)) == 16
    keys.clear()
    evaluated.evaluate()
    assert keys == both
    keys.clear()
    evaluated.evaluate(sets["b"], metric_key_prefix="eval_b")
    assert keys == both[8:]
    keys.clear()
    evaluated.train()
    assert keys and not set(keys) & set(both)


def test_names_that_would_share_their_noise_are_refused(monkeypatch):
    from trl_soft.runs.rollout_numbers import RolloutNumbers

    numbers = RolloutNumbers(2**32 - 1)
    seed, generation, first = numbers.evaluation(5, 8)
    assert numbers.evaluation(5, 8)[2] == 8 and generation == 5 and first == 0 and seed < 2**63
    KeyedNoise(seed, generation, *2 * [torch.zeros(1, dtype=torch.long)]).uniform(1)
    monkeypatch.setattr("trl_soft.runs.rollout_numbers.zlib.crc32", lambda text: 3)
    with pytest.raises(ValueError, match="would draw the same noise"):
        [numbers.begin_evaluation(name) for name in ("eval_a", "eval_b")]
