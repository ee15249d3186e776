# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run continues from."""

import os

from transformers.utils import logging

from . import checkpoint
from .checkpoint import CheckpointError
from .processes import gather_sentences, share_of_files
from .same_run import mismatch


logger = logging.get_logger(__name__)


def choose(trainer, directory: str, wanted: str | bool | None) -> str | None:
    """
    The checkpoint to continue from, the same on every process, or `None` to start from the beginning.

    Args:
        trainer: of the run that would continue.
        directory (`str`): its output folder.
        wanted (`str` or `bool`, *optional*): the user's `resume_from_checkpoint`.

    Raises:
        CheckpointError: if there is no checkpoint to continue from, or if it is torn or of another run.
    """
    if wanted is None or wanted is False:
        _warn_of_others(directory)
        return None
    if wanted not in (True, "auto"):
        return _check_wanted(trainer, os.path.normpath(str(wanted)))
    folders = checkpoint.by_date(directory)
    if not folders and wanted == "auto":
        logger.warning(f"{directory} holds no checkpoint: training starts from the beginning.")
        return None
    if not folders:
        raise CheckpointError(
            f"`resume_from_checkpoint` is true, but {directory} holds no checkpoint. Set it to `auto` to start from "
            "the beginning where there is none."
        )
    return _first_whole(trainer, directory, folders)


def _warn_of_others(directory: str) -> None:
    """Warn if the output folder of a run that starts from the beginning holds checkpoints."""
    if others := checkpoint.by_step(directory):
        logger.warning(
            f"Training starts from the beginning in {directory}, which holds {len(others)} of another run's "
            f"checkpoints, up to {os.path.basename(others[0])}. They are replaced step by step, and "
            "`resume_from_checkpoint` would take one of them until this run has saved. Use another `output_dir`, "
            "or resume."
        )


def _check_wanted(trainer, folder: str) -> str:
    """The folder that the user has named, if this run can continue from it."""
    if problem := _damage(trainer, folder):
        raise CheckpointError(f"{problem} {_offer(trainer, folder)}")
    siblings = checkpoint.by_date(os.path.dirname(folder))
    if siblings and os.path.realpath(siblings[0]) != os.path.realpath(folder):
        logger.warning(
            f"Resuming from {folder}, though {siblings[0]} was written later. `resume_from_checkpoint: true` "
            "would take that one until this run has saved."
        )
    return folder


def _first_whole(trainer, directory: str, folders: list[str]) -> str:
    """The first whole checkpoint of `folders`. The log says which folders the run does not take, and why."""
    sentences: list[str] = []
    for place, folder in enumerate(folders):
        problem = _damage(trainer, folder)
        if problem is None:
            step = checkpoint.step_of(folder)
            higher = [os.path.basename(path) for path in folders[place:] if checkpoint.step_of(path) > step]
            if higher:
                sentences.append(f"Passed over, though of a later step, because written earlier: {', '.join(higher)}.")
            logger.warning(" ".join([*sentences, f"Resuming from {folder}."]))
            return folder
        sentences.append(problem)
    raise CheckpointError(
        f"None of the {len(folders)} checkpoints in {directory} is whole. {' '.join(sentences)} Start from the "
        "beginning in another `output_dir`."
    )


def _damage(trainer, folder: str) -> str | None:
    """
    Why a checkpoint is torn, in a sentence, or `None`. The processes share the reading, so all of them must call this.

    Raises:
        CheckpointError: if it is whole, but of another run.
    """
    manifest = None
    try:
        manifest = checkpoint.read_manifest(folder)
        problem = checkpoint.damage(folder, manifest, share_of_files(trainer.args))
    except (CheckpointError, OSError) as error:
        problem = str(error)
    if problems := gather_sentences(problem):
        return problems[0]
    assert manifest is not None
    if differences := gather_sentences(mismatch(trainer, folder, manifest)):
        raise CheckpointError(f"{differences[0]} {_offer(trainer, folder, same_run=True)}")
    return None


def _offer(trainer, refused: str, same_run: bool = False) -> str:
    """Which checkpoint beside `refused` the user can take. `same_run`: it must also be of the trainer's run."""
    directory = os.path.dirname(refused)
    for folder in checkpoint.by_date(directory):
        if os.path.realpath(folder) == os.path.realpath(refused) or checkpoint.problem_of(folder) is not None:
            continue
        if not same_run or mismatch(trainer, folder, checkpoint.read_manifest(folder)) is None:
            return f"The last good checkpoint is {folder}: set `resume_from_checkpoint` to it, or to `true`."
    return f"No other checkpoint in {directory or os.curdir} can take its place."
