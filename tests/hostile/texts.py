# SPDX-License-Identifier: Apache-2.0
"""What a degenerate model writes without end: for each judge the pieces that matter to it, repeated, and nested forms."""

import itertools
import random
from collections.abc import Iterator


# One piece is a character or a word that a judge looks for.
MATHEMATICS = [
    " ",
    "\n",
    "\\",
    "{",
    "}",
    "$",
    "(",
    "[",
    "1",
    ",",
    ".",
    "-",
    "a",
    "=",
    "^",
    "%",
    "\\boxed",
    "\\text",
    "\\frac",
    "answer",
]
LETTERS = [
    " ",
    "\n",
    "\\",
    "{",
    "}",
    "$",
    "(",
    ")",
    "*",
    ":",
    ".",
    ",",
    "A",
    "b",
    "1",
    "'",
    "_",
    "\\boxed",
    "\\text",
    "answer",
    "is",
    "option",
    "not",
]
PROGRAMS = [
    " ",
    "\n",
    "`",
    "~",
    "(",
    "[",
    "'",
    "\\",
    "#",
    ":",
    "=",
    ",",
    "1",
    "a",
    "def f(",
    "```",
    "```python\n",
    "[PYTHON]",
    "return ",
    "\n\n",
]

NESTED_MATHEMATICS = [
    ("{", "}"), ("(", ")"), ("[", "]"), ("\\{", "\\}"), ("$", "$"), ("\\boxed{", "}"), ("\\boxed", ""), ("\\boxed{1 a", "}"),
    ("\\fbox {", "}"), ("\\text{", "}"), ("\\frac{", "}{2}"), ("\\frac", "1"), ("\\sqrt[", "]"), ("\\left(", "\\right)"),
    ("\\begin{pmatrix}", "\\end{pmatrix}"), ("|", "|"), ("^{", "}"), ("\\(", "\\)"), ("\\[", "\\]"), ("</think>", ""),
]  # fmt: skip
NESTED_LETTERS = [
    ("(", ")"),
    ("{", "}"),
    ("\\boxed{", "}"),
    ("\\text{", "}"),
    ("\\boxed{\\text{", "}}"),
    ("*", "*"),
    ('"', '"'),
    ("answer (", ")"),
]
NESTED_PROGRAMS = [
    ("(", ")"), ("[", "]"), ("{", "}"), ("```\n", "\n```"), ("```python\n", "\n```"), ("~~~\n", "\n~~~"), ("[PYTHON]", "[/PYTHON]"),
    ("def f():\n ", "\n"), ("if 1:\n", ""), ('"""', '"""'), ("- ```\n", "  ```\n"), ("f'{", "}'"), ("lambda: ", "1"), ("not ", "1"),
]  # fmt: skip


def repetitions(pieces: list[str]) -> Iterator[str]:
    """Every row of one and two pieces, and of three that are single characters, that is no repetition of a shorter one."""
    yield from pieces
    for pair in itertools.permutations(pieces, 2):
        yield "".join(pair)
    for triple in itertools.product([piece for piece in pieces if len(piece) == 1], repeat=3):
        if len(set(triple)) > 1:
            yield "".join(triple)


def texts(pieces: list[str], nested: list[tuple[str, str]], size: int) -> Iterator[tuple[str, str]]:
    """A name and a text of about `size` characters for every repetition, bare and where an answer would be, and nested form."""
    for row in repetitions(pieces):
        yield repr(row), row * (size // len(row))
    for row in pieces:
        for before, behind in (
            ("answer", "x"),
            ("\\boxed{1 a", "!}"),
            ("\\boxed{1}", "x\\boxed{2}"),
            ("```python\ndef f(x):\n  y=(\n", "```"),
        ):
            yield f"{before!r} {row!r} {behind!r}", before + row * (size // len(row)) + behind
    for opening, closing in nested:
        count = size // (len(opening) + len(closing))
        yield f"nested {opening!r} {closing!r}", opening * count + "1" + closing * count
        yield f"open {opening!r}", opening * (size // len(opening))


def sample(named: list, count: int, seed: int = 0) -> list:
    """Some of them, the same in every run."""
    return random.Random(seed).sample(named, min(count, len(named)))
