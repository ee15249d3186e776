# SPDX-License-Identifier: Apache-2.0
"""Rollouts on a copy of the weights in another precision: which weights it has, when, and how TRL corrects for it."""

import re

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

import trl_soft.training.rollout_precision
from tests import tiny
from trl_soft import SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.rollout.weights import weights_in
from trl_soft.runs.checkpoint import CheckpointError
from trl_soft.training.in_flight import Phase
from trl_soft.training.rollout_precision import Surroundings, rollout_dtype


LORA = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
KINDS = {"grpo": {}, "rloo": {"trainer_class": SoftRLOOTrainer, "config_class": SoftRLOOConfig}}
COPY = {"rollout_dtype": "bfloat16"}
FORCED = {"max_thinking_length": 3, "answer_prefill": ["1234", "3+44"]}


def watched(tmp_path, net=None, kind: str = "grpo", **changes):
    """A trainer that keeps what its rollouts were asked for, ran on and gave, and the batches made of them."""
    given = dict(KINDS[kind])
    base = given.pop("trainer_class", SoftGRPOTrainer)

    class Watched(base):
        def __init__(self, *args, **kwargs):
            self.asked, self.ran_on, self.drawn, self.batches = [], [], [], []
            super().__init__(*args, **kwargs)

        def _soft_generate(self, model, input_ids, attention_mask, generation_config):
            self.asked.append((input_ids, attention_mask))
            output = super()._soft_generate(model, input_ids, attention_mask, generation_config)
            self.drawn.append(self._flight.rollout)
            return output

        def _generate_and_score_completions(self, inputs):
            self.batches.append(super()._generate_and_score_completions(inputs))
            return dict(self.batches[-1])

    trainer = tiny.trainer(tmp_path, net, trainer_class=Watched, **given, **{"beta": 0.0, **changes})
    engine = trl_soft.training.soft_tokens_mixin.ENGINES[trainer.args.rollout_engine]

    def noted(model, *args):
        trainer.ran_on.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return engine(model, *args)

    trainer.noted = {trainer.args.rollout_engine: noted}
    return trainer


@pytest.fixture
def noting(monkeypatch):
    """`watched` trainers note the weights that their engine was given."""

    def begin(trainer):
        monkeypatch.setattr("trl_soft.training.soft_tokens_mixin.ENGINES", trainer.noted)
        return trainer

    return begin


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("case", "bf16", "engine"),
    [
        ("tied", False, "slots"),
        ("tied", True, "slots"),
        ("tied", True, "simple"),
        ("untied", True, "slots"),
        ("lora", False, "slots"),
        ("lora", True, "slots"),
        ("gaussian", True, "slots"),
    ],
)
def test_it_draws_what_a_model_in_that_type_draws(tmp_path, case, bf16, engine):
    """Ids and log-probabilities to the last bit, and no autocast is left around the copy."""
    under_autocast = []

    def built(folder, **changes):
        extra = {"lora": {"peft_config": LORA}, "gaussian": {"thought": "gaussian"}}.get(case, {})
        options = {"rollout_engine": engine, "max_steps": 1, **extra, **changes}
        return watched(tmp_path / folder, tiny.model(tie_word_embeddings=case != "untied"), **options)

    trainer, by_hand = built("copy", bf16=bf16, **COPY), built("by_hand", bf16=False)
    for parameter, its in zip(by_hand.model.parameters(), trainer.model.parameters(), strict=True):
        assert its.dtype == torch.float32
        parameter.data = its.detach().to(torch.bfloat16)

    def look(table, inputs):
        if table.weight.dtype == torch.bfloat16:
            under_autocast.append(torch.is_autocast_enabled("cpu"))

    trainer.model.get_input_embeddings().register_forward_pre_hook(look)
    trainer.train()
    assert under_autocast and not any(under_autocast)
    with by_hand._flying(Phase.ROLLOUT):
        by_hand._soft_generate(by_hand.model, *trainer.asked[0], None)
    ours, theirs = trainer.drawn[0].tensors(), by_hand.drawn[0].tensors()
    assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))


def test_a_head_that_is_to_stay_in_float32_does(tmp_path, noting):
    """`cast_lm_head_to_fp32`, where the head is not the table that is looked up as well; refused where it is."""
    options = {"max_steps": 1, "cast_lm_head_to_fp32": True, **COPY}
    trainer = noting(watched(tmp_path, tiny.model(tie_word_embeddings=False), **options))
    trainer.train()
    assert {name for name, weight in trainer.ran_on[0].items() if weight.dtype == torch.float32} == {"lm_head.weight"}
    with pytest.raises(ValueError, match="with `cast_lm_head_to_fp32` and a head that is also the embedding table"):
        watched(tmp_path, tiny.model(), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_made_once_a_rollout_of_the_weights_of_that_moment(tmp_path, monkeypatch, noting, kind):
    """Two rollouts of four updates each: two copies, each of what was trained by then, and nothing of them is left."""
    made = []

    def counted(model, dtype, *others):
        made.append({name: p.detach().to(dtype) for name, p in model.named_parameters()})
        return weights_in(model, dtype, *others)

    monkeypatch.setattr(trl_soft.training.rollout_precision, "weights_in", counted)
    options = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 8, "per_device_train_batch_size": 4}
    trainer = noting(watched(tmp_path, kind=kind, **options, **COPY))
    parameters, forward = list(trainer.model.parameters()), trainer.model.forward
    trainer.train()
    assert len(trainer.drawn) == 2 and len(made) == 2 and not same(*made)
    assert all(same(ours, theirs) for ours, theirs in zip(trainer.ran_on, made, strict=True))
    after = list(trainer.model.parameters())
    assert all(ours is theirs for ours, theirs in zip(after, parameters, strict=True))
    assert {parameter.dtype for parameter in after} == {torch.float32}
    assert trainer.model.forward == forward and trainer.use_vllm is False


def test_evaluation_runs_on_the_copy_too(tmp_path, noting):
    options = {"eval_dataset": tiny.prompts(1), "per_device_eval_batch_size": 4, "num_generations_eval": 2}
    trainer = noting(watched(tmp_path, **options, **COPY))
    metrics = trainer.evaluate()
    assert len(trainer.ran_on) == 2  # batches
    assert all(p.dtype == torch.bfloat16 for weights in trainer.ran_on for p in weights.values())
    assert metrics["eval_sampling/importance_sampling_ratio/mean"] > 0


def test_without_a_copy_nothing_is_another(tmp_path, monkeypatch, noting):
    """On a CPU `auto` is `training`: no copy, no correction, the same weights to the last bit."""
    monkeypatch.setattr(trl_soft.training.rollout_precision, "weights_in", lambda *a: pytest.fail("a copy was made"))
    ends = []
    for choice in ("auto", "training"):
        trainer = noting(watched(tmp_path / choice, rollout_dtype=choice, bf16=True, max_steps=2))
        trainer.train()
        assert {p.dtype for p in trainer.ran_on[0].values()} == {torch.float32}
        assert not {"importance_sampling_ratio", "sampling_per_token_logps"} & set(trainer.batches[0])
        ends.append(trainer.model.state_dict())
    assert same(*ends)


@pytest.mark.parametrize(
    "clip", [{}, {"vllm_importance_sampling_clip_min": 0.999, "vllm_importance_sampling_clip_max": 1.001}]
)
@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_the_correction_is_trls(tmp_path, mode, clip):
    """
    rho = pi / mu of each position, or of a completion the product of them, pi the policy of the update and mu the copy that
    drew; cut at the bounds, or 0 beyond them. A thought's is the ratio of its densities. A forced token has none.
    """
    trainer = watched(tmp_path, max_steps=1, vllm_importance_sampling_mode=mode, **clip, **FORCED, **COPY)
    trainer.train()
    drawn, batch = trainer.drawn[0], trainer.batches[0]
    width = batch["completion_ids"].size(1)
    mu = drawn.record.log_probs[:, :width]
    own = (drawn.completion_mask & ~drawn.record.forced_mask)[:, :width]
    assert drawn.record.forced_mask.any() and (own & drawn.record.thinking_mask[:, :width]).any()
    assert torch.equal(batch["sampling_per_token_logps"] * own, mu * own)
    difference = (batch["old_per_token_logps"] - mu) * own
    assert 0 < difference.abs().max() < 0.5  # bfloat16 rounds to 8 bits
    rho = (difference.sum(1, keepdim=True) if mode.startswith("sequence") else difference).exp()
    low, high = clip.get("vllm_importance_sampling_clip_min", 0.0), clip.get("vllm_importance_sampling_clip_max", 3.0)
    assert not clip or ((rho < low) | (rho > high)).any()
    rho = rho.clamp(low, high) if mode.endswith("truncate") else rho.where((rho >= low) & (rho <= high), 0.0)
    torch.testing.assert_close(batch["importance_sampling_ratio"], rho)
    log = trainer.state.log_history[0]
    told = rho.flatten() if mode.startswith("sequence") else rho[own]
    assert log["sampling/importance_sampling_ratio/max"] == pytest.approx(told.max().item(), rel=1e-5)
    thoughts = own & drawn.record.thinking_mask[:, :width]
    assert log["thinking/logp_difference/max"] == pytest.approx(difference[thoughts].abs().max().item(), rel=1e-5)


def test_the_loss_is_multiplied_by_the_ratio(tmp_path):
    trainer = watched(tmp_path, max_steps=1, **COPY)
    trainer.train()
    batch = {
        name: value[:4] if torch.is_tensor(value) and value.dim() else value
        for name, value in trainer.batches[0].items()
    }
    losses = []
    for factor in (1.0, 3.0):
        batch["importance_sampling_ratio"] = torch.full((4, 1), factor)
        losses.append(trainer._compute_loss(trainer.model, batch).item())
    assert losses[0] != 0 and losses[1] == pytest.approx(3 * losses[0], rel=1e-5)


def test_a_rollout_outside_of_training_leaves_no_trace(tmp_path):
    trainer = watched(tmp_path, **COPY)
    prompts = [row["prompt"] for row in tiny.prompts(2)]
    trainer._generate(prompts)
    assert trainer.use_vllm is False and len(trainer.drawn) == 1
    trainer.train()
    trainer._generate(prompts)
    assert trainer.use_vllm is False


@pytest.mark.parametrize("kind", KINDS)
def test_the_correction_can_be_left_out(tmp_path, kind):
    """GRPO by TRL's switch; TRL's RLOO has none. The mismatch is logged all the same."""
    off = {"vllm_importance_sampling_correction": False} if kind == "grpo" else {}
    trainer = watched(tmp_path, kind=kind, max_steps=1, **off, num_iterations=2, **COPY)
    trainer.train()
    assert "importance_sampling_ratio" not in trainer.batches[0]
    assert trainer.state.log_history[0]["thinking/logp_difference/mean"] > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, kind):
    """Stopped in the middle of a rollout's updates, whose ratios are kept with it."""
    options = {"num_iterations": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 1, **COPY}
    whole, resumed = (watched(tmp_path / name, kind=kind, **options) for name in ("whole", "resumed"))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert len(resumed.drawn) == 1  # the second; the first was kept
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    other = watched(tmp_path / "other", kind=kind, **{**options, "rollout_dtype": "training"})
    with pytest.raises(CheckpointError, match="`rollout_dtype: bfloat16`, and this run has `rollout_dtype: training`"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))


def test_an_error_in_the_rollout_leaves_the_model_as_found(tmp_path, monkeypatch):
    trainer = watched(tmp_path, **COPY)
    parameters = list(trainer.model.parameters())
    monkeypatch.setattr("trl_soft.training.soft_tokens_mixin.assemble", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert all(ours is theirs for ours, theirs in zip(trainer.model.parameters(), parameters, strict=True))


def test_which_parameters_are_copied():
    """One copy of a tied table; what transformers keeps in float32, buffers and narrow weights stay."""
    net = tiny.model()
    net.model.layers[1].to(torch.bfloat16)
    net._keep_in_fp32_modules_strict = {"q_norm", "self_attn.*.bias"}
    found = dict(net.named_parameters())
    with weights_in(net, torch.bfloat16):
        inside = dict(net.named_parameters())
        assert net.lm_head.weight is net.model.embed_tokens.weight
        assert not any(p.requires_grad for name, p in inside.items() if p is not found[name])
        assert net.model.rotary_emb.inv_freq.dtype == torch.float32
        for name, parameter in inside.items():
            stays = "layers.1." in name or (".bias" in name and "self_attn" in name)
            assert (parameter is found[name]) == stays
            assert parameter.dtype == (torch.float32 if stays and "layers.0." in name else torch.bfloat16)
    assert all(ours is theirs for ours, theirs in zip(net.parameters(), found.values(), strict=True))


@pytest.mark.parametrize("place", ["own", "class"])
def test_no_memory_for_a_copy_leaves_the_model_as_found(place, monkeypatch):
    net, forward = tiny.model(), lambda *a, **k: None
    if place == "own":
        net.forward = forward
    found, to, calls = list(net.parameters()), torch.Tensor.to, []

    def full(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory is left")
        return to(self, *args)

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(torch.OutOfMemoryError), weights_in(net, torch.bfloat16, forward=lambda: None):
        pytest.fail("the block ran")
    assert all(ours is theirs for ours, theirs in zip(net.parameters(), found, strict=True))
    assert vars(net).get("forward") is (forward if place == "own" else None)


class Toy(PreTrainedModel):
    """Buffers that are saved and that are not, and each of the lists of what stays in float32."""

    config_class = PreTrainedConfig
    _keep_in_fp32_modules = ("scores",)
    _keep_in_fp32_modules_strict = ("gate.*bias",)

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("gate", "scores")})
        for name in ("layer_scalar", "gate_a_bias", "scores_b"):
            self.register_buffer(name, torch.rand(2))
        self.register_buffer("count", torch.ones(2, dtype=torch.int64))
        self.register_buffer("frequencies", torch.ones(2, dtype=torch.float32), persistent=False)
        self.post_init()

    def _init_weights(self, module):
        if module is self:
            self.frequencies.fill_(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_copy_has_the_types_of_a_model_that_is_loaded(tmp_path, dtype):
    torch.manual_seed(0)
    net = Toy(PreTrainedConfig())
    net.save_pretrained(tmp_path)
    loaded = Toy.from_pretrained(tmp_path, dtype=dtype)
    right = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    found = dict(net.named_buffers())
    with weights_in(net, dtype):
        inside = dict(net.named_parameters()) | dict(net.named_buffers())
    assert {name: x.dtype for name, x in inside.items()} == {name: x.dtype for name, x in right.items()}
    assert same(inside, right)
    assert all(buffer is found[name] for name, buffer in net.named_buffers())


FAST = {"cuda": True, "mixed": "bf16", "backend": "single", "widest": torch.float32}


@pytest.mark.parametrize(
    ("where", "settings", "dtype", "told"),
    [
        ({}, {}, torch.bfloat16, "copy of the weights, made for each rollout.*sequence_mask"),
        ({"backend": "ddp"}, {}, torch.bfloat16, "copy of the weights"),
        ({"mixed": "fp16"}, {}, torch.float16, "a float16 copy"),
        ({}, {"vllm_importance_sampling_correction": False}, torch.bfloat16, "not corrected"),
        ({}, {"rollout_dtype": "training"}, None, None),
        ({}, {"rollout_engine": "simple"}, None, None),
        ({"cuda": False}, {}, None, None),
        ({"mixed": "no"}, {}, None, None),
        ({"widest": torch.bfloat16}, {}, None, None),
        ({"backend": "zero3"}, {}, None, None),
        ({"backend": "fsdp2"}, {}, None, None),
        ({}, {"thought": "gaussian"}, None, "casts again at every token, because a gaussian"),
        ({}, {"thought": "multiplex", "multiplex_ratio": "draw"}, None, "`multiplex_ratio` is draw"),
        ({"tied": True}, {"cast_lm_head_to_fp32": True}, None, "with `cast_lm_head_to_fp32` and a head"),
        ({}, {"cast_lm_head_to_fp32": True}, torch.bfloat16, "copy of the weights"),
        ({}, {"loss_type": "vespo"}, None, "token_truncate or token_mask"),
        ({"cuda": False, "mixed": "no"}, COPY, torch.bfloat16, "copy of the weights"),
        ({}, {**COPY, "thought": "gaussian"}, torch.bfloat16, "copy of the weights"),
        ({"widest": torch.bfloat16}, COPY, None, "changes nothing: no weight is wider"),
        ({"backend": "zero3"}, COPY, None, "changes nothing: rollouts under zero3"),
        ({"backend": "zero2", "mixed": "no"}, COPY, torch.bfloat16, "copy of the weights"),
        ({"backend": "zero3", "mixed": "no"}, COPY, ValueError, "under zero3 .* gathered from shards"),
        ({"backend": "fsdp2", "mixed": "no"}, COPY, ValueError, "under fsdp2 .* gathered from shards"),
        ({"backend": "fsdp1"}, COPY, ValueError, "under fsdp1 .* gathered from shards"),
    ],
)  # fmt: skip
def test_where_there_is_a_copy(tmp_path, where, settings, dtype, told):
    args, given = tiny.config(tmp_path, **settings), Surroundings(**{**FAST, **where})
    if dtype is ValueError:
        with pytest.raises(ValueError, match=told):
            rollout_dtype(args, given)
        return
    found, sentence = rollout_dtype(args, given)
    assert found == dtype
    if told is None:
        assert sentence is None
    else:
        assert re.search(told, sentence)


def test_rloo_says_that_it_corrects_nothing(tmp_path):
    args = tiny.config(tmp_path, SoftRLOOConfig)
    assert "RLOO has no correction" in rollout_dtype(args, Surroundings(**FAST))[1]


def test_what_is_said_is_said_once_and_a_refusal_comes_first(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(trl_soft.training.rollout_precision.logger, "warning_once", told.append)
    watched(tmp_path / "a", **COPY)
    assert len(told) == 1 and "bfloat16 copy" in told[0]
    monkeypatch.setattr(
        trl_soft.training.rollout_precision,
        "surroundings",
        lambda *a: Surroundings(**{**FAST, "backend": "zero3", "mixed": "no"}),
    )
    with pytest.raises(ValueError, match="`rollout_dtype` is bfloat16, but under zero3"):
        watched(tmp_path / "b", **COPY)


def test_surroundings_are_the_trainers(tmp_path):
    trainer = watched(tmp_path, tiny.model().bfloat16(), peft_config=LORA, bf16=True)
    found = trl_soft.training.rollout_precision.surroundings(trainer.accelerator, trainer.model)
    assert found == Surroundings(False, "bf16", "single", torch.float32, tied=True)  # PEFT keeps adapters in float32
    assert isinstance(trainer.model, nn.Module)
