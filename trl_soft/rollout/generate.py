# SPDX-License-Identifier: Apache-2.0
"""`soft_generate`: thoughts and answers from any causal LM, without a trainer."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers.generation.streamers import BaseStreamer

from .. import saved_settings
from ..forward import soft_tokens_added
from ..ranges import check, check_number
from ..record import SoftTokens
from ..settings import ThinkingSettings
from ..thoughts import Hard
from .completion_text import completion_texts
from .engines import ENGINES
from .interface import Engine, EngineOptions, Key, Plan, Rollout
from .make_plan import check_prompts, make_plan, table_rms
from .streaming import streamed


@dataclass
class SoftCompletions:
    """
    `num_generations` completions of every prompt, in the order of the prompts: n = prompts x num_generations.

    Args:
        texts (`list[str]`, n):
            The completions, decoded from the shadow text, with special tokens such as `</think>` but without the end of
            sequence.
        completion_ids (`list[list[int]]`, n): the shadow text, up to and including the end of sequence.
        records (`list[SoftTokens]`, n): the thoughts of each completion, shape (1, its length), in the host's memory.
        log_probs, entropies (`list[list[float]]`, n): per token, as drawn, in nats.
        thinking_lengths (`list[int]`, n):
            Number of thoughts in each completion, with the closing step. 0 if the prompt has closed its thought.
        thinking_surplus (`list[int]`, n):
            Characters that the token of the closing step writes beyond `end_of_thinking`. They are the answer's first ones.
        thinking_cut (`list[bool]`, n): whether the thought reached a cap.
    """

    texts: list[str]
    completion_ids: list[list[int]]
    records: list[SoftTokens]
    log_probs: list[list[float]]
    entropies: list[list[float]]
    thinking_lengths: list[int]
    thinking_surplus: list[int]
    thinking_cut: list[bool]

    @property
    def record(self) -> SoftTokens:
        """All records as one, (n, C)."""
        return SoftTokens.cat(self.records)

    def to_pandas(self):
        """All thoughts as one table with their entropies; see [`SoftTokens.to_pandas`]."""
        return self.record.to_pandas(self.entropies)


def soft_generate(
    model, tokenizer, prompts: Sequence[str | list[int] | list[dict]], settings: ThinkingSettings | None = None, *,
    num_generations: int = 1, max_completion_length: int = 256,
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float | None = None, repetition_penalty: float = 1.0,
    seed: int = 0, generation: int = 0,
    engine: str = "slots", slots: int = 64, cache_gb: float | None = None, cuda_graphs: bool = True,
    lengths: list[int] | None = None, chat_template_kwargs: dict | None = None, progress: bool = True, evaluation: bool = False,
    streamer: BaseStreamer | None = None,
) -> SoftCompletions:  # fmt: skip
    """
    Complete prompts with soft thoughts, then answers in tokens.

    Args:
        model: a causal LM of transformers, or a PEFT model around one. It is left as it was.
        tokenizer: its tokenizer.
        prompts:
            One of these:

            - texts. The tokenizer adds its usual tokens. Some add a beginning of sequence: leave it out of a text that a chat
              template has made.
            - conversations, lists of messages (`{"role": ..., "content": ...}`). The chat template is applied. A last message
              of the assistant is continued.
            - lists of ids, which are used as they are.

            A prompt that ends with `end_of_thinking` and blanks (Qwen3's template with `enable_thinking=False`) has closed its
            thought. Its completion begins with the answer.
        settings (`ThinkingSettings`, *optional*):
            How to think. `None`: as the model was trained. This is read from its config, its adapter, or
            `thinking_config.json` in the folder that it was loaded from.
        num_generations (`int`): completions of each prompt.
        max_completion_length (`int`): cap of thought and answer together, in tokens.
        temperature, top_k, top_p, min_p, repetition_penalty: sampling of the answer. Temperature 0 means greedy.
        seed, generation (`int`): key of the noise, together with the completion's number and the position.
        engine (`str`): `slots`, or `simple` for models whose layers keep more than keys and values.
        slots, cache_gb, cuda_graphs: speed and memory, see `EngineOptions`. They do not change a completion.
        lengths (`list[int]`, *optional*): cap of each completion, prompts x num_generations, below `max_completion_length`.
        chat_template_kwargs (`dict`, *optional*): further arguments of the chat template, as in TRL's configs.
        progress (`bool`): show a bar over completions.
        evaluation (`bool`): think with `settings.eval_thought`, if it is set.
        streamer (`BaseStreamer`, *optional*):
            Sees one completion grow, as in transformers' `generate`: `TextStreamer(tokenizer)` prints its text. A [`SoftStreamer`]
            also gets what each thought is made of. There is no bar then.
    """
    _check_types(prompts, settings, engine)
    _check_key(num_generations, max_completion_length, seed, generation)
    options = EngineOptions(slots, cache_gb, cuda_graphs=cuda_graphs, lengths=lengths)
    answer = _answer(temperature, top_k, top_p, min_p, repetition_penalty)
    plan = _plan(model, tokenizer, settings, answer, max_completion_length, repetition_penalty, evaluation)
    ids = prompt_ids(tokenizer, prompts, chat_template_kwargs)
    check_prompts(ids, _base(model).config.get_text_config().vocab_size, tokenizer)
    ids = [row for row in ids for _ in range(num_generations)]
    if streamer is not None:
        options.watch = streamed(streamer, ids)
    key = Key(seed, generation, torch.arange(len(ids), device=_base(model).device))
    parts = _rollouts(ENGINES[engine], model, ids, plan, key, options, progress and streamer is None)
    if streamer is not None:
        streamer.end()
    return _completions(tokenizer, plan, parts)


def _check_types(prompts, settings, engine: str) -> None:
    if isinstance(prompts, str):
        raise TypeError("`prompts` is one text, which would be read as a list of letters. Pass a list: `[prompt]`.")
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(
            f"`prompts` is a {type(prompts).__name__}. Pass a list of texts, conversations or lists of ids."
        )
    if not prompts:
        raise ValueError("`prompts` is empty, so there is nothing to complete. Pass at least one prompt.")
    if settings is not None and not isinstance(settings, ThinkingSettings):
        raise TypeError(f"`settings` is a {type(settings).__name__}. Pass `ThinkingSettings(...)`.")
    if engine not in ENGINES:
        raise ValueError(f"`engine` is {engine!r}. Choose one of {', '.join(ENGINES)}.")


def _check_key(num_generations: int, max_completion_length: int, seed: int, generation: int) -> None:
    check_number("num_generations", num_generations, 1, None, whole=True)
    check_number("max_completion_length", max_completion_length, 1, None, whole=True)
    check_number("seed", seed, 0, 2**64 - 1, whole=True)
    check_number("generation", generation, 0, 2**32 - 1, whole=True)


def _answer(temperature: float, top_k: int, top_p: float, min_p: float | None, repetition_penalty: float) -> Hard:
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    for name, value in sampling.items():
        check(name, value)
    check("min_p", min_p, optional=True)
    return Hard(temperature, top_k, top_p, min_p)


def _base(model):
    """The causal LM under an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plan(model, tokenizer, settings, answer: Hard, length: int, repetition_penalty: float, evaluation: bool) -> Plan:
    """The plan of the settings, or of those that the model has brought along."""
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has neither a padding nor an end token to pad with. Set `tokenizer.pad_token`."
        )
    base = _base(model)
    eos = base.generation_config.eos_token_id
    eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in eos:
        eos.append(tokenizer.eos_token_id)
    return make_plan(
        _brought(model) if settings is None else settings,
        tokenizer,
        answer,
        vocab_size=base.config.get_text_config().vocab_size,
        max_completion_length=length,
        eos_token_ids=eos,
        rms=table_rms(base),
        evaluation=evaluation,
        repetition_penalty=repetition_penalty,
    )


def _rollouts(
    engine: Engine, model, ids: list[list[int]], plan: Plan, key: Key, options: EngineOptions, progress: bool
) -> list[Rollout]:
    """What an engine makes of each of the n prompts, (1, its length), in the host's memory."""
    parts: dict[int, Rollout] = {}
    with (
        soft_tokens_added(_base(model)),
        tqdm(total=len(ids), disable=not progress, desc="Generating", unit="sample") as bar,
        closing(engine(model, ids, plan, key, options)) as finished,
    ):
        for numbers, rollout in finished:
            rollout = rollout.to("cpu")
            lengths = rollout.completion_mask.sum(-1).tolist()
            for row, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
                parts[number] = rollout[row : row + 1].columns(slice(0, length))
            bar.update(len(numbers))
    return [parts[number] for number in range(len(ids))]


def _completions(tokenizer, plan: Plan, parts: list[Rollout]) -> SoftCompletions:
    completion_ids = [part.completion_ids[0].tolist() for part in parts]
    return SoftCompletions(
        texts=completion_texts(tokenizer, completion_ids, plan),
        completion_ids=completion_ids,
        records=[part.record for part in parts],
        log_probs=[(part.record.log_probs[0] + 0.0).tolist() for part in parts],  # -0.0 becomes 0.0
        entropies=[(part.entropies[0] + 0.0).tolist() for part in parts],
        thinking_lengths=[int(part.thinking_length) for part in parts],
        thinking_surplus=[int(part.thinking_surplus) for part in parts],
        thinking_cut=[bool(part.thinking_cut) for part in parts],
    )


def prompt_ids(tokenizer, prompts: Sequence, chat_template_kwargs: dict | None) -> list[list[int]]:
    """The tokens of each prompt."""
    ids = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids.append(tokenizer(prompt)["input_ids"])
        elif isinstance(prompt, dict):
            raise TypeError("`prompts` is one conversation. Pass a list of conversations: `[messages]`.")
        elif len(prompt) > 0 and isinstance(prompt[0], dict):
            if not tokenizer.chat_template:
                raise ValueError(
                    "A prompt is a conversation, but the tokenizer has no chat template to write it with. Set "
                    "`tokenizer.chat_template`, or pass texts."
                )
            goes_on = prompt[-1]["role"] == "assistant"
            chosen = {"continue_final_message": True} if goes_on else {"add_generation_prompt": True}
            written = tokenizer.apply_chat_template(
                list(prompt), tokenize=True, return_dict=True, **chosen, **(chat_template_kwargs or {})
            )
            ids.append(written["input_ids"])
        else:
            ids.append(list(prompt))
    return ids


def _brought(model) -> ThinkingSettings:
    """The settings that are saved with the model."""
    stored = saved_settings.of_model(model)
    if stored is None:
        raise ValueError(
            f"`settings` was not passed, and neither the model's config, its adapter nor {saved_settings.FILE_NAME} beside its "
            "weights has thinking settings. Pass `settings=ThinkingSettings(...)`."
        )
    return ThinkingSettings.of_stored(stored, "The model's config")
