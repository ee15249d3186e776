# SPDX-License-Identifier: Apache-2.0
"""The kinds of thought by name. Whatever serves every kind reads them here, and names none of them."""

from importlib.metadata import entry_points
from typing import TypeVar

from ..ranges import RANGES
from .option import Option
from .protocol import Thought


THOUGHTS: dict[str, type[Thought]] = {}
_Kind = TypeVar("_Kind", bound=type[Thought])
_fields: dict[str, Option] | None = None  # those of `ThinkingSettings`, once it is made


def register(kind: _Kind) -> _Kind:
    """
    Class decorator: the values of `thought` and `eval_thought` include `kind.name` from here on.

    Raises:
        ValueError: if another kind has the name, if something else has the name of one of its options, or if the kind brings
            an option and `ThinkingSettings` is made already.
    """
    if kind.name in THOUGHTS:
        raise ValueError(f"There is a kind of thought named {kind.name!r} already. Give yours another `name`.")
    others = options()
    for name, option in kind.options.items():
        if name in RANGES and name not in others:
            raise ValueError(f"`{name}` of the kind {kind.name!r} is taken: every kind reads it. Rename the option.")
        if others.get(name, option) != option:
            raise ValueError(
                f"`{name}` of the kind {kind.name!r} differs from the option of that name which other kinds read. Rename it, "
                "or use the same `Option`."
            )
        if _fields is not None and name not in _fields:
            raise ValueError(
                f"The kind {kind.name!r} brings `{name}`, but `ThinkingSettings` is made already, without a field for it. "
                "Import the file of your thought before the configs of trl_soft."
            )
    RANGES.update({name: option.range for name, option in kind.options.items() if option.range is not None})
    THOUGHTS[kind.name] = kind
    return kind


def load_installed() -> None:
    """Import the modules that installed packages name under the entry points `trl_soft.thoughts`; each registers its kinds."""
    for entry in entry_points(group="trl_soft.thoughts"):
        entry.load()


def options() -> dict[str, Option]:
    """The options of all kinds, by name."""
    return {name: option for kind in THOUGHTS.values() for name, option in kind.options.items()}


def options_for_settings() -> dict[str, Option]:
    """The same for the fields of `ThinkingSettings`, which take in no further one after this call."""
    global _fields
    _fields = options()
    return _fields


def readers(option: str) -> list[str]:
    """The names of the kinds that read an option."""
    return [kind.name for kind in THOUGHTS.values() if option in kind.options]
