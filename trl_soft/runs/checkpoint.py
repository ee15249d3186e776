# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on the disk. A checkpoint is complete, or it does not exist.

    output_dir/.saving/checkpoint-6     the run is writing it; no reader takes it for a checkpoint
    output_dir/checkpoint-6             complete; its manifest `checkpoint_manifest.json` has each file's name, size and hash

All of a checkpoint's bytes are on the disk before one rename moves the folder into place. So a kill at any moment leaves a
complete checkpoint or none. A folder that lies under `.saving` when a run starts comes from a run that died; it is removed.

Terms: a checkpoint is *whole* if every file is as its manifest says, and *torn* otherwise. To *seal* it is to write its
manifest.

The functions work on folders and know neither model nor trainer.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..command_line import UserError
from ..files import parse_json


MANIFEST = "checkpoint_manifest.json"
STAGING = ".saving"
_NAME = re.compile(r"^checkpoint-(\d+)$")
_REPLACED = "replaced-"
_FORMAT = 1


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written, or this run cannot continue from it. The message says why and what to do."""


def by_step(directory: str) -> list[str]:
    """The checkpoints of an output folder, whole or torn. The one with the highest step comes first."""
    if not os.path.isdir(directory):
        return []
    paths = (os.path.join(directory, name) for name in os.listdir(directory) if _NAME.match(name))
    return sorted(filter(os.path.isdir, paths), key=step_of, reverse=True)


def by_date(directory: str) -> list[str]:
    """
    The checkpoints of an output folder, whole or torn. The one that was written last comes first.

    Its step need not be the highest: a run may have gone back to an earlier checkpoint, or may have started from the
    beginning in the folder of another run.
    """
    return sorted(by_step(directory), key=lambda folder: (_date(folder), step_of(folder)), reverse=True)


def step_of(folder: str) -> int:
    """The step in a checkpoint's name. -1 if the name is not a checkpoint's."""
    match = _NAME.match(os.path.basename(folder))
    return int(match.group(1)) if match else -1


def stage(directory: str) -> None:
    """Make an empty staging folder, to write a checkpoint to."""
    shutil.rmtree(os.path.join(directory, STAGING), ignore_errors=True)
    os.makedirs(os.path.join(directory, STAGING))


def clean(directory: str) -> list[str]:
    """
    Remove what a run that was killed left in the staging folder, and move back a checkpoint that it was replacing.

    Returns:
        `list` of `str`: what the function did, in sentences.
    """
    staging = os.path.join(directory, STAGING)
    if not os.path.isdir(staging):
        return []
    sentences = []
    for name in sorted(os.listdir(staging)):
        original = os.path.join(directory, name.removeprefix(_REPLACED))
        if name.startswith(_REPLACED) and not os.path.exists(original):
            os.rename(os.path.join(staging, name), original)
            sentences.append(f"{original} was being replaced when a run was killed, and has been put back.")
        else:
            path = os.path.join(staging, name)
            sentences.append(f"{path} was left by a run that was killed, and has been removed.")
    shutil.rmtree(staging)
    _sync(directory)
    return sentences


def listing(folder: str) -> list[str]:
    """Every file below a folder except the manifest, as sorted relative paths."""
    files = (path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    return sorted(name for name in files if name != MANIFEST)


def digests(folder: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of some files of a folder."""
    return {name: _digest(os.path.join(folder, name)) for name in names}


def _digest(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def seal(folder: str, identity: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """
    Write the manifest.

    Args:
        folder (`str`): the checkpoint.
        identity (`dict`): which run the checkpoint is of, in JSON values; see [`~trl_soft.runs.same_run.identity`].
        files (`dict`): the `digests` of all its files.
    """
    content = {"format": _FORMAT, "written": time.time_ns(), **identity, "files": dict(sorted(files.items()))}
    content["digest"] = _checksum(content)
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)  # the last byte is the closing brace, so a lost byte is always noticed


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def flush(folder: str) -> None:
    """Make the system write every file and folder below `folder` to the disk."""
    for root, _, names in os.walk(folder):
        for name in (*names, "."):
            _sync(os.path.join(root, name))


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(directory: str, name: str) -> str:
    """Move the checkpoint `name`, sealed and flushed, from the staging folder into place. Returns its path."""
    staging, final = os.path.join(directory, STAGING), os.path.join(directory, name)
    if os.path.exists(final):
        # A folder cannot be renamed over another folder. After a kill between these two renames, `clean` moves the old
        # checkpoint back.
        os.rename(final, os.path.join(staging, _REPLACED + name))
    os.rename(os.path.join(staging, name), final)
    _sync(directory)
    shutil.rmtree(staging)
    return final


def rotate(directory: str, limit: int | None, keep: Iterable[str | None]) -> None:
    """
    Delete the oldest checkpoints until `limit` are left. `None` and 0 mean no limit.

    The date of a checkpoint counts, not its step: a run that went back to an earlier checkpoint must not lose what it has
    written since. A folder without a manifest counts as the oldest. A rename takes each folder out of the output folder
    before its files are deleted, so that a kill leaves no half of a checkpoint under a checkpoint's name.

    Args:
        directory (`str`): the output folder.
        limit (`int`, *optional*): how many checkpoints may stay.
        keep (iterable of `str` or `None`): checkpoints that stay in any case. `None` stands for no checkpoint.
    """
    if not limit or limit <= 0:
        return
    protected = {os.path.realpath(path) for path in keep if path}
    folders = by_date(directory)[::-1]
    surplus = [folder for folder in folders if os.path.realpath(folder) not in protected]
    staging = os.path.join(directory, STAGING)
    for folder in surplus[: max(len(folders) - limit, 0)]:
        os.makedirs(staging, exist_ok=True)
        os.rename(folder, os.path.join(staging, "deleted-" + os.path.basename(folder)))
    shutil.rmtree(staging, ignore_errors=True)


def _date(folder: str) -> int:
    """When a checkpoint was sealed, in nanoseconds. 0 if it has no manifest."""
    path = os.path.join(folder, MANIFEST)
    if not os.path.isfile(path):
        return 0
    try:
        with open(path, encoding="utf-8") as file:
            return int(parse_json(file.read())["written"])  # a copy of the folder has files of another date
    except (ValueError, KeyError, TypeError):
        return os.stat(path).st_mtime_ns


def read_manifest(folder: str) -> dict[str, Any]:
    """
    The manifest of a checkpoint.

    Raises:
        CheckpointError: if there is no manifest, or if its content has changed since it was written. The message names the file.
    """
    path = os.path.join(folder, MANIFEST)
    if not os.path.isdir(folder):
        raise CheckpointError(f"The checkpoint {folder} does not exist.")
    if not os.path.isfile(path):
        raise CheckpointError(
            f"{path} does not exist, so {folder} was not written by trl_soft, or not to its end. Its weights may still "
            "serve as `model_name_or_path` of another run."
        )
    try:
        with open(path, encoding="utf-8") as file:
            content = parse_json(file.read())
        intact = content.pop("digest") == _checksum(content)
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} is damaged: it does not read as it was written.")
    if content["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']} and this version of trl_soft reads format {_FORMAT}. "
            f"It was written by trl_soft {content.get('trl_soft')}; use that version."
        )
    return content


def damage(
    folder: str, manifest: dict[str, Any], share: tuple[int, int] = (0, 1), contents: bool = True
) -> str | None:
    """
    Why a checkpoint is torn, in a sentence that names the first file which is not as the manifest says; `None` if it is whole.

    A folder whose name has another step than its manifest counts as torn.

    Args:
        folder (`str`), manifest (`dict`): the checkpoint.
        share (`tuple` of two `int`): check part i of n of the files, so that n processes together read each file once.
        contents (`bool`): compare hashes as well as sizes.
    """
    step = manifest.get("step")
    if step is not None and step_of(folder) not in (-1, step):
        return f"{folder} holds step {step}, so it has been renamed from checkpoint-{step}. Give it its name back."
    for name, digest in list(manifest["files"].items())[share[0] :: share[1]]:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return f"{path} is missing."
        if os.path.getsize(path) != digest["size"]:
            return f"{path} has {os.path.getsize(path)} bytes, and {digest['size']} when it was written."
        if contents and _digest(path)["sha256"] != digest["sha256"]:
            return f"{path} has other contents than when it was written."
    return None


def problem_of(folder: str, contents: bool = True) -> str | None:
    """Why a folder is not a whole checkpoint, in a sentence, or `None`. `contents` as in `damage`."""
    try:
        return damage(folder, read_manifest(folder), contents=contents)
    except CheckpointError as error:
        return str(error)


def last_good(directory: str, contents: bool = True) -> str | None:
    """The whole checkpoint of an output folder that was written last, or `None`. `contents` as in `damage`."""
    return next((folder for folder in by_date(directory) if problem_of(folder, contents) is None), None)
