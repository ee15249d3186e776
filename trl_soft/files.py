# SPDX-License-Identifier: Apache-2.0
"""JSON that somebody may have damaged, and files that are written whole or not at all."""

import json
import os
import tempfile
import unicodedata
from pathlib import Path
from typing import Any


_MOST_DIGITS = 300  # of a whole number: a float holds it


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_whole)


def parse_json(text: str) -> Any:
    """
    The value that a JSON text holds.

    Raises:
        ValueError: if the text is no JSON, or JSON that nothing here can work with: nested too deep, or a whole number of
            more than 300 digits, which no float holds.
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
        purpose (`str`): what cannot be done without it, as the end of a sentence.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no JSON object. Both are one sentence that names the file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder and no file, so {purpose}. Move it away, or give another folder.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, and without it {purpose}. Give the folder of a run that got that far."
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{path} is not JSON ({error}), so {purpose}. Write it again from the run.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object, so {purpose}. Write it again from the run.")
    return content


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the whole text, whoever else writes it at the same time."""
    # A name of its own for each writer: two that shared one would take it from each other.
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
    A name or a message without what a terminal, an SVG file or a reader's eye would take for a command.

    Control characters (an escape sequence begins with one), direction marks and halves of surrogate pairs become U+FFFD;
    a tab and a line end become a blank.
    """
    spaced = text.translate({ord("\t"): " ", ord("\n"): " ", ord("\r"): " "})
    # U+200D joins emoji and letters of several scripts.
    shown = (c if c == "\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in spaced)
    return "".join(shown)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
