# SPDX-License-Identifier: Apache-2.0
"""A text that ends thoughts as a table over tokens, so that no step has to be decoded.

State s says that the shadow, decoded, ends with the first s characters of the text and no more (Knuth, Morris and Pratt);
`table[s, token]` is the state after a token, and the last state is a match that ends where the token ends.
"""

import random

import torch

from .stop import EndOfThinking


_OTHER = 0  # a character that the text does not hold


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
    """(m + 1, V) int16: the state after each token, whose characters are `pieces`, from each state."""
    step, letters, longest = transitions(text), alphabet(text), len(text)
    # What a token ends with decides; no more of it than the text is long.
    ends = [piece[-longest:] for piece in pieces]
    columns = torch.full((len(pieces), longest), -1)
    for i, end in enumerate(ends):
        columns[i, : len(end)] = torch.tensor([letters.get(letter, _OTHER) for letter in end], dtype=torch.long)
    state = torch.arange(longest + 1).unsqueeze(1).expand(-1, len(pieces))  # (m + 1, V)
    for column in columns.unbind(1):
        state = torch.where(column >= 0, step[state, column.clamp(min=0)], state)
    return state.to(torch.int16)


class EndMatcher:
    """
    `EndOfThinking` for a text, with a table in place of the decoding.

    Args:
        end (`EndOfThinking`): of a text that is no added token.
        vocab_size (`int`): V, of the model.

    Raises:
        ValueError: if tokens of this tokenizer do not write their characters one after the other, or the text is not
            ASCII, of which a token could hold half a character.
    """

    is_token = False

    def __init__(self, end: EndOfThinking, vocab_size: int):
        self.ids, self.text = end.ids, end.text
        if not end.text.isascii():
            raise ValueError(
                f"`end_of_thinking` is {end.text!r}, which is not ASCII and no added token, and tokens may hold half a character "
                "of it. Choose a token or an ASCII text, or the in-process engine."
            )
        tokenizer, count = end.tokenizer, min(vocab_size, len(end.tokenizer))
        anchor = end.ids[-1]
        alone = tokenizer.decode([anchor], skip_special_tokens=False)
        after = tokenizer.batch_decode([[anchor, token] for token in range(count)], skip_special_tokens=False)
        pieces = [both[len(alone) :] if both.startswith(alone) else "\0" for both in after]
        self.table = table_of(end.text, pieces + [""] * (vocab_size - count))
        self._check(end, count)

    def _check(self, end: EndOfThinking, count: int) -> None:
        """Decoded texts say the same as the table: the end in several surroundings, and any tokens."""
        draw = random.Random(0)
        some = [[draw.randrange(count) for _ in range(8)] for _ in range(200)]
        near = [row[:4] + end.ids[draw.randrange(len(end.ids)) :] + row[: draw.randrange(2)] for row in some]
        cut = [row[:4] + end.ids[:-1] + [token] for row in some for token in row[:2]]
        shadows = some + near + cut + [row[:4] + end.ids for row in some]
        ours = [self._state(shadow) == len(self.table) - 1 for shadow in shadows]
        if ours != end.match(shadows):
            raise ValueError(
                f"`end_of_thinking` is {end.text!r}, and this tokenizer's tokens do not write their characters one after the "
                "other, so only whole texts can be searched for it. Choose a token, or the in-process engine."
            )

    def _state(self, shadow: list[int]) -> int:
        state = 0
        for token in shadow:
            state = int(self.table[state, token])
        return state
