# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and started again ends as the one that was not.

What differs from transformers' and TRL's checkpoints, and all of it:

1. A checkpoint is written aside and moved into place (`checkpoint.py`); a torn or foreign one is refused, and named.
2. Beside model, optimiser, schedule and RNG it holds the rollout that is being replayed, TRL's counters and what has been
   gathered for the next log line, for each process (`progress_RANK.json`, `rollout_RANK.safetensors`).
3. The order of the data continues in later epochs as well, and a run that had finished takes no further step.
4. SIGTERM ends the step, saves, and exits with 143.

Every override goes through `super()`.
"""

import functools
import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..numbering import RolloutNumbers
from ..settings import ThinkingSettings
from . import checkpoint
from .checkpoint import CheckpointError
from .same_run import facts_of, foreign, reference_moves


logger = logging.get_logger(__name__)

_REFERENCE = "reference_model.safetensors"
_TOKEN = ".folder_of_rank_0"
_EXIT = 128 + signal.SIGTERM
_LOST = "could not be saved, and nothing of it was kept."
# Names of transformers' own, without which an override here would never be called, and nothing would say so.
_SEAMS = (
    "_init_training_state",
    "_run_epoch",
    "_get_output_dir",
    "_push_from_checkpoint",
    "_save",
    "_save_rng_state",
    "_evaluate",
    "_determine_best_metric",
    "_finalize_training",
)

if missing := [name for name in _SEAMS if not hasattr(Trainer, name)]:
    raise ImportError(
        f"transformers' Trainer has no {', '.join(missing)} in this version, where trl_soft saves and resumes."
    )

if TYPE_CHECKING:
    from trl import GRPOTrainer

    _Host = GRPOTrainer  # what the mixin is mixed into, for the type checker
else:
    _Host = object


def _while_saving(method):
    """
    A writer of `Trainer` that, during a checkpoint, keeps its error for later.

    Between one writer and the next, processes wait for each other: one that left at its own full disk would leave the
    others waiting. They all reach the end, and then all say what went wrong.
    """

    @functools.wraps(method)
    def guarded(self, *args, **kwargs):
        with self._guarded():
            return method(self, *args, **kwargs)

    return guarded


class ResumableMixin(_Host):
    """Saving and resuming, over a TRL trainer that generates online."""

    args: Any
    model: Any
    model_wrapped: Any
    ref_model: Any
    train_dataset: Any
    thinking: ThinkingSettings
    _logs: Any
    _buffered_inputs: Any
    _numbers: RolloutNumbers
    _take_noise_rms: Callable[[float | None], None]

    def __init__(self, *args, **kwargs):
        self._saving_to: str | None = None  # the staging folder, while a checkpoint is written
        self._save_errors: list[BaseException] | None = None
        self._deferred_push: str | None = None
        self._resumed_from: str | None = None
        self._train_sampler: Any = None
        self._terminating = self._stopped_by_signal = self._evaluating = False
        super().__init__(*args, **kwargs)
        self._model_shapes = {
            name: list(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.model.named_parameters()
        }
        self.add_callback(_StepEnds(self))

    # Saving

    def _get_output_dir(self, trial):
        return self._saving_to or super()._get_output_dir(trial)

    @contextmanager
    def _guarded(self):
        if self._save_errors is None:
            yield
            return
        try:
            yield
        except Exception as error:
            self._save_errors.append(error)

    @_while_saving
    def create_model_card(self, *args, **kwargs):
        return super().create_model_card(*args, **kwargs)

    @_while_saving
    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.thinking.save_thinking(self.args.output_dir if output_dir is None else output_dir)

    @_while_saving
    def _save_scaler(self, *args, **kwargs):
        return super()._save_scaler(*args, **kwargs)

    @_while_saving
    def _save_rng_state(self, *args, **kwargs):
        return super()._save_rng_state(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir):
        # DeepSpeed and FSDP wait for each other in here.
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        with nullcontext() if sharded else self._guarded():
            return super()._save_optimizer_and_scheduler(output_dir)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._saving_to is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._deferred_push = checkpoint_folder  # an upload goes on in the background; the folder is about to move

    def _save_checkpoint(self, model, trial):
        directory = self._get_output_dir(trial)
        name = f"checkpoint-{self.state.global_step}"
        staging = os.path.join(directory, checkpoint.STAGING)
        folder = os.path.join(staging, name)
        self._save_errors, self._deferred_push = [], None
        try:
            with self._guarded():
                if self.args.should_save:
                    checkpoint.stage(directory)
                    open(os.path.join(staging, _TOKEN), "w").close()
                    os.makedirs(folder)
            self._agree(directory, name)
            with self._guarded():
                if not os.path.exists(os.path.join(staging, _TOKEN)):
                    raise CheckpointError(
                        f"process {self.args.process_index} does not see {staging}, which another process has made, so "
                        "`output_dir` is not on a file system that all hosts share. Put it on one, or set "
                        "`save_on_each_node: true`."
                    )
            self._agree(directory, name)
            self._saving_to = staging
            try:
                with ExitStack() as writers:
                    writers.enter_context(_replaced(self.state, "save_to_json", self._guarded))
                    if self.is_deepspeed_enabled:
                        engine = self.model_wrapped
                        writers.enter_context(_replaced(engine.checkpoint_engine, "save", self._guarded))
                        writers.enter_context(_replaced(engine, "_copy_recovery_script", self._guarded))
                    super()._save_checkpoint(model, trial)
            except Exception as error:
                self._save_errors.append(error)
                if self.args.world_size > 1:
                    # Others may be waiting for this process elsewhere; they end when it does.
                    raise CheckpointError(self._sentence([self._told(error, directory)], directory, name)) from error
            self._saving_to = None
            with self._guarded():
                self._save_progress(folder)
            with self._guarded():
                self._finish_state(directory, name, folder)
            self._agree(directory, name)
            self._seal(folder)
            self._agree(directory, name)
            with self._guarded():
                if self.args.should_save:
                    checkpoint.publish(directory, name)
            self._agree(directory, name)
            with self._guarded():
                if self.args.should_save:
                    keep = (os.path.join(directory, name), self.state.best_model_checkpoint)
                    checkpoint.rotate(directory, self.args.save_total_limit, keep)
            self._agree(directory, name, "was saved, but an older one could not be deleted.")
        finally:
            self._saving_to = self._save_errors = None
        if self._deferred_push is not None:
            super()._push_from_checkpoint(os.path.join(directory, name))

    def _agree(self, directory: str, name: str, outcome: str = _LOST) -> None:
        """Every process raises if one of them has met an error; none goes on before the others are here."""
        assert self._save_errors is not None
        errors = gather_object([self._told(error, directory) for error in self._save_errors[:1]])
        if not errors:
            return
        if self.args.should_save:
            checkpoint.clean(directory)
        first = self._save_errors[0] if self._save_errors else None
        raise CheckpointError(self._sentence(errors, directory, name, outcome)) from first

    def _told(self, error: BaseException, directory: str) -> str:
        return f"process {self.args.process_index}: {checkpoint.reason(error, directory)}"

    @staticmethod
    def _sentence(errors: list[str], directory: str, name: str, outcome: str = _LOST) -> str:
        good = checkpoint.last_good(directory, contents=False)
        offer = (
            f"The last good checkpoint is {good}: make room if that is what is missing, and start again with "
            "`resume_from_checkpoint: true`."
            if good
            else "There is no earlier checkpoint."
        )
        return f"{name} {outcome} {'; '.join(errors)}. {offer}"

    def _finish_state(self, directory: str, name: str, folder: str) -> None:
        """What `Trainer` wrote about its own folder, which is about to move, and the thinking settings."""
        best = self.state.best_model_checkpoint
        if best is not None and os.path.basename(best) == name:
            self.state.best_model_checkpoint = os.path.join(directory, name)
        elif self.state.best_global_step:
            best = os.path.join(directory, f"checkpoint-{self.state.best_global_step}")
            if os.path.isdir(best):
                self.state.best_model_checkpoint = best
        if not self.args.should_save:
            return
        self.state.save_to_json(os.path.join(folder, TRAINER_STATE_NAME))
        self.thinking.save_thinking(folder)
        if reference_moves(self):
            save_file(_unshared(self.ref_model.state_dict()), os.path.join(folder, _REFERENCE))

    def _seal(self, folder: str) -> None:
        """Every file flushed by the host that wrote it and hashed by one process, then the manifest."""
        part, parts = self._share()
        files: dict[str, dict] = {}
        with self._guarded():
            if self.accelerator.is_local_main_process:
                checkpoint.flush(folder)
            files = checkpoint.digests(folder, checkpoint.listing(folder)[part::parts])
        gathered = gather_object([files])
        with self._guarded():
            if self.args.should_save:
                listing, known = checkpoint.listing(folder), {k: v for found in gathered for k, v in found.items()}
                # A file that another host listed before it could see all of them.
                unknown = [name for name in listing if name not in known]
                files = {name: known[name] for name in listing if name in known}
                checkpoint.seal(folder, facts_of(self), files | checkpoint.digests(folder, unknown))
                checkpoint.flush(folder)

    def _share(self) -> tuple[int, int]:
        """Which part of the files in a checkpoint this process reads: (i, n)."""
        if self.args.save_on_each_node:
            return self.args.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return self.args.process_index, self.args.world_size

    def _save_progress(self, folder: str) -> None:
        """What transformers and TRL keep in memory between two steps, of this process."""
        rank = self.args.process_index
        every = self.args.steps_per_generation * self.num_iterations
        left = -self._step % every  # micro-batches that still replay the rollout
        buffered = None
        if left and self._buffered_inputs is not None:
            slices = self.args.steps_per_generation
            wanted = sorted({(self._step + i) % slices for i in range(left)})
            tensors: dict[str, torch.Tensor] = {}
            others: dict[str, Any] = {}
            for i in wanted:
                for key, value in self._buffered_inputs[i].items():
                    (tensors if isinstance(value, torch.Tensor) else others)[f"{i}.{key}"] = value
            save_file(_unshared(tensors), os.path.join(folder, f"rollout_{rank}.safetensors"))
            buffered = {"slices": wanted, "others": others}
        progress = {
            "step": self._step,
            "rollouts": self._numbers.rollouts,
            "buffered": buffered,
            "loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "metrics": self._metrics,
            # The table of completions, which is the same on every process.
            "logs": self._logs if rank == 0 else {},
        }
        with open(os.path.join(folder, f"progress_{rank}.json"), "w", encoding="utf-8") as file:
            json.dump(progress, file, default=_plain)

    # Resuming

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A folder; `True` for the latest whole checkpoint of `output_dir`; `"auto"` for the same if there is any
                checkpoint, and from the start if there is none.

        Raises:
            CheckpointError: if the checkpoint is torn (the file is named, and the last good one), or of another run.
            SystemExit: with 143, after a SIGTERM and the checkpoint it asked for.
        """
        directory = self._get_output_dir(None)
        if self.args.should_save:
            for sentence in checkpoint.clean(directory):
                logger.warning(sentence)
        self.accelerator.wait_for_everyone()
        self._resumed_from = self._choose(directory, resume_from_checkpoint)
        self._terminating = False
        with _listening(self._terminate):
            result = super().train(self._resumed_from, *args, **kwargs)
        if self._stopped_by_signal:
            raise SystemExit(_EXIT)
        return result

    def _choose(self, directory: str, wanted: str | bool | None) -> str | None:
        """The folder to resume from, the same on every process, or `None` to start afresh."""
        if wanted is None or wanted is False:
            if others := checkpoint.numbered(directory):
                logger.warning(
                    f"Training starts from the beginning in {directory}, which holds {len(others)} of another run's "
                    f"checkpoints, up to {os.path.basename(others[0])}. They are replaced step by step, and "
                    "`resume_from_checkpoint` would take one of them until this run has saved. Use another `output_dir`, "
                    "or resume."
                )
            return None
        if wanted not in (True, "auto"):
            folder = os.path.normpath(str(wanted))
            if problem := self._problem(folder):
                raise CheckpointError(f"{problem} {self._offer(folder)}")
            siblings = checkpoint.latest(os.path.dirname(folder))
            if siblings and os.path.realpath(siblings[0]) != os.path.realpath(folder):
                logger.warning(
                    f"Resuming from {folder}, though {siblings[0]} was written later. `resume_from_checkpoint: true` "
                    "would take that one until this run has saved."
                )
            return folder
        folders = checkpoint.latest(directory)
        if not folders and wanted == "auto":
            logger.warning(f"{directory} holds no checkpoint: training starts from the beginning.")
            return None
        problems: list[str] = []
        for folder in folders:
            problem = self._problem(folder)
            if problem is None:
                step = checkpoint.step_of(folder)
                higher = [path for path in folders[len(problems) :] if checkpoint.step_of(path) > step]
                if higher:
                    names = ", ".join(os.path.basename(path) for path in higher)
                    problems.append(f"Passed over, though of a later step, because written earlier: {names}.")
                logger.warning(" ".join([*problems, f"Resuming from {folder}."]))
                return folder
            problems.append(problem)
        if not problems:
            raise CheckpointError(
                f"`resume_from_checkpoint` is true, but {directory} holds no checkpoint. Set it to `auto` to start from "
                "the beginning where there is none."
            )
        raise CheckpointError(
            f"None of the {len(folders)} checkpoints in {directory} is whole. {' '.join(problems)} Start from the "
            "beginning in another `output_dir`."
        )

    def _problem(self, folder: str) -> str | None:
        """
        Why a checkpoint is torn, in a sentence, or `None`; the processes share the reading.

        Raises:
            CheckpointError: if it is whole, and of another run.
        """
        manifest = None
        try:
            manifest = checkpoint.read_manifest(folder)
            problem = checkpoint.damage(folder, manifest, self._share())
        except (CheckpointError, OSError) as error:
            problem = str(error)
        problems = [found for found in gather_object([problem]) if found is not None]
        if problems:
            return problems[0]
        assert manifest is not None
        others = [found for found in gather_object([foreign(self, folder, manifest)]) if found is not None]
        if others:
            raise CheckpointError(f"{others[0]} {self._offer(folder, same_run=False)}")
        return None

    def _offer(self, refused: str, same_run: bool = True) -> str:
        """The last good checkpoint beside one that was refused."""
        good = None
        for folder in checkpoint.latest(os.path.dirname(refused)):
            whole = os.path.realpath(folder) != os.path.realpath(refused) and checkpoint.problem_of(folder) is None
            if whole and (same_run or foreign(self, folder, checkpoint.read_manifest(folder)) is None):
                good = folder
                break
        if good is None:
            return f"No other checkpoint in {os.path.dirname(refused)} can take its place."
        return f"The last good checkpoint is {good}: set `resume_from_checkpoint` to it, or to `true`."

    def _get_train_sampler(self, dataset=None):
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _init_training_state(self, *args, **kwargs):
        epochs, steps = super()._init_training_state(*args, **kwargs)
        if self._resumed_from is not None:
            self._load_progress(self._resumed_from)
            if self._train_sampler is not None and self._train_sampler.shuffle:
                # The sampler's own generator gives each epoch its order, and this one has seen no epoch yet.
                for _ in range(epochs):
                    torch.randperm(self._train_sampler.num_samples, generator=self._train_sampler.generator)
        return epochs, steps

    def _load_progress(self, folder: str) -> None:
        rank, device = self.args.process_index, self.accelerator.device
        with open(os.path.join(folder, f"progress_{rank}.json"), encoding="utf-8") as file:
            progress = json.load(file)
        self._step, self._buffered_inputs = progress["step"], None
        if "rollouts" not in progress:
            raise CheckpointError(
                f"{folder} was written by an earlier trl_soft, which kept no count of rollouts, so noise would be drawn twice. "
                f"To train on from its weights alone, start a new run with `model_name_or_path: {folder}`."
            )
        self._numbers.rollouts = progress["rollouts"]
        if progress["buffered"] is not None:
            slices: list[Any] = [None] * self.args.steps_per_generation
            for i in progress["buffered"]["slices"]:
                slices[i] = {}
            tensors = load_file(os.path.join(folder, f"rollout_{rank}.safetensors"))
            values = {name: tensor.to(device) for name, tensor in tensors.items()} | progress["buffered"]["others"]
            for name, value in values.items():
                number, _, key = name.partition(".")
                slices[int(number)][key] = value
            self._buffered_inputs = slices
        for mode, metrics in progress["metrics"].items():
            self._metrics[mode].clear()
            self._metrics[mode].update(metrics)
        for name, values in progress["logs"].items():
            if isinstance(values, dict):
                for column, cells in values.items():
                    self._logs[name][column].extend(cells)
            else:
                self._logs[name].extend(values)
        self._pending_loss = progress["loss"], progress["last_logged"]
        with open(os.path.join(folder, checkpoint.MANIFEST), encoding="utf-8") as file:
            self._take_noise_rms(json.load(file)["thinking"]["noise_rms"])
        if reference_moves(self):
            self.ref_model.load_state_dict(load_file(os.path.join(folder, _REFERENCE)), strict=False)

    def _restore_loss(self) -> None:
        """The loss since the last log line. It belongs to earlier steps, so `train_loss` of this call leaves it out."""
        if self._resumed_from is None:
            return
        loss, self._globalstep_last_logged = self._pending_loss
        self._tr_loss += loss
        self._total_loss_scalar -= self.accelerator.gather(self._tr_loss.clone().reshape(1)).mean().item()

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # it had finished; transformers looks only after another step
            return
        super()._run_epoch(*args, **kwargs)

    # SIGTERM

    def _terminate(self, *_) -> None:
        self._terminating = True

    def _heard(self) -> bool:
        """Whether any process was told to end: asked at the same places by all, so that they stop at the same step."""
        flag = torch.tensor(float(self._terminating), device=self.accelerator.device)
        return self.accelerator.reduce(flag, reduction="sum").item() > 0

    def _evaluate(self, *args, **kwargs):
        self._evaluating = True
        try:
            return super()._evaluate(*args, **kwargs)
        except _EvaluationLeft:
            self._metrics["eval"].clear()  # of a part of the data; they would be averaged into the next evaluation's
            return None
        finally:
            self._evaluating = False

    def _determine_best_metric(self, metrics, trial):
        # With `save_strategy: best` what is returned decides whether to save.
        best = False if metrics is None else super()._determine_best_metric(metrics, trial)
        return best or self._stopped_by_signal

    def _finalize_training(self, *args, **kwargs):
        if not self._stopped_by_signal:
            return super()._finalize_training(*args, **kwargs)
        # Else the best model is loaded, for which there is no time, and with `save_total_limit: 1` the checkpoint just
        # written is deleted in favour of the best.
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best


class _EvaluationLeft(Exception):
    """An evaluation ends here: SIGTERM leaves no time for its rest."""


class _StepEnds(TrainerCallback):
    """Where a run looks up from its work."""

    def __init__(self, trainer: ResumableMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._stopped_by_signal = False
        self.trainer._restore_loss()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer._heard():
            self._stop(state, control)
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer._stopped_by_signal:
            control.should_evaluate = control.should_save = False  # its last step has been saved

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.trainer._evaluating and self.trainer._heard():
            self._stop(state, control)
            raise _EvaluationLeft

    def on_evaluate(self, args, state, control, **kwargs):
        if self.trainer._evaluating and self.trainer._heard():
            self._stop(state, control)

    def _stop(self, state, control):
        logger.warning(f"SIGTERM: saving a checkpoint of step {state.global_step}, then exiting.")
        control.should_save = control.should_training_stop = True
        self.trainer._stopped_by_signal = True

    def on_save(self, args, state, control, **kwargs):
        # A signal that came while a checkpoint was written needs no other one.
        if not self.trainer._stopped_by_signal and self.trainer._heard():
            control.should_training_stop = True
            self.trainer._stopped_by_signal = True


@contextmanager
def _listening(handler):
    """SIGTERM calls `handler` inside the block. Python hears signals in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        logger.warning("`train` runs outside the main thread, so SIGTERM will end the process without a checkpoint.")
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def _replaced(owner, name: str, guard):
    """A method of another object that runs inside `guard` for the length of the block."""
    original = getattr(owner, name)

    def guarded(*args, **kwargs):
        with guard():
            return original(*args, **kwargs)

    setattr(owner, name, guarded)
    try:
        yield
    finally:
        delattr(owner, name)


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the host, each with memory of its own, as safetensors wants them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _plain(value):
    """A value of a log table that JSON does not know: a number or a list where it is one, else its text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if hasattr(value, "__iter__") else str(value)
