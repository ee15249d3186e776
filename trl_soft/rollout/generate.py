# SPDX-License-Identifier: Apache-2.0
"""`soft_generate`: thoughts and answers from any causal LM, without a trainer."""

import os
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from ..forward import soft_tokens_added
from ..record import SoftTokens
from ..settings import FILE_NAME, ThinkingSettings
from ..thoughts import Hard
from .plan import make_plan, table_rms
from .transformers import rollout


@dataclass
class SoftCompletions:
    """
    `num_generations` completions of every prompt, in the order of the prompts; n = prompts x num_generations.

    Args:
        texts (`list[str]`, n): the completions, decoded from the shadow text.
        completion_ids (`list[list[int]]`, n): the shadow text, up to and including the end of sequence.
        records (`list[SoftTokens]`): one a batch of rows, in order; shapes (B, C).
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
    batch_size: int = 64,
    progress: bool = True,
    evaluation: bool = False,
) -> SoftCompletions:
    """
    Think softly, answer in tokens.

    Args:
        model: a causal LM of transformers, or a PEFT model around one. It is left as it was found.
        tokenizer: its tokenizer.
        prompts: texts (chat templates already applied) or lists of ids.
        settings (`ThinkingSettings`, *optional*):
            How to think. `None` reads `thinking_config.json` from the folder the model was loaded from.
        num_generations (`int`): completions of each prompt.
        max_completion_length (`int`): cap of thought and answer together, in tokens.
        temperature, top_k, top_p, min_p, repetition_penalty: sampling of the answer; temperature 0 is greedy.
        seed, generation (`int`): key of the noise, with the completion's number and the position.
        batch_size (`int`): rows at once; it changes nothing but speed and memory.
        progress (`bool`): show a bar over completions.
        evaluation (`bool`): think with `settings.eval_thought` where it is set.
    """
    if isinstance(prompts, str):
        raise TypeError("`prompts` is one text, which would be read as a list of letters. Pass a list: `[prompt]`.")
    if batch_size < 1 or num_generations < 1:
        raise ValueError(
            f"`batch_size` is {batch_size} and `num_generations` {num_generations}, but both must be at least 1."
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has neither a padding nor an end token to pad with. Set `tokenizer.pad_token`."
        )
    if not prompts:
        raise ValueError("`prompts` is empty, so there is nothing to complete. Pass at least one prompt.")
    if settings is None:
        settings = ThinkingSettings.load_thinking(_folder(model))
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
    out = SoftCompletions([], [], [], [], [], [], [])
    with soft_tokens_added(base), tqdm(total=len(ids), disable=not progress, desc="Generating", unit="sample") as bar:
        for start in range(0, len(ids), batch_size):
            rows = ids[start : start + batch_size]
            input_ids, attention_mask = _left_pad(rows, plan.pad_token_id, base.device)
            sample = torch.arange(start, start + len(rows), device=base.device)
            finished = 0

            def on_step(done: int):
                nonlocal finished
                bar.update(done - finished)
                finished = done

            result = rollout(model, input_ids, attention_mask, plan, seed, generation, sample, on_step)
            bar.update(len(rows) - finished)
            for row, length in enumerate(result.completion_mask.sum(-1).tolist()):
                out.completion_ids.append(result.completion_ids[row, :length].tolist())
                out.log_probs.append(result.record.log_probs[row, :length].tolist())
                out.entropies.append(result.entropies[row, :length].tolist())
            out.records.append(result.record)
            out.thinking_lengths += result.thinking_length.tolist()
            out.thinking_cut += result.thinking_cut.tolist()
    out.texts = tokenizer.batch_decode(out.completion_ids, skip_special_tokens=True)
    return out


def _folder(model) -> str:
    for candidate in (getattr(model, "name_or_path", None), getattr(model.config, "_name_or_path", None)):
        if candidate and os.path.isfile(os.path.join(candidate, FILE_NAME)):
            return candidate
    raise ValueError(
        f"`settings` was not passed and no {FILE_NAME} lies beside the model's weights, so how to think is unknown. "
        "Pass `settings=ThinkingSettings(...)`."
    )


def _left_pad(rows: list[list[int]], pad_token_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
