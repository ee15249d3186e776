# SPDX-License-Identifier: Apache-2.0
"""Find the questions of an evaluation that are also in the training data."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass


# Commands that only typeset a formula, and commands with a second name.
_LAYOUT = frozenset(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle limits nolimits "
    "quad qquad".split()
)
_NAMES = {
    "dfrac": "frac",
    "tfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "leq": "le",
    "geq": "ge",
    "neq": "ne",
}
_SIGNS = {"\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2019": "'", "\u2032": "'", "\u00b0": "^circ", ";": ","}
_ALWAYS = frozenset(("+", "/", "^", "^circ", "=", "<", ">", "|", "%", "(", ")", "[", "]", "\\{", "\\}"))
_BRACKETS = frozenset(("(", ")", "[", "]", "{", "}", "\\{", "\\}", "|"))
_TOKEN = re.compile(
    r"\\(?P<command>[A-Za-z]+)|(?P<word>[^\W\d_]+)|(?P<number>\d+)|(?P<blank>\s+|~|\\[ ,;:!])|(?P<brace>\\[{}])|"
    r"\\(?P<percent>%)|(?P<nothing>\\[^_]|\\\Z|\$)|\\?(?P<sign>.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class _LatexToken:
    """A letter, word, number, command or sign. `apart`: blanks come before it."""

    text: str
    kind: str
    apart: bool

    @property
    def is_word(self) -> bool:
        return self.kind == "word" and len(self.text) > 1

    @property
    def is_letter(self) -> bool:
        return len(self.text) == 1 and self.text.isalpha()

    @property
    def ends_number(self) -> bool:
        return self.kind == "number" or self.text in (")", "]", "}", "\\}")

    @property
    def begins_number(self) -> bool:
        return self.kind == "number" or self.text in ("(", "[", "{", "\\{", "-", "+")

    @property
    def is_formula(self) -> bool:
        """Whether it belongs to a formula and is not a sign. A single letter counts as a variable."""
        return self.kind in ("command", "number") or self.text in _BRACKETS or self.is_letter


def fingerprint(question: str) -> str:
    """
    A question as a text that is equal for copies which differ only in blanks, capitals, marks and LaTeX spacing.

    It keeps letters, digits and the signs with a meaning in mathematics: brackets, operators, relations, powers, subscripts,
    factorials, primes, per cent signs, decimal points, and commas and colons between numbers. It drops dollars, full stops,
    hyphens between words, thousands commas and the braces of LaTeX: `x^{2}` becomes `x^2`. Numbers that braces or blanks
    separate stay separate.
    """
    tokens = _tokens(unicodedata.normalize("NFC", question).replace("{,}", ","))
    kept: list[str] = []
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else None
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        if token.text in ("{", "}") or (token.text in ("^", "_") and _is_empty(tokens[place + 1 : place + 3])):
            continue
        if token.kind == "sign" and token.text not in _ALWAYS and not _is_kept(token, before, after):
            continue
        if token.kind == "number" and kept and kept[-1].isdecimal() and not _is_comma(before):
            kept.append(" ")  # \\frac{1}{23} and \\frac{12}{3}, 1 2 and 12
        kept.append(token.text.lower())
    return "".join(kept)


def _is_empty(tokens: list[_LatexToken]) -> bool:
    """Whether a superscript or subscript is empty: some problems of AIME end each formula with `^{}_{}`."""
    return [token.text for token in tokens] == ["{", "}"]


def _is_comma(token: _LatexToken | None) -> bool:
    return token is not None and token.text == ","


def _tokens(text: str) -> list[_LatexToken]:
    tokens: list[_LatexToken] = []
    apart = False
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup or "", match.group(match.lastgroup or 0)
        if kind == "blank" or (found in _LAYOUT and kind == "command"):
            apart = apart or kind == "blank"
        elif kind != "nothing":
            kind = kind if kind in ("command", "word", "number") else "sign"
            found = _NAMES.get(found, found) if kind == "command" else _SIGNS.get(found, found)
            if kind == "number" and len(found) > 1 and tokens and tokens[-1].text in ("frac", "binom"):
                tokens.append(_LatexToken(found[0], kind, apart))  # LaTeX reads \frac12 as \frac{1}{2}
                found = found[1:]
            tokens.append(_LatexToken(found, kind, apart))
            apart = False
    return tokens


def _is_kept(sign: _LatexToken, before: _LatexToken | None, after: _LatexToken | None) -> bool:
    """Whether a sign that also occurs in prose belongs to a formula here."""
    of_formula = before is not None and before.is_formula
    joined = after is not None and not after.apart
    match sign.text:
        case "-":
            return _is_minus(sign, before, after)
        case "*":
            return of_formula and after is not None and after.is_formula
        case "_":
            return (
                before is not None
                and after is not None
                and after.text != "_"
                and (before.kind != "sign" or before.text in _BRACKETS)
            )
        case "!":
            return of_formula and not sign.apart
        case "'":
            begins = before is not None and (before.text in (")", "'") or before.is_letter)
            return begins and not sign.apart and not (joined and after is not None and after.kind == "word")
        case ".":
            whole = before is None or sign.apart or before.kind in ("number", "sign")
            return whole and joined and after is not None and after.kind == "number"
        case "," | ":":
            if before is None or after is None or not (before.ends_number and after.begins_number):
                return False
            thousands = sign.text == "," and before.kind == after.kind == "number" and joined and not sign.apart
            return not (thousands and len(before.text) <= 3 == len(after.text))
        case other:
            return unicodedata.category(other) == "Sm"


def _is_minus(sign: _LatexToken, before: _LatexToken | None, after: _LatexToken | None) -> bool:
    """Whether the sign is not a hyphen or a dash between words."""
    if after is None or (after.text == "-" and not after.apart):
        return False
    if before is not None and before.text == "-" and not sign.apart:
        return False
    if not after.is_word:
        return True
    if after.apart:
        return sign.apart and before is not None and before.is_formula
    return sign.apart or before is None or before.kind == "sign"


def overlap(questions: Iterable[str], held_out: Iterable[str]) -> dict[int, list[int]]:
    """
    The held-out questions that are among `questions`: row of the held-out question -> rows that ask the same.

    Questions are compared by `fingerprint`, so a paraphrase is not found. A question without a letter or digit is never a
    copy.
    """
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(fingerprint(question), []).append(row)
    prints = [fingerprint(question) for question in held_out]
    return {n: rows[key] for n, key in enumerate(prints) if key in rows and any(map(str.isalnum, key))}
