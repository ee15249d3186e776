# SPDX-License-Identifier: Apache-2.0
"""A tiny world of the tests' own: tokenizer, model, prompts and a reward, all in memory."""

import hashlib
import importlib
import sys
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from trl_soft import SoftGRPOConfig, SoftGRPOTrainer


TOKENS = ["<pad>", "<eos>", "<think>", "</think>", *"0123456789+-=;abcdefgh"]
# Every kind of thought, as settings.
THOUGHTS = [
    {"thought": "hard"},
    {"thought": "soft"},
    {"thought": "gumbel", "gumbel_temperature": 0.5},
    {"thought": "gumbel", "gumbel_density": "softgrpo"},
    {"thought": "gumbel", "gumbel_density": "concrete"},
    {"thought": "gaussian"},
    {"thought": "gaussian", "noise_placement": "hidden"},
    {"thought": "gaussian", "noise_placement": "logits", "noise_scale": 1.0, "thinking_top_k": 8},
    {"thought": "gaussian", "noise_placement": "probabilities"},
    {"thought": "dirichlet"},
    {"thought": "mixture", "thinking_top_k": 8},
    {"thought": "multiplex"},
    {"thought": "neighbour"},
    {"thought": "latent"},
    {"thought": "gumbel", "gumbel_temperature": 0.5, "hard_token_pattern": "[0-4]"},
    {"thought": "gumbel", "gumbel_density": "soft_label"},
]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, left padding, no unknown token but `<pad>`."""
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<pad>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    core.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )


def model(seed: int = 0, scale: float = 3.0, **config) -> Qwen2ForCausalLM:
    """A random Qwen2 of about 20k parameters whose predictions are far from uniform."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": len(TOKENS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
    } | config
    net = Qwen2ForCausalLM(Qwen2Config(**config))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return net


def prompts(copies: int = 4) -> Dataset:
    """Prompts of unequal lengths, so that batches are padded."""
    return Dataset.from_dict({"prompt": ["1+2=", "3+44=", "5-6=", "7777-8="] * copies})


def distinct_prompts(count: int = 40) -> Dataset:
    """Prompts of which no two are equal, with their numbers."""
    return Dataset.from_dict(
        {"prompt": [f"{i % 10}+{i // 10}{i // 10}=" for i in range(count)], "number": range(count)}
    )


def reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """A number in [0, 1] that depends on every token and on nothing else."""
    return [hashlib.sha256(bytes(ids)).digest()[0] / 255 for ids in completion_ids]


def rare_reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """1 for one completion in five and 0 for the others, so that all rewards of many a group are equal."""
    return [float(value > 0.8) for value in reward(completion_ids)]


def config(output_dir, config_class=SoftGRPOConfig, **changes) -> SoftGRPOConfig:
    """CPU, float32, eight completions of up to 16 tokens, thoughts of up to 8."""
    settings = {
        "bf16": False,
        "use_cpu": True,
        "max_completion_length": 16,
        "max_thinking_length": 8,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "seed": 7,
    }
    return config_class(str(output_dir), **{**settings, **changes})


def trainer(
    output_dir, net=None, trainer_class=SoftGRPOTrainer, config_class=SoftGRPOConfig, **changes
) -> SoftGRPOTrainer:
    """A trainer over the tiny world; `changes` go to the config, trainer arguments among them to the trainer."""
    names = ("train_dataset", "eval_dataset", "peft_config", "processing_class", "reward_funcs", "callbacks")
    given = {name: changes.pop(name) for name in names if name in changes}
    given.setdefault("train_dataset", prompts())
    given.setdefault("processing_class", tokenizer())
    given.setdefault("reward_funcs", reward)
    args = config(output_dir, config_class, **changes)
    return trainer_class(model=net or model(), args=args, **given)


def name(settings: dict) -> str:
    """Of a test case."""
    return "-".join(str(value) for value in settings.values())


def benchmark(name: str):
    """A module of benchmarks/, which lies in no package. It may import its neighbours."""
    folder = str(Path(__file__).parent.parent / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)
