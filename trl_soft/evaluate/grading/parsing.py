# SPDX-License-Identifier: Apache-2.0
"""
Python's parser on the text of a model, with a bound on everything that is parsed for one text.

The graders find a program by trial: they parse from several places, up to several lines. The parser needs 1 to 2 s for a
million hostile characters, so trials without a bound would delay a training step.
"""

import ast
import contextlib
import contextvars
import warnings
from collections.abc import Iterator


LONGEST_PROGRAM = 65_536  # characters that are parsed, and run
MOST_PARSES = 80  # for one text that is judged
MOST_PARSED = 3 * LONGEST_PROGRAM  # characters, in all that is parsed for one text

_NAME = "<completion>"


def _without_warnings() -> None:
    r"""
    Switch off the parser's warnings about a model's program, such as those for `"\d"` and `1 is 1`. They name the file as
    their module. The filter stays for good, because `warnings.catch_warnings` changes the filters of all threads.
    """
    for category in (SyntaxWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module="<(completion|row)>")


_without_warnings()


class _Parses:
    """The results of parsing for one text, by source: the statements of a program, or the line of an error."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[ast.stmt], int | None]] = {}
        self._characters = 0

    def of(self, source: str) -> tuple[list[ast.stmt], int | None]:
        if source not in self._known:
            if (
                len(source) > LONGEST_PROGRAM
                or len(self._known) >= MOST_PARSES
                or self._characters + len(source) > MOST_PARSED
            ):
                return [], 0
            self._characters += len(source)
            self._known[source] = _parsed(source)
        return self._known[source]


def _parsed(source: str) -> tuple[list[ast.stmt], int | None]:
    try:
        return ast.parse(source, _NAME).body, None
    except SyntaxError as error:
        return [], error.lineno or 0
    except ValueError:  # a NUL
        return [], source.partition("\0")[0].count("\n") + 1
    except (RecursionError, MemoryError):
        return [], 0


_current: contextvars.ContextVar[_Parses | None] = contextvars.ContextVar("parses", default=None)


@contextlib.contextmanager
def one_text() -> Iterator[None]:
    """
    Inside the context no source is parsed twice. At most `MOST_PARSES` sources are parsed, with at most `MOST_PARSED` characters
    together. A further source counts as no program.
    """
    token = _current.set(_Parses())
    try:
        yield
    finally:
        _current.reset(token)


def _known(source: str) -> tuple[list[ast.stmt], int | None]:
    return (_current.get() or _Parses()).of(source)


def parses(source: str) -> bool:
    """Whether a text is a program, of at most `LONGEST_PROGRAM` characters."""
    return error_line(source) is None


def error_line(source: str) -> int | None:
    """The line, from 1, in or before which a text stops being a program. 0 if unknown, `None` for a program."""
    return _known(source)[1]


def statements(source: str) -> list[ast.stmt]:
    """The statements of a program. None for a text that is not a program."""
    return _known(source)[0]
