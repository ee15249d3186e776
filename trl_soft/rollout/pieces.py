# SPDX-License-Identifier: Apache-2.0
"""What each token of a tokenizer writes, sorted once, so that the tokens that have to do with a text are found without a walk."""

import functools
import string
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np


class Pieces:
    """
    Args:
        pieces (`list[str]`, V): the characters that each token writes behind other tokens.

    Attributes:
        of (`list[str]`, V): the same.
        lengths (`numpy.ndarray` of shape `(V,)`): characters of each.
    """

    def __init__(self, pieces: Sequence[str]):
        self.of = list(pieces)
        self.lengths = np.array([len(piece) for piece in self.of], dtype=np.int64)
        self._forward, self._by_begin = _sorted(self.of)
        self._backward, self._by_end = _sorted([piece[::-1] for piece in self.of])
        # A byte for each character. Texts are ASCII, so one byte may stand for all other characters.
        flat = np.frombuffer("".join(self.of).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        self._flat = np.minimum(flat, 128).astype(np.uint8)
        self._starts = np.concatenate(([0], np.cumsum(self.lengths)))

    def beginnings(self, text: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """
        For n = 0, 1, ... up to the length of an ASCII text, or to where none is left: the tokens that begin with the first n
        characters of the text, and those that write them and nothing else.
        """
        low, high = 0, len(self._forward)
        for n in range(len(text) + 1):
            low = bisect_left(self._forward, text[:n], low, high)
            high = bisect_left(self._forward, _after(text[:n]), low, high) if n else high
            if low == high:
                return
            same = bisect_right(self._forward, text[:n], low, high)
            yield self._by_begin[low:high], self._by_begin[low:same]

    def ending(self, text: str) -> np.ndarray:
        """The tokens that end with an ASCII text of one character or more."""
        back = text[::-1]
        return self._by_end[bisect_left(self._backward, back) : bisect_left(self._backward, _after(back))]

    def holding(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that hold an ASCII text, and the place where it first begins in each."""
        places = np.flatnonzero(self._flat == ord(text[0]))
        for i, letter in enumerate(text[1:], 1):
            places = places[places + i < len(self._flat)]
            places = places[self._flat[places + i] == ord(letter)]
        tokens = np.searchsorted(self._starts, places, side="right") - 1
        inside = places + len(text) <= self._starts[tokens + 1]
        tokens, first = np.unique(tokens[inside], return_index=True)
        return tokens, places[inside][first] - self._starts[tokens]


def _sorted(pieces: list[str]) -> tuple[list[str], np.ndarray]:
    """Texts in order, and which each was."""
    order = sorted(range(len(pieces)), key=pieces.__getitem__)
    return [pieces[token] for token in order], np.array(order, dtype=np.int64)


def _after(text: str) -> str:
    """The first text in order behind all that begin with `text`."""
    return text[:-1] + chr(ord(text[-1]) + 1)


@functools.lru_cache(maxsize=4)
def pieces_of(tokenizer, vocab_size: int) -> Pieces:
    """
    What the tokens of a tokenizer write behind another token; seconds for a large vocabulary, once for each tokenizer, which is
    known by identity.

    Raises:
        ValueError: if no token writes a single ASCII character, behind which the others could be read.
    """
    exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    for letter in string.ascii_letters + string.digits + string.punctuation:
        ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and (alone := tokenizer.decode(ids, **exact)).strip() == letter:
            break
    else:
        raise ValueError(
            "No token of this tokenizer is one ASCII character, so what its tokens write cannot be told apart. Choose a token as "
            "`end_of_thinking`, or the in-process engine."
        )
    count = min(vocab_size, len(tokenizer))
    after = tokenizer.batch_decode([[ids[0], token] for token in range(count)], **exact)
    pieces = [both[len(alone) :] if both.startswith(alone) else "\0" for both in after]
    return Pieces(pieces + [""] * (vocab_size - count))
