# SPDX-License-Identifier: Apache-2.0
"""The text of a completion: one and the same for rewards, graders, pages and callers."""

from collections.abc import Sequence

from .interface import Plan


def completion_texts(tokenizer, completions: Sequence[Sequence[int]], plan: Plan) -> list[str]:
    """
    Decode completions (lists of ids) as they are judged, in training and in evaluation.

    What ends or fills a completion (`eos_token_ids`, `pad_token_id`) is left out. Every other token is written, special ones
    too: `</think>` is special in some tokenizers and not in others, and an answer is read from there on.
    """
    silent = {*plan.eos_token_ids, plan.pad_token_id}
    kept = [[i for i in ids if i not in silent] for ids in completions]
    return tokenizer.batch_decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def answer_start(tokenizer, completion: Sequence[int], thinking_length: int, surplus: int, plan: Plan) -> int:
    """
    Where in the text of a completion (`completion_texts`) the answer begins: behind the text of its thoughts, less the
    characters that the closing step's token writes beyond the end of thinking (`Rollout.thinking_surplus`).
    """
    (thoughts,) = completion_texts(tokenizer, [completion[:thinking_length]], plan)
    (before,) = completion_texts(tokenizer, [completion[: max(thinking_length - 1, 0)]], plan)
    # A closing step may have drawn a token that is not written, such as `<pad>` where "a" ends thoughts.
    return max(len(thoughts) - surplus, min(len(before), len(thoughts)))


def answer_phase(tokenizer, completion: Sequence[int], thinking_length: int, surplus: int, plan: Plan) -> str | None:
    """
    The text of a completion behind its thought, what was forced included; empty where the thought ended the completion.

    `None` where the plan begins no answers: then a thought may answer by itself, and all of the completion is judged.
    """
    if not plan.begins_answers:
        return None
    (text,) = completion_texts(tokenizer, [completion], plan)
    return text[answer_start(tokenizer, completion, thinking_length, surplus, plan) :]
