# SPDX-License-Identifier: Apache-2.0
"""The gates by name, their options, and the checks of settings that choose one."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ..ranges import RANGES, shown
from ..thoughts.option import Option, add_options
from .gate import Gate


GATES: dict[str, type[Gate]] = {}
_fields: dict[str, Option] | None = None  # the fields of `ThinkingSettings`, once it is made


def register_gate(kind: type[Gate]) -> type[Gate]:
    """
    Class decorator: `kind.name` becomes a value of `thinking_gate`.

    Raises:
        ValueError: if another gate has the name, or if one of its options is the field of something else or comes too late to become
            a field of `ThinkingSettings`.
    """
    if kind.name in GATES:
        raise ValueError(f"There is already a gate named {kind.name!r}. Give yours another `name`.")
    known = gate_options()
    for name, option in kind.options.items():
        if known.get(name, option) != option or (name in RANGES and name not in known):
            raise ValueError(f"`{name}` of the gate {kind.name!r} is taken by another field. Rename the option.")
    add_options(kind.options, f"gate {kind.name!r}", "gate", _fields)
    GATES[kind.name] = kind
    return kind


def gate_options() -> dict[str, Option]:
    """The options of all gates, by name."""
    return {name: option for kind in GATES.values() for name, option in kind.options.items()}


def gate_options_for_settings() -> dict[str, Option]:
    """The options for the fields of `ThinkingSettings`. After this call no further option can be added."""
    global _fields
    _fields = gate_options()
    return _fields


def values_of(settings) -> SimpleNamespace:
    """The values of the options that the gate of `settings` reads."""
    return SimpleNamespace(**{name: getattr(settings, name) for name in GATES[settings.thinking_gate].options})


def check_gate(settings, kinds: Sequence, defaults: Mapping[str, Any]) -> None:
    """
    Check that the gate has a soft thought among `kinds`, that it has its values, and that it reads every gate's value that is set.

    Raises:
        ValueError: a sentence.
    """
    gate = GATES[settings.thinking_gate]
    if settings.thinking_gate != "always" and all(kind.is_token for kind in kinds):
        raise ValueError(
            f"`thinking_gate` is {settings.thinking_gate} with `thought: {settings.thought}`, but every step of a hard thought is a token "
            "already. Leave `thinking_gate` unset, or choose another thought."
        )
    for name in gate_options():
        value = getattr(settings, name)
        if name in gate.options and value is None:
            raise ValueError(
                f"`thinking_gate` is {settings.thinking_gate}, but `{name}`, its bound, is unset. Set it."
            )
        if name not in gate.options and value != defaults[name]:
            names = [other.name for other in GATES.values() if name in other.options]
            raise ValueError(
                f"`{name}` is {shown(value)} with `thinking_gate: {settings.thinking_gate}`, which does not read it; "
                f"{' and '.join(names)} {'does' if len(names) == 1 else 'do'}. Leave it unset, or choose such a gate."
            )
    gate.check(values_of(settings))
