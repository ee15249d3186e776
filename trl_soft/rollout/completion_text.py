# SPDX-License-Identifier: Apache-2.0
"""The text of a completion. Rewards, graders, pages and callers all use this one."""

from collections.abc import Sequence

from .interface import Plan


def completion_texts(tokenizer, completions: Sequence[Sequence[int]], plan: Plan) -> list[str]:
    """
    Decode completions (lists of ids) to the text that is judged, in training and in evaluation.

    Ends of sequence and padding (`eos_token_ids`, `pad_token_id`) are left out. Every other token is written, special tokens
    too: `</think>` is special only in some tokenizers, and an answer is read after it.
    """
    silent = {*plan.eos_token_ids, plan.pad_token_id}
    kept = [[i for i in ids if i not in silent] for ids in completions]
    return tokenizer.batch_decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def answer_start(tokenizer, completion: Sequence[int], thinking_length: int, surplus: int, plan: Plan) -> int:
    """
    The place in the text of a completion (`completion_texts`) where the answer begins.

    It is the end of the thoughts' text, less the characters that the token of the closing step writes beyond the end of
    thinking (`Rollout.thinking_surplus`).
    """
    (thoughts,) = completion_texts(tokenizer, [completion[:thinking_length]], plan)
    (before,) = completion_texts(tokenizer, [completion[: max(thinking_length - 1, 0)]], plan)
    # A closing step may have drawn a token that is not written, such as `<pad>` if "a" ends thoughts.
    return max(len(thoughts) - surplus, min(len(before), len(thoughts)))


def answer_phase(tokenizer, completion: Sequence[int], thinking_length: int, surplus: int, plan: Plan) -> str | None:
    """
    The text of a completion after its thought, with the forced text. Empty if the thought ended the completion.

    `None` if the plan forces no beginning of answers: then a thought may contain the answer, and all of the completion is
    judged.
    """
    if not plan.begins_answers:
        return None
    (text,) = completion_texts(tokenizer, [completion], plan)
    return text[answer_start(tokenizer, completion, thinking_length, surplus, plan) :]
