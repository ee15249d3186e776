# SPDX-License-Identifier: Apache-2.0
"""The model's forward with one more keyword, `soft_tokens`: feed a record, and score its thoughts.

`model(..., soft_tokens=record)` replaces the embeddings of the record's thoughts inside the embedding module's own call.
With TRL's `fused_lm_head=True` it also scores them inside the model's forward. Both places are necessary: under ZeRO-3 and
FSDP a parameter is whole only while its module runs. Without the keyword nothing changes, to the last bit.
"""

import functools
import inspect
import types
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from .record import SoftTokens
from .score_variance import score_variance
from .thoughts import Hard
from .vocabulary.embedding_table import Lookup, embedding_scale
from .vocabulary.head_logits import HeadLogits, logit_transform


def check_soft(model) -> None:
    """Raise a `ValueError` if the model's embeddings cannot be mixed."""
    embedding, name = model.get_input_embeddings(), type(model).__name__
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(
            f"The input embedding of {name} is of {type(embedding).__module__}.{type(embedding).__qualname__} and not of "
            "torch.nn.Embedding, so a mixture of its rows is not what the module would return. Take adapters off the input embeddings (remove them from "
            "`target_modules` and `modules_to_save`), or use a model with a plain embedding table."
        )
    if embedding.weight.is_meta:
        raise ValueError(
            f"The input embedding of {name} is offloaded, and its table is here only while a hook of its own runs. Load "
            "the model without offloading the embedding (`device_map` with it on a device)."
        )
    if type(embedding).forward is not nn.Embedding.forward and not hasattr(embedding, "embed_scale"):
        raise ValueError(
            f"The input embedding of {name} is a {type(embedding).__name__}, which does more to a row than scale it "
            "(a norm, a quantised table), so a mixture of rows is not what the module would return. Use a model with "
            "a plain or scaled embedding table."
        )
    if model.get_output_embeddings() is None:
        raise ValueError(f"{name} has no LM head, so it predicts no token to think with. Use a causal language model.")
    # Hybrids (Qwen3-Next, Falcon-H1) keep their states in the same `Cache` as keys and values. That is enough here.
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{name} keeps a recurrent state where a rollout needs a key-value cache for each row. Use a transformer."
        )
    config = model.config.get_text_config()
    if any(getattr(config, attribute, None) for attribute in ("hidden_size_per_layer_input", "ple_layer_ids")):
        raise ValueError(
            f"{name} looks token ids up again in every layer (per-layer embeddings), and a mixture has no id. Use a "
            "model whose only use of a token is its input embedding."
        )
    if "hash_moe" in (getattr(config, "mlp_layer_types", None) or ()):
        raise ValueError(
            f"{name} chooses experts by token id (`hash_moe` layers), and a mixture has no id. Use a model whose only "
            "use of a token is its input embedding."
        )


def _function(method):
    """The function of a bound method. A patched `forward` can be any callable."""
    return getattr(method, "__func__", method)


def add_soft_tokens(model, temperature: float = 1.0) -> None:
    """
    Let `model` take `soft_tokens=`.

    Call it on the bare causal LM, before PEFT, DDP, DeepSpeed or FSDP wrap it. If thoughts are to be scored, call it after
    TRL's `add_fused_lm_head`. A second call does nothing.

    Args:
        temperature (`float`): of the answers, as given to `add_fused_lm_head`. The variance of the scores is measured at it.
    """
    if hasattr(model, "_soft_tokens_undo"):
        return
    check_soft(model)
    embedding, forward = model.get_input_embeddings(), model.forward
    embed = embedding.forward
    lookup = Lookup(embedding, embed)
    record_in_flight: list[SoftTokens] = []

    @functools.wraps(_function(embed))
    def soft_embed(self, input_ids):
        embeddings = embed(input_ids)
        return record_in_flight[-1].feed(input_ids, embeddings, lookup) if record_in_flight else embeddings

    @functools.wraps(_function(forward))
    def soft_forward(self, *args, soft_tokens: SoftTokens | None = None, **kwargs):
        if soft_tokens is None:
            return forward(*args, **kwargs)
        record_in_flight.append(soft_tokens)
        try:
            if kwargs.pop("fused_lm_head", False):
                return _score(self, _function(forward), soft_tokens, temperature, *args, **kwargs)
            return forward(*args, **kwargs)
        finally:
            record_in_flight.pop()

    def undo():
        embedding.forward, model.forward = embed, forward
        for module in (embedding, model):
            # The class still has its methods. An attribute of the instance would shadow them.
            if getattr(type(module), "forward", None) is _function(module.forward):
                del module.forward
        del model._soft_tokens_undo

    embedding.forward = types.MethodType(soft_embed, embedding)
    model.forward = types.MethodType(soft_forward, model)
    model._soft_tokens_undo = undo


def remove_soft_tokens(model) -> None:
    """Undo `add_soft_tokens` on `model`."""
    if hasattr(model, "_soft_tokens_undo"):
        model._soft_tokens_undo()


@contextmanager
def soft_tokens_added(model):
    """`add_soft_tokens` inside a `with` block, unless it was called before."""
    if hasattr(model, "_soft_tokens_undo"):
        yield model
        return
    add_soft_tokens(model)
    try:
        yield model
    finally:
        remove_soft_tokens(model)


class _AnswersOnly:
    """
    The model as TRL's fused forward sees it if some positions are thoughts: a backbone that returns only the hidden states
    of the answers. TRL scores these. The states of the thoughts stay in `hidden_states` and never go through the whole LM
    head.
    """

    def __init__(self, model, answers: torch.Tensor):
        self.model, self.answers = model, answers  # (B, S-1) bool
        self.get_output_embeddings = model.get_output_embeddings

    def base_model(self, *args, **kwargs):
        outputs = self.model.base_model(*args, **kwargs)
        self.hidden_states = outputs.last_hidden_state[:, :-1]  # (B, S-1, H)
        outputs.last_hidden_state = self.hidden_states[self.answers].unsqueeze(0)  # (1, answers, H)
        return outputs


def _score(model, fused_forward, record: SoftTokens, temperature: float, *args, labels: torch.Tensor, **kwargs):
    """
    TRL's fused output, with the scores of thoughts: `log_probs` and `entropy` (B, S-1), zero where the label is -100.

    Every step runs on every rank, with or without a thought, so that the collectives match.
    """
    labels = labels[:, 1:]
    offset = labels.size(1) - record.shape[1]
    valid = labels != -100
    thoughts = valid & F.pad(record.thinking_mask, (offset, 0))  # (B, S-1)
    answers = valid & ~thoughts

    backbone = _AnswersOnly(model, answers)
    output = fused_forward(backbone, *args, shift_labels=labels[answers].unsqueeze(0), fused_lm_head=True, **kwargs)

    def logits_of(hidden):
        return HeadLogits(
            hidden,
            model.get_output_embeddings(),
            model.get_input_embeddings(),
            *logit_transform(model.config),
            table_scale=embedding_scale(model.get_input_embeddings()),
        )

    action = record.flat_action(thoughts[:, offset:])
    log_probs, entropy = record.thought.score_draws(logits_of(backbone.hidden_states[thoughts]), action)
    if record.variances is not None and torch.is_grad_enabled():
        of_thoughts = score_variance(record.thought, logits_of(backbone.hidden_states[thoughts]), action)
        of_tokens = {"ids": labels[answers]}
        of_answers = score_variance(Hard(temperature), logits_of(backbone.hidden_states[answers]), of_tokens)
        record.variances.append(torch.stack([of_thoughts, of_answers]))

    def merged(of_answers, of_thoughts):
        if of_answers is None:
            return None
        both = of_answers.new_zeros(labels.shape).masked_scatter(answers, of_answers)
        return both.masked_scatter(thoughts, of_thoughts.to(both.dtype))

    # Each further draw of a thought is a further column. A token has only the first.
    columns = [merged(output.log_probs, log_probs[:, 0])]
    columns += [merged(torch.zeros_like(output.log_probs), further) for further in log_probs[:, 1:].unbind(-1)]
    output.log_probs = columns[0] if len(columns) == 1 else torch.stack(columns, dim=-1)
    output.entropy = merged(output.entropy, entropy)
    output.label_mask, output.loss = valid, None  # TRL's loss would cover only the answers
    return output
