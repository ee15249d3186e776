# SPDX-License-Identifier: Apache-2.0
"""Make a plan from settings. The trainer and `soft_generate` both use it."""

from collections.abc import Sequence

import torch

from ..settings import ThinkingSettings
from ..thoughts import Hard
from ..vocabulary.embedding_table import embedding_scale
from ..vocabulary.head_logits import gathered, whole
from .hard_members import hard_members
from .interface import Plan
from .stop import EndOfThinking, StopRule, encode


def table_rms(model) -> float:
    """Per-element RMS of the embedding module's output, measured over the whole table."""
    embedding = model.get_input_embeddings()
    with torch.no_grad(), gathered(embedding.weight):
        return whole(embedding.weight).float().square().mean().sqrt().item() * embedding_scale(embedding)


def forced_ids(settings: ThinkingSettings, tokenizer, end: EndOfThinking) -> list[list[int]]:
    """`Plan.forced`."""
    if settings.answer_prefill is None:
        return [[], list(end.ids)]
    ended, cut = (encode(tokenizer, text, "answer_prefill") if text else [] for text in settings.answer_prefill)
    if end.is_token:
        return [ended, cut]

    def left(text: str) -> list[int]:
        try:
            return encode(tokenizer, text, "answer_prefill") if text else []
        except ValueError:  # the text begins inside an added token; a rest ends there only by chance
            return ended

    text = settings.answer_prefill[0]
    return [ended, cut, *(left(text[k:]) for k in range(1, len(text) + 1))]


def check_ids(field: str, ids: Sequence[int], vocab_size: int, tokenizer) -> None:
    """Raise a `ValueError` for ids without an embedding in the model."""
    beyond = next((i for i in ids if not 0 <= i < vocab_size), None)
    if beyond is not None:
        written = f" ({tokenizer.convert_ids_to_tokens(beyond)!r})" if 0 <= beyond < len(tokenizer) else ""
        raise ValueError(
            f"{field} holds token {beyond}{written}, but the model has {vocab_size} tokens, numbered from 0. "
            "Call `model.resize_token_embeddings(len(tokenizer))`, or choose tokens that the model has."
        )


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int, tokenizer) -> None:
    """Raise a `ValueError` for prompts (lists of ids) that a model of V tokens cannot read."""
    if not all(prompts):
        raise ValueError(
            "A prompt has no tokens, so there is nothing to continue. Remove it, or begin it with a token."
        )
    for prompt in prompts:
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            check_ids("A prompt", prompt, vocab_size, tokenizer)


def make_plan(
    settings: ThinkingSettings,
    tokenizer,
    answer: Hard,
    *,
    vocab_size: int,
    max_completion_length: int,
    eos_token_ids: list[int],
    rms: float | None = None,
    evaluation: bool = False,
    repetition_penalty: float = 1.0,
) -> Plan:
    """
    Resolve the settings against a tokenizer and a model's sizes.

    Raises:
        ValueError: if `end_of_thinking` or `answer_prefill` can never be produced or are not among the model's tokens, if
            the thought asks for more candidates than there are tokens, or if thought and forced text leave no room for an
            answer.
    """
    end = EndOfThinking(tokenizer, settings.end_of_thinking)
    forced = forced_ids(settings, tokenizer, end)
    prefilled = sorted({i for row in forced for i in row} if settings.answer_prefill is not None else ())
    for field, ids in (("end_of_thinking", end.ids), ("answer_prefill", prefilled)):
        check_ids(f"`{field}`", ids, vocab_size, tokenizer)
        ending = sorted(set(ids) & set(eos_token_ids))
        if ending:
            raise ValueError(
                f"`{field}` holds {tokenizer.convert_ids_to_tokens(ending)}, which ends the whole completion, so no "
                "answer would follow the thought. Choose another token or text."
            )
    return plan_of_ids(
        settings,
        end,
        forced,
        answer,
        members=members_of(settings, tokenizer, vocab_size),
        vocab_size=vocab_size,
        max_completion_length=max_completion_length,
        eos_token_ids=eos_token_ids,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        rms=rms,
        evaluation=evaluation,
        repetition_penalty=repetition_penalty,
    )


def members_of(settings: ThinkingSettings, tokenizer, vocab_size: int) -> torch.Tensor | None:
    """The tokens that stay hard, (V,) bool. `None` if the settings name none."""
    if not settings.keeps_tokens_hard:
        return None
    return hard_members(tokenizer, vocab_size, settings.hard_tokens, settings.hard_token_pattern)


def plan_of_ids(
    settings: ThinkingSettings,
    end: EndOfThinking,
    forced: Sequence[Sequence[int]],
    answer: Hard,
    *,
    vocab_size: int,
    max_completion_length: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    members: torch.Tensor | None = None,
    rms: float | None = None,
    evaluation: bool = False,
    repetition_penalty: float = 1.0,
) -> Plan:
    """As `make_plan`, for texts that are ids already, without a tokenizer. `members`: the result of `members_of`."""
    thought = settings.make_thought(answer, rms, evaluation, members)
    if evaluation and settings.eval_greedy:
        answer = Hard(0.0)
    if thought.top_k > vocab_size and (settings.thinking_top_k is not None or thought.is_token):
        raise ValueError(
            f"`thinking_top_k` is {thought.top_k}, but the model has only {vocab_size} tokens. Set it to at most {vocab_size}."
        )
    if thought.neighbours > vocab_size:
        raise ValueError(
            f"A {thought.name} thought mixes {thought.neighbours} tokens, but the model has only {vocab_size}. Mix fewer."
        )
    gate = settings.make_gate(evaluation)
    if gate is not None:
        gate.check_vocabulary(vocab_size)
    cap, longest = settings.max_thinking_length, max(map(len, forced))
    if (cap or 1) + longest >= max_completion_length:
        raise ValueError(
            f"A thought of up to {cap or 1} tokens (`max_thinking_length`) and {longest} forced tokens fill "
            f"`max_completion_length`, {max_completion_length}: no room is left for an answer. Lower "
            "`max_thinking_length`, shorten `answer_prefill` or raise `max_completion_length`."
        )
    return Plan(
        thought=thought.bound(vocab_size),
        answer=answer,
        stop=StopRule(
            end,
            cap,
            settings.cold_stop_entropy,
            settings.cold_stop_length,
            thought.temperature or 1.0,  # a greedy hard thought has no temperature
        ),
        max_completion_length=max_completion_length,
        eos_token_ids=list(eos_token_ids),
        pad_token_id=pad_token_id,
        forced=forced,
        prefill=settings.answer_prefill[0] if settings.answer_prefill is not None else "",
        repetition_penalty=repetition_penalty,
        max_answer_length=settings.max_answer_length,
        gate=gate,
    )
