# SPDX-License-Identifier: Apache-2.0
"""The bytes that each token of a tokenizer writes. They are sorted once, so that the tokens of a text are found by search."""

import functools
import string
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np


HALF = "\ufffd"  # half a character is decoded to this


class Pieces:
    """
    Args:
        pieces (list of V `bytes`): the bytes that each token writes after other tokens, in UTF-8.
        halves (`bool`): whether the bytes of all tokens that write a part of a character are known.

    Attributes:
        of (list of V `bytes`), halves: the same.
        lengths (`numpy.ndarray` of shape `(V,)`): number of bytes of each token.
    """

    def __init__(self, pieces: Sequence[bytes], halves: bool = True):
        self.of, self.halves = list(pieces), halves
        self.lengths = np.array([len(piece) for piece in self.of], dtype=np.int64)
        self._forward, self._by_begin = _sorted(self.of)
        self._backward, self._by_end = _sorted([piece[::-1] for piece in self.of])
        self._flat = np.frombuffer(b"".join(self.of), dtype=np.uint8)
        self._starts = np.concatenate(([0], np.cumsum(self.lengths)))
        # In UTF-8 only the first byte of a character is not of the form 10xxxxxx.
        self._characters = np.concatenate(([0], np.cumsum((self._flat & 0xC0) != 0x80)))
        self._whole = np.array([_is_text(piece) for piece in self.of], dtype=bool)

    def beginnings(self, text: bytes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """
        For n = 0, 1, ... up to the length of a text: the tokens that begin with its first n bytes, and the tokens that write
        exactly these bytes. It ends earlier if no token is left.
        """
        low, high = 0, len(self._forward)
        for n in range(len(text) + 1):
            low = bisect_left(self._forward, text[:n], low, high)
            high = bisect_left(self._forward, _after(text[:n]), low, high) if n else high
            if low == high:
                return
            same = bisect_right(self._forward, text[:n], low, high)
            yield self._by_begin[low:high], self._by_begin[low:same]

    def ending(self, text: bytes) -> np.ndarray:
        """The tokens that end with a text of one byte or more."""
        back = text[::-1]
        return self._by_end[bisect_left(self._backward, back) : bisect_left(self._backward, _after(back))]

    def holding(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that hold a text, and the place where it first begins in each."""
        places = np.flatnonzero(self._flat == text[0])
        for i, byte in enumerate(text[1:], 1):
            places = places[places + i < len(self._flat)]
            places = places[self._flat[places + i] == byte]
        tokens = np.searchsorted(self._starts, places, side="right") - 1
        inside = places + len(text) <= self._starts[tokens + 1]
        tokens, first = np.unique(tokens[inside], return_index=True)
        return tokens, places[inside][first] - self._starts[tokens]

    def characters(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Number of characters in the last `lengths` (N,) bytes of tokens (N,). The first byte begins a character."""
        ends = self._starts[tokens + 1]
        counts = self._characters[ends] - self._characters[ends - lengths]
        for i in np.flatnonzero(~self._whole[tokens]):
            counts[i] = len(self.rest(tokens[i], lengths[i]))
        return counts

    def rest(self, token: int, length: int) -> str:
        """The last `length` bytes of a token, as they are decoded."""
        piece = self.of[token]
        return piece[len(piece) - length :].decode(errors="replace")


def _sorted(pieces: list[bytes]) -> tuple[list[bytes], np.ndarray]:
    """Sorted texts, and the index of each before sorting."""
    order = sorted(range(len(pieces)), key=pieces.__getitem__)
    return [pieces[token] for token in order], np.array(order, dtype=np.int64)


def _after(text: bytes) -> bytes:
    """The first text, in sorted order, after all texts that begin with `text`. No byte of UTF-8 is 255."""
    return text[:-1] + bytes([text[-1] + 1])


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


@functools.lru_cache(maxsize=4)
def pieces_of(tokenizer, vocab_size: int) -> Pieces:
    """
    The bytes that the tokens of a tokenizer write after another token.

    This takes seconds for a large vocabulary, once for each tokenizer. The cache knows tokenizers by identity.

    Raises:
        ValueError: if no token writes a single ASCII character, after which the other tokens could be read.
    """
    exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    for letter in string.ascii_letters + string.digits + string.punctuation:
        ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and (alone := tokenizer.decode(ids, **exact)).strip() == letter:
            break
    else:
        raise ValueError(
            "No token of this tokenizer is one ASCII character, so the text of a single token cannot be found. Choose a token as "
            "`end_of_thinking`, or the engine `simple`."
        )
    count = min(vocab_size, len(tokenizer))
    after = tokenizer.batch_decode([[ids[0], token] for token in range(count)], **exact)
    written = [both[len(alone) :] if both.startswith(alone) else "\0" for both in after]
    pieces = [piece.encode(errors="replace") for piece in written]
    torn = [token for token, piece in enumerate(written) if HALF in piece]
    known = [_bytes_of(tokenizer.convert_ids_to_tokens(token), written[token]) for token in torn]
    for token, piece in zip(torn, known, strict=True):
        pieces[token] = pieces[token] if piece is None else piece
    return Pieces(pieces + [b""] * (vocab_size - count), all(piece is not None for piece in known))


def _bytes_of(token: str, written: str) -> bytes | None:
    """
    The bytes of a token that is decoded with a replacement character, from its name in the vocabulary.

    The name is a byte of SentencePiece (`<0xE7>`), or bytes in GPT-2's alphabet. `None` if it is neither.
    """
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    alphabet = _alphabet()
    if all(letter in alphabet for letter in token):
        piece = bytes(alphabet[letter] for letter in token)
        if piece.decode(errors="replace") == written:
            return piece
    return written.encode() if token == written else None


@functools.cache
def _alphabet() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
