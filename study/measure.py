# SPDX-License-Identifier: Apache-2.0
"""The scores of the untrained policy's thoughts: ||d log pi / d z||^2 of every thought of a rollout, z the next-token logits."""

from dataclasses import fields
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_soft import ThinkingSettings, soft_generate
from trl_soft.data import load_rows
from trl_soft.evaluate.entropy import read_again
from trl_soft.forward import soft_tokens_added
from trl_soft.rewards import exact_answer_reward
from trl_soft.rollout import Rollout
from trl_soft.score_variance import score_norms


QUANTILES = (0.5, 0.9, 0.99, 1.0)
_THINKING = {field.name for field in fields(ThinkingSettings)}
_ANSWER = ("temperature", "top_k", "top_p")


def thinking_settings(recipe: dict[str, Any]) -> ThinkingSettings:
    """The thinking settings of a recipe."""
    return ThinkingSettings(**{name: value for name, value in recipe.items() if name in _THINKING})


def measure(recipe: dict[str, Any], prompts: int, samples: int, seed: int) -> dict[str, Any]:
    """
    The scores of the thoughts of one rollout.

    Args:
        recipe (`dict`): of a run, as [`study.cells.Design.settings`] returns it. The rollout has its thought and its sampling.
        prompts (`int`): training rows, from the first. samples (`int`): completions of each. seed (`int`): of the noise.

    Returns:
        `thoughts`, their number; the share of them whose score is 0 as `zero_float32` and `zero_float64`; `mean` and `quantiles` of
        ||d log pi / d z||^2 in float64; the mean `reward` and `thinking_length` of the rollout.
    """
    path = recipe["model_name_or_path"]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        AutoTokenizer.from_pretrained(path),
    )
    rows = load_rows(recipe["dataset_name"], "train").select(range(prompts))
    settings = thinking_settings(recipe)
    ids = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]
        for question in rows["question"]
    ]
    out = soft_generate(
        model, tokenizer, ids, settings, num_generations=samples, max_completion_length=recipe["max_completion_length"],
        seed=seed, slots=prompts * samples, progress=False, **{name: recipe[name] for name in _ANSWER if name in recipe},
    )  # fmt: skip
    precise, rounded = [], []
    with soft_tokens_added(model):
        for number, (completion, record) in enumerate(zip(out.completion_ids, out.records, strict=True)):
            logits = read_again(model, ids[number // samples], _rollout(completion, record))
            positions, action = record.thinking_mask[0].nonzero().squeeze(-1), record.flat_action(record.thinking_mask)
            # `score_norms` takes the same rows of the logits and of the action.
            logits.hidden = logits.hidden[positions]
            precise.append(score_norms(record.thought, logits, action))
            rounded.append(score_norms(record.thought, logits, action, dtype=torch.float32))
    norms, underflowed = torch.cat(precise), torch.cat(rounded)
    rewards = exact_answer_reward(out.texts, [answer for answer in rows["answer"] for _ in range(samples)])
    levels = torch.tensor(QUANTILES, dtype=norms.dtype)
    return {
        "thoughts": len(norms),
        "zero_float32": (underflowed == 0).float().mean().item(),
        "zero_float64": (norms == 0).float().mean().item(),
        "mean": norms.mean().item(),
        "quantiles": dict(zip(map(str, QUANTILES), norms.quantile(levels).tolist(), strict=True)),
        "reward": sum(rewards) / len(rewards),
        "thinking_length": sum(out.thinking_lengths) / len(out.thinking_lengths),
    }


def _rollout(completion: list[int], record) -> Rollout:
    """One completion, in the form in which it is read again."""
    ids = torch.tensor([completion])
    nothing = torch.zeros(1, dtype=torch.long)
    return Rollout(
        completion_ids=ids,
        completion_mask=torch.ones_like(ids, dtype=torch.bool),
        record=record,
        entropies=torch.zeros(ids.shape),
        thinking_length=nothing,
        thinking_surplus=nothing,
        thinking_cut=nothing.bool(),
    )
