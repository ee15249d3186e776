# SPDX-License-Identifier: Apache-2.0
r"""
The value of a mathematical expression, as a key that equal expressions share.

latex2sympy (of math-verify) parses the expression. A text that it does not parse to its end has no value. The tree is then
evaluated: exactly, as a fraction, if possible; otherwise with 60 and with 120 digits. A number whose first digits change with
the precision is zero. So the comparison is relative: 1/2^{98} is not 1/2^{99}. An expression with variables is evaluated at
three fixed points, one of them negative. Expressions that agree there are equal (Schwartz, 1980, for polynomials).

Only the worker process imports this module: sympy takes half a second to import, and one expression can take any time.
"""

import functools
import hashlib
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath
import sympy
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy
from sympy.core.function import AppliedUndef

from .notation import fraction_key


POINTS = 3
_DIGITS = 60  # of the first evaluation; the second has twice as many
_KEPT = 40  # digits that the two must share
_MOST_BITS = 2_000_000  # of an exact power or factorial
_SIMPLE = (
    10**10
)  # a computed number that is, within its precision, a fraction with a smaller denominator is that fraction
_NORMALISATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
_NUMBERS_SIDE_BY_SIDE = re.compile(r"(?<![_^\d.])[\d.]+\s+\.?\d")
_NUMERAL_WITH_BASE = re.compile(r"\d\s*_")
_NAMES = re.compile(r"\\(?:begin|end|operatorname|mathbb|mathcal|overline)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_LETTERS = re.compile(r"(?:[a-zA-Z]\s*){3,}")
_WORD = re.compile(r"[a-zA-Z]{4}|\\text\{[^{}]{2}")

_BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")
_DEEPEST = 10  # nested brackets; the parser takes seconds for 20, and longer for brackets that do not close

Value: TypeAlias = Any  # a `Fraction`, or a number of mpmath, which has no types


class NoValue(Exception):
    """An expression that cannot be evaluated at a point."""


@functools.lru_cache(maxsize=4096)
def parsed(text: str) -> Any:
    """The sympy object of a whole tidy text. `None` for words, and for a text that does not parse to its end."""
    # The grammar reads `3 4` as a mixed number, drops the base of 52_8 and reads a word as a product of letters.
    if not text or _NUMBERS_SIDE_BY_SIDE.search(text) or _NUMERAL_WITH_BASE.search(text):
        return None
    if _WORD.search(_NAMES.sub(lambda match: match[0] if match[0] == "\\text" else " ", text)) or _LETTERS.fullmatch(
        text
    ):
        return None
    if not _is_shallow(text):
        return None
    try:
        return latex2sympy(
            text.replace("°", "^{\\circ}"),
            is_real=True,
            convert_degrees="°" in text,
            normalization_config=_NORMALISATION,
        )
    except Exception:  # the parser and sympy can raise anything; a text without a value is compared by its letters
        return None


def _is_shallow(text: str) -> bool:
    """Whether all brackets close and none is too deep for the parser. `[0,1)` closes."""
    depth = {True: 0, False: 0}  # of braces, which group, and of brackets
    for match in _BRACKET.finditer(text):
        mark = match.group()
        braces = mark in "{}"
        depth[braces] += 1 if mark[-1] in "([{" else -1
        if not 0 <= depth[braces] <= (3 * _DEEPEST if braces else _DEEPEST):
            return False
    return not any(depth.values())


def key_of(expression: Any) -> str:
    """A key that is the same for equal expressions, relations, sets and matrices. Raises `NoValue` if there is none."""
    if isinstance(expression, sympy.MatrixBase):
        return f"matrix{expression.shape}({','.join(key_of(entry) for entry in expression)})"
    if isinstance(expression, sympy.Expr):
        return _expression_key(expression)
    if isinstance(expression, sympy.core.relational.Relational):
        return _relation_key(expression)
    if isinstance(expression, sympy.And):
        return "and(" + ",".join(sorted(key_of(part) for part in expression.args)) + ")"
    if isinstance(expression, (sympy.FiniteSet, sympy.Union, sympy.Intersection)):
        return type(expression).__name__ + "{" + ",".join(sorted({key_of(part) for part in expression.args})) + "}"
    if isinstance(expression, sympy.Basic) and expression.args:
        return type(expression).__name__ + "(" + ",".join(key_of(part) for part in expression.args) + ")"
    if isinstance(expression, sympy.Basic):
        return str(expression)  # a leaf: the reals, the empty set, true
    raise NoValue


def constant(expression: Any) -> Value | None:
    """The number of an expression without variables, or `None`."""
    if not isinstance(expression, sympy.Expr):
        return None
    values = [_value_at(expression, point) for point in range(POINTS)]
    first = values[0]
    return (
        first
        if first is not None and len({number_key(value) if value is not None else "" for value in values}) == 1
        else None
    )


def number_key(value: Value) -> str:
    """A number as text: exact for a fraction, otherwise with 30 digits."""
    if isinstance(value, Fraction):
        return fraction_key(value)
    if isinstance(value, mpmath.mpc):
        return f"({number_key(_settled(value.real))},{number_key(_settled(value.imag))}i)"
    return mpmath.nstr(value, 30)


def _expression_key(expression: sympy.Expr) -> str:
    if expression.has(sympy.oo, -sympy.oo):
        if expression is sympy.oo:
            return "oo"
        if expression is -sympy.oo or set(expression.args) == {sympy.oo, sympy.S.NegativeOne}:
            return "-oo"
        raise NoValue
    values = [_value_at(expression, point) for point in range(POINTS)]
    if all(value is None for value in values):
        raise NoValue
    keys = ["undefined" if value is None else number_key(value) for value in values]
    if len(set(keys)) == 1:
        return keys[0]
    return "function:" + hashlib.sha256(";".join(keys).encode()).hexdigest()[:32]


def _relation_key(relation: sympy.core.relational.Relational) -> str:
    r"""The key of a relation: the difference of its sides up to a factor (a positive one for inequalities). `2x<4`, `4>2x` and
    `x<2` have the same key."""
    left, right = relation.lhs, relation.rhs
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return f"{type(relation).__name__}({key_of(left)},{key_of(right)})"
    if isinstance(relation, (sympy.GreaterThan, sympy.StrictGreaterThan)):
        left, right = right, left
    strict = isinstance(relation, (sympy.StrictGreaterThan, sympy.StrictLessThan))
    difference = sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False)
    values = [_value_at(difference, point) for point in range(POINTS)]
    if len({"" if value is None else number_key(value) for value in values}) == 1:
        return f"{type(relation).__name__}({key_of(left)},{key_of(right)})"  # without variables
    scale = next((value for value in values if value is not None and value != 0), None)
    if scale is None:
        raise NoValue
    equation = isinstance(relation, (sympy.Equality, sympy.Unequality))
    if not equation:
        if isinstance(scale, mpmath.mpc):
            raise NoValue
        scale = abs(scale)
    with mpmath.workdps(_DIGITS):
        ratios = ["undefined" if v is None else number_key(_settled(_quotient(v, scale))) for v in values]
    kind = type(relation).__name__ if equation else ("<" if strict else "<=")
    return f"{kind}:" + hashlib.sha256(";".join(ratios).encode()).hexdigest()[:32]


def _quotient(left: Value, right: Value) -> Value:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left / right
    return as_float(left) / as_float(right)


def _value_at(expression: sympy.Expr, point: int) -> Value | None:
    try:
        with mpmath.workdps(_DIGITS):
            rough = _evaluate(expression, point)
        if isinstance(rough, Fraction):
            return rough
        with mpmath.workdps(2 * _DIGITS):
            fine = _evaluate(expression, point)
            if isinstance(rough, mpmath.mpc) or isinstance(fine, mpmath.mpc):
                rough, fine = mpmath.mpc(rough), mpmath.mpc(fine)
                scale = max(abs(fine.real), abs(fine.imag))
                real, imag = (_agreed(a, b, scale) for a, b in ((rough.real, fine.real), (rough.imag, fine.imag)))
                return real if imag == 0 else mpmath.mpc(as_float(real), as_float(imag))
            return _agreed(rough, fine)
    except (NoValue, ArithmeticError, ValueError, TypeError, NotImplementedError, RecursionError, MemoryError):
        return None


def _agreed(rough: mpmath.mpf, fine: mpmath.mpf, scale: mpmath.mpf | None = None) -> Fraction | mpmath.mpf:
    """The value on which two precisions agree: a number, or zero if its size falls with the precision."""
    if not (mpmath.isfinite(rough) and mpmath.isfinite(fine)):
        raise NoValue
    if fine == 0 or abs(fine) * mpmath.mpf(10) ** (_DIGITS // 2) < abs(rough):
        return Fraction(0)
    if scale is not None and abs(fine) < scale * mpmath.mpf(10) ** (-2 * _DIGITS + 20):
        return Fraction(0)
    if abs(rough - fine) > abs(fine) * mpmath.mpf(10) ** -_KEPT:
        raise NoValue  # the number is too large, or the difference too small, for these digits
    return _settled(fine)


def _settled(value: Value) -> Value:
    """The simple fraction that equals a computed real number within its precision, or the number itself."""
    if isinstance(value, (Fraction, mpmath.mpc)) or value == 0:
        return Fraction(0) if value == 0 else value
    if abs(mpmath.log10(abs(value))) > 15:
        return value
    exact = _fraction(value)
    simple = exact.limit_denominator(_SIMPLE)
    return simple if abs(exact - simple) * 10**_KEPT <= abs(exact) else value


def _fraction(value: mpmath.mpf) -> Fraction:
    sign, mantissa, exponent, _ = value._mpf_
    whole = -int(mantissa) if sign else int(mantissa)
    return Fraction(whole << exponent) if exponent >= 0 else Fraction(whole, 1 << -exponent)


def as_float(value: Value) -> mpmath.mpf | mpmath.mpc:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


# -------------------------------------------------------------------------------------------------------- evaluation

_FUNCTIONS: dict[str, Callable] = {
    name: getattr(mpmath, name)
    for name in "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh asinh acosh atanh exp".split()
} | {
    "gamma": mpmath.gamma, "re": mpmath.re, "im": mpmath.im, "conjugate": mpmath.conj, "arg": mpmath.arg, "sign": mpmath.sign,
}  # fmt: skip
_EXACT: dict[str, Callable] = {
    "floor": lambda value: Fraction(value.numerator // value.denominator),
    "ceiling": lambda value: Fraction(-(-value.numerator // value.denominator)),
    "Abs": abs,
}


@functools.lru_cache(maxsize=4096)
def _coordinate(name: str, point: int) -> Fraction:
    """The value of a variable at a point: between 1 and 3, and at the last point between -3 and -1."""
    value = Fraction(random.Random(f"{name} {point}").randrange(1 << 16, 3 << 16) | 1, 1 << 16)
    return -value if point == POINTS - 1 else value


def _evaluate(expression: Any, point: int) -> Value:
    if isinstance(expression, (int, sympy.Rational)):
        if expression in (sympy.nan, sympy.zoo):
            raise NoValue
        return (
            Fraction(int(expression.p), int(expression.q))
            if isinstance(expression, sympy.Rational)
            else Fraction(expression)
        )
    if isinstance(expression, sympy.Float):
        return Fraction(str(expression))
    if isinstance(expression, sympy.Symbol):
        return mpmath.mpc(0, 1) if expression.name == "i" else _coordinate(expression.name, point)
    if expression is sympy.I:
        return mpmath.mpc(0, 1)
    if isinstance(expression, sympy.NumberSymbol):
        return {"Pi": +mpmath.pi, "Exp1": +mpmath.e, "GoldenRatio": +mpmath.phi}[type(expression).__name__]
    if isinstance(expression, (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)):
        result = expression.doit()
        if result == expression or result.has(type(expression)):
            raise NoValue
        return _evaluate(result, point)
    if not isinstance(expression, sympy.Expr) or not expression.args:
        raise NoValue
    values = [_evaluate(argument, point) for argument in expression.args]
    return _apply(expression, values)


def _apply(expression: sympy.Expr, values: list[Value]) -> Value:
    name, exact = type(expression).__name__, all(isinstance(value, Fraction) for value in values)
    first = values[0]
    if isinstance(expression, (sympy.Add, sympy.Mul)):
        total = first
        for value in values[1:]:
            if not (isinstance(total, Fraction) and isinstance(value, Fraction)):
                total, value = as_float(total), as_float(value)
            total = total + value if isinstance(expression, sympy.Add) else total * value
        return total
    if isinstance(expression, sympy.Pow):
        return _power(first, values[1])
    if name == "UnevaluatedExpr":
        return first
    if isinstance(expression, AppliedUndef):
        # Any number that depends only on the function and its arguments.
        seed = name + ";".join(number_key(_settled(value)) for value in values)
        return _coordinate(seed, 0)
    if exact and name in _EXACT:
        return _EXACT[name](first)
    if name in ("Max", "Min") and exact:
        return (max if name == "Max" else min)(values)
    if name == "Mod" and exact:
        return first % values[1]
    if name in ("factorial", "binomial"):
        return _combinatorial(name, values)
    floats = [as_float(value) for value in values]
    if name == "log":
        return mpmath.log(*floats)
    if name == "exp" and first == 0:
        return Fraction(1)
    if name == "Abs":
        return abs(floats[0])
    if name in ("floor", "ceiling") and not isinstance(floats[0], mpmath.mpc):
        return Fraction(int(mpmath.floor(floats[0]) if name == "floor" else mpmath.ceil(floats[0])))
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](floats[0])
    raise NoValue


def _combinatorial(name: str, values: list[Value]) -> Value:
    whole = all(isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= 20_000 for value in values)
    if name == "factorial":
        if whole:
            return Fraction(int(mpmath.libmp.ifac(int(values[0]))))
        if isinstance(values[0], Fraction) and values[0].denominator == 1 and values[0] < 0:
            raise NoValue
        return mpmath.gamma(as_float(values[0]) + 1)
    if whole:
        return Fraction(int(sympy.binomial(int(values[0]), int(values[1]))))
    return mpmath.binomial(as_float(values[0]), as_float(values[1]))


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if base == 0:
            if exponent <= 0:
                raise NoValue
            return Fraction(0)
        if exponent.denominator == 1:
            bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
            if base in (1, -1):
                return base if exponent.numerator % 2 else Fraction(1)
            if bits * abs(exponent) <= _MOST_BITS:
                return base ** int(exponent)
            if abs(exponent) > 1 << 1000:
                raise NoValue
        root = _root(abs(base), exponent)
        if root is not None and base > 0:
            return root
        if base < 0 and exponent.denominator % 2 and exponent.denominator > 1:
            # The real root of a negative number, as in school: \sqrt[3]{-8} is -2.
            value = root if root is not None else mpmath.power(as_float(-base), as_float(exponent))
            return -value if exponent.numerator % 2 else value
    left, right = as_float(base), as_float(exponent)
    if abs(right) > 1 << 1000:
        raise NoValue
    return mpmath.power(left, right)


def _root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """`base ** exponent` if it is a fraction. Otherwise `None`."""
    if exponent.denominator > 64 or abs(exponent.numerator) > 1000 or max(base.numerator, base.denominator) >> 20_000:
        return None
    parts = []
    for number in (base.numerator, base.denominator):
        root, whole = sympy.integer_nthroot(number, exponent.denominator)
        if not whole:
            return None
        parts.append(int(root))
    return Fraction(*parts) ** exponent.numerator
