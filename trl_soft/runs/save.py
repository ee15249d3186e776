# SPDX-License-Identifier: Apache-2.0
"""All processes of a run write one checkpoint together: they finish it together, or they all raise."""

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from accelerate.utils import gather_object
from safetensors.torch import save_file
from transformers.trainer import TRAINER_STATE_NAME

from ..settings import ThinkingSettings
from . import checkpoint, disk
from .checkpoint import CheckpointError
from .host import Host, require
from .processes import gather_sentences, share_of_files
from .progress import save_progress, tensors_to_save
from .same_run import identity, reference_moves


REFERENCE = "reference_model.safetensors"
_TOKEN = ".folder_of_rank_0"
_LOST = "could not be saved, and nothing of it was kept."

require(
    "_get_output_dir", "_push_from_checkpoint", "_save", "_save_checkpoint", "_save_rng_state", purpose="save checkpoints"
)  # fmt: skip


class CheckpointInProgress:
    """
    A checkpoint that the processes of a run are writing.

    Processes wait for each other between two writers. If one process left at its own full disk, the others would wait
    forever. So a process collects its errors and goes on, and all processes raise at the next `agree` if any process has an
    error.

    Args:
        args: the training arguments.
        directory (`str`): the output folder.
        step (`int`): updates so far.

    Attributes:
        name (`str`), final (`str`): the checkpoint's name, and the path it will have.
        staging (`str`), folder (`str`): the staging folder, and the path of the checkpoint in it.
        errors (`list`): what this process's writers have raised.
        takes_output (`bool`): `Trainer`'s own writers write to `staging`.
        push (`bool`): `Trainer` wants to upload the checkpoint.
    """

    def __init__(self, args, directory: str, step: int):
        self.args, self.directory = args, directory
        self.name = f"checkpoint-{step}"
        self.final = os.path.join(directory, self.name)
        self.staging = os.path.join(directory, checkpoint.STAGING)
        self.folder = os.path.join(self.staging, self.name)
        self.errors: list[BaseException] = []
        self.takes_output = self.push = False

    @contextmanager
    def collect_errors(self) -> Iterator[None]:
        """Keep an exception that the block raises in `errors`."""
        try:
            yield
        except Exception as error:
            self.errors.append(error)

    def agree(self, outcome: str = _LOST) -> None:
        """
        Wait for all processes. Every process must call this.

        Args:
            outcome (`str`): what became of the checkpoint, as the end of a sentence, if a process has an error.

        Raises:
            CheckpointError: on every process, if any process has an error.
        """
        first = self.errors[0] if self.errors else None
        reasons = gather_sentences(None if first is None else self._reason(first))
        if reasons:
            if self.args.should_save:
                checkpoint.clean(self.directory)
            raise self._failure(reasons, outcome) from first

    def fail_alone(self, error: BaseException) -> CheckpointError:
        """The error of a process that cannot reach the next `agree`."""
        return self._failure([self._reason(error)], _LOST)

    def _reason(self, error: BaseException) -> str:
        return f"process {self.args.process_index}: {disk.reason(error, self.directory)}"

    def _failure(self, reasons: list[str], outcome: str) -> CheckpointError:
        good = checkpoint.last_good(self.directory, contents=False)
        offer = (
            f"The last good checkpoint is {good}: make room if that is what is missing, and start again with "
            "`resume_from_checkpoint: true`."
            if good
            else "There is no earlier checkpoint."
        )
        return CheckpointError(f"{self.name} {outcome} {'; '.join(reasons)}. {offer}")


def _collects_errors(method):
    """Let a writer of `Trainer` collect its error, if it runs during a checkpoint."""

    @functools.wraps(method)
    def write(self, *args, **kwargs):
        with self._collect_errors():
            return method(self, *args, **kwargs)

    return write


class SaveMixin(Host):
    """Saving, over a TRL trainer that generates online."""

    args: Any
    model: Any
    model_wrapped: Any
    ref_model: Any
    thinking: ThinkingSettings

    def __init__(self, *args, **kwargs):
        self._saving: CheckpointInProgress | None = None
        super().__init__(*args, **kwargs)

    def _collect_errors(self):
        """Collects errors while a checkpoint is being written. At other times it does nothing."""
        return nullcontext() if self._saving is None else self._saving.collect_errors()

    # Trainer's writers

    def _get_output_dir(self, trial):
        if self._saving is not None and self._saving.takes_output:
            return self._saving.staging
        return super()._get_output_dir(trial)

    @_collects_errors
    def create_model_card(self, *args, **kwargs):
        return super().create_model_card(*args, **kwargs)

    @_collects_errors
    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.thinking.save_thinking(self.args.output_dir if output_dir is None else output_dir)

    @_collects_errors
    def _save_scaler(self, *args, **kwargs):
        return super()._save_scaler(*args, **kwargs)

    @_collects_errors
    def _save_rng_state(self, *args, **kwargs):
        return super()._save_rng_state(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir):
        # The processes wait for each other in here under DeepSpeed and FSDP.
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        with nullcontext() if sharded else self._collect_errors():
            return super()._save_optimizer_and_scheduler(output_dir)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._saving is not None and self._saving.takes_output:
            self._saving.push = True  # an upload runs in the background, and the folder will move first
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    # A checkpoint

    def _save_checkpoint(self, model, trial):
        saving = CheckpointInProgress(self.args, self._get_output_dir(trial), self.state.global_step)
        self._saving = saving
        try:
            self._make_folder(saving)
            self._write_files(saving, model, trial)
            self._seal(saving)
            self._publish(saving)
        finally:
            self._saving = None
            # The traceback of an error refers to `saving`. This cycle would keep the writer's file open.
            saving.errors.clear()
        if saving.push:
            super()._push_from_checkpoint(saving.final)

    def _make_folder(self, saving: CheckpointInProgress) -> None:
        with saving.collect_errors():
            if self.args.should_save:
                checkpoint.stage(saving.directory)
                open(os.path.join(saving.staging, _TOKEN), "w").close()
                os.makedirs(saving.folder)
        saving.agree()
        with saving.collect_errors():
            if not os.path.exists(os.path.join(saving.staging, _TOKEN)):
                raise CheckpointError(
                    f"process {self.args.process_index} does not see {saving.staging}, which another process has made, so "
                    "`output_dir` is not on a file system that all hosts share. Put it on one, or set "
                    "`save_on_each_node: true`."
                )
        saving.agree()

    def _write_files(self, saving: CheckpointInProgress, model, trial) -> None:
        saving.takes_output = True
        try:
            with ExitStack() as writers:
                writers.enter_context(_method_within(self.state, "save_to_json", saving.collect_errors))
                if self.is_deepspeed_enabled:
                    engine = self.model_wrapped
                    writers.enter_context(_method_within(engine.checkpoint_engine, "save", saving.collect_errors))
                    writers.enter_context(_method_within(engine, "_copy_recovery_script", saving.collect_errors))
                super()._save_checkpoint(model, trial)
        except Exception as error:
            saving.errors.append(error)
            if self.args.world_size > 1:
                # Other processes may wait for this one elsewhere. They end when this one ends.
                raise saving.fail_alone(error) from error
        saving.takes_output = False
        with saving.collect_errors():
            save_progress(self, saving.folder)
        with saving.collect_errors():
            self._finish_state(saving)
        saving.agree()

    def _finish_state(self, saving: CheckpointInProgress) -> None:
        """Write the thinking settings, the moving reference model, and the trainer's state with the folders' final paths."""
        best = self.state.best_model_checkpoint
        if best is not None and os.path.basename(best) == saving.name:
            self.state.best_model_checkpoint = saving.final
        elif self.state.best_global_step:
            best = os.path.join(saving.directory, f"checkpoint-{self.state.best_global_step}")
            if os.path.isdir(best):
                self.state.best_model_checkpoint = best
        if not self.args.should_save:
            return
        self.state.save_to_json(os.path.join(saving.folder, TRAINER_STATE_NAME))
        self.thinking.save_thinking(saving.folder)
        if reference_moves(self):
            save_file(tensors_to_save(self.ref_model.state_dict()), os.path.join(saving.folder, REFERENCE))

    def _seal(self, saving: CheckpointInProgress) -> None:
        """Each host flushes its files, the processes share the hashing, and one process writes the manifest."""
        folder, (part, parts) = saving.folder, share_of_files(self.args)
        files: dict[str, dict] = {}
        with saving.collect_errors():
            if self.accelerator.is_local_main_process:
                checkpoint.flush(folder)
            files = checkpoint.digests(folder, checkpoint.listing(folder)[part::parts])
        by_process = gather_object([files])
        with saving.collect_errors():
            if self.args.should_save:
                listing = checkpoint.listing(folder)
                known = {name: digest for files in by_process for name, digest in files.items()}
                # Another host may have listed the folder before it could see this file.
                unknown = [name for name in listing if name not in known]
                files = {name: known[name] for name in listing if name in known}
                checkpoint.seal(folder, identity(self), files | checkpoint.digests(folder, unknown))
                checkpoint.flush(folder)
        saving.agree()

    def _publish(self, saving: CheckpointInProgress) -> None:
        """Move the checkpoint into place and delete the oldest ones beyond `save_total_limit`."""
        with saving.collect_errors():
            if self.args.should_save:
                checkpoint.publish(saving.directory, saving.name)
        saving.agree()
        with saving.collect_errors():
            if self.args.should_save:
                keep = (saving.final, self.state.best_model_checkpoint)
                checkpoint.rotate(saving.directory, self.args.save_total_limit, keep)
        saving.agree("was saved, but an older one could not be deleted.")


@contextmanager
def _method_within(owner, name: str, context) -> Iterator[None]:
    """Inside the block, each call of a method of `owner` runs within `context()`."""
    original = getattr(owner, name)

    def call(*args, **kwargs):
        with context():
            return original(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        delattr(owner, name)
