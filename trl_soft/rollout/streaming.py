# SPDX-License-Identifier: Apache-2.0
"""A completion while it grows: streamers that see each step, and the text of tokens that come one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation.streamers import BaseStreamer

from ..record import SoftTokens
from .interface import Rollout, Watch
from .pieces import HALF


@dataclass
class SoftStep:
    """
    One step of a completion.

    Args:
        token_id (`int`): the token that is written down.
        thinking (`bool`): whether the step is part of the thought. The closing step is.
        record (`SoftTokens`): its record, (1, 1), in the host's memory. `record.candidates(0)` and `record.weights(0)` are the mixture.
        entropy (`float`): in nats, of the distribution that it was drawn from.
        surplus (`int`): characters of the closing step's token that belong to the answer. 0 at every other step.
    """

    token_id: int
    thinking: bool
    record: SoftTokens
    entropy: float
    surplus: int


class SoftStreamer(BaseStreamer):
    """
    Base class of streamers for [`soft_generate`] that see thoughts.

    The calls are those of transformers' `BaseStreamer`: `put(value)` with the prompt's ids, (1, P) int64, and `end()` after the last
    step. In between there is one `put_step` for each step, in place of `put` with its token. A streamer must not use the model.
    """

    def put_step(self, step: SoftStep) -> None:
        """Takes one step."""
        raise NotImplementedError


def streamed(streamer: BaseStreamer, ids: Sequence[Sequence[int]]) -> Watch:
    """
    Begin to stream the completion of the only prompt of `ids`: the `watch` of an engine that hands each step to the streamer.

    Raises:
        ValueError: if there are several completions.
    """
    if len(ids) != 1:
        raise ValueError(
            f"`streamer` shows one completion, but {len(ids)} were asked for (prompts x `num_generations`). Pass one prompt "
            "with `num_generations=1`, or leave `streamer` out."
        )
    streamer.put(torch.tensor(ids))
    seen = 0

    def watch(_: int, gained: Rollout) -> None:
        nonlocal seen
        length, surplus = int(gained.thinking_length), int(gained.thinking_surplus)
        for column in range(gained.completion_ids.size(1)):
            if isinstance(streamer, SoftStreamer):
                streamer.put_step(
                    SoftStep(
                        token_id=int(gained.completion_ids[0, column]),
                        thinking=seen < length,
                        record=gained.record.columns(slice(column, column + 1)),
                        entropy=float(gained.entropies[0, column]) + 0.0,  # -0.0 becomes 0.0
                        surplus=surplus if seen == length - 1 else 0,
                    )
                )
            else:
                streamer.put(gained.completion_ids[0, column : column + 1])
            seen += 1

    return watch


class WholeCharacters:
    """
    The text of tokens that come one by one, in whole characters.

    A character of several bytes may take several tokens, and some tokenizers write a token differently where a text begins. So a
    token is decoded after those before it, and text that ends inside a character waits for the next token.

    Args:
        tokenizer. decode_kwargs: further arguments of its `decode`.
    """

    def __init__(self, tokenizer, **decode_kwargs):
        self._tokenizer, self._kwargs = tokenizer, {"clean_up_tokenization_spaces": False} | decode_kwargs
        self._ids: list[int] = []  # those whose text has come out, as far as the next one is decoded after them
        self._waiting: list[int] = []

    def put(self, token_id: int) -> str:
        """The text that is whole with this token. It may be empty."""
        self._waiting.append(token_id)
        return self._text(wait=True)

    def end(self) -> str:
        """The text that is left. It may end with a replacement character."""
        return self._text(wait=False)

    def _text(self, wait: bool) -> str:
        before = self._decode(self._ids)
        text = self._decode(self._ids + self._waiting)
        if wait and (text.endswith(HALF) or len(text) <= len(before)):
            return ""
        self._ids, self._waiting = self._waiting, []
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, **self._kwargs)
