# SPDX-License-Identifier: Apache-2.0
"""When a thought ends: by itself, by a token or a text that its shadow comes to hold; or cut, by Cold Stop or a cap."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


_BLANKS = 64  # tokens that are looked at behind the end of a thought that a prompt has closed


class EndOfThinking:
    """
    `end_of_thinking`, resolved once against a tokenizer.

    A thought closes with the token in which the text is completed. What of that token reaches beyond the text is the
    *rest*: the answer's first characters. ("The final answer is: " ends inside the token ` \\`, whose rest is the backslash.)

    Args:
        tokenizer (`PreTrainedTokenizerBase`).
        text (`str`): a token of the vocabulary (`</think>`) or any text.

    Attributes:
        ids (`list[int]`): the tokens that write `text`.
        is_token (`bool`): whether that is one of the tokenizer's added tokens, which is compared by id; otherwise the
            shadow's tail is decoded, because a text can be cut into tokens in more than one way.

    Raises:
        ValueError: if the tokenizer can never produce `text`.
    """

    def __init__(self, tokenizer, text: str):
        self.tokenizer, self.text = tokenizer, text
        self.ids = encode(tokenizer, text, "end_of_thinking")
        self.is_token = text in tokenizer.get_added_vocab()
        # A token writes at least one byte, so the tail holds the text however it was cut.
        self.tail = len(text.encode()) + 1

    def __call__(self, shadow: torch.Tensor) -> torch.Tensor:
        """Whether the latest step of each row's shadow ids `(N, t)` ends the thinking: (N,) bool."""
        if self.is_token:
            return shadow[:, -1] == self.ids[0]
        return torch.tensor(self.match(shadow[:, -self.tail :].tolist()), dtype=torch.bool, device=shadow.device)

    def match(self, shadows: list[list[int]]) -> list[bool]:
        """Whether the latest token of each shadow, of any lengths, completes the text."""
        return [rest is not None for rest in self.rests(shadows)]

    def rests(self, shadows: list[list[int]]) -> list[str | None]:
        """What the latest token of each shadow writes beyond the text; `None` where it does not complete the text."""
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
        Whether a prompt has closed its thought: its text ends with the text that ends thoughts, blanks aside. Such a prompt
        is answered at once. An end that stands earlier, in a question or an example, closes nothing.
        """
        (text,) = self._decode([list(prompt[-self.tail - _BLANKS :])])
        _, found, after = text.rpartition(self.text)
        return bool(found) and not after.strip()

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def overlap(rest: str, prefill: str) -> int:
    """
    How many characters of `prefill` a rest has written already: what is forced after it begins there.

    `\\` has one of `\\boxed{`, a line end none, `\\boxed{5` all of them.
    """
    for start in range(len(rest) if prefill and prefill[0] in rest else 0):
        part = rest[start:]
        if prefill.startswith(part) or part.startswith(prefill):
            return min(len(part), len(prefill))
    return 0


@dataclass
class StopRule:
    """
    Every way a thought can end, but the end of the sequence.

    Args:
        end (`EndOfThinking`): the thought ends itself.
        cap (`int`, *optional*): longest thought, in tokens.
        cold_entropy (`float`, *optional*), cold_length (`int`):
            Cold Stop (Soft Thinking, arXiv 2505.15778): cut after `cold_length` steps in a row whose entropy over the
            whole vocabulary, in nats at `temperature`, is below `cold_entropy`.
        temperature (`float`): of the distribution Cold Stop looks at.
    """

    end: EndOfThinking
    cap: int | None = None
    cold_entropy: float | None = None
    cold_length: int = 256
    temperature: float = 1.0

    def cut(self, thoughts: torch.Tensor, logits, calm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Whether a cap is reached after `thoughts` (N,) thoughts, the latest drawn from `logits` with N rows.

        `calm` (N,) counts the cold steps in a row before this one; returns the cut (N,) bool and `calm` brought up.
        """
        cut = torch.zeros_like(calm, dtype=torch.bool) if self.cap is None else thoughts >= self.cap
        if self.cold_entropy is not None:
            low = logits.entropy(self.temperature) < self.cold_entropy
            calm = torch.where(low, calm + 1, 0)
            cut = cut | (calm >= self.cold_length)
        return cut, calm


def encode(tokenizer, text: str, field: str) -> list[int]:
    """Ids that decode to `text` again; a `ValueError` naming the config field if there are none."""
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
