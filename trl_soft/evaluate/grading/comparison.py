# SPDX-License-Identifier: Apache-2.0
"""
Whether two mathematical answers are equal, and the class of equal answers for majority voting.

Two answers are equal if and only if their keys are equal. Four rules go beyond the key, because the problem says how its
answers are read. An answer that equals the gold answer by such a rule votes with the gold answer:

- A decimal with at least six digits after the point equals the gold answer if one of the two rounds the other.
- If the gold answer is below 1, `35%` is 0.35. If the gold answer is `35%`, 0.35 is equal too. Otherwise the sign is a unit,
  and `35%` is 35.
- A name (`x=5`), a base (`52_8`), an exponent of the unit, or a rounded value after an approximately equal sign may be
  missing on one side. If both sides have one, the two must agree.
- A list without brackets has the order that the brackets of the gold answer give it. A tolerance, if given, applies.

Only the worker process imports this module: it imports sympy.
"""

import functools
from collections.abc import Mapping
from fractions import Fraction

import mpmath
from math_verify import verify

from . import values
from .reading import Element, Reading, read
from .values import NoValue, Value, constant, key_of, number_key, parsed


_STEP_SECONDS = 5  # one comparison of relations or sets by math-verify
_FEWEST_DECIMALS = 6  # digits after the point of a decimal that rounds another number
_MOST_DECIMALS = 12  # further digits may be noise of double precision


def equal(gold: Reading, answer: Reading, tolerance: float | None = None) -> bool:
    """
    Whether an answer is equal to the gold answer.

    Args:
        tolerance (`float`, *optional*): largest difference of two equal numbers.
    """
    if gold.literal and gold.literal == answer.literal:
        return True
    left, right = gold.single, answer.single
    if left is not None and right is not None:
        return _equal_elements(left, right, tolerance) or (left.equation != right.equation and _verified(gold, answer))
    if gold.ordered or answer.ordered:
        if gold.brackets and answer.brackets and gold.brackets != answer.brackets:
            return False
        if "{}" in (gold.brackets, answer.brackets) and gold.brackets != answer.brackets:
            return False
        if len(gold.elements) == len(answer.elements):
            return all(_equal_elements(g, a, tolerance) for g, a in zip(gold.elements, answer.elements))
        return (left is not None or right is not None) and _verified(gold, answer)
    # Sets: each element has an equal one on the other side.
    return all(any(_equal_elements(g, a, tolerance) for a in answer.elements) for g in gold.elements) and all(
        any(_equal_elements(g, a, tolerance) for g in gold.elements) for a in answer.elements
    )


def judge(answer: str, gold: Mapping) -> dict:
    """
    The result of the worker: `correct`, and `vote`, which is the same for a right answer and the gold answer.

    Args:
        gold (`dict`): the fields of a `MathGold`.
    """
    target, found = (read(text, gold["unit"], gold["several"]) for text in (gold["answer"], answer))
    own, golden = key(found, target), key(target, target)
    correct = own == golden or equal(target, found, gold["tolerance"])
    return {"correct": correct, "vote": golden if correct else own}


def key(reading: Reading, gold: Reading) -> str:
    """The class of an answer among the answers to a problem. `gold` decides how per cent signs and bare numerals are read."""
    expected = gold.single
    share = expected is not None and _is_share(expected)
    equations = any(element.equation for element in gold.elements)
    names = {element.name for element in reading.elements if element.name}
    known = {element.name for element in gold.elements if element.name}
    named = len(names) > 1 or bool(known and names - known)
    keys = []
    for element in reading.elements:
        element_key = _element_key(element, share, named, equations)
        if expected is not None:
            if expected.base and element.number is not None:
                element_key += f"_{expected.base}"
            if expected.power and element.power and element.power != expected.power:
                element_key += f" unit^{element.power}"
            if expected.rounded and element.rounded and element.rounded != expected.rounded:
                element_key += f" about {element.rounded}"
        keys.append(element_key)
    if not reading.brackets and len(keys) == 1:
        return keys[0]
    if reading.ordered:
        return f"{reading.brackets[:1]}{','.join(keys)}{reading.brackets[1:]}"
    unique = sorted(set(keys))
    return unique[0] if len(unique) == 1 else "{" + ",".join(unique) + "}"


def _is_share(gold: Element) -> bool:
    return gold.number is not None and not gold.per_cent and 0 < abs(gold.number.value) < 1


def _element_key(element: Element, share: bool, named: bool, equations: bool) -> str:
    if equations and element.relation:
        return _key_of_text(element.relation)
    if element.equation and element.text == element.relation:
        return _key_of_text(element.relation)
    # If the gold answer is not an equation, the last side of an equation is the answer.
    name = f"{element.name}=" if named and element.name else ""
    if element.base:
        return f"{name}{element.text.upper()}_{element.base}"
    if element.number is not None:
        value = element.number.value
        return name + number_key(value / 100 if share and element.per_cent else value)
    return name + _key_of_text(element.text)


@functools.lru_cache(maxsize=4096)
def _key_of_text(text: str) -> str:
    inner = read(text)
    if inner.single is None:
        return key(inner, inner)
    expression = parsed(text)
    if expression is None:
        return inner.literal.casefold()
    try:
        return key_of(expression)
    except NoValue:
        return inner.literal.casefold()


@functools.lru_cache(maxsize=4096)
def _constant(text: str) -> Value | None:
    return constant(parsed(text))


def _equal_elements(gold: Element, answer: Element, tolerance: float | None) -> bool:
    for mark in ("name", "base", "rounded", "power"):
        if getattr(gold, mark) and getattr(answer, mark) and getattr(gold, mark) != getattr(answer, mark):
            return False
    if gold.equation:
        return bool(answer.relation) and _key_of_text(gold.relation) == _key_of_text(answer.relation)
    if gold.name and answer.equation:
        return _key_of_text(gold.relation) == _key_of_text(answer.relation)
    if gold.base or answer.base:
        return gold.text.casefold() == answer.text.casefold()
    share = _is_share(gold)
    left, right = (_element_key(element, share, False, False) for element in (gold, answer))
    if left == right:
        return True
    if gold.per_cent and not answer.per_cent and answer.number and gold.number and abs(answer.number.value) < 1:
        return answer.number.value * 100 == gold.number.value
    return _close(gold, answer, share, tolerance)


def _close(gold: Element, answer: Element, share: bool, tolerance: float | None) -> bool:
    """Whether one is a decimal that rounds the other, or both are numbers within the tolerance."""
    decimals = [e.number.decimals for e in (gold, answer) if e.number and e.number.decimals is not None]
    if tolerance is None and max(decimals, default=0) < _FEWEST_DECIMALS:
        return False
    left, right = (e.number.value if e.number else _constant(e.text) for e in (gold, answer))
    if left is None or right is None or isinstance(left, mpmath.mpc) or isinstance(right, mpmath.mpc):
        return False
    if share and answer.per_cent and isinstance(right, Fraction):
        right /= 100
    with mpmath.workdps(2 * _MOST_DECIMALS + 30):
        left, right = (values.as_float(value) if not isinstance(value, Fraction) else value for value in (left, right))
        if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
            left, right = values.as_float(left), values.as_float(right)
        difference = abs(left - right)
        if tolerance is not None and difference <= (
            Fraction(str(tolerance)) if isinstance(difference, Fraction) else mpmath.mpf(str(tolerance))
        ):
            return True
        if not decimals or min(decimals) < _FEWEST_DECIMALS:
            return False
        size = float(min(abs(left), abs(right)))
        # The last digit of the coarser one. It has at least six digits, and at most twelve count.
        unit = max(10.0 ** -min(decimals), 10.0**-_MOST_DECIMALS * size)
        return (
            size > 0
            and unit <= 10.0 ** (1 - _FEWEST_DECIMALS) * min(1.0, size)
            and float(difference) <= 0.5 * unit * (1 + 1e-9)
        )


def _verified(gold: Reading, answer: Reading) -> bool:
    """Whether math-verify finds a relation and a set equal, such as `1<x<2` and `(1,2)`, each parsed as a whole."""
    # Not for two equations: math-verify finds any two equations without real solutions equal.
    left, right = parsed(gold.text), parsed(answer.text)
    return (
        left is not None
        and right is not None
        and bool(verify(left, right, allow_set_relation_comp=True, timeout_seconds=_STEP_SECONDS))
    )
