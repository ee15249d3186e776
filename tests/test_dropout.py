# SPDX-License-Identifier: Apache-2.0
"""One policy draws and is scored: the network without dropout."""

import pytest
import torch
from peft import LoraConfig

from tests import tiny
from trl_soft import ThinkingSettings, soft_generate


LORA = {"r": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], "lora_dropout": 0.5, "init_lora_weights": False}


@pytest.mark.parametrize("engine", ["slots", "simple"])
@pytest.mark.parametrize(
    "changes", [{"peft_config": LoraConfig(**LORA)}, {"net": {"attention_dropout": 0.5}}], ids=["lora", "attention"]
)
def test_a_thought_is_scored_by_the_policy_that_drew_it(tmp_path, engine, changes, caplog):
    """Drawn equals re-scored and the first ratio is 1, with dropout in the adapter or in the attention."""
    torch.manual_seed(0)
    changes = dict(changes)
    net = tiny.model(**changes.pop("net", {}))
    settings = {"max_steps": 1, "num_iterations": 2, "rollout_engine": engine, **changes}
    trainer = tiny.trainer(tmp_path, net, **settings)
    assert "Dropout is switched off" in caplog.text
    trainer.train()
    log = trainer.state.log_history[0]
    for name in ("thinking/logp_difference/max", "answer/logp_difference/max", "thinking/log_ratio/max"):
        assert log[name] < 1e-5, name
    assert trainer.model.training


def test_completions_do_not_depend_on_dropout():
    """Without a trainer too, and whatever mode the model was left in; modes are as found afterwards."""
    plain, dropping = tiny.model(), tiny.model(attention_dropout=0.5).train()
    dropping.model.layers[0].eval()
    modes = [module.training for module in dropping.modules()]
    texts = [
        soft_generate(net, tiny.tokenizer(), ["1+2="] * 4, ThinkingSettings(max_thinking_length=6), engine=engine,
                      max_completion_length=12, progress=False).completion_ids
        for net, engine in ((plain.eval(), "slots"), (dropping, "slots"), (dropping, "simple"))
    ]  # fmt: skip
    assert texts[0] == texts[1] == texts[2]
    assert [module.training for module in dropping.modules()] == modes and any(modes) and not all(modes)


def test_modes_are_as_found_after_an_error():
    from trl_soft.rollout.dropout import evaluating

    net = tiny.model().train()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not any(module.training for module in net.modules())
        raise ZeroDivisionError
    assert all(module.training for module in net.modules())


def test_what_is_switched_off_is_named():
    """Modules, attributes, dropped layers; afterwards training mode gives what evaluation mode gives."""
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

    from trl_soft.rollout.dropout import switch_off_dropout

    small = {"vocab_size": 26, "max_position_embeddings": 32, "num_hidden_layers": 2, "hidden_size": 16}
    heads = {"num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    opt = {"ffn_dim": 16, "dropout": 0.5, "layerdrop": 0.3, "word_embed_proj_dim": 16}
    mixtral = {"num_key_value_heads": 1, "intermediate_size": 16, "router_jitter_noise": 0.5, "num_local_experts": 2}
    for net, names in (
        (OPTForCausalLM(OPTConfig(**small, **heads, **opt)), {"dropout", "layerdrop"}),
        (
            GPT2LMHeadModel(GPT2Config(vocab_size=26, n_embd=16, n_layer=1, n_head=2)),
            {"drop", "attn_dropout", "resid_dropout", "dropout"},
        ),
        (MixtralForCausalLM(MixtralConfig(**small, **heads, **mixtral)), {"jitter_noise"}),
    ):
        found = switch_off_dropout(net)
        assert set(found) <= names and found, found
        ids = torch.arange(4, 12).unsqueeze(0)
        assert torch.equal(net.train()(ids).logits, net.eval()(ids).logits)
        assert switch_off_dropout(net) == {}


def test_what_cannot_be_switched_off_is_refused(tmp_path):
    """Falcon reads the number from its configuration, which is saved with the model."""
    from transformers import FalconConfig, FalconForCausalLM

    from trl_soft.rollout.dropout import switch_off_dropout

    sizes = {"vocab_size": 26, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = FalconForCausalLM(FalconConfig(**sizes, hidden_dropout=0.1))
    with pytest.raises(ValueError, match=r"`hidden_dropout` of the model's configuration is 0.1.*model_init_kwargs"):
        switch_off_dropout(net)
