# SPDX-License-Identifier: Apache-2.0
"""The kinds of thought by name. Code that serves every kind reads them here and names no kind itself."""

from importlib.metadata import entry_points
from typing import TypeVar

from ..ranges import RANGES
from .option import Option, add_options
from .protocol import Thought


THOUGHTS: dict[str, type[Thought]] = {}
_Kind = TypeVar("_Kind", bound=type[Thought])
_fields: dict[str, Option] | None = None  # the fields of `ThinkingSettings`, once it is made


def register(kind: _Kind) -> _Kind:
    """
    Class decorator: `kind.name` becomes a value of `thought` and `eval_thought`.

    Raises:
        ValueError: if another kind has the name, if another field has the name of one of its options, or if the kind has an
            option and `ThinkingSettings` is already made.
    """
    if kind.name in THOUGHTS:
        raise ValueError(f"There is already a kind of thought named {kind.name!r}. Give yours another `name`.")
    others = options()
    for name, option in kind.options.items():
        if name in RANGES and name not in others:
            raise ValueError(f"`{name}` of the kind {kind.name!r} is taken: every kind reads it. Rename the option.")
        if others.get(name, option) != option:
            raise ValueError(
                f"`{name}` of the kind {kind.name!r} differs from the option of the same name that other kinds read. Rename it, "
                "or use the same `Option`."
            )
    add_options(kind.options, f"kind {kind.name!r}", "thought", _fields)
    THOUGHTS[kind.name] = kind
    return kind


def load_installed() -> None:
    """Import the modules that installed packages name as entry points `trl_soft.thoughts`. Each registers its kinds."""
    for entry in entry_points(group="trl_soft.thoughts"):
        entry.load()


def options() -> dict[str, Option]:
    """The options of all kinds, by name."""
    return {name: option for kind in THOUGHTS.values() for name, option in kind.options.items()}


def options_for_settings() -> dict[str, Option]:
    """The options for the fields of `ThinkingSettings`. After this call no further option can be added."""
    global _fields
    _fields = options()
    return _fields


def readers(option: str) -> list[str]:
    """The names of the kinds that read an option."""
    return [kind.name for kind in THOUGHTS.values() if option in kind.options]
