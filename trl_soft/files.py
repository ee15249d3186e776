# SPDX-License-Identifier: Apache-2.0
"""Read JSON that may be damaged, and write files that are whole or unchanged."""

import json
import os
import tempfile
import unicodedata
from pathlib import Path
from typing import Any


_MOST_DIGITS = 300  # of a whole number, so that a float can hold it


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_whole)


def parse_json(text: str) -> Any:
    """
    The value of a JSON text.

    Raises:
        ValueError: if the text is not JSON, if it is nested too deeply, or if it holds a whole number of more than 300 digits,
            which no float can hold.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_object(path: Path, purpose: str) -> dict[str, Any]:
    """
    The JSON object in a file.

    Args:
        path (`Path`): the file.
        purpose (`str`): what the caller cannot do without the file, as the end of a sentence.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no JSON object. Both errors are one sentence that names the file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder and not a file, so {purpose}. Move it away, or give another folder.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, and without it {purpose}. Give the folder of a run that has written it."
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{path} is not JSON ({error}), so {purpose}. Write it again from the run.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object, so {purpose}. Write it again from the run.")
    return content


def replace_text(path: Path, text: str) -> None:
    """Write a file. A reader finds the old text or the whole new text, even if others write it at the same time."""
    # Each writer has its own temporary name: two writers with one name would overwrite each other.
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
        os.chmod(aside, 0o666 & ~_umask())  # `mkstemp` makes a file that nobody else can read
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def printable(text: str) -> str:
    """
    A name or a message without characters that a terminal, an SVG file or the reader's eye would obey.

    Control characters (an escape sequence begins with one), direction marks and halves of surrogate pairs become U+FFFD.
    A tab and a line end become a blank.
    """
    spaced = text.translate({ord("\t"): " ", ord("\n"): " ", ord("\r"): " "})
    # U+200D stays, because it joins emoji and letters of several scripts.
    shown = (c if c == "\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in spaced)
    return "".join(shown)


def in_one_line(error: BaseException) -> str:
    """The type and the first line of an error."""
    first = next(iter(str(error).splitlines()), "")
    return printable(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
