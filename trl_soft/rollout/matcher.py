# SPDX-License-Identifier: Apache-2.0
"""Find the text that ends a thought by a table over tokens, so that no step has to be decoded.

Texts are compared by their bytes in UTF-8, because a token may hold a part of a character. In state s the shadow ends with the
first s bytes of the text, and with no longer beginning of it (Knuth, Morris and Pratt). Tokens that lead from each state to
the same state are one class: `table[s, classes[token]]` is the state after a token. A match may end inside the token. No state
follows a match, because the thought is over.

Most tokens hold no part of the text. The others are found in the sorted vocabulary, so a table takes milliseconds, and no
client can delay a server with its own texts.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .interface import Plan, forced_row
from .pieces import HALF, Pieces, pieces_of
from .stop import EndOfThinking


MATCHERS = 256  # tables that are kept for later rollouts, each for a text with its prefill
_CHECKED = 20  # texts of each kind by which a table is checked


def borders(text: bytes) -> np.ndarray:
    """(m, m) bool for a text of m bytes: whether its first s bytes end with its first j."""
    return np.array([[text[:s].endswith(text[:j]) for j in range(len(text))] for s in range(len(text))])


def table_of(text: bytes, pieces: Pieces, kinds: Callable[[np.ndarray, np.ndarray], np.ndarray]):
    """
    The states after tokens.

    Args:
        text (`bytes`): m bytes of UTF-8.
        kinds: a function of tokens and of the number of bytes that each writes after the text. It returns the kinds of these
            rests.

    Returns:
        classes (V,) int64: the class of each token; table (m, number of classes) int64: the state after a token from each
        state, or m + the kind of the rest if the token completes the text.
    """
    m, within = len(text), borders(text)
    # From state 0: the longest beginning of the text with which the token ends, or the first match inside the token.
    base = np.zeros(len(pieces.of), dtype=np.int64)
    for k in range(1, m):
        base[pieces.ending(text[:k])] = k
    tokens, places = pieces.holding(text)
    base[tokens] = m + kinds(tokens, pieces.lengths[tokens] - places - m)
    classes = _Classes(base)
    # From a state that ends with text[:j]: a token inside the text leads further than from state 0. A token that begins
    # with text[j:] completes the text, before anything after it counts. Longer beginnings lead further.
    completing = []
    for j in range(1, m):
        for n, (begin, same) in enumerate(pieces.beginnings(text[j:])):
            if j + n == m:
                completing.append((j, begin, m + kinds(begin, pieces.lengths[begin] - n)))
            elif len(same):
                classes.split(same, within[:, j], np.full(len(same), j + n))
    for j, begin, states in completing:
        classes.split(begin, within[:, j], states)
    return classes.done(m)


class _Classes:
    """Classes of tokens by the states they lead to: first one state from all states, then other states from some."""

    def __init__(self, base: np.ndarray):
        states, self.of = _numbered(base)
        self.columns: list[tuple] = [(state,) for state in states.tolist()]

    def split(self, tokens: np.ndarray, rows: np.ndarray, states: np.ndarray) -> None:
        """Tokens (N,) lead from the states in `rows` (m,) bool to `states` (N,)."""
        if not len(tokens):
            return
        most = int(states.max()) + 1
        pairs, which = np.unique(self.of[tokens] * most + states, return_inverse=True)
        self.of[tokens] = len(self.columns) + which
        self.columns += [(*self.columns[pair // most], rows, pair % most) for pair in pairs.tolist()]

    def done(self, m: int) -> tuple[np.ndarray, np.ndarray]:
        """The class of each token, and the state (m, classes) that each class leads to from each state."""
        used, of = _numbered(self.of)
        table = np.empty((m, len(used)), dtype=np.int64)
        for column, (base, *splits) in enumerate(self.columns[old] for old in used.tolist()):
            table[:, column] = base
            for rows, state in zip(splits[::2], splits[1::2], strict=True):
                table[rows, column] = state
        return of, table


class _Kinds:
    """
    The kinds of rests: what tokens write after the text, as far as it matters.

    Attributes:
        numbers: (characters, row of `Plan.forced` that follows) -> number of the kind. 0 means no rest.
    """

    def __init__(self, pieces: Pieces, prefill: str):
        self.pieces, self.prefill = pieces, prefill
        self.numbers = {(0, 0): 0}

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rows = np.zeros_like(lengths)
        if self.prefill:
            first = self.prefill[0]
            rests = map(self.pieces.rest, tokens.tolist(), lengths.tolist())
            rows[:] = [forced_row(rest, self.prefill) if first in rest else 0 for rest in rests]
        count = len(self.prefill) + 2
        keys, which = _numbered(self.pieces.characters(tokens, lengths) * count + rows)
        pairs = [divmod(key, count) for key in keys.tolist()]
        return np.array([self.numbers.setdefault(pair, len(self.numbers)) for pair in pairs], dtype=np.int64)[which]


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`numpy.unique` of small numbers with its inverse, without sorting a vocabulary."""
    count = np.bincount(values)
    return np.flatnonzero(count), (np.cumsum(count > 0) - 1)[values]


class EndMatcher:
    """
    `EndOfThinking` for a text, with a table instead of decoding.

    Args:
        end (`EndOfThinking`): of a text that is not an added token.
        vocab_size (`int`): V, of the model.
        prefill (`str`): text forced after a thought that ended itself. A rest may have written a part of it.

    Attributes:
        classes (`torch.Tensor` of shape `(V,)`, int16, or int32 if there are many): the class of each token.
        table (`torch.Tensor` of shape `(m, number of classes)`, int16):
            For a text of m bytes: the state after a token of each class, or m + i if the token completes the text and
            leaves a rest of kind i.
        surplus, script (`torch.Tensor` of shape `(kinds of rests,)`, int64):
            Characters of such a rest, and the row of `Plan.forced` that follows it. Kind 0 means no rest.

    Raises:
        ValueError: if tokens of this tokenizer do not write their characters one after the other. Also if the text is not
            ASCII and it is unknown which part of a character some token writes.
    """

    is_token = False

    def __init__(self, end: EndOfThinking, vocab_size: int, prefill: str = ""):
        self.ids, self.text = end.ids, end.text
        pieces = pieces_of(end.tokenizer, vocab_size)
        if not end.text.isascii() and not pieces.halves:
            raise ValueError(
                f"`end_of_thinking` is {end.text!r}, which is neither ASCII nor an added token, and some tokens of this tokenizer write an "
                "unknown part of a character. Choose a token or an ASCII text, or the engine `simple`."
            )
        kinds = _Kinds(pieces, prefill)
        classes, table = table_of(end.text.encode(), pieces, kinds)
        kind = torch.int16 if table.shape[1] < 2**15 else torch.int32
        self.classes, self.table = torch.from_numpy(classes).to(kind), torch.from_numpy(table).short()
        self.surplus, self.script = torch.tensor(list(kinds.numbers)).unbind(-1)
        self._check(end, min(vocab_size, len(end.tokenizer)))

    def _check(self, end: EndOfThinking, count: int) -> None:
        """Check the table against decoding: the end in several surroundings, and random tokens."""
        draw = random.Random(0)
        some = [[draw.randrange(count) for _ in range(8)] for _ in range(_CHECKED)]
        near = [row[:4] + end.ids[draw.randrange(len(end.ids)) :] + row[: draw.randrange(2)] for row in some]
        cut = [row[:4] + end.ids[:-1] + [token] for row in some for token in row[:2]]
        closes = (self.table >= len(self.table)).any(0)
        closing = closes[self.classes.long()].nonzero().squeeze(-1).tolist()
        inside = [row[:4] + end.ids[:-1] + [draw.choice(closing)] for row in some if closing]
        shadows = some + near + cut + inside + [row[:4] + end.ids for row in some]
        # Some tokenizers decode a text that is not UTF-8 byte by byte, even whole characters in it.
        texts = end.tokenizer.batch_decode(shadows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        shadows = [shadow for shadow, text in zip(shadows, texts, strict=True) if HALF not in text]
        theirs = [None if rest is None else len(rest) for rest in self._first(end, shadows)]
        if [self.find(shadow) for shadow in shadows] != theirs:
            raise ValueError(
                f"`end_of_thinking` is {end.text!r}, and this tokenizer's tokens do not write their characters one after the "
                "other, so only whole texts can be searched for it. Choose a token, or the engine `simple`."
            )

    @staticmethod
    def _first(end: EndOfThinking, shadows: list[list[int]]) -> list[str | None]:
        """The rest at the first match in each shadow, by decoding every prefix."""
        lengths = [len(shadow) for shadow in shadows]
        rests = iter(end.rests([shadow[: n + 1] for shadow in shadows for n in range(len(shadow))]))
        found = [[next(rests) for _ in range(length)] for length in lengths]
        return [next((rest for rest in row if rest is not None), None) for row in found]

    def find(self, shadow: Sequence[int]) -> int | None:
        """Characters of the rest at the first match in a shadow. `None` if there is no match."""
        state, m = 0, len(self.table)
        for token in shadow:
            state = int(self.table[state, self.classes[token]])
            if state >= m:
                return int(self.surplus[state - m])
        return None


@functools.lru_cache(maxsize=MATCHERS)
def matcher(tokenizer, text: str, vocab_size: int, prefill: str) -> EndMatcher:
    """The table for a text that ends thoughts. The cache knows tokenizers by identity."""
    return EndMatcher(EndOfThinking(tokenizer, text), vocab_size, prefill)


def looked_up(plan: Plan, vocab_size: int) -> Plan:
    """A plan as a step on the device reads it: a text that ends its thoughts is a table over the V tokens."""
    end: Any = plan.stop.end
    if end.is_token or isinstance(end, EndMatcher):
        return plan
    table: Any = matcher(end.tokenizer, end.text, vocab_size, plan.prefill)
    return replace(plan, stop=replace(plan.stop, end=table))
