# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there: folders written aside, sealed by a manifest, and moved into place.

    output_dir/.saving/checkpoint-6     being written; no reader takes it for a checkpoint
    output_dir/checkpoint-6             complete: `checkpoint_manifest.json` in it names every file, its size and its hash

A folder is moved by one rename after every byte of it is on the disk, so a process killed at any moment leaves either
all of a checkpoint or none. What is found under `.saving` at a start was left by a run that died, and is removed.

Functions on folders only: no model, no trainer. `resume.py` calls them.
"""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import parse_json


MANIFEST = "checkpoint_manifest.json"
STAGING = ".saving"
_NAME = re.compile(r"^checkpoint-(\d+)$")
_REPLACED = "replaced-"
_FORMAT = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch's and safetensors' writers say that a disk is full in words alone.
_FULL_WORDS = ("No space left", "Disk quota", "File too large", "file write failed", "unexpected pos")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or this run cannot continue from it. The message says why and what to do."""


def numbered(directory: str) -> list[str]:
    """The checkpoints of an output folder, the latest step first, whole or not."""
    if not os.path.isdir(directory):
        return []
    found = (os.path.join(directory, name) for name in os.listdir(directory) if _NAME.match(name))
    return sorted(filter(os.path.isdir, found), key=step_of, reverse=True)


def latest(directory: str) -> list[str]:
    """
    The checkpoints of an output folder, the one written last first, whole or not.

    Not by step: a run may have gone back to an earlier checkpoint, or started afresh where another one had been.
    """
    return sorted(numbered(directory), key=lambda folder: (_age(folder), step_of(folder)), reverse=True)


def step_of(folder: str) -> int:
    """The step in a checkpoint's name; -1 for another name."""
    match = _NAME.match(os.path.basename(folder))
    return int(match.group(1)) if match else -1


def stage(directory: str) -> None:
    """An empty place to write a checkpoint to."""
    shutil.rmtree(os.path.join(directory, STAGING), ignore_errors=True)
    os.makedirs(os.path.join(directory, STAGING))


def clean(directory: str) -> list[str]:
    """Remove what a killed run left half-done, and put back what it had moved aside. Says what it did, in sentences."""
    staging, told = os.path.join(directory, STAGING), []
    if not os.path.isdir(staging):
        return []
    for name in sorted(os.listdir(staging)):
        original = os.path.join(directory, name.removeprefix(_REPLACED))
        if name.startswith(_REPLACED) and not os.path.exists(original):
            os.rename(os.path.join(staging, name), original)
            told.append(f"{original} was being replaced when a run was killed, and has been put back.")
        else:
            told.append(f"{os.path.join(staging, name)} was left by a run that was killed, and has been removed.")
    shutil.rmtree(staging)
    _sync(directory)
    return told


def listing(folder: str) -> list[str]:
    """Every file below a folder but the manifest, as sorted relative paths."""
    files = (path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    return sorted(name for name in files if name != MANIFEST)


def digests(folder: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of some files of a folder."""
    return {name: _digest(os.path.join(folder, name)) for name in names}


def _digest(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def seal(folder: str, facts: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Write the manifest: what the checkpoint is of (JSON values), and `digests` of all its files."""
    content = {"format": _FORMAT, "written": time.time_ns(), **facts, "files": dict(sorted(files.items()))}
    content["digest"] = _checksum(content)
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)  # ends with its brace, so that none of its bytes can be lost unseen


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def flush(folder: str) -> None:
    """Bring every file and folder below `folder` to the disk."""
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
    """Move the sealed and flushed checkpoint `name` from the staging folder into place; returns its path."""
    staging, final = os.path.join(directory, STAGING), os.path.join(directory, name)
    if os.path.exists(final):
        # A folder cannot be renamed over another. Killed in between, the next start puts the old one back.
        os.rename(final, os.path.join(staging, _REPLACED + name))
    os.rename(os.path.join(staging, name), final)
    _sync(directory)
    shutil.rmtree(staging)
    return final


def rotate(directory: str, limit: int | None, keep: Iterable[str | None]) -> None:
    """
    Delete the oldest checkpoints beyond `limit` (`None` or 0: no limit), never those in `keep`.

    Age is when the manifest was written, not the step: a run that went back to an earlier checkpoint must not lose
    what it has written since. A folder without a manifest is the oldest. Each leaves by a rename before it is deleted,
    so that a kill leaves no half of one under its name.
    """
    if not limit or limit <= 0:
        return
    kept = {os.path.realpath(path) for path in keep if path}
    folders = latest(directory)[::-1]
    surplus = [folder for folder in folders if os.path.realpath(folder) not in kept]
    staging = os.path.join(directory, STAGING)
    for folder in surplus[: max(len(folders) - limit, 0)]:
        os.makedirs(staging, exist_ok=True)
        os.rename(folder, os.path.join(staging, "deleted-" + os.path.basename(folder)))
    shutil.rmtree(staging, ignore_errors=True)


def _age(folder: str) -> int:
    """When a checkpoint was sealed, in nanoseconds; by the file's own date where the manifest does not say."""
    path = os.path.join(folder, MANIFEST)
    if not os.path.isfile(path):
        return 0
    try:
        with open(path, encoding="utf-8") as file:
            return int(parse_json(file.read())["written"])  # a copy of the folder has other dates
    except (ValueError, KeyError, TypeError):
        return os.stat(path).st_mtime_ns


def read_manifest(folder: str) -> dict[str, Any]:
    """
    The manifest of a checkpoint.

    Raises:
        CheckpointError: in a sentence that names the file, if there is none, or it is not as it was written.
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
    The first file that is not as the manifest has it, or a step that is not the folder's, in a sentence, or `None`.

    Args:
        share (`tuple` of two `int`): part i of n of the files, so that n processes read them all once between them.
        contents (`bool`): compare hashes as well as sizes.
    """
    step = manifest.get("step")
    if step is not None and step_of(folder) not in (-1, step):
        return f"{folder} holds step {step}, so it has been renamed from checkpoint-{step}. Give it its name back."
    for name, told in list(manifest["files"].items())[share[0] :: share[1]]:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return f"{path} is missing."
        if os.path.getsize(path) != told["size"]:
            return f"{path} has {os.path.getsize(path)} bytes, and {told['size']} when it was written."
        if contents and _digest(path)["sha256"] != told["sha256"]:
            return f"{path} has other contents than when it was written."
    return None


def problem_of(folder: str, contents: bool = True) -> str | None:
    """Why a folder is no whole checkpoint, in a sentence, or `None`."""
    try:
        return damage(folder, read_manifest(folder), contents=contents)
    except CheckpointError as error:
        return str(error)


def last_good(directory: str, but: str | None = None, contents: bool = True) -> str | None:
    """The latest whole checkpoint of an output folder, `but` left out."""
    left_out = os.path.realpath(but) if but else None
    candidates = (folder for folder in latest(directory) if os.path.realpath(folder) != left_out)
    return next((folder for folder in candidates if problem_of(folder, contents) is None), None)


def reason(error: BaseException, directory: str) -> str:
    """An exception of a writer in words, with what is free on the disk where the disk was full."""
    text = f"{type(error).__name__}: {error}"
    full = isinstance(error, OSError) and error.errno in _FULL
    if full or any(words in str(error) for words in _FULL_WORDS):
        while not os.path.isdir(directory) and directory != os.path.dirname(directory):
            directory = os.path.dirname(directory)
        free = f"{shutil.disk_usage(directory or '.').free / 1e6:.1f} MB are free"
        code, limit = getattr(error, "errno", None), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        disk_itself = code == errno.ENOSPC or "No space left" in str(error)
        if code == errno.EDQUOT or "Disk quota" in str(error):
            text += f" (the quota on the disk of {directory} is used up, though {free})"
        elif not disk_itself and limit != resource.RLIM_INFINITY:
            text += (
                f" (a file may have {limit / 1e6:.1f} MB at most, by `ulimit -f`; {free} on the disk of {directory})"
            )
        elif code == errno.EFBIG or "File too large" in str(error):
            text += f" (the file system of {directory} does not allow a file that large; {free})"
        else:
            text += f" (the disk of {directory} is full: {free})"
    return text
