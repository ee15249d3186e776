# SPDX-License-Identifier: Apache-2.0
"""SIGTERM ends a run at the end of its step: the run saves a checkpoint and exits with 143.

A cluster sends SIGTERM some seconds before it kills a job. One process may get the signal before the others. So the
processes ask each other at the same places, and all stop at the same step.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainerCallback
from transformers.utils import logging

from .host import Host, require
from .processes import any_process


logger = logging.get_logger(__name__)

_EXIT = 128 + signal.SIGTERM

require("_determine_best_metric", "_evaluate", "_finalize_training", purpose="save a checkpoint when SIGTERM comes")


class SigtermMixin(Host):
    """Stopping at a signal, over a TRL trainer."""

    def __init__(self, *args, **kwargs):
        self._signalled = False  # this process has got SIGTERM
        self._stops = False  # the processes have agreed to stop
        self._evaluating = False
        super().__init__(*args, **kwargs)
        self.add_callback(_AskAtStepEnds(self))

    def train(self, *args, **kwargs):
        self._signalled = False
        with _handler(self._note_signal):
            result = super().train(*args, **kwargs)
        if self._stops:
            raise SystemExit(_EXIT)
        return result

    def _note_signal(self, *_) -> None:
        self._signalled = True

    def _any_signalled(self) -> bool:
        """Whether any process has got the signal. Every process must call this."""
        return any_process(self.accelerator, self._signalled)

    def _evaluate(self, *args, **kwargs):
        self._evaluating = True
        try:
            return super()._evaluate(*args, **kwargs)
        except _EvaluationStops:
            # These metrics are of a part of the data. A resumed run would average them into its next evaluation.
            self._metrics["eval"].clear()
            return None
        finally:
            self._evaluating = False

    def _determine_best_metric(self, metrics, trial):
        # With `save_strategy: best` the returned value decides whether to save.
        best = False if metrics is None else super()._determine_best_metric(metrics, trial)
        return best or self._stops

    def _finalize_training(self, *args, **kwargs):
        if not self._stops:
            return super()._finalize_training(*args, **kwargs)
        # With `best_model_checkpoint` set, `Trainer` would load the best model, and there is no time for that. With
        # `save_total_limit: 1` it would also delete the checkpoint that was just written, to keep the best one.
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best


class _EvaluationStops(Exception):
    """SIGTERM leaves no time for the rest of an evaluation."""


class _AskAtStepEnds(TrainerCallback):
    """The places where the processes ask each other whether one of them has got the signal."""

    def __init__(self, trainer: SigtermMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._stops = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer._any_signalled():
            self._stop(state, control)
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer._stops:
            control.should_evaluate = control.should_save = False  # the last step of the epoch has been saved

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.trainer._evaluating and self.trainer._any_signalled():
            self._stop(state, control)
            raise _EvaluationStops

    def on_evaluate(self, args, state, control, **kwargs):
        if self.trainer._evaluating and self.trainer._any_signalled():
            self._stop(state, control)

    def _stop(self, state, control):
        logger.warning(f"SIGTERM: saving a checkpoint of step {state.global_step}, then exiting.")
        control.should_save = control.should_training_stop = True
        self.trainer._stops = True

    def on_save(self, args, state, control, **kwargs):
        # If the signal comes while a checkpoint is being written, that checkpoint is the last.
        if not self.trainer._stops and self.trainer._any_signalled():
            control.should_training_stop = True
            self.trainer._stops = True


@contextmanager
def _handler(function) -> Iterator[None]:
    """SIGTERM calls `function` inside the block. Python calls signal handlers in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        logger.warning("`train` runs outside the main thread, so SIGTERM will end the process without a checkpoint.")
        yield
        return
    before = signal.signal(signal.SIGTERM, function)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
