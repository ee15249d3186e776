# SPDX-License-Identifier: Apache-2.0
"""The architectures the plugin knows, each served once, against the in-process engine on Hugging Face's own model."""

import pytest
import torch
import transformers

from tests import tiny
from tests.vllm import served
from tests.vllm.served import PROMPTS, needs_vllm
from tests.vllm.test_served import assert_same, rollouts


pytestmark = needs_vllm
SIZES = {
    "vocab_size": len(tiny.TOKENS), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128,
    "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
FAMILIES = ["Llama", "Mistral", "Qwen3", "Gemma", "Gemma2", "Gemma3Text"]


def model(family: str):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES)
    net = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return net.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, tmp_path):
    net = model(family)
    llm = served.engine(served.save(net, tmp_path))
    try:
        kinds = [{}, {"thought": "gaussian", "noise_scale": 0.1}, {"thought": "multiplex"}]
        params = [served.soft(kind, sample=i, max_tokens=16) for i, kind in enumerate(kinds)]
        out, bulks = served.generate(llm, PROMPTS[:3], params)
        for i, kind in enumerate(kinds):
            made = served.plan(net, kind, max_tokens=16)
            theirs = served.by_oracle(net, made, PROMPTS[i : i + 1], [i])
            ((one,),) = rollouts(out[i : i + 1], bulks, made)
            assert_same(one, theirs, kind.get("thought") == "gaussian")
    finally:
        served.shut(llm)
