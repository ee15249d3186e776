# SPDX-License-Identifier: Apache-2.0
"""The reason, in words, why a file could not be written."""

import errno
import os
import resource
import shutil


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The writers of torch and safetensors raise errors without an `errno`. Only their words say that a disk is full.
_FULL_WORDS = ("No space left", "Disk quota", "File too large", "file write failed", "unexpected pos")


def reason(error: BaseException, directory: str) -> str:
    """
    A writer's exception in words. If the disk was full, the text says how much space is free.

    Args:
        error (`BaseException`): what the writer raised.
        directory (`str`): the folder that it wrote to. The folder need not exist.
    """
    text = f"{type(error).__name__}: {error}"
    code = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if code not in _FULL and not any(words in str(error) for words in _FULL_WORDS):
        return text
    while not os.path.isdir(directory) and directory != os.path.dirname(directory):
        directory = os.path.dirname(directory)
    free = f"{shutil.disk_usage(directory or '.').free / 1e6:.1f} MB are free"
    return f"{text} ({_limit(error, directory, free)})"


def _limit(error: BaseException, directory: str, free: str) -> str:
    """The limit that a writer has met: a quota, `ulimit -f`, the file system's largest file, or the disk's size."""
    code, words = getattr(error, "errno", None), str(error)
    if code == errno.EDQUOT or "Disk quota" in words:
        return f"the quota on the disk of {directory} is used up, though {free}"
    file_size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if code != errno.ENOSPC and "No space left" not in words and file_size != resource.RLIM_INFINITY:
        return f"a file may have {file_size / 1e6:.1f} MB at most, by `ulimit -f`; {free} on the disk of {directory}"
    if code == errno.EFBIG or "File too large" in words:
        return f"the file system of {directory} does not allow a file that large; {free}"
    return f"the disk of {directory} is full: {free}"
