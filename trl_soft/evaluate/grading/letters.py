# SPDX-License-Identifier: Apache-2.0
"""Multiple choice: the letter that a completion chooses."""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from ...golds import gold_text
from .verdict import ENDING, Verdict, after_thinking, lowered, unreadable


_LETTERS = "ABCDEFGHIJ"
_TOKEN = re.compile(
    r"(?P<break>[^\S\n]*\n\s*)|(?P<blank>\s+)|\\(?P<command>[A-Za-z]+)|(?P<escape>\\[{}])|"
    r"(?P<word>[^\W\d_]+(?:['\u2019][^\W\d_]+)*)|(?P<number>\d+)|\\?(?P<sign>.)",
    re.DOTALL,
)
_BOXES = frozenset(("boxed", "fbox"))
_BOX_COMMANDS = ("\\boxed", "\\fbox")
# Tokens that may surround a letter and have no meaning of their own.
_STYLES = frozenset("text textbf textrm textsf textit mathrm mathbf mathsf mbox left right quad qquad".split())
_WRAPPING = frozenset(("\\{", "\\}", *"*`\"'\u201c\u201d\u2018\u2019()[]{}$_"))
_CHOICES = frozenset(("answer", "choice", "option", "selection"))
_LINK_WORDS = frozenset(("is", "be", "was", "remains", "becomes"))
_LINK_SIGNS = frozenset((":", "=", "-", ">", "\u2192", "\u2013", "\u2014"))
# After the link only these words lead to the letter: "the answer is clearly option C".
_AFTER_LINK = _LINK_WORDS | frozenset("the option choice letter therefore thus hence clearly i think believe".split())
_DENIALS = frozenset("not no never cannot can't isn't wrong incorrect either neither".split())
_RIGHT = frozenset(("correct", "right", "best"))
_SUPPOSING = frozenset(("if", "whether", "not", "neither", "why", "suppose", "assume", "assuming"))
_WORDS = 10  # most words between the word "answer" and its letter; so no text costs more than ten times its length


def grade_letter(text: str, gold: Any) -> Verdict:
    r"""
    Right if the chosen letter is the gold letter.

    The letter is the first of these that exists in the text after the last `</think>`:

    1. the last letter in a \boxed: `\boxed{C}`, `\boxed{\text{(C)}}`, `\boxed{Option C}`, `\boxed{C. 5 m}`;
    2. the last letter that is named as the answer: `"answer": "C"`, `Answer: C`, `the correct choice is c`;
    3. the last letter that is said to be right: `C is correct`, `(C) is the answer`;
    4. the last letter that is alone on its line;
    5. the letter that begins a line as an option does, `C. 5 m`, if no other line begins so with another letter;
    6. the last letter in parentheses.

    A letter that belongs to a formula, a word or a row of letters does not count: `E = mc^2`, `Boron`, `A or B`.

    The last 4,000 characters are read, without blanks at the end. If they hold no \boxed, the first rule reads the 4,000
    characters around the last \boxed of the text. If they hold no word such as "answer", the second rule reads the 4,000
    around the last such word.

    Args:
        gold (`str`): the letter.
    """
    expected = gold_text(gold)
    if expected is None or len(expected) != 1 or expected not in _LETTERS:
        raise ValueError(f"The gold answer is {gold!r}, but the letters of options are {_LETTERS}. Correct the row.")
    try:
        letter = _letter(after_thinking(text).rstrip())
    except Exception as error:
        return unreadable(text, error)
    return Verdict(letter is not None and letter == expected, letter, letter)


def _letter(text: str) -> str | None:
    box, word = max(map(text.rfind, _BOX_COMMANDS)), max(map(lowered(text).rfind, _CHOICES))
    passages = {place: _start(text, place) for place in (box, word, -1)}
    tokens = {start: _tokens(text, start) for start in set(passages.values())}
    rules: list[tuple[Callable, int]] = [(_in_a_box, box)] if box >= 0 else []
    rules += [(_named, word)] if word >= 0 else []
    rules += [(rule, -1) for rule in (_said_to_be_right, _on_its_own_line, _as_an_option, _in_parentheses)]
    for rule, place in rules:
        letter = rule(tokens[passages[place]])
        if letter is not None:
            return letter
    return None


class _Token(NamedTuple):
    """`kind` is break (of a line), blank, command, word, number or sign."""

    kind: str
    text: str

    @property
    def is_wrapping(self) -> bool:
        if self.kind == "command":
            return self.text in _STYLES
        return self.kind == "blank" or (self.kind == "sign" and self.text in _WRAPPING)

    @property
    def letter(self) -> str | None:
        """The option that this token can name, or `None`."""
        letter = self.text.upper()
        return letter if self.kind == "word" and len(letter) == 1 and letter in _LETTERS else None

    def is_word(self, words: Collection[str]) -> bool:
        return self.kind == "word" and self.text.lower() in words


_CUT = _Token("word", "")


def _start(text: str, place: int) -> int:
    """The beginning of the passage to read: the last one of the text, or the one around `place` if that lies before it."""
    end = max(len(text) - ENDING, 0)
    return end if place < 0 or place > end else max(place - ENDING // 2, 0)


def _tokens(text: str, start: int = 0) -> list[_Token]:
    """
    The tokens of a passage of a text, with a line break before them and two after them, so that no rule looks beyond the ends.

    Where the passage cuts the text, the token may be part of a longer one. A word without meaning replaces it.
    """
    tokens = [_Token("break", "")]
    for match in _TOKEN.finditer(text, start, min(start + ENDING, len(text))):
        kind = match.lastgroup or ""
        tokens.append(_Token("sign" if kind == "escape" else kind, match[kind]))
    if start > 0:
        tokens[0:2] = [_CUT]
    if start + ENDING < len(text):
        tokens[-1] = _CUT
    return [*tokens, _Token("break", ""), _Token("break", "")]


def _past_wrapping(tokens: list[_Token], place: int) -> int:
    """The first place from `place` on with a token that has a meaning of its own. A line break has one."""
    while tokens[place].is_wrapping:
        place += 1
    return place


def _stands_alone(tokens: list[_Token], place: int, words_may_follow: bool) -> bool:
    """Whether the letter at `place` is an option, and not part of a formula, a sentence or a row of letters."""
    if tokens[place + 1].kind in ("number", "word") or (
        tokens[place + 1].text == "_" and tokens[place + 2].kind in ("number", "word")
    ):
        return False
    after = _past_wrapping(tokens, place + 1)
    token = tokens[after]
    if token.kind == "command" or (token.kind == "sign" and token.text in "=+^/<>"):
        return False
    if token.text == "," or token.is_word(("and", "or")):
        return tokens[_past_wrapping(tokens, after + 1)].letter in (None, "I")
    if token.kind in ("word", "number"):
        # Small letters and "I" can be words of a sentence.
        return words_may_follow and tokens[place].text.isupper() and tokens[place].text != "I"
    return True


def _in_a_box(tokens: list[_Token]) -> str | None:
    opened, closed_at = [], {}
    for place, token in enumerate(tokens):
        if token.text == "{":
            opened.append(place)
        elif token.text == "}" and opened:
            closed_at[opened.pop()] = place
    for place in range(len(tokens) - 1, -1, -1):
        if tokens[place].kind != "command" or tokens[place].text not in _BOXES:
            continue
        brace = place + 1 + (tokens[place + 1].kind == "blank")
        end = closed_at.get(brace)
        if end is None:
            # Without braces (\boxed C) the letter is the whole content. A brace that never closes makes no box.
            if tokens[brace].letter is not None:
                return tokens[brace].letter
            continue
        start = _past_wrapping(tokens, brace)
        if tokens[start].is_word(_CHOICES):
            start = _past_wrapping(tokens, start + 1)
        if tokens[start].letter is not None and start < end and _is_all_of_a_box(tokens, start, end):
            return tokens[start].letter
    return None


def _is_all_of_a_box(tokens: list[_Token], place: int, end: int) -> bool:
    """Whether only the text of an option stands between the letter at `place` and the end of its box."""
    after = _past_wrapping(tokens, place + 1)
    marked = tokens[after].text in (".", ":") or tokens[place + 1].text == ")"
    return after >= end or (marked and tokens[place].text.isupper())


def _named(tokens: list[_Token]) -> str | None:
    for place in range(len(tokens) - 1, -1, -1):
        if tokens[place].is_word(_CHOICES):
            letter = _named_after(tokens, place)
            if letter is not None:
                return letter
    return None


def _named_after(tokens: list[_Token], keyword: int) -> str | None:
    """The letter that the word at `keyword` leads to: "answer C", "answer: C", "option that fits is C", but not "option C"."""
    linked, broken, words = False, False, 0
    direct = tokens[keyword].is_word(("answer",))  # whether only words such as "option" came between
    for place in range(keyword + 1, len(tokens) - 2):
        token = tokens[place]
        if token.is_wrapping:
            continue
        if token.kind == "break":
            broken = True
        elif token.kind == "sign" and token.text in _LINK_SIGNS:
            linked = True
        elif token.letter is not None and (linked or direct) and _stands_alone(tokens, place, linked):
            return token.letter
        elif token.kind == "word" or token.text == ",":
            words += 1
            passed = token.is_word(_AFTER_LINK) if linked or broken else not token.is_word(_DENIALS)
            # A capital letter before the link is the subject of the sentence: "answer depends on whether B is".
            if (
                words > _WORDS
                or not passed
                or (token.letter is not None and token.text.isupper() and token.text != "I")
            ):
                return None
            linked = linked or token.is_word(_LINK_WORDS)
            direct = direct and token.is_word(("option", "choice", "letter"))
        else:
            return None
    return None


def _said_to_be_right(tokens: list[_Token]) -> str | None:
    for place in range(len(tokens) - 1, -1, -1):
        if tokens[place].letter is None or not tokens[place].text.isupper():
            continue
        words: list[str] = []
        at = place + 1
        while len(words) < 4 and tokens[at := _past_wrapping(tokens, at)].kind == "word":
            words.append(tokens[at].text.lower())
            at += 1
        before = place - 1
        while tokens[before].is_wrapping or tokens[before].is_word(("option", "choice", "answer")):
            before -= 1
        if _say_it_is_right(words) and not tokens[before].is_word(_SUPPOSING):
            return tokens[place].letter
    return None


def _say_it_is_right(words: list[str]) -> bool:
    match words:
        case ["is", "the", right, noun, *_] if right in _RIGHT:
            return noun in _CHOICES or noun == "one"
        case ["is", "the", noun, *_]:
            return noun == "answer"
        case ["is" | "seems" | "looks", right, *_] | ["must", "be", right, *_]:
            return right in _RIGHT
    return False


def _lines(tokens: list[_Token]) -> Iterator[int]:
    """Where each line begins."""
    return (place + 1 for place, token in enumerate(tokens[:-2]) if token.kind == "break")


def _on_its_own_line(tokens: list[_Token]) -> str | None:
    letter = None
    for start in _lines(tokens):
        place = _past_wrapping(tokens, start)
        if tokens[place].is_word(("option", "choice")):
            place = _past_wrapping(tokens, place + 1)
        if tokens[place].letter is not None and tokens[place].text.isupper():
            after = _past_wrapping(tokens, place + 1)
            if tokens[after].text in (".", ":"):
                after = _past_wrapping(tokens, after + 1)
            letter = tokens[place].letter if tokens[after].kind == "break" else letter
    return letter


def _as_an_option(tokens: list[_Token]) -> str | None:
    letters = set()
    for start in _lines(tokens):
        place = start
        while tokens[place].text in ("*", "_") or tokens[place].kind == "blank":
            place += 1
        marked = tokens[place + 1].text in (".", ")", ":")
        if marked and tokens[place].letter is not None and tokens[place].text.isupper():
            after = tokens[_past_wrapping(tokens, place + 2)]
            if not after.is_word(("is", "was", "are", "cannot", "would", "does", "has")):
                letters.add(tokens[place].letter)
    return letters.pop() if len(letters) == 1 else None


def _in_parentheses(tokens: list[_Token]) -> str | None:
    for place in range(len(tokens) - 2, 0, -1):
        inside = tokens[place - 1].text == "(" and tokens[place + 1].text == ")"
        if inside and tokens[place].letter is not None and tokens[place].text.isupper():
            return tokens[place].letter
    return None
