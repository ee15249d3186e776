# SPDX-License-Identifier: Apache-2.0
"""The sizes of a model, from its `config.json` alone."""

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ..hub import hub_or_cache


@dataclass(frozen=True)
class Shape:
    """
    A decoder's sizes.

    Args:
        parameters (`int`): of the model without adapters. Tied tables count once.
        adapter (`int`): trainable parameters of LoRA. 0 means full fine-tuning.
        adapted (`tuple` of `int`): input width of each adapted module of a layer.
        lora_r (`int`): rank of the adapters.
        qk_norm (`bool`): queries and keys are normalised (Qwen3).
    """

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    parameters: int
    adapter: int = 0
    adapted: tuple[int, ...] = ()
    lora_r: int = 0
    qk_norm: bool = False

    @property
    def table(self) -> int:
        """Parameters of one V x H table."""
        return self.vocab * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return (self.parameters - self.table * (1 if self.tied else 2)) // self.layers

    @property
    def trained(self) -> int:
        return self.adapter or self.parameters


def read_config(name: str | None, file: str | None = None, **options):
    """A model's config: from a JSON file, a folder or the hub."""
    if file is not None:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"`--model_config` {file} does not exist. Give a model's config.json.")
        with open(file, encoding="utf-8") as handle:
            try:
                values = json.load(handle)
            except ValueError as error:
                raise ValueError(
                    f"`--model_config` {file} is not JSON: {error}. Give a model's config.json."
                ) from error
        if not isinstance(values, dict) or "model_type" not in values:
            raise ValueError(f"`--model_config` {file} has no `model_type`. Give a model's config.json.")
        return AutoConfig.for_model(values.pop("model_type"), **values)
    if name is None:
        raise ValueError(
            "`model_name_or_path` is unset, so there is no model to plan for. Set it, or `--model_config`."
        )
    try:
        with nullcontext() if os.path.isdir(name) else hub_or_cache():
            return AutoConfig.from_pretrained(name, **options)
    except OSError as error:
        raise OSError(
            f"The config of {name!r} is neither in a folder of that name nor on a hub that can be reached "
            f"({str(error).splitlines()[0]}). Pass `--model_config FILE` with its config.json; recipes/models holds "
            "the configs of the papers' models."
        ) from error


def shape_of(config, peft_config=None) -> Shape:
    """
    The sizes of a model with this config. The model is built on the meta device, which takes no memory.

    Raises:
        ValueError: for a model with experts, and for a model that is not a decoder with a gated MLP.
    """
    text = config.get_text_config()
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(text, field, None):
            raise ValueError(
                f"The model has experts (`{field}: {getattr(text, field)}`), whose activations depend on the routing. "
                "The planner does not support them. Plan for a dense model."
            )
    missing = [f for f in ("hidden_size", "intermediate_size", "num_attention_heads") if not getattr(text, f, None)]
    if missing:
        raise ValueError(
            f"A config of type {text.model_type!r} has no {', '.join(missing)}, so its layers' memory is unknown. Plan for a "
            "decoder with a gated MLP (Llama, Qwen, Mistral)."
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        parameters = sum(p.numel() for p in model.parameters())
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        adapter, adapted = (0, ()) if peft_config is None else _adapter(model, peft_config)
    heads = text.num_attention_heads
    return Shape(
        vocab=text.vocab_size,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        tied=tied,
        parameters=parameters,
        adapter=adapter,
        adapted=adapted,
        lora_r=getattr(peft_config, "r", 0),
        qk_norm=text.model_type.startswith("qwen3"),
    )


def _adapter(model, peft_config) -> tuple[int, tuple[int, ...]]:
    """Trainable parameters, and the input widths of one layer's adapted modules."""
    from peft import get_peft_model

    model = get_peft_model(model, peft_config)
    widths = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]: module.in_features
        for name, module in model.named_modules()
        if ".lora_A." in name and hasattr(module, "in_features")
    }
    return sum(p.numel() for p in model.parameters() if p.requires_grad), tuple(widths.values())
