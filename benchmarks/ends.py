# SPDX-License-Identifier: Apache-2.0
"""Ends of thinking for benchmarks, where there is no model's tokenizer."""

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_soft.rollout import EndOfThinking


class Never:
    """A token that never comes, so that a thought ends by its cap or not at all."""

    is_token, ids = True, (-1,)

    def closes(self, prompt) -> bool:
        return False


def ends_with(text: str) -> EndOfThinking:
    """A text, cut into tokens of a character each."""
    letters = {letter: i for i, letter in enumerate(string.printable)}
    core = Tokenizer(models.WordLevel(letters, unk_token="?"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return EndOfThinking(PreTrainedTokenizerFast(tokenizer_object=core), text)
