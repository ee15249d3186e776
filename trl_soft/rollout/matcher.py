# SPDX-License-Identifier: Apache-2.0
"""A text that ends thoughts as a table over tokens, so that no step has to be decoded.

State s says that the shadow, decoded, ends with the first s characters of the text and no more (Knuth, Morris and Pratt);
`table[s, token]` is the state after a token. A match may end inside the token; no state follows it, since the thought is over.
"""

import random
from collections.abc import Iterator, Sequence

import torch

from .base import forced_row
from .stop import EndOfThinking


_OTHER = 0  # a character that the text does not hold
_CHUNK = 2**13  # tokens whose states are worked out at once


def transitions(text: str) -> torch.Tensor:
    """State after a character: (m + 1, characters of the text and `_OTHER`) int64, columns in `alphabet`'s order."""
    letters = alphabet(text)
    rows = []
    for state in range(len(text) + 1):
        row = [0] * (len(letters) + 1)
        for letter, column in letters.items():
            seen = text[:state] + letter
            row[column] = max(k for k in range(min(len(seen), len(text)) + 1) if seen.endswith(text[:k]))
        rows.append(row)
    return torch.tensor(rows)


def alphabet(text: str) -> dict[str, int]:
    return {letter: i + 1 for i, letter in enumerate(sorted(set(text)))}


def table_of(text: str, pieces: list[str]) -> torch.Tensor:
    """
    (m, V) int32 for a text of m characters: the state after each token, whose characters are `pieces`, from each state; or
    m plus the number of characters behind the first match, where the token completes one.
    """
    step, letters = transitions(text), alphabet(text)
    table = torch.empty(len(text), len(pieces), dtype=torch.int32)
    # Tokens of a length beside each other, so that each is walked through to its own end and no further.
    order = sorted(range(len(pieces)), key=lambda token: -len(pieces[token]))
    for start in range(0, len(order), _CHUNK):
        some = order[start : start + _CHUNK]
        table[:, some] = _states(text, step, letters, [pieces[token] for token in some])
    return table


def _states(text: str, step: torch.Tensor, letters: dict[str, int], pieces: list[str]) -> torch.Tensor:
    """`table_of`, for pieces of which none is longer than the one before it."""
    m = len(text)
    begin = torch.arange(m).unsqueeze(1).expand(-1, len(pieces))  # (m, N)
    # Without a match, what a token ends with decides: no more of it than the text is long.
    state = begin.clone()
    for column in _columns([piece[-m:] for piece in pieces], letters):
        state[:, : len(column)] = step[state[:, : len(column)], column]
    # A match ends in the first m - 1 characters, or all of it is inside the token.
    ends = [place + m if (place := piece.find(text)) >= 0 else -1 for piece in pieces]
    end = torch.tensor(ends).expand(m, -1).clone()
    now, found = begin.clone(), torch.zeros_like(begin, dtype=torch.bool)
    for i, column in enumerate(_columns([piece[: m - 1] for piece in pieces], letters)):
        here = slice(0, len(column))
        now[:, here] = step[now[:, here], column]
        matched = (now[:, here] == m) & ~found[:, here]
        end[:, here].masked_fill_(matched, i + 1)
        found[:, here] |= matched
    lengths = torch.tensor([len(piece) for piece in pieces])
    return torch.where(end >= 0, m + lengths - end, state).to(torch.int32)


def _columns(parts: list[str], letters: dict[str, int]) -> Iterator[torch.Tensor]:
    """The i-th characters of those parts that have one, as columns of `transitions`; the longest part comes first."""
    width, count = len(parts[0]), len(parts)
    if width == 0:
        return
    flat = b"".join(bytes([letters.get(x, _OTHER) for x in part]).ljust(width) for part in parts)
    made = torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(count, width)
    for i in range(width):
        while len(parts[count - 1]) <= i:
            count -= 1
        yield made[:count, i].long()


class EndMatcher:
    """
    `EndOfThinking` for a text, with a table in place of the decoding.

    Args:
        end (`EndOfThinking`): of a text that is no added token.
        vocab_size (`int`): V, of the model.
        prefill (`str`): text forced after a thought that ended itself, some of which a rest may have written.

    Attributes:
        table (`torch.Tensor` of shape `(m, V)`, int16):
            Of a text of m characters: the state after each token, or m + i where it completes the text and leaves a rest of
            kind i.
        surplus, script (`torch.Tensor` of shape `(kinds of rests,)`, int64):
            Characters of such a rest, and which row of `Plan.forced` follows it. Kind 0 is no rest.

    Raises:
        ValueError: if tokens of this tokenizer do not write their characters one after the other, or the text is not
            ASCII, of which a token could hold half a character.
    """

    is_token = False

    def __init__(self, end: EndOfThinking, vocab_size: int, prefill: str = ""):
        self.ids, self.text = end.ids, end.text
        self._on: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        if not end.text.isascii():
            raise ValueError(
                f"`end_of_thinking` is {end.text!r}, which is not ASCII and no added token, and tokens may hold half a character "
                "of it. Choose a token or an ASCII text, or the in-process engine."
            )
        tokenizer, count = end.tokenizer, min(vocab_size, len(end.tokenizer))
        anchor = end.ids[-1]
        exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        alone = tokenizer.decode([anchor], **exact)
        after = tokenizer.batch_decode([[anchor, token] for token in range(count)], **exact)
        pieces = [both[len(alone) :] if both.startswith(alone) else "\0" for both in after]
        self._number(table_of(end.text, pieces + [""] * (vocab_size - count)), pieces, prefill)
        self._check(end, count)

    def _number(self, table: torch.Tensor, pieces: list[str], prefill: str) -> None:
        """The kinds of rests, in the place of their lengths."""
        m, kinds = len(table), {(0, 0): 0}
        states, tokens = (table > m).nonzero(as_tuple=True)
        lengths = (table[states, tokens] - m).tolist()
        found = [
            kinds.setdefault((length, forced_row(pieces[token][-length:], prefill)), len(kinds))
            for token, length in zip(tokens.tolist(), lengths, strict=True)
        ]
        table[states, tokens] = m + torch.tensor(found, dtype=table.dtype)
        self.table = table.to(torch.int16)
        self.surplus, self.script = torch.tensor(list(kinds)).unbind(-1)

    def _check(self, end: EndOfThinking, count: int) -> None:
        """Decoded texts say the same as the table: the end in several surroundings, and any tokens."""
        draw = random.Random(0)
        some = [[draw.randrange(count) for _ in range(8)] for _ in range(200)]
        near = [row[:4] + end.ids[draw.randrange(len(end.ids)) :] + row[: draw.randrange(2)] for row in some]
        cut = [row[:4] + end.ids[:-1] + [token] for row in some for token in row[:2]]
        closing = (self.table >= len(self.table)).any(0).nonzero().squeeze(-1).tolist()
        inside = [row[:4] + end.ids[:-1] + [draw.choice(closing)] for row in some if closing]
        shadows = some + near + cut + inside + [row[:4] + end.ids for row in some]
        theirs = [None if rest is None else len(rest) for rest in self._first(end, shadows)]
        if [self.find(shadow) for shadow in shadows] != theirs:
            raise ValueError(
                f"`end_of_thinking` is {end.text!r}, and this tokenizer's tokens do not write their characters one after the "
                "other, so only whole texts can be searched for it. Choose a token, or the in-process engine."
            )

    @staticmethod
    def _first(end: EndOfThinking, shadows: list[list[int]]) -> list[str | None]:
        """The rest at the first match in each shadow, by decoding every prefix."""
        lengths = [len(shadow) for shadow in shadows]
        rests = iter(end.rests([shadow[: n + 1] for shadow in shadows for n in range(len(shadow))]))
        found = [[next(rests) for _ in range(length)] for length in lengths]
        return [next((rest for rest in row if rest is not None), None) for row in found]

    def on(self, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`table`, `surplus` and `script` on a device, once for all plans."""
        device = torch.device(device)
        if device not in self._on:
            self._on[device] = (self.table.to(device), self.surplus.to(device), self.script.to(device))
        return self._on[device]

    def find(self, shadow: Sequence[int]) -> int | None:
        """Characters of the rest at the first match in a shadow; `None` where there is no match."""
        state, m = 0, len(self.table)
        for token in shadow:
            state = int(self.table[state, token])
            if state >= m:
                return int(self.surplus[state - m])
        return None
