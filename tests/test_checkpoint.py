# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are torn or of another run, full disks, SIGTERM, and runs that resume, in one process.

tests/test_interruptions.py has runs of several processes.
"""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Trainer
from trl import ModelConfig

from tests import tiny
from tests.kill.chain import difference
from tests.test_algorithms import rloo_config
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOTrainer, ThinkingSettings
from trl_soft.command_line import is_sentence
from trl_soft.evaluate.decoding import Decoding
from trl_soft.evaluate.presets import get_preset
from trl_soft.runs import checkpoint, choose, same_run, save
from trl_soft.runs.checkpoint import CheckpointError
from trl_soft.runs.progress import save_progress
from trl_soft.scripts.arguments import SoftScriptArguments
from trl_soft.scripts.parser import SoftParser
from trl_soft.scripts.run_training import train
from trl_soft.thoughts import Hard


SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, "logging_steps": 2}
REPLAY = {"num_iterations": 2, "steps_per_generation": 2}


# What a checkpoint holds depends on the kind of thought, the trainer, the adapter, the schedule and the data. Each of their
# values is in one case; the last number is the step from which the run resumes.
EPOCHS = {"train_dataset": tiny.prompts(1), "max_steps": -1, "num_train_epochs": 3, "logging_steps": 5}
CASES = {
    "gumbel-lora": ({"thought": "gumbel", "peft_config": LoraConfig(r=4, target_modules=["q_proj"]), **REPLAY}, 3),
    "gaussian-rloo-evaluation": (
        {"thought": "gaussian", "beta": 0.1, "eval_strategy": "steps", "eval_steps": 2, **REPLAY},
        3,
    ),
    "hard-streamed": ({"thought": "hard", "max_thinking_length": None, **REPLAY}, 3),
    "multiplex-draws": ({"thought": "multiplex", "multiplex_ratio": "draw", **REPLAY}, 3),
    "accumulation-moving-reference": (
        {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "per_device_train_batch_size": 4, "beta": 0.1}
        | {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5},
        3,
    ),
    "refill": (
        {
            "max_refill_rollouts": 2,
            "reward_funcs": tiny.rare_reward,
            "train_dataset": tiny.distinct_prompts(),
            **REPLAY,
        },
        3,
    ),
    "second-epoch": (EPOCHS, 3),
    "between-epochs": (EPOCHS, 4),
}


def build(out, model_folder, name: str, **changes):
    settings = {**SAVING, "max_steps": 5, **CASES[name][0], **changes}
    if "streamed" in name:
        settings["train_dataset"] = tiny.prompts().to_iterable_dataset()
    if "evaluation" in name:
        settings["eval_dataset"] = tiny.prompts(1)
    net = AutoModelForCausalLM.from_pretrained(model_folder)
    if "rloo" in name:
        data = settings.pop("eval_dataset")
        args = rloo_config(out, **settings)
        return SoftRLOOTrainer(
            net, tiny.reward, args, tiny.prompts(), eval_dataset=data, processing_class=tiny.tokenizer()
        )
    return tiny.trainer(out, net, **settings)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The output folder of the run that nobody interrupted, made once for each case."""
    root = tmp_path_factory.mktemp("whole")
    tiny.model().save_pretrained(root / "model")

    def run(name: str) -> tuple[Path, Path]:
        out = root / ("epochs" if "epoch" in name else name)
        if not out.exists():
            build(out, root / "model", name).train()
        return out, root / "model"

    return run


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_same_run(tmp_path, whole_run, name):
    """Weights, optimiser and RNG states, the rollout in flight and every log line, from the middle of a replay."""
    whole, model = whole_run(name)
    first = f"checkpoint-{CASES[name][1]}"
    shutil.copytree(whole / first, tmp_path / first)
    # The resumed run draws from another state of the global RNG until it has loaded its own.
    torch.rand(1)
    resumed = build(tmp_path, model, name)
    resumed.train("auto")
    assert resumed._resumed_from == str(tmp_path / first)
    if "num_iterations" in CASES[name][0]:
        assert list((whole / first).glob("rollout_0.safetensors"))
    assert difference(whole, tmp_path) == 0.0


def test_what_is_buffered_is_what_will_be_replayed(tmp_path):
    """Two batches a rollout, one pass: after the first, one slice is left to replay, and after the second none."""
    trainer = tiny.trainer(tmp_path, **{**SAVING, "steps_per_generation": 2, "max_steps": 2})
    trainer.train()
    first, second = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    assert json.loads((first / "progress_0.json").read_text())["buffered"]["slices"] == [1]
    assert (first / "rollout_0.safetensors").exists() and not (second / "rollout_0.safetensors").exists()


def test_a_run_that_had_finished_takes_no_further_step(tmp_path, written):
    shutil.copytree(written, tmp_path / "run")
    again = run_of(tmp_path / "run", tiny.model(seed=1), max_steps=3)
    again.train("auto")
    assert again.state.global_step == 3
    saved = AutoModelForCausalLM.from_pretrained(written / "checkpoint-3").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in again.model.state_dict().items())


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with three checkpoints of one run, the last in the middle of a replay. Tests copy it."""
    folder = tmp_path_factory.mktemp("written")
    tiny.trainer(folder, **{**SAVING, "max_steps": 3, "num_iterations": 2, "thought": "gaussian"}).train()
    return folder


def run_of(folder, net=None, **changes) -> SoftGRPOTrainer:
    settings = {**SAVING, "max_steps": 4, "num_iterations": 2, "thought": "gaussian", **changes}
    return tiny.trainer(folder, net, **settings)


def tear(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["removed", "truncated", "flipped"])
def test_every_torn_file_is_named(tmp_path, written, how):
    source = written / "checkpoint-3"
    assert checkpoint.problem_of(str(source)) is None
    names = [path.relative_to(source) for path in files_of(source)]
    assert {"optimizer.pt", "rng_state.pth", "progress_0.json", "rollout_0.safetensors"} <= set(map(str, names))
    for name in names:
        copy = tmp_path / f"{name.name}-{how}"
        shutil.copytree(source, copy)
        tear(copy / name, how)
        assert str(copy / name) in (checkpoint.problem_of(str(copy)) or ""), name


def test_a_torn_checkpoint_is_refused_and_the_last_good_one_offered(tmp_path, written):
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    tear(folder / "checkpoint-3" / "optimizer.pt", "truncated")
    with pytest.raises(CheckpointError, match=r"checkpoint-3/optimizer.pt has \d+ bytes.*last good.*checkpoint-2:"):
        run_of(folder).train(str(folder / "checkpoint-3"))
    tear(folder / "checkpoint-1" / "checkpoint_manifest.json", "removed")
    trainer = run_of(folder)
    trainer.train(True)
    assert trainer._resumed_from == str(folder / "checkpoint-2")
    assert checkpoint.problem_of(str(folder / "checkpoint-3")) is None  # written again on the way
    for step in (2, 3, 4):
        tear(folder / f"checkpoint-{step}" / "model.safetensors", "flipped")
    for wanted in (True, "auto"):
        with pytest.raises(CheckpointError, match=r"None of the 4.*checkpoint-4/model.safetensors has other contents"):
            run_of(folder).train(wanted)


class Code:
    """What pickle takes for a call."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, written, name):
    """A checkpoint that somebody made, with a manifest that fits: its pickled files are read as data alone."""
    folder, marker = tmp_path / "run" / "checkpoint-3", tmp_path / "marker"
    shutil.copytree(written / "checkpoint-3", folder)
    (folder / name).write_bytes(pickle.dumps(Code(marker)))
    facts = checkpoint.read_manifest(str(folder))
    files = [str(path.relative_to(folder)) for path in files_of(folder) if path.name != checkpoint.MANIFEST]
    for key in ("format", "written", "files"):
        facts.pop(key)
    checkpoint.seal(str(folder), facts, checkpoint.digests(str(folder), files))
    assert checkpoint.problem_of(str(folder)) is None
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run_of(tmp_path / "run").train(str(folder))
    assert not marker.exists()


def test_what_was_written_last_is_taken_whatever_its_step(tmp_path, written, monkeypatch):
    """A run that starts afresh where another one had been is told so, and goes on from its own checkpoint."""
    shutil.copytree(written, tmp_path / "run")
    warnings = []
    monkeypatch.setattr(choose.logger, "warning", warnings.append)
    run_of(tmp_path / "run", max_steps=1).train()
    assert "holds 3 of another run's checkpoints, up to checkpoint-3." in warnings[0]
    trainer = run_of(tmp_path / "run", max_steps=2)
    trainer.train("auto")
    assert trainer._resumed_from == str(tmp_path / "run" / "checkpoint-1")
    assert "because written earlier: checkpoint-3, checkpoint-2. Resuming" in warnings[1]
    run_of(tmp_path / "run", max_steps=2).train(str(tmp_path / "run" / "checkpoint-1"))
    assert "checkpoint-2 was written later" in warnings[2]


def test_a_renamed_checkpoint_is_refused(tmp_path, written):
    shutil.copytree(written / "checkpoint-3", tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"holds step 3, so it has been renamed"):
        run_of(tmp_path).train(str(tmp_path / "checkpoint-2"))
    with pytest.raises(CheckpointError, match=r"None of the 1.*holds step 3"):
        run_of(tmp_path).train("auto")


def test_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint.*`auto`"):
        run_of(tmp_path).train(True)
    with pytest.raises(CheckpointError, match="nowhere does not exist") as told:
        run_of(tmp_path).train(str(tmp_path / "nowhere"))
    assert is_sentence(told.value)  # a command ends with it, without a traceback
    trainer = run_of(tmp_path, max_steps=1)
    trainer.train("auto")
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"net": {"intermediate_size": 48}},
            r"another model: `model.layers.0.mlp.down_proj.weight` has shape \(32, 64\)",
        ),
        ({"thought": "gumbel"}, "trained with `thought: gaussian`, and this run has `thought: gumbel`"),
        ({"noise_scale": 0.5}, "`noise_scale: None`"),
        ({"noise_rms": 0.5}, "`noise_rms: 0.0"),
        ({"seed": 8}, "`seed: 7`"),
        ({"num_iterations": 1}, "`num_iterations: 2`"),
        ({"train_dataset": tiny.prompts(5)}, "trained on 16 prompts, and this run has 20"),
        ({"train_dataset": tiny.prompts().select([*range(1, 16), 0])}, "trained on other prompts.*digest"),
        ({"shuffle_dataset": False}, "`shuffle_dataset: True`, and this run has `shuffle_dataset: False`"),
        ({"temperature": 0.5}, "`temperature: 1.0`, and this run has `temperature: 0.5`"),
        ({"max_completion_length": 20}, "`max_completion_length: 16`"),
        ({"loss_type": "grpo"}, "`loss_type: dapo`, and this run has `loss_type: grpo`"),
        ({"scale_rewards": "none"}, "`scale_rewards: group`, and this run has `scale_rewards: none`"),
        ({"optim": "sgd"}, "`optim: adamw_torch(_fused)?`, and this run has `optim: sgd`"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_foreign_checkpoint_is_refused(tmp_path, written, changes, sentence):
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    net = tiny.model(**changes.pop("net")) if "net" in changes else None
    for wanted in (True, str(folder / "checkpoint-2")):
        with pytest.raises(CheckpointError, match=sentence):
            run_of(folder, net, **changes).train(wanted)


def test_of_other_processes_other_sharding_or_weights_alone(tmp_path, written):
    folder = tmp_path / "run"
    for change, sentence in (
        ({"trainer": "SoftRLOO"}, "written by a SoftRLOO trainer, and this is a SoftGRPO trainer"),
        ({"processes": 2}, "processes: 2, and this run has 1; each process has an RNG state"),
        ({"sharding": "DeepSpeed ZeRO-3"}, "sharding: DeepSpeed ZeRO-3, and this run has none"),
        ({"resumable": False}, "`save_only_model`.*start a new run with `model_name_or_path"),
    ):
        shutil.copytree(written, folder)
        manifest = checkpoint.read_manifest(str(folder / "checkpoint-3"))
        checkpoint.seal(str(folder / "checkpoint-3"), manifest | change, manifest["files"])
        with pytest.raises(CheckpointError, match=f"{sentence}.*last good checkpoint is .*checkpoint-2"):
            run_of(folder).train(str(folder / "checkpoint-3"))
        shutil.rmtree(folder)


def test_evaluation_may_think_otherwise_when_resumed(tmp_path, written):
    shutil.copytree(written, tmp_path / "run")
    run_of(tmp_path / "run", eval_thought="hard").train(True)


def test_what_may_change_in_a_resumed_run(tmp_path, written):
    shutil.copytree(written, tmp_path / "run")
    changes = {
        "learning_rate": 1e-4,
        "epsilon": 0.1,
        "logging_steps": 1,
        "save_steps": 2,
        "lr_scheduler_type": "constant",
    }
    trainer = run_of(tmp_path / "run", **changes)
    trainer.train(True)
    assert trainer.state.global_step == 4
    folder = str(tmp_path / "run" / "checkpoint-3")
    theirs = checkpoint.read_manifest(folder)
    theirs["schedule"]["beta"] = 0.1
    assert "`beta: 0.1`, and this run has `beta: 0.0`" in (same_run.mismatch(trainer, folder, theirs) or "")
    trainer.args.beta = 0.2
    assert same_run.mismatch(trainer, folder, theirs) is None


def test_sigma_is_a_share_of_the_table_training_started_from(tmp_path, written):
    """Whatever weights a resumed run is built around; and an evaluation of the trained model keeps it."""
    shutil.copytree(written, tmp_path / "run")
    rms = tiny.model().get_input_embeddings().weight.square().mean().sqrt().item()
    other = tiny.model(scale=5.0)
    trainer = run_of(tmp_path / "run", other)
    assert trainer._plans["train"].thought.sigma != pytest.approx(0.33 * rms)
    trainer.train(True)
    assert trainer._plans["train"].thought.sigma == pytest.approx(0.33 * rms, rel=1e-6)
    trainer.save_model(str(tmp_path / "model"))
    for folder in (tmp_path / "model", tmp_path / "run" / "checkpoint-4"):
        saved = ThinkingSettings.load_thinking(folder)
        assert saved.noise_rms == pytest.approx(rms, rel=1e-6)
        # A gaussian thought of another placement, and another thought, know nothing of it.
        assert ThinkingSettings.load_thinking(folder, thought="gumbel").noise_rms is None
        assert ThinkingSettings.load_thinking(folder, noise_placement="logits").noise_rms is None
    for settings in ({"noise_placement": "logits"}, {"thought": "gumbel"}, {"noise_rms": -1.0}):
        with pytest.raises(ValueError, match="`noise_rms` is"):
            ThinkingSettings(**{"thought": "gaussian", "noise_rms": 1.0, **settings})


def test_an_evaluation_keeps_the_sigma_of_training():
    saved = ThinkingSettings(thought="gaussian", noise_rms=0.25)
    preset = get_preset("soft_tokens")
    named = Decoding.parse({"name": "x", "thought": "gaussian", "thinking_temperature": 1e-4})
    assert named.settings(preset, "math", saved).noise_rms == 0.25
    assert Decoding.parse({"name": "x"}).settings(preset, "math", saved).noise_rms == 0.25
    for other in ({"thought": "gumbel"}, {"thought": "gaussian", "noise_placement": "logits"}):
        assert Decoding.parse({"name": "x", **other}).settings(preset, "math", saved).noise_rms is None
    sigma = saved.make_thought(Hard(), table_rms=7.0).sigma
    assert sigma == 0.33 * 0.25


def test_leftovers_are_cleaned_and_what_was_moved_aside_comes_back(tmp_path, written):
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    staging = folder / checkpoint.STAGING
    (staging / "checkpoint-9").mkdir(parents=True)
    (staging / "checkpoint-9" / "half").write_text("")
    os.rename(folder / "checkpoint-3", staging / "replaced-checkpoint-3")
    trainer = run_of(folder)
    trainer.train(True)
    assert trainer._resumed_from == str(folder / "checkpoint-3") and not staging.exists()


def test_rotation_keeps_the_best_and_the_latest(tmp_path):
    """`best_model_checkpoint` is where the checkpoint is, not where it was written; it is loaded at the end."""
    scores = iter([0.1, 0.9, 0.2, 0.3])

    class Scored(SoftGRPOTrainer):
        def evaluate(self, *args, **kwargs):
            metrics = {"eval_score": next(scores)}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _evaluate(self, *args, **kwargs):
            return self.evaluate()

    best = {"metric_for_best_model": "score", "greater_is_better": True, "load_best_model_at_end": True}
    trainer = tiny.trainer(
        tmp_path,
        trainer_class=Scored,
        eval_dataset=tiny.prompts(1),
        **{**SAVING, **best, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2, "max_steps": 4},
    )
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    for step in (2, 4):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


def test_the_oldest_goes_first_whatever_its_step(tmp_path):
    """A run that went back to an earlier checkpoint keeps what it has written since; a half-deleted folder goes first."""
    for step in (5, 6, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        checkpoint.seal(str(folder), {}, {})
        os.utime(folder / checkpoint.MANIFEST, (step, step))  # as a copy has it, in no order
    (tmp_path / "checkpoint-9").mkdir()
    left = []
    for limit in (4, 3, 2):
        checkpoint.rotate(str(tmp_path), limit, [str(tmp_path / "checkpoint-3")])
        left.append(sorted(path.name[-1] for path in tmp_path.iterdir()))
    assert left == [["2", "3", "5", "6"], ["2", "3", "6"], ["2", "3"]]
    checkpoint.rotate(str(tmp_path), None, [])
    assert len(list(tmp_path.iterdir())) == 2


# Full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system that holds one checkpoint and a half."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    trainer = tiny.trainer(small_disk, **{**SAVING, "max_steps": 8})
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    sentence, last = str(caught.value), f"checkpoint-{trainer.state.global_step - 1}"
    assert f"checkpoint-{trainer.state.global_step} could not be saved" in sentence
    assert (
        f"the disk of {small_disk} is full" in sentence and f"last good checkpoint is {small_disk / last}:" in sentence
    )
    assert checkpoint.problem_of(str(small_disk / last)) is None
    assert not (small_disk / checkpoint.STAGING).exists()


WRITERS = {
    "_save": Trainer,
    "_save_optimizer_and_scheduler": Trainer,
    "_save_rng_state": Trainer,
    "save_progress": save,
    "flush": checkpoint,
    "seal": checkpoint,
    "publish": checkpoint,
}


def test_wherever_the_disk_fills_up(tmp_path, written, monkeypatch):
    """What the writer wrote in part is gone, and the run goes on from the last good checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(written, folder)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    sentence = r"checkpoint-4 could not be saved.*is full.*checkpoint is .*checkpoint-3"
    for writer, owner in WRITERS.items():
        trainer = run_of(folder)
        with monkeypatch.context() as patch:
            patch.setattr(owner, writer, full)
            with pytest.raises(CheckpointError, match=sentence):
                trainer.train(True)
        assert trainer._resumed_from == str(folder / "checkpoint-3"), writer
        assert not (folder / checkpoint.STAGING).exists() and not (folder / "checkpoint-4").exists(), writer
    run_of(folder).train(True)
    assert checkpoint.problem_of(str(folder / "checkpoint-4")) is None


# The example script


def test_a_job_that_is_queued_again(tmp_path):
    """`auto` starts the run, and continues it: the same command line both times."""
    tiny.model(vocab_size=26).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"question": question, "answer": "3"} for question in tiny.prompts()["prompt"]]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "rows.jsonl",
        "reward_funcs": "exact",
    }
    flags |= {"output_dir": tmp_path / "out", "resume_from_checkpoint": "auto", "max_steps": 2, "save_steps": 1}
    flags |= {"bf16": "false", "use_cpu": "true", "max_completion_length": 16, "max_thinking_length": 8}
    flags |= {"num_generations": 4, "gradient_checkpointing": "false", "dtype": "float32", "report_to": "none"}
    line = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    written = []
    for _ in range(2):
        train(
            *SoftParser((SoftScriptArguments, SoftGRPOConfig, ModelConfig)).parse_args_and_config(line),
            SoftGRPOTrainer,
        )
        folders = [tmp_path / "out" / f"checkpoint-{step}" for step in (1, 2)]
        written.append([os.stat(folder / checkpoint.MANIFEST).st_mtime_ns for folder in folders])
        shutil.rmtree(folders[1])
    # The first was continued from, the second was lost and is there again.
    assert written[0][0] == written[1][0] and written[0][1] < written[1][1]


# SIGTERM


def end_in_rollout(at: int):
    """A reward function that is interrupted by SIGTERM in its rollout number `at`."""
    rollouts = []

    def reward(completion_ids, **kwargs):
        rollouts.append(1)
        if len(rollouts) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return tiny.reward(completion_ids)

    return reward


def test_sigterm_saves_and_exits(tmp_path, whole_run):
    """At the end of its step, though no checkpoint was due; the run that goes on is the one that was not interrupted."""
    whole, model = whole_run("multiplex-draws")
    before = signal.getsignal(signal.SIGTERM)
    trainer = build(tmp_path, model, "multiplex-draws", save_steps=5, reward_funcs=end_in_rollout(1))
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    build(tmp_path, model, "multiplex-draws", save_steps=5).train("auto")
    assert difference(whole, tmp_path) == 0.0


def test_a_signal_during_a_save_needs_no_other_save(tmp_path, monkeypatch):
    def interrupted(trainer, folder):
        os.kill(os.getpid(), signal.SIGTERM)
        save_progress(trainer, folder)

    monkeypatch.setattr(save, "save_progress", interrupted)
    with pytest.raises(SystemExit):
        tiny.trainer(tmp_path, **{**SAVING, "save_steps": 2}).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("when", ["rollout", "evaluation"])
def test_a_signal_leaves_no_time_to_evaluate(tmp_path, when):
    """The checkpoint is written without the rest of the evaluation, and kept beside the best, which is not loaded."""
    evaluated = []

    def reward(completion_ids, trainer_state, **kwargs):
        training = trainer.model.training
        if trainer_state.global_step == 3 and training and when == "rollout":
            os.kill(os.getpid(), signal.SIGTERM)
        if not training:
            evaluated.append(trainer_state.global_step)
            if trainer_state.global_step == 4 and when == "evaluation":
                os.kill(os.getpid(), signal.SIGTERM)
        return [-float(trainer_state.global_step)] * len(completion_ids)

    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    settings |= {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4, "num_generations_eval": 4}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "reward", "greater_is_better": True}
    settings |= {"eval_dataset": tiny.prompts(1), **best}
    trainer = tiny.trainer(tmp_path, reward_funcs=reward, **settings)
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 143
    assert evaluated.count(2) == 4 and evaluated.count(4) == (when == "evaluation")
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
    assert not json.loads((tmp_path / "checkpoint-4" / "progress_0.json").read_text())["metrics"].get("eval")


def test_a_signal_saves_what_is_not_the_best(tmp_path):
    """With `save_strategy: best`, `Trainer` saves if an evaluation is the best. The signal ends the evaluation before that."""

    def reward(completion_ids, **kwargs):
        if not trainer.model.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return tiny.reward(completion_ids)

    best = {"save_strategy": "best", "metric_for_best_model": "reward", "greater_is_better": True}
    settings = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 4}
    trainer = tiny.trainer(tmp_path, reward_funcs=reward, eval_dataset=tiny.prompts(1), **best, **settings)
    with pytest.raises(SystemExit):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_transformers_own_way_with_sigterm_is_refused(tmp_path):
    with pytest.raises(ValueError, match="middle of a step"):
        tiny.config(tmp_path, enable_jit_checkpoint=True)
