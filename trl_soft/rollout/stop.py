# SPDX-License-Identifier: Apache-2.0
"""When a thought ends: by itself, with a token or a text in its shadow; or cut, by Cold Stop or a cap.

The *shadow* of a thought is the text of its shadow tokens: the one token that stands for each step in `completion_ids`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


_BLANKS = 64  # tokens of blanks that may follow the end of thinking in a prompt


class EndOfThinking:
    """
    `end_of_thinking`, resolved once against a tokenizer.

    A thought closes with the token that completes the text. If that token writes more than the text, the additional characters
    are the *rest*: the first characters of the answer. ("The final answer is: " ends inside the token ` \\`, whose rest is the
    backslash.)

    Args:
        tokenizer (`PreTrainedTokenizerBase`).
        text (`str`): a token of the vocabulary (`</think>`) or any text.

    Attributes:
        ids (`list[int]`): the tokens that write `text`.
        is_token (`bool`): whether the text is one of the tokenizer's added tokens, which is compared by id. Otherwise the
            end of the shadow is decoded, because a text can be cut into tokens in more than one way.

    Raises:
        ValueError: if the tokenizer can never produce `text`.
    """

    def __init__(self, tokenizer, text: str):
        self.tokenizer, self.text = tokenizer, text
        self.ids = encode(tokenizer, text, "end_of_thinking")
        self.is_token = text in tokenizer.get_added_vocab()
        # A token writes at least one byte, so the tail holds the text however it was cut.
        self.tail = len(text.encode()) + 1

    def rests(self, shadows: list[list[int]]) -> list[str | None]:
        """The rest that the latest token of each shadow writes. `None` if the token does not complete the text."""
        if self.is_token:
            return ["" if shadow[-1:] == self.ids else None for shadow in shadows]
        tails = [shadow[-self.tail :] for shadow in shadows]
        return [
            self._rest(tail, text) if self.text in text else None
            for tail, text in zip(tails, self._decode(tails), strict=True)
        ]

    def _rest(self, tail: list[int], text: str) -> str | None:
        # Half a character is a replacement character until its other half comes.
        before = self._decode([tail[:-1]])[0].rstrip("\ufffd")
        start = text.find(self.text, max(len(before) - len(self.text) + 1, 0))
        return None if start < 0 else text[start + len(self.text) :]

    def closes(self, prompt: Sequence[int]) -> bool:
        """
        Whether a prompt has closed its thought: its text ends with the end of thinking, except for blanks. Such a prompt is
        answered at once. An end of thinking that stands earlier, in a question or an example, does not count.
        """
        (text,) = self._decode([list(prompt[-self.tail - _BLANKS :])])
        _, found, after = text.rpartition(self.text)
        return bool(found) and not after.strip()

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class EndToken:
    """The token that ends a thought, without a tokenizer."""

    is_token = True

    def __init__(self, token: int):
        self.ids = [token]


def overlap(rest: str, prefill: str) -> int:
    """
    How many characters of `prefill` a rest has already written. The forced text starts after them.

    For the prefill `\\boxed{`, the rest `\\` has written one character, a line end none, and `\\boxed{5` all of them.
    """
    for start in range(len(rest) if prefill and prefill[0] in rest else 0):
        part = rest[start:]
        if prefill.startswith(part) or part.startswith(prefill):
            return min(len(part), len(prefill))
    return 0


@dataclass
class StopRule:
    """
    Every way in which a thought can end, except the end of the sequence.

    Args:
        end (`EndOfThinking`): the thought ends itself.
        cap (`int`, *optional*): longest thought, in tokens.
        cold_entropy (`float`, *optional*), cold_length (`int`):
            Cold Stop (Soft Thinking, arXiv 2505.15778): cut the thought after `cold_length` steps in a row whose entropy is
            below `cold_entropy`. The entropy is over the whole vocabulary, in nats, at `temperature`.
        temperature (`float`): temperature of the distribution for Cold Stop.
    """

    end: EndOfThinking
    cap: int | None = None
    cold_entropy: float | None = None
    cold_length: int = 256
    temperature: float = 1.0


def encode(tokenizer, text: str, field: str) -> list[int]:
    """Ids that decode to `text` again. If there are none, a `ValueError` names the config field."""
    if not text:
        raise ValueError(f"`{field}` is empty, so nothing can match it. Set it to a token or a text.")
    token = tokenizer.convert_tokens_to_ids(text)
    # Names in a byte-level vocabulary look like text: its token called "\u00e9" writes the byte 0xE9, half of a character.
    known = token is not None and token != tokenizer.unk_token_id and tokenizer.decode([token]).strip() == text.strip()
    ids = [token] if known else tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids or tokenizer.decode(ids).strip() != text.strip():
        raise ValueError(
            f"`{field}` is {text!r}, but this tokenizer cannot produce it: it writes "
            f"{tokenizer.decode(ids) if ids else 'nothing'!r} instead. Choose a token of its vocabulary or a text made "
            "of characters it knows."
        )
    return ids
