# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and started again ends like an uninterrupted run.

`ResumableMixin` differs from transformers' and TRL's checkpoints in this:

1. A checkpoint is written aside and moved into place (`save.py`, `checkpoint.py`). A run refuses a torn checkpoint and one of
   another run, and says which file or setting is the reason (`choose.py`, `same_run.py`).
2. Beside model, optimiser, schedule and RNG it holds, for each process, the rollout that is being replayed, TRL's counters,
   and the metrics since the last log line (`progress.py`).
3. The order of the data continues in later epochs as well. A finished run takes no further step.
4. SIGTERM ends the run at the end of its step, with a checkpoint (`sigterm.py`).

Every override goes through `super()`.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.utils import logging

from . import checkpoint
from .choose import choose
from .host import require
from .progress import load_progress
from .rollout_numbers import RolloutNumbers
from .same_run import reference_moves
from .save import REFERENCE, SaveMixin
from .sigterm import SigtermMixin


logger = logging.get_logger(__name__)

require("_get_train_sampler", "_init_training_state", "_run_epoch", purpose="resume a run")


class ResumableMixin(SaveMixin, SigtermMixin):
    """Saving, stopping and resuming, over a TRL trainer that generates online."""

    train_dataset: Any
    _logs: Any
    _buffered_inputs: Any
    _numbers: RolloutNumbers
    _take_noise_rms: Callable[[float | None], None]

    def __init__(self, *args, **kwargs):
        self._resumed_from: str | None = None
        self._train_sampler: Any = None
        super().__init__(*args, **kwargs)
        self._model_shapes = {
            name: list(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.model.named_parameters()
        }
        self.add_callback(_RestoreLoss(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A folder. `True` stands for the latest whole checkpoint of `output_dir`. `"auto"` stands for the same if there
                is any checkpoint, and for the start if there is none.

        Raises:
            CheckpointError: if the checkpoint is torn, or of another run. The message names the file or the setting, and the
                last good checkpoint.
            SystemExit: with 143, after a SIGTERM and the checkpoint that it asked for.
        """
        directory = self._get_output_dir(None)
        if self.args.should_save:
            for sentence in checkpoint.clean(directory):
                logger.warning(sentence)
        self.accelerator.wait_for_everyone()
        self._resumed_from = choose(self, directory, resume_from_checkpoint)
        return super().train(self._resumed_from, *args, **kwargs)

    def _get_train_sampler(self, dataset=None):
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _init_training_state(self, *args, **kwargs):
        epochs, steps = super()._init_training_state(*args, **kwargs)
        if self._resumed_from is not None:
            self._loss_to_restore = load_progress(self, self._resumed_from)
            self._take_noise_rms(checkpoint.read_manifest(self._resumed_from)["thinking"].get("noise_rms"))
            if reference_moves(self):
                reference = load_file(os.path.join(self._resumed_from, REFERENCE))
                self.ref_model.load_state_dict(reference, strict=False)
            if self._train_sampler is not None and self._train_sampler.shuffle:
                # The sampler draws each epoch's order from a generator of its own. In this process it has drawn none yet.
                for _ in range(epochs):
                    torch.randperm(self._train_sampler.num_samples, generator=self._train_sampler.generator)
        return epochs, steps

    def _restore_loss(self) -> None:
        """Restore the loss since the last log line. `train_loss` leaves it out, because it is of earlier steps."""
        if self._resumed_from is None:
            return
        loss, self._globalstep_last_logged = self._loss_to_restore
        self._tr_loss += loss
        self._total_loss_scalar -= self.accelerator.gather(self._tr_loss.clone().reshape(1)).mean().item()

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # The run had finished. transformers would look at this only after another step.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


class _RestoreLoss(TrainerCallback):
    """`Trainer` sets its sums of the loss to zero before it calls this."""

    def __init__(self, trainer: ResumableMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._restore_loss()
