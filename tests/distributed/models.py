# SPDX-License-Identifier: Apache-2.0
"""The models the worlds train, as folders, so that ZeRO-3 can shard the weights while it reads them."""

from pathlib import Path

import torch

from tests import tiny


def save_models(folder: Path) -> None:
    """`model`, the tests' tiny model, and `ragged`, which ends its sequence after the letter h."""
    ragged = tiny.model(tie_word_embeddings=False)
    h = tiny.TOKENS.index("h")
    with torch.no_grad():
        # Two hidden dimensions that no layer writes: 0 says "an h was read", which the end of sequence listens to; 1 says
        # "another token was read", after which no h is predicted, so that no mixture holds one.
        for weight in (ragged.model.embed_tokens.weight, ragged.lm_head.weight):
            weight[:, :2] = 0
        for layer in ragged.model.layers:
            layer.self_attn.o_proj.weight[:2] = layer.mlp.down_proj.weight[:2] = 0
        ragged.model.embed_tokens.weight[:, 1] = 1
        ragged.model.embed_tokens.weight[h, :2] = torch.tensor([3.0, 0.0])
        ragged.lm_head.weight[h, 1], ragged.lm_head.weight[tiny.TOKENS.index("<eos>"), 0] = -10, 3
    for name, model in (("model", tiny.model()), ("ragged", ragged)):
        model.save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
