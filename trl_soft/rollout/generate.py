# SPDX-License-Identifier: Apache-2.0
"""`soft_generate`: thoughts and answers from any causal LM, without a trainer."""

from contextlib import closing
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from .. import saved_settings
from ..forward import soft_tokens_added
from ..record import SoftTokens
from ..settings import ThinkingSettings, check_number
from ..thoughts import Hard
from .base import EngineOptions, Key
from .engines import ENGINES
from .plan import make_plan, table_rms


@dataclass
class SoftCompletions:
    """
    `num_generations` completions of every prompt, in the order of the prompts; n = prompts x num_generations.

    Args:
        texts (`list[str]`, n): the completions, decoded from the shadow text.
        completion_ids (`list[list[int]]`, n): the shadow text, up to and including the end of sequence.
        records (`list[SoftTokens]`, n): the thoughts of each completion, shape (1, its length), in the host's memory.
        log_probs, entropies (`list[list[float]]`, n): per token, as drawn, in nats.
        thinking_lengths (`list[int]`, n): thoughts in each completion.
        thinking_cut (`list[bool]`, n): whether the thought reached a cap.
    """

    texts: list[str]
    completion_ids: list[list[int]]
    records: list[SoftTokens]
    log_probs: list[list[float]]
    entropies: list[list[float]]
    thinking_lengths: list[int]
    thinking_cut: list[bool]

    @property
    def record(self) -> SoftTokens:
        """All records below each other, (n, C)."""
        return SoftTokens.cat(self.records)


def soft_generate(
    model,
    tokenizer,
    prompts: list[str] | list[list[int]],
    settings: ThinkingSettings | None = None,
    *,
    num_generations: int = 1,
    max_completion_length: int = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    generation: int = 0,
    engine: str = "slots",
    slots: int = 64,
    cache_gb: float | None = None,
    cuda_graphs: bool = True,
    lengths: list[int] | None = None,
    progress: bool = True,
    evaluation: bool = False,
) -> SoftCompletions:
    """
    Think softly, answer in tokens.

    Args:
        model: a causal LM of transformers, or a PEFT model around one. It is left as it was found.
        tokenizer: its tokenizer.
        prompts:
            Texts, to which the tokenizer adds what it always adds (a beginning of sequence, for some: leave it out of a
            chat template's text), or lists of ids, which are taken as they are.
        settings (`ThinkingSettings`, *optional*):
            How to think. `None`: as the model was trained, which its config, its adapter or `thinking_config.json` in the
            folder that it was loaded from says.
        num_generations (`int`): completions of each prompt.
        max_completion_length (`int`): cap of thought and answer together, in tokens.
        temperature, top_k, top_p, min_p, repetition_penalty: sampling of the answer; temperature 0 is greedy.
        seed, generation (`int`): key of the noise, with the completion's number and the position.
        engine (`str`): `slots`, or `simple` for models whose layers keep more than keys and values.
        slots, cache_gb, cuda_graphs: speed and memory, see `EngineOptions`; they change no completion.
        lengths (`list[int]`, *optional*): cap of each completion, prompts x num_generations, below the common one.
        progress (`bool`): show a bar over completions.
        evaluation (`bool`): think with `settings.eval_thought` where it is set.
    """
    if isinstance(prompts, str):
        raise TypeError("`prompts` is one text, which would be read as a list of letters. Pass a list: `[prompt]`.")
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"`prompts` is a {type(prompts).__name__}. Pass a list of texts or of lists of ids.")
    if settings is not None and not isinstance(settings, ThinkingSettings):
        raise TypeError(f"`settings` is a {type(settings).__name__}. Pass `ThinkingSettings(...)`.")
    check_number("num_generations", num_generations, 1, None, whole=True)
    check_number("max_completion_length", max_completion_length, 1, None, whole=True)
    check_number("seed", seed, 0, 2**64 - 1, whole=True)
    check_number("generation", generation, 0, 2**32 - 1, whole=True)
    if engine not in ENGINES:
        raise ValueError(f"`engine` is {engine!r}. Choose one of {', '.join(ENGINES)}.")
    check_number("temperature", temperature, 0, None)
    check_number("top_k", top_k, 0, None, whole=True)
    check_number("top_p", top_p, 0, 1, open_low=True)
    check_number("min_p", min_p, 0, 1, optional=True)
    check_number("repetition_penalty", repetition_penalty, 0, None, open_low=True)
    options = EngineOptions(slots, cache_gb, cuda_graphs=cuda_graphs, lengths=lengths)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has neither a padding nor an end token to pad with. Set `tokenizer.pad_token`."
        )
    if not prompts:
        raise ValueError("`prompts` is empty, so there is nothing to complete. Pass at least one prompt.")
    if settings is None:
        settings = _brought(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    eos = base.generation_config.eos_token_id
    eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in eos:
        eos.append(tokenizer.eos_token_id)
    plan = make_plan(
        settings,
        tokenizer,
        Hard(temperature, top_k, top_p, min_p),
        vocab_size=base.config.get_text_config().vocab_size,
        max_completion_length=max_completion_length,
        eos_token_ids=eos,
        rms=table_rms(base),
        evaluation=evaluation,
        repetition_penalty=repetition_penalty,
    )
    ids = [
        tokenizer(p)["input_ids"] if isinstance(p, str) else list(p) for p in prompts for _ in range(num_generations)
    ]
    if not all(ids):
        raise ValueError(
            "A prompt has no tokens, so there is nothing to continue. Remove it, or begin it with a token."
        )
    size = base.config.get_text_config().vocab_size
    if any(min(row) < 0 or max(row) >= size for row in ids):
        raise ValueError(
            f"A prompt holds an id that is not among the model's {size} tokens. Tokenize it for this model."
        )
    key = Key(seed, generation, torch.arange(len(ids), device=base.device))
    parts: list = [None] * len(ids)
    with soft_tokens_added(base), tqdm(total=len(ids), disable=not progress, desc="Generating", unit="sample") as bar:
        with closing(ENGINES[engine](model, ids, plan, key, options)) as finished:
            for numbers, rollout in finished:
                rollout = rollout.to("cpu")
                lengths_drawn = rollout.completion_mask.sum(-1).tolist()
                for row, (number, length) in enumerate(zip(numbers, lengths_drawn, strict=True)):
                    parts[number] = rollout[row : row + 1].columns(slice(0, length))
                bar.update(len(numbers))
    completion_ids = [part.completion_ids[0].tolist() for part in parts]
    return SoftCompletions(
        texts=tokenizer.batch_decode(completion_ids, skip_special_tokens=True),
        completion_ids=completion_ids,
        records=[part.record for part in parts],
        log_probs=[part.record.log_probs[0].tolist() for part in parts],
        entropies=[part.entropies[0].tolist() for part in parts],
        thinking_lengths=[part.thinking_length.item() for part in parts],
        thinking_cut=[part.thinking_cut.item() for part in parts],
    )


def _brought(model) -> ThinkingSettings:
    """The settings that the model has brought along."""
    stored = saved_settings.of_model(model)
    if stored is None:
        raise ValueError(
            f"`settings` was not passed, and neither the model's config, its adapter nor {saved_settings.FILE_NAME} beside its "
            "weights says how it thinks. Pass `settings=ThinkingSettings(...)`."
        )
    return ThinkingSettings.of_stored(stored, "The model's config")
