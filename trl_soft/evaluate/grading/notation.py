# SPDX-License-Identifier: Apache-2.0
"""
The spelling of a mathematical answer: one spelling for equal ones, and the units, names and numbers in it.

The functions work on the text of an answer and need no algebra. `MathGold` and the worker bound its length.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from fractions import Fraction

from .boxes import closing_brace


# ruff: noqa: RUF001 - this file maps characters that look like others
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "√": "\\sqrt ", "π": "\\pi ", "∞": "\\infty ",
     "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "±": "\\pm ", "…": "\\ldots ",
     "²": "^{2}", "³": "^{3}", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "∅": "\\emptyset ",
     "∘": "°", "º": "°", "，": ",", "（": "(", "）": ")", "％": "%", "\xa0": " ", "\u2009": " ", "\u202f": " "}
)  # fmt: skip
_NOTHING = {
    "$", "\\$", "\\(", "\\)", "\\[", "\\]", "\\!", "\\left", "\\right", "\\mleft", "\\mright", "\\big", "\\Big", "\\bigl", "\\bigr",
    "\\Bigl", "\\Bigr", "\\bigg", "\\Bigg", "\\biggl", "\\biggr", "\\displaystyle", "\\textstyle", "\\limits", "\\nolimits",
    "\\phantom",
}  # fmt: skip
_BLANK = {
    "\\,",
    "\\;",
    "\\:",
    "\\>",
    "\\ ",
    "~",
    "\\quad",
    "\\qquad",
    "\\enspace",
    "\\thinspace",
    "\n",
    "\t",
    "\r",
    " ",
}
_SPELLINGS = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\dbinom": "\\binom", "\\tbinom": "\\binom",
    "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lbrack": "[", "\\rbrack": "]", "\\leq": "\\le", "\\leqslant": "\\le",
    "\\geq": "\\ge", "\\geqslant": "\\ge", "\\neq": "\\ne", "\\lt": "<", "\\gt": ">", "\\dots": "\\ldots",
    "\\cdots": "\\ldots", "\\dotsc": "\\ldots", "\\dotsb": "\\ldots", "\\%": "%", "\\degree": "°", "\\textdegree": "°",
    "\\varnothing": "\\emptyset", "\\lvert": "|", "\\rvert": "|", "\\vert": "|", "\\mid": "|", "\\colon": ":",
    "\\pounds": "", "\\euro": "",
}  # fmt: skip
_TEXT_COMMANDS = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|rm|bf)"
_TEXT_GROUP = re.compile(_TEXT_COMMANDS + r"\s*\{([^{}]*)\}")
_DEGREE = re.compile(r"\s*\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\s*°")
# After a degree sign, in `\text` or before it, a C or an F is the scale of a temperature.
_SCALE = re.compile(_TEXT_COMMANDS + r"\s*\{\s*°\s*([CF])\s*\}|°\s*([CF])(?![A-Za-z_^'])")
# In plain text: a power, a root of something without brackets inside, and names that LaTeX writes as commands.
_POWER = re.compile(r"(?<=[\w)])\s?\*\*\s?(?:(\d+)|(?=[\w(]))")
_ROOT = re.compile(r"(?<![A-Za-z])sqrt\s?\(([^()]*)\)")
_FUNCTION = re.compile(r"(?<![A-Za-z\\])(?:pi|sin|cos|tan|ln|log)(?![A-Za-z])")
_INFIX = re.compile(r"\\(?:choose|over|atop)(?![a-zA-Z])")
_NO_ELEMENTS = re.compile(r"\\\{\s*\\\}")
_ARGUMENTS = {"\\frac": 2, "\\binom": 2, "\\sqrt": 1}
_NOT_AN_ARGUMENT = {"^", "_", "=", ",", ")", "]", "[", "+", "*", "/", "<", ">"}


def tidy(answer: str) -> str:
    r"""
    An answer in one spelling: no mathematics marks, sizes or currency, one kind of blank, `\frac12` and `\frac\pi4` with
    braces, thousands without commas, `°` for degrees, `%` for per cent, `\text{}` around words alone.
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(_as_latex(answer).translate(_CHARACTERS)):
        token = " " if token in _BLANK else _SPELLINGS.get(token, token)
        if token == "\\!" and tokens[-1:] == [","]:
            tokens.pop()  # also for a comma with a negative blank after it
        if token in _NOTHING or (token == " " and tokens[-1:] == [" "]):
            continue
        if token == "." and tokens[-2:] == [".", "."]:
            tokens[-2:] = ["\\ldots"]
        elif token == "}" and tokens[-2:] == ["{", ","]:
            tokens[-2:] = []  # {,} groups digits
        elif token:
            tokens.append(token)
    text = _DEGREE.sub("°", _with_braces(tokens))
    text = _SCALE.sub(lambda match: f"°\\text{{{match[1] or match[2]}}}", text)
    text = _TEXT_GROUP.sub(_words, text)
    text = _NO_ELEMENTS.sub(r"\\emptyset", text)
    return _bare(text.strip().rstrip(".").strip())


def _as_latex(answer: str) -> str:
    r"""An answer without commands is plain text. It becomes LaTeX: `2*sqrt(3)` is `2*\sqrt{3}`, `x**2` is `x^2`."""
    if "\\" in answer:
        return answer
    answer = _POWER.sub(lambda match: f"^{{{match[1]}}}" if match[1] else "^", answer)
    return _FUNCTION.sub(r"\\\g<0> ", _ROOT.sub(r"\\sqrt{\1}", answer))


def _bare(text: str) -> str:
    r"""A text without the braces around all of it, which TeX does not print. `{5}` is 5; `{5 \over 2}` needs its braces."""
    while not _INFIX.search(text) and text.startswith("{") and closing_brace(text, 1) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _words(match: re.Match) -> str:
    content = match[1].strip()
    if len(content) == 3 and content[0] == "(" and content[2] == ")":
        return f" {content[1]} "  # the letter of an option
    before = match.string[: match.start()].rstrip()
    if len(content) == 1 and (content in "eid" or not (before and before[-1] in "0123456789}°")):
        return f" {content} "  # \\mathrm{e} is the number, \\text{C} the point; behind a number it is a unit
    return f"\\text{{{match[1]}}}"


def _with_braces(tokens: list[str]) -> str:
    r"""The text of tokens. An argument of \frac, \binom or \sqrt without braces gets them: it is one token, as in TeX."""
    units: list[
        str
    ] = []  # read from the right. The last unit is the next one to the right: a token, a group, or a command with arguments

    def argument() -> str | None:
        while units and units[-1] == " ":
            units.pop()
        if not units or units[-1] == "}" or units[-1] in _NOT_AN_ARGUMENT:
            return None
        unit = units.pop()
        return unit if unit.startswith("{") else f"{{{unit}}}"

    for token in reversed(tokens):
        if token == "{":
            group = [token]
            while units and group[-1] != "}":
                group.append(units.pop())
            token = _text_of(group)
        elif token in _ARGUMENTS:
            pieces = [token]
            while token == "\\sqrt" and "[" in units[-1:] + pieces and units and pieces[-1] != "]":
                pieces.append(units.pop())
            for _ in range(_ARGUMENTS[token]):
                pieces.append(argument() or "")
            token = _text_of(pieces)
        elif token in "^_" and units and len(units[-1]) > 1 and not units[-1].startswith("{"):
            token = f"{token}{{{units.pop()}}}"
        units.append(token)
    return _text_of(list(reversed(units)))


def _text_of(pieces: list[str]) -> str:
    """Pieces as one text, with a blank between a command and a letter that follows it."""
    text: list[str] = []
    for piece in pieces:
        if text and piece[:1].isalpha() and re.search(r"\\[a-zA-Z]+$", text[-1]):
            text.append(" ")
        text.append(piece)
    return "".join(text)


def literal(text: str) -> str:
    r"""A tidy text without blanks and `\text`, only its letters. Two spellings of one answer have the same letters."""
    # A blank between two digits counts: `3 4` is not 34.
    return re.sub(r"(?<!\d)\s|\s(?!\d)", "", _TEXT_GROUP.sub(r"\1", text))


# ------------------------------------------------------------------------------------------------------------ numbers

_DIGITS = r"(?:\d+(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"([+-]?)\s*({_DIGITS})(?:[eE]([+-]?\d{{1,4}}))?")
_SCIENTIFIC = re.compile(
    rf"([+-]?)\s*({_DIGITS})\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{{\s*([+-]?\d{{1,4}})\s*\}}|(\d))"
)
_RATIO = re.compile(
    r"([+-]?)\s*(?:(\d+)\s*(?=\\frac)|(\d+)\s+(?=\d+/))?"
    r"(?:\\frac\s*\{\s*([+-]?)\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d+)\s*/\s*(\d+))"
)
_REPEATING = re.compile(r"([+-]?)\s*(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
_MOST_DIGITS = 1000


@dataclass(frozen=True)
class Number:
    """
    A rational number as it was written.

    Args:
        value (`Fraction`).
        decimals (`int`, *optional*): digits after the point of a decimal fraction. `None` for an exact number.
    """

    value: Fraction
    decimals: int | None = None


def number_of(text: str) -> Number | None:
    """The number in a tidy text: an integer, a decimal (also a repeating one), a ratio, a mixed number, or a number in
    scientific notation. `None` for every other text."""
    if len(text) > _MOST_DIGITS:
        return None
    if match := _PLAIN.fullmatch(text):
        sign, digits, exponent = match.groups()
        whole, _, behind = digits.partition(".")
        value = Fraction(int(sign + (whole or "0") + behind), 10 ** len(behind)) * Fraction(10) ** int(exponent or 0)
        return Number(value, len(behind) if behind and exponent is None else None)
    if match := _SCIENTIFIC.fullmatch(text):
        return Number(Fraction(match[1] + match[2]) * Fraction(10) ** int(match[3] or match[4]))
    if match := _REPEATING.fullmatch(text):
        sign, whole, behind, cycle = match.groups()
        numerator = int((whole or "0") + behind + cycle) - int((whole or "0") + behind)
        value = Fraction(numerator, (10 ** len(cycle) - 1) * 10 ** len(behind))
        return Number(-value if sign == "-" else value)
    if match := _RATIO.fullmatch(text):
        sign, mixed, spaced, inner, top, bottom, left, right = match.groups()
        numerator, denominator = int(top or left), int(bottom or right)
        if denominator and not ((mixed or spaced) and inner):
            value = int(mixed or spaced or 0) + Fraction(numerator, denominator)
            return Number(-value if (sign == "-") != (inner == "-") else value)
    return None


def _written(value: Fraction) -> str | None:
    """A fraction as a text that `number_of` can read. `None` if it has too many digits."""
    if max(abs(value.numerator), value.denominator) >= 10**_MOST_DIGITS:  # Python raises for the text of 4,301 digits
        return None
    text = str(value)
    return text if len(text) <= _MOST_DIGITS else None


def fraction_key(value: Fraction) -> str:
    """A fraction as a text that is equal for equal fractions. A hash if it is long."""
    if abs(value.numerator) >> 3000 or value.denominator >> 3000:  # more digits than Python writes
        return "number:" + hashlib.sha256(f"{value.numerator:x}/{value.denominator:x}".encode()).hexdigest()[:32]
    return str(value)


# -------------------------------------------------------------------------------------------------------------- units

_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_PER_CENT = {"percent", "percentage", "pct", "per cent"}
# Two letters that are a unit if a blank comes before them. Longer words are units, single letters are variables.
_SHORT_UNITS = set(
    "cm mm km kg mg ft in yd mi lb oz hr ml dl dm nm am pm cc sq cu ms Hz kW kJ mL cL st nd rd th".split()
)
_TIMES = {"h", "hr", "min", "s", "sec"}  # of a speed, after a known pair: `km/h`
_NOT_UNITS = set(
    "pi sqrt sin cos tan cot sec csc log ln exp or and to if for where mod when max min gcd lcm is are not all real".split()
)
_WORDS = r"[A-Za-z][A-Za-z.'/ ]*"
_UNIT_IN_TEXT = re.compile(rf"(.+?)\s*\\text\{{\s*({_WORDS})\}}\s*(?:\^\s*\{{?\s*(-?\d)\s*\}}?)?", re.DOTALL)
_UNIT_BEHIND_BLANK = re.compile(rf"(.*[\d}})])\s+({_WORDS})(?:\^\s*\{{?\s*(-?\d)\s*\}}?)?", re.DOTALL)


def without_unit(text: str, unit: str | None = None) -> tuple[str, bool, str]:
    r"""
    A tidy text without its unit, whether the unit was per cent, and the exponent of the unit.

    A unit is one of these:

    - the unit of the row;
    - words in `\text` after an amount;
    - a word of three letters or more, or a known pair of letters, after a number and a blank. `6m` is six times m.

    Thousands and millions multiply a number of at most 1,000 digits.

    Args:
        unit (`str`, *optional*): the unit of the row.
    """
    if unit:
        plain = tidy(unit)
        for shape in (f"\\text{{{plain}}}", plain, _TEXT_GROUP.sub(r"\1", plain)):
            bare = _TEXT_GROUP.sub(lambda match: f"\\text{{{match[1].strip()}}}", text)
            if shape and bare.endswith(shape) and bare != shape:
                text = bare.removesuffix(shape).strip()
                break
    match = _UNIT_IN_TEXT.fullmatch(text) or _UNIT_BEHIND_BLANK.fullmatch(text)
    per_cent, power = False, ""
    if match and _is_amount(match[1]) and _is_unit(match[2], in_text=text.count("\\text") > match[1].count("\\text")):
        head, words, power = match[1].strip(), match[2].lower().split(), match[3] or ""
        per_cent = " ".join(words) in _PER_CENT
        scale = math.prod(_SCALES.get(word, 1) for word in words)
        number = number_of(head)
        # A text that is not a number, or is too long to write, keeps its scale and is compared by its letters.
        text = head if scale == 1 else (number and _written(number.value * scale)) or text
    if text.endswith("%"):
        text, per_cent = text[:-1].strip(), True
    return text, per_cent, power


def _is_amount(text: str) -> bool:
    """Whether the text has letters only in commands. Words after it are then its unit."""
    return (
        re.search(r"\d|\\pi", text) is not None
        and re.search(r"(?<![a-zA-Z\\])[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)) is None
    )


def _is_unit(words: str, in_text: bool) -> bool:
    first, *others = words.split() or [""]
    if any(word.lower() in _NOT_UNITS for word in (first, *others)):
        return False
    unit, *per = first.split("/")
    return in_text or (_names_a_unit(unit) and all(_names_a_unit(part) or part in _TIMES for part in per))


def _names_a_unit(word: str) -> bool:
    return word in _SHORT_UNITS or (len(word) > 2 and any(letter in "aeiouAEIOU" for letter in word))
