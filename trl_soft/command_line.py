# SPDX-License-Identifier: Apache-2.0
"""How a command of this package ends when its user made a mistake: with one sentence and exit status 2."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NoReturn

from .files import printable


MISTAKE = 2  # the exit status of argparse for a wrong flag
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
TRACEBACK = "TRL_SOFT_TRACEBACK"
DTYPES = ("auto", "float32", "bfloat16", "float16")
_SENTENCES = (ValueError, TypeError, OSError, ImportError)
# Errors of other packages that tell a user's mistake in their first line: modules of their types.
_FOREIGN = ("datasets.exceptions", "huggingface_hub.errors", "peft.", "wandb.errors")


class UserError(Exception):
    """A base for errors of other types that a command tells in one sentence."""


def is_sentence(error: BaseException) -> bool:
    """Whether this package raised the error itself, with a sentence for the user. Other errors need their traceback."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    # A module that runs as a command is named `__main__`, and still knows its package.
    package = "" if place is None else place.tb_frame.f_globals.get("__package__") or ""
    return isinstance(error, (*_SENTENCES, UserError)) and package.partition(".")[0] == __package__


def told(error: BaseException) -> str | None:
    """What a command says of an error in one sentence. `None` for an error that needs its traceback."""
    if is_sentence(error):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}. Check the path."
    if type(error) is ConnectionError:  # as datasets raises it for the hub
        return f"{printable(str(error)).rstrip('.')}. Check the connection and HF_HUB_OFFLINE, or name local files."
    kind = type(error).__module__
    if kind.startswith(_FOREIGN):
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"{kind.partition('.')[0]} says: {first}"
    return None


@contextmanager
def one_sentence() -> Iterator[None]:
    """
    End the process with the error's sentence and status 2, where a user's mistake raised the error (`told`). Every other error passes.

    Set `TRL_SOFT_TRACEBACK=1` to see where a sentence was raised.
    """
    try:
        yield
    except Exception as error:
        sentence = None if os.environ.get(TRACEBACK) == "1" else told(error)
        if sentence is None:
            raise
        print(f"error: {printable(sentence)}", file=sys.stderr)
        raise SystemExit(MISTAKE) from error
    except KeyboardInterrupt:
        print(
            "Interrupted. `--resume_from_checkpoint auto` continues a training run from its last checkpoint.",
            file=sys.stderr,
        )
        raise SystemExit(INTERRUPTED) from None


class CommandParser(argparse.ArgumentParser):
    """
    A parser whose complaint is one sentence with an example. argparse would print all flags first.

    Args:
        example (`str`, *optional*): a command that works.
    """

    def __init__(self, *args, example: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.example = example

    def error(self, message: str) -> NoReturn:
        example = f" For example: `{self.example}`." if self.example else ""
        self.exit(MISTAKE, f"error: {printable(message)}.{example} `{self.prog} --help` lists all flags.\n")


@contextmanager
def model_at(path: str) -> Iterator[None]:
    """Load a model or a tokenizer inside the block. One that cannot be had is an `OSError` in one sentence."""
    from .hub import hub_or_cache  # loads huggingface_hub, which most commands do without

    try:
        with nullcontext() if os.path.isdir(path) else hub_or_cache():
            yield
    except (OSError, ValueError, KeyError) as error:
        if is_sentence(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(
            f"{path!r} is neither a folder with a model nor one that the hub gives: {reason.rstrip(' .:')}. Check the path or the name."
        ) from error
