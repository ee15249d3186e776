# SPDX-License-Identifier: Apache-2.0
"""Checks of JSON that somebody may have changed. Each check says which entry is wrong, and what it has to be."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..files import printable


Check = Callable[[Any], None]
_SHOWN = 60  # characters of a name or of a value in a sentence


class WrongEntry(ValueError):
    """
    An entry with a wrong value.

    Args:
        predicate (`str`): the value, as the predicate of a sentence; see `stands`.
        demand (`str`): what the value has to be, as a clause.
        path (`tuple`): keys and indices that lead to the entry.
    """

    def __init__(self, predicate: str, demand: str, path: tuple = ()):
        self.predicate, self.demand, self.path = predicate, demand, path
        where = ", ".join(f"`{_short(str(part))}`" for part in path)
        super().__init__(
            f"the entry {where} {predicate}, but {demand}" if path else f"the whole {predicate}, but {demand}"
        )

    def below(self, key: Any) -> "WrongEntry":
        """The same entry, seen from the object or the list that holds its parent under `key`."""
        return WrongEntry(self.predicate, self.demand, (key, *self.path))


def stands(value: Any) -> str:
    """The predicate that shows the value of an entry: short, and without control characters."""
    return f"is {_short(repr(value))}"


def _short(text: str) -> str:
    shown = printable(text[:_SHOWN])
    return shown if len(text) <= _SHOWN else f"{shown} (and {len(text) - _SHOWN} more characters)"


def check_file(file: Any, value: Any, check: Check) -> None:
    """Raise a `ValueError`, one sentence that names the file and the entry, if a value of the file fails a check."""
    try:
        check(value)
    except WrongEntry as error:
        raise ValueError(
            f"{printable(str(file))}: {error}. The file was changed after the run wrote it: put the original back."
        ) from error


def where(holds: Callable[[Any], bool], demand: str) -> Check:
    """A check of one value."""

    def check(value: Any) -> None:
        if not holds(value):
            raise WrongEntry(stands(value), demand)

    return check


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


anything: Check = where(lambda value: True, "")
text = where(lambda value: isinstance(value, str), "it has to be a text")
flag = where(lambda value: isinstance(value, bool), "it has to be true or false")
number = where(is_number, "it has to be a number")
finite = where(lambda value: is_number(value) and math.isfinite(value), "it has to be a finite number")
# Above 2^53 not every whole number is a float, and no run counts that far.
count = where(is_count, "it has to be a whole number from 0 to 2^53")


def optional(check: Check) -> Check:
    """`null`, or a value that passes the check."""

    def checked(value: Any) -> None:
        if value is not None:
            check(value)

    return checked


def list_of(check: Check) -> Check:
    """A list whose values all pass the check."""

    def checked(value: Any) -> None:
        if not isinstance(value, list):
            raise WrongEntry(stands(value), "it has to be a list")
        for index, item in enumerate(value):
            _inside(index, item, check)

    return checked


def mapping(key: Check, check: Check) -> Check:
    """An object whose keys and values all pass the checks."""

    def checked(value: Any) -> None:
        if not isinstance(value, dict):
            raise WrongEntry(stands(value), "it has to be an object")
        for name, item in value.items():
            key(name)
            _inside(name, item, check)

    return checked


def record(required: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """An object with `required` fields, and `others` that may be there. Fields of any other name are allowed."""
    checks = {**(others or {}), **required}

    def checked(value: Any) -> None:
        if not isinstance(value, dict):
            raise WrongEntry(stands(value), "it has to be an object")
        missing = [name for name in required if name not in value]
        if missing:
            raise WrongEntry(f"lacks {', '.join(missing)}", "nothing can replace what a run wrote there")
        for name, check in checks.items():
            if name in value:
                _inside(name, value[name], check)

    return checked


def _inside(key: Any, value: Any, check: Check) -> None:
    try:
        check(value)
    except WrongEntry as error:
        raise error.below(key) from None
