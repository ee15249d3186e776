# SPDX-License-Identifier: Apache-2.0
"""The range of each number and the length of each text, for configs, calls and requests alike.

Within these ranges float32 is enough: at every bound the draws, log-probabilities and entropies are finite. Outside it is
not: in float32 a temperature of 1e-40 is 0, and a concentration of 1e39 is infinite.
"""

import math
from dataclasses import dataclass

import regex


@dataclass(frozen=True)
class Range:
    """
    Args:
        low, high (`float`): the smallest and the largest value.
        whole (`bool`): only whole numbers.
        zero (`bool`): 0 is allowed too, although it is below `low`.
    """

    low: float
    high: float
    whole: bool = False
    zero: bool = False

    def __str__(self) -> str:
        span = f"from {self.low:g} to {self.high:,}" if self.whole else f"from {self.low:g} to {self.high:g}"
        return f"0, or {span}" if self.zero else span


_LEAST, _MOST, _COUNT = 1e-6, 1e6, 2**31 - 1
POSITIVE, COUNT = Range(_LEAST, _MOST), Range(1, _COUNT, whole=True)
# The options of one kind of thought join them when the kind is registered.
RANGES = {
    # Of the answer.
    "temperature": Range(_LEAST, _MOST, zero=True),
    "top_k": Range(0, _COUNT, whole=True),
    "top_p": Range(_LEAST, 1),
    "min_p": Range(0, 1),
    "repetition_penalty": POSITIVE,
    # Of the thoughts.
    "thinking_temperature": POSITIVE,
    "thinking_top_k": COUNT,
    "thinking_top_p": Range(_LEAST, 1),
    "thinking_min_p": Range(0, 1),
    "max_thinking_length": COUNT,
    "max_answer_length": COUNT,
    "cold_stop_entropy": Range(0, _MOST),
    "cold_stop_length": COUNT,
    # Of the key of the noise.
    "seed": Range(0, 2**63 - 1, whole=True),
    "generation": Range(0, 2**32 - 1, whole=True),
    "sample": Range(0, 2**32 - 1, whole=True),
}
# Characters of a text. Every step searches for the end of the thought, and a prefill is tokenized from each of its
# characters on.
LENGTHS = {"end_of_thinking": 64, "answer_prefill": 256, "hard_tokens": 64, "hard_token_pattern": 256}
# Most texts of a list.
LISTS = {"answer_prefill": 2, "hard_tokens": 256}
_SHOWN = 80


def shown(value) -> str:
    """A value as errors show it. The result is short, however long the value is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r} and {len(value) - _SHOWN} characters more"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, (list, tuple, dict, set)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " and more"


def check(name: str, value, optional: bool = False, called: str | None = None) -> None:
    """Raise a `ValueError` unless `value` is in the range of `name`. `called` is the name that the error shows."""
    if value is None and optional:
        return
    found, called = RANGES[name], called or name
    _check_kind(called, value, found.whole)
    if not (found.low <= value <= found.high or (found.zero and value == 0)):
        raise ValueError(f"`{called}` is {shown(value)}, but it must be {_bounds(found)}.")


def _bounds(found: Range) -> str:
    if found.zero:
        return str(found)
    low = f"at least {found.low:g}" if found.low in (0, 1) else f"above 0, at least {found.low:g}"
    return f"{low} and at most {found.high if found.whole else format(found.high, 'g')}"


def check_number(name: str, value, low, high, open_low=False, whole=False, optional=False) -> None:
    """Raise a `ValueError` that names `name` unless `value` is a number from `low` to `high`. `None`: no bound."""
    if value is None and optional:
        return
    _check_kind(name, value, whole)
    if low is None:
        return
    if value < low or (open_low and value == low) or (high is not None and value > high):
        bounds = f"{'above' if open_low else 'at least'} {low}" + ("" if high is None else f" and at most {high}")
        raise ValueError(f"`{name}` is {shown(value)}, but it must be {bounds}.")


def _check_kind(name: str, value, whole: bool) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"`{name}` is {shown(value)}, but it must be a finite {'whole ' if whole else ''}number.")


def check_text(name: str, value, called: str | None = None) -> None:
    """Raise a `ValueError` unless `value` is a text within its length in `LENGTHS`."""
    called, most = called or name, LENGTHS[name]
    if not isinstance(value, str):
        raise ValueError(f"`{called}` is {shown(value)}, but it must be a text.")
    if len(value) > most:
        raise ValueError(f"`{called}` has {len(value)} characters, and at most {most} are read. Shorten it.")
    check_whole(called, value)


def check_pattern(name: str, value: str) -> None:
    """Raise a `ValueError` for a text that is no regular expression."""
    try:
        regex.compile(value)
    except regex.error as error:
        raise ValueError(
            f"`{name}` is {shown(value)}, which is no regular expression: {error.msg}. Correct it, or put a backslash before "
            "each character that stands for itself."
        ) from None


def check_whole(name: str, text: str) -> None:
    """Raise a `ValueError` for a text with half of a surrogate pair: no tokenizer reads it, and no server can send it."""
    half = next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None)
    if half is not None:
        raise ValueError(
            f"`{name}` holds {half!r}, half of a surrogate pair, which is not a character. Send whole characters."
        )
