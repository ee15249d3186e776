# SPDX-License-Identifier: Apache-2.0
"""Every model family feeds and scores a thought as it does a token: drawn equals re-scored, LoRA trains."""

import copy
import functools
import gc

import pytest
import torch
import transformers
from peft import LoraConfig
from torch import nn
from trl import GRPOTrainer

from tests import tiny
from trl_soft import SoftGRPOTrainer, ThinkingSettings, soft_generate
from trl_soft.forward import add_soft_tokens
from trl_soft.vocabulary.embedding_table import Lookup, embedding_scale
from trl_soft.vocabulary.head_logits import HeadLogits, logit_transform


# A window shorter than a completion, so that the rollout's cache forgets what the update's mask must hide.
WINDOW = {"sliding_window": 8}
MIXED = {**WINDOW, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": WINDOW,
    "Phi3": WINDOW,
    "Gemma": {"head_dim": 8},
    "Gemma2": {**MIXED, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "Gemma3": {**MIXED, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Granite": {
        "logits_scaling": 0.7,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.3,
    },
    "Cohere": {"logit_scale": 1.5},
    "Qwen3_5": {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "Qwen3Moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
SCALED = {"Gemma", "Gemma2", "Gemma3"}  # embeddings
TRANSFORMED = {"Gemma2", "Gemma3", "Granite", "Cohere"}  # logits
THOUGHTS = ["hard", "gumbel", "gaussian"]
ENGINE = {family: "simple" if family == "Qwen3_5" else "slots" for family in FAMILIES}  # the one hybrid

families = pytest.mark.parametrize("family", FAMILIES)


def build(family: str, **changes):
    """A random model of about 20k parameters whose predictions are far from uniform."""
    torch.manual_seed(0)
    name = f"{family}Text" if family in ("Gemma3", "Qwen3_5") else family
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tiny.TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        **FAMILIES[family] | changes,
    )
    net = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return net.eval()


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """The trainer collects garbage once a run, which takes longer than the run."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def batches(monkeypatch):
    """What the trainer's rollouts left in the batch."""
    kept = []
    original = SoftGRPOTrainer._generate_and_score_completions

    def keep(self, inputs):
        kept.append(original(self, inputs))
        return kept[-1]

    monkeypatch.setattr(SoftGRPOTrainer, "_generate_and_score_completions", keep)
    return kept


def first_log(trainer) -> dict:
    trainer.train()
    return trainer.state.log_history[0]


@families
@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_drawn_is_rescored_and_trains(tmp_path, family, thought, adapter, batches):
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0) if adapter else None
    options = {"thought": thought, "num_iterations": 2, "max_steps": 1, "peft_config": lora}
    trainer = tiny.trainer(tmp_path, build(family), rollout_engine=ENGINE[family], **options)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    log = first_log(trainer)
    drawn = batches[0]["soft_log_probs"][batches[0]["soft_thinking_mask"]]
    bound = 1e-3 * drawn.mean().abs() if thought == "gaussian" else 1e-5
    assert log["thinking/logp_difference/max"] <= bound
    assert log["answer/logp_difference/max"] <= 1e-5
    assert 0.1 < log["entropy"] < 3.2  # uniform is 3.26
    assert torch.tensor(log["loss"]).isfinite() and log["grad_norm"] > 0
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_A" not in n}
    assert trained and all("lora_B" in n for n in trained) is adapter
    assert all(not torch.equal(before[n], p) for n, p in trained.items())


@families
def test_logits_and_embeddings_are_the_models_own(family):
    net = build(family)
    ids = torch.arange(len(tiny.TOKENS)).unsqueeze(0)
    embedding, head = net.get_input_embeddings(), net.get_output_embeddings()
    scale = embedding_scale(embedding)
    assert (scale != 1) is (family in SCALED)
    torch.testing.assert_close(embedding(ids), embedding.weight.unsqueeze(0) * scale, atol=1e-6, rtol=0)

    expected = net(input_ids=ids).logits[0]
    hidden = net.base_model(input_ids=ids).last_hidden_state[0]
    logits = HeadLogits(hidden, head, embedding, *logit_transform(net.config), table_scale=scale)
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(logits.dense(), expected, **close)
    torch.testing.assert_close(logits.at(ids.expand(len(hidden), -1)), expected, **close)
    log_p, _ = logits.log_prob(ids.expand(len(hidden), -1), 1.0)
    torch.testing.assert_close(log_p, expected.log_softmax(-1), **close)
    torch.testing.assert_close(logits.mixture(1.0)[0], expected.softmax(-1) @ embedding(ids)[0], **close)
    weights, rows = expected.softmax(-1)[:, :5], ids[:, :5].expand(len(hidden), -1)
    with torch.no_grad():
        mixed = Lookup(embedding).mix(weights, rows)
    torch.testing.assert_close(mixed, weights @ embedding(ids)[0, :5], **close)
    assert ((head(hidden) - expected).abs().max() > 0.1).item() is (family in TRANSFORMED)


@pytest.mark.parametrize("thought", THOUGHTS)
def test_the_auxiliary_loss_is_kept(tmp_path, thought):
    """It is logged and part of the loss, and under hard thoughts it is plain GRPO's."""
    rollouts = []

    class Recording(SoftGRPOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            ids, logprobs = super()._generate_single_turn(*args, **kwargs)
            rollouts.append(copy.deepcopy(ids))
            return ids, logprobs

    class Replaying(GRPOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            return rollouts.pop(0), None

    def run(trainer_class, coefficient):
        options = {"thought": thought, "max_thinking_length": None, "max_steps": 1}
        options["router_aux_loss_coef"] = coefficient
        return first_log(tiny.trainer(tmp_path, build("Qwen3Moe"), trainer_class, **options))

    log = run(Recording, 0.5)
    assert log["aux_loss"] > 0
    if thought == "hard":
        plain = run(Replaying, 0.5)
        assert [log[key] for key in ("aux_loss", "loss", "grad_norm")] == [
            plain[key] for key in ("aux_loss", "loss", "grad_norm")
        ]
    without = run(SoftGRPOTrainer, 0.0)
    assert "aux_loss" not in without
    assert log["loss"] == pytest.approx(without["loss"] + 0.5 * log["aux_loss"], abs=1e-5)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(tiny.TOKENS), n_embd=32, n_layer=2, n_head=4, n_positions=128)
    config.pad_token_id, config.eos_token_id = 0, 1
    net = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        net.transformer.wte.weight.mul_(20.0)
    return net


def gpt_oss():
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    sizes["layer_types"] = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        vocab_size=len(tiny.TOKENS), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, sliding_window=8, rope_parameters={"rope_type": "default",
        "rope_theta": 1e4}, **sizes,
    )  # fmt: skip
    net = transformers.GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.normal_(0, 1.0 if "sinks" in name else 0.3)
    return net


MODELS = {family: functools.partial(build, family) for family in FAMILIES} | {"GPT2": gpt2, "GptOss": gpt_oss}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("thought", ["hard", "gumbel"])
def test_engines_draw_what_the_oracle_draws(family, thought, oracle):
    """Windows shorter than a completion, capped scores, sinks, scaled embeddings, recurrent layers: all of it is the model's own."""
    settings = ThinkingSettings(thought=thought, max_thinking_length=16)
    net = MODELS[family]()
    options = {"num_generations": 3, "max_completion_length": 24, "progress": False}
    prompts = ["1+2=", "12345678-87654321=", "9"]
    theirs = soft_generate(net, tiny.tokenizer(), prompts, settings, engine=oracle, **options)
    # Recurrent layers read the oracle's whole texts in chunks, and an engine's steps one by one: in float32, with other rounding.
    tolerance = 5e-4 if family == "Qwen3_5" else 1e-5
    for engine in ("simple",) if ENGINE.get(family) == "simple" else ("slots", "simple"):
        ours = soft_generate(net, tiny.tokenizer(), prompts, settings, engine=engine, slots=4, **options)
        assert ours.completion_ids == theirs.completion_ids
        for have, want in zip(ours.log_probs, theirs.log_probs, strict=True):
            torch.testing.assert_close(torch.tensor(have), torch.tensor(want), rtol=0, atol=tolerance)


def test_a_hybrid_is_told_which_engine_runs_it(tmp_path):
    with pytest.raises(
        ValueError, match=r"Qwen3_5ForCausalLM has layers that keep more.*Set `rollout_engine: simple`"
    ):
        tiny.trainer(tmp_path, build("Qwen3_5"))


def test_per_layer_embeddings_are_refused_by_name(tmp_path):
    config = transformers.Gemma3nTextConfig(
        vocab_size=len(tiny.TOKENS),
        vocab_size_per_layer_input=len(tiny.TOKENS),
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
        pad_token_id=0,
        eos_token_id=1,
    )
    net = transformers.Gemma3nForCausalLM(config)
    with pytest.raises(ValueError, match="Gemma3nForCausalLM looks token ids up again in every layer"):
        tiny.trainer(tmp_path, net)
    assert "forward" not in vars(net.get_input_embeddings())


def test_embeddings_that_do_more_than_scale_are_refused_by_name():
    class NormedEmbedding(nn.Embedding):
        def forward(self, input_ids):
            return nn.functional.normalize(super().forward(input_ids), dim=-1)

    net = build("Llama")
    net.set_input_embeddings(NormedEmbedding(len(tiny.TOKENS), 32))
    with pytest.raises(ValueError, match="input embedding of LlamaForCausalLM is a NormedEmbedding"):
        add_soft_tokens(net)


def test_other_embeddings_are_refused_by_name():
    net = build("Llama")
    net.set_input_embeddings(nn.Sequential(net.get_input_embeddings(), nn.LayerNorm(32)))
    with pytest.raises(
        ValueError, match=r"input embedding of LlamaForCausalLM is of torch\.nn\.modules\.container\.Sequential"
    ):
        add_soft_tokens(net)
