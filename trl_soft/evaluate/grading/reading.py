# SPDX-License-Identifier: Apache-2.0
"""The shape of a mathematical answer: its brackets, its elements, and their names, units and bases."""

import re
from dataclasses import dataclass

from .notation import Number, literal, number_of, tidy, without_unit


_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
_OPEN = {"(": "(", "[": "[", "\\{": "{", "\\langle": "(", "\\begin": "matrix"}
_CLOSE = {")": ")", "]": "]", "\\}": "}", "\\rangle": ")", "\\end": "matrix"}
_AND_OR = re.compile(r",?\s*(?:\\text\{[,\s]*(?:and|or)[,\s]*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))")
_GROUPED = re.compile(r"(?<![\d.,^_ ])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])")
_RELATIONS = {"=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx", "\\equiv"}
_NAME = re.compile(
    r"(?:[A-Za-z]{1,3}|\\[a-zA-Z]+(?:\s*\{[^{}]*\})?|\\text\{[^{}]*\})"  # x, AB, \theta, \angle ABC, \text{Area}
    r"(?:\s*[A-Z]{1,4})?(?:_\{[^{}]*\}|_\w)?'*(?:\s*\([^()]*\))?"
)
_BASE = re.compile(r"([0-9][0-9A-Za-z]*(?:\.[0-9A-Za-z]+)?)\s*_\s*(?:\{\s*\(?([^{}()]+)\)?\s*\}|(\d))")
_BASE_IN_WORDS = re.compile(r"([0-9][0-9A-Za-z]*)\s*_\s*\{?\s*\\text\{([a-z]+)\}\s*\}?")
_TRIGONOMETRIC = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")


@dataclass(frozen=True)
class Element:
    r"""
    One part of an answer.

    Args:
        text (`str`): tidy, without name, unit and per cent.
        name (`str`): the name that has this value (`x` in `x=5`). Empty if there is none.
        relation (`str`): the whole equation or inequality, if the element is one or gives a name its value. Otherwise empty.
        number (`Number`, *optional*): the number, if it is rational.
        per_cent (`bool`): whether a per cent sign follows it.
        base (`str`): the base after a numeral (`8` in `52_8`). Empty if there is none.
        rounded (`str`): the text after an approximately equal sign. Empty if there is none.
        power (`str`): the exponent of the unit (`2` in `5\text{ cm}^2`). Empty if there is none.
    """

    text: str
    name: str = ""
    relation: str = ""
    number: Number | None = None
    per_cent: bool = False
    base: str = ""
    rounded: str = ""
    power: str = ""

    @property
    def equation(self) -> bool:
        """Whether it is a relation that gives no name a value."""
        return bool(self.relation) and not self.name


@dataclass(frozen=True)
class Reading:
    """
    The shape of an answer.

    Args:
        brackets (`str`): the two brackets around it, such as `()`, `[)` and `{}`. Empty for one element and for a bare list.
        elements (`tuple` of `Element`).
        text (`str`): the whole, tidy.
        literal (`str`): the whole, as letters alone.
    """

    brackets: str
    elements: tuple[Element, ...]
    text: str
    literal: str

    @property
    def single(self) -> Element | None:
        return self.elements[0] if not self.brackets and len(self.elements) == 1 else None

    @property
    def ordered(self) -> bool:
        """Whether the order of the elements counts: in brackets other than braces, and in a list with dots."""
        return self.brackets not in ("", "{}") or any(element.text == "\\ldots" for element in self.elements)


def read(answer: str, unit: str | None = None, several: bool = False) -> Reading:
    """
    The shape of an answer.

    Args:
        unit (`str`, *optional*): the unit of the row.
        several (`bool`): a comma always stands between two answers, never between thousands.
    """
    text = tidy(answer)
    inside, brackets = text, ""
    name, _, value = _parted(text, "=", "\\in") if _NAME.match(text) else ("", "", text)
    if name and _NAME.fullmatch(name) and _enclosing(value):
        inside = value  # A = (1, 2)
    if enclosing := _enclosing(inside):
        brackets = enclosing
        inside = re.sub(r"^(?:\\[a-z{]+|.)|(?:\\[a-z}]+|.)$", "", inside, flags=re.DOTALL).strip()
    # Inside brackets a comma always separates.
    parts = _parts(_AND_OR.sub(",", inside), grouped=not several and not brackets)
    if len(parts) == 1 and brackets != "{}":
        inside, brackets, parts = text, "", _parts(text, grouped=not several)
    signed = [part for whole in parts for part in _signs(whole)]
    return Reading(brackets, tuple(_element(part, unit) for part in signed), text, literal(_without_degrees(text)))


def _without_degrees(text: str) -> str:
    """The text without degrees, which are a unit, except in the argument of a function."""
    return text if _TRIGONOMETRIC.search(text) else text.replace("°", "").strip()


def _signs(part: str) -> list[str]:
    """Both values of a part with a plus-minus sign."""
    if "\\pm" not in part and "\\mp" not in part:
        return [part]
    values = (part.replace("\\pm", sign).replace("\\mp", other).strip() for sign, other in ("+-", "-+"))
    return [value.removeprefix("+").strip() for value in values]


def _parts(text: str, grouped: bool) -> list[str]:
    """The parts between commas and semicolons outside brackets. `grouped`: thousands are joined first."""
    parts, depth, braces = [""], 0, 0
    if grouped:
        text = _GROUPED.sub(lambda match: re.sub("[, ]", "", match[0]), text)
    for token in _TOKEN.findall(text):
        depth += (token in _OPEN) - (token in _CLOSE)
        braces += (token == "{") - (token == "}")
        if token in ",;" and depth <= 0 and braces <= 0:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts if part.strip()] or [""]


def _enclosing(text: str) -> str:
    """The two brackets around all of a text, or an empty text."""
    tokens = _TOKEN.findall(text)
    if len(tokens) < 2 or tokens[0] not in _OPEN or tokens[-1] not in _CLOSE or tokens[0] == "\\begin":
        return ""
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and index < len(tokens) - 1:
            return ""
    return _OPEN[tokens[0]] + _CLOSE[tokens[-1]] if depth == 0 else ""


def _parted(text: str, *relations: str) -> tuple[str, str, str]:
    """The text before the first of `relations` outside brackets, the relation, and the text after the last."""
    depth, first, last, end, position = 0, -1, -1, 0, 0
    relation = ""
    for token in _TOKEN.findall(text):
        depth += (token in _OPEN or token == "{") - (token in _CLOSE or token == "}")
        if depth == 0 and token in relations:
            if first < 0:
                first, relation = position, token
            last, end = position, position + len(token)
        position += len(token)
    return ("", "", text) if last < 0 else (text[:first].strip(), relation, text[end:].strip())


def _element(text: str, unit: str | None) -> Element:
    whole, name, rounded = text, "", ""
    before, relation, after = _parted(text, *_RELATIONS)
    if relation in ("=", "\\in", "\\approx") and _NAME.fullmatch(before) and after:
        if not _parted(after, *(_RELATIONS - {"="}))[1]:
            name, text, relation = "".join(before.split()), after, ""
    elif relation == "\\approx" and before:
        text, rounded, relation = before, after, ""
    elif relation == "\\approx":
        text, relation = after, ""
    elif relation == "=":
        text = after
    text, per_cent, power = without_unit(text, unit)
    text = _without_degrees(text)
    assignment = whole if relation or name else ""
    base = _BASE.fullmatch(text) or _BASE_IN_WORDS.fullmatch(text)
    if base:
        radix = (base[2] or base[base.lastindex or 2]).strip()
        return Element(base[1], name, whole if relation else "", None, per_cent, radix, rounded, power)
    return Element(text, name, assignment, number_of(text), per_cent, "", rounded, power)
