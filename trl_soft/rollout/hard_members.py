# SPDX-License-Identifier: Apache-2.0
"""The tokens of a vocabulary that `hard_tokens` and `hard_token_pattern` name."""

import functools
import time

import regex
import torch

from .pieces import pieces_of


# A server takes patterns from clients. Some patterns take time exponential in the length of a text.
SECONDS = 10.0


def hard_members(tokenizer, vocab_size: int, tokens: list[str] | None, pattern: str | None) -> torch.Tensor:
    """
    Which tokens stay hard: those that write exactly one of the texts `tokens`, or a text in which `pattern` is found.

    A token's text is what it writes after another token, with its blanks: ` 7` and `7` are two texts.

    Returns:
        (V,) bool.

    Raises:
        ValueError: if a text is that of no token, or if no token or every token stays hard.
    """
    return _members(tokenizer, vocab_size, tuple(tokens or ()), pattern)


@functools.lru_cache(maxsize=16)
def _members(tokenizer, vocab_size: int, tokens: tuple[str, ...], pattern: str | None) -> torch.Tensor:
    texts = [piece.decode(errors="replace") for piece in pieces_of(tokenizer, vocab_size).of]
    for text in tokens:
        if text not in texts:
            raise ValueError(
                f"`hard_tokens` holds {text!r}, but no token of this tokenizer writes exactly this text (a token's text has its "
                "blanks). Name a token, or use `hard_token_pattern`."
            )
    named = set(tokens)
    found = [
        bool(text) and (text in named or matches)
        for text, matches in zip(texts, _matches(texts, pattern), strict=True)
    ]
    if not any(found):
        raise ValueError(
            f"`hard_token_pattern` is {pattern!r}, but it is found in no token of this tokenizer. Correct it, or leave it unset."
        )
    if all(matches or not text for text, matches in zip(texts, found, strict=True)):
        raise ValueError(
            "`hard_tokens` and `hard_token_pattern` name every token of this tokenizer, so no step would be a mixture. Name fewer, "
            "or set `thought: hard`."
        )
    return torch.tensor(found)


def _matches(texts: list[str], pattern: str | None) -> list[bool]:
    if pattern is None:
        return [False] * len(texts)
    compiled, end = regex.compile(pattern), time.monotonic() + SECONDS
    try:
        return [compiled.search(text, timeout=max(end - time.monotonic(), 1e-3)) is not None for text in texts]
    except TimeoutError:
        raise ValueError(
            f"`hard_token_pattern` is {pattern!r}, whose search takes more than {SECONDS:g} seconds over the vocabulary. Write it "
            "without nested repetitions."
        ) from None
