# SPDX-License-Identifier: Apache-2.0
"""The trainer's invariants: hard is GRPO, drawn is re-scored, on-policy is on-policy, and everything is left as found."""

import copy
import inspect
import json
import os
from contextlib import suppress

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOTrainer

from tests import tiny
from trl_soft import SoftGRPOTrainer, SoftTokens, ThinkingSettings
from trl_soft.thoughts import Hard
from trl_soft.training.in_flight import Phase
from trl_soft.vocabulary.head_logits import HeadLogits


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.0)
STOCHASTIC = [
    {"thought": "gumbel"},
    {"thought": "gumbel", "gumbel_density": "concrete"},
    {"thought": "gumbel", "gumbel_density": "softgrpo"},
    {"thought": "gaussian"},
]


def name_of(settings: dict) -> str:
    return "-".join(str(value) for value in settings.values())


class Watch(TrainerCallback):
    """Gradients before each optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def replaying(rollouts: list):
    """A plain GRPOTrainer that is given a soft trainer's completions."""

    class Replaying(GRPOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            return rollouts.pop(0), None

    return Replaying


def recording(rollouts: list):
    class Recording(SoftGRPOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            ids, logprobs = super()._generate_single_turn(*args, **kwargs)
            rollouts.append(copy.deepcopy(ids))
            return ids, logprobs

    return Recording


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.1},
        {"peft_config": LORA},
        {"peft_config": LORA, "beta": 0.1},
        {"num_iterations": 2, "top_entropy_quantile": 0.5},
        {"num_iterations": 2, "peft_config": LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.1)},
    ],
    ids=["full", "beta", "lora", "lora-beta", "iterations", "dropout"],
)
def test_hard_is_grpo(tmp_path, settings):
    """Same completions, three steps: losses, gradients and weights differ by exactly 0.0."""
    tiny.model().save_pretrained(tmp_path / "model")  # a reference model is loaded by name
    rollouts, watches, trainers = [], [], []
    for trainer_class in (recording(rollouts), replaying(rollouts)):
        net = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        watches.append(Watch())
        # No cap of its own: a thought that is cut gets a forced token, which plain GRPO knows nothing of.
        options = {"thought": "hard", "max_thinking_length": None, "callbacks": [watches[-1]], **settings}
        trainers.append(tiny.trainer(tmp_path, net, trainer_class, **options))
        trainers[-1].train()
    soft, plain = (trainer.state.log_history for trainer in trainers)
    assert len(soft) == len(plain) == 4
    for ours, theirs in zip(soft, plain, strict=True):
        for key in set(theirs) & {"loss", "grad_norm", "kl", "entropy", "reward", "clip_ratio/region_mean"}:
            assert ours[key] == theirs[key], key
    assert len(watches[0].gradients) == 3
    for ours, theirs in zip(watches[0].gradients, watches[1].gradients, strict=True):
        assert ours.keys() == theirs.keys()
        assert all((ours[name] - theirs[name]).abs().max() == 0.0 for name in ours)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    ours, theirs = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if "peft_config" not in settings:
        assert any(not torch.equal(ours[name], before[name]) for name in before)


@pytest.mark.parametrize("settings", [{"thought": "hard"}, *STOCHASTIC], ids=name_of)
def test_first_step_is_on_policy(tmp_path, settings):
    """Log-ratio 0 and loss 0, drawn equal to re-scored, with left padding, ragged lengths and thoughts of any length."""
    trainer = tiny.trainer(tmp_path, loss_type="grpo", max_steps=1, num_iterations=2, **settings)
    trainer.train()
    log = trainer.state.log_history[0]
    # The mean of the group's advantages is zero up to float32's rounding of eight terms.
    assert abs(log["loss"]) < 1e-6
    assert log["thinking/log_ratio/max"] < 1e-5 and log["answer/log_ratio/max"] < 1e-5
    assert log["answer/logp_difference/max"] <= 1e-5
    if settings["thought"] == "gaussian":
        assert log["thinking/logp_difference/max"] <= 1e-3 * abs(trainer.mean_log_prob)
    else:
        assert log["thinking/logp_difference/max"] <= 1e-5
    assert log["completions/min_length"] < log["completions/max_length"]


@pytest.fixture(autouse=True)
def _remember_mean_log_prob(monkeypatch):
    original = SoftGRPOTrainer._generate_and_score_completions

    def remember(self, inputs):
        output = original(self, inputs)
        self.mean_log_prob = output["soft_log_probs"][output["soft_thinking_mask"]].mean().item()
        self.last_batch = output
        return output

    monkeypatch.setattr(SoftGRPOTrainer, "_generate_and_score_completions", remember)


@pytest.mark.parametrize("settings", STOCHASTIC, ids=name_of)
@pytest.mark.parametrize("extra", [{}, {"peft_config": LORA}], ids=["full", "lora"])
def test_off_policy_steps_move_the_policy(tmp_path, settings, extra):
    """Two updates a rollout, a reference, entropies and truncation masks: finite, and every trained weight moves."""
    tiny.model().save_pretrained(tmp_path / "model")
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trainer = tiny.trainer(
        tmp_path,
        net,
        num_iterations=2,
        beta=0.1,
        top_entropy_quantile=0.5,
        mask_truncated_completions=True,
        entropy_coef=0.01,
        max_steps=4,
        **settings,
        **extra,
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == 4 and all(torch.tensor(row["loss"]).isfinite() for row in steps)
    assert steps[0]["kl"] == 0 and steps[3]["kl"] > 0
    assert steps[1]["thinking/log_ratio/mean"] > 0
    # A LoRA matrix A has no gradient while B is zero, which it is in the first step only.
    assert all(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("settings", STOCHASTIC, ids=name_of)
def test_entropy_is_filled_at_thoughts(tmp_path, settings):
    trainer = tiny.trainer(tmp_path, max_steps=1, **settings)
    trainer.train()
    log = trainer.state.log_history[0]
    batch = trainer.last_batch
    own = batch["completion_mask"] * batch["tool_mask"]
    thoughts = (own * batch["soft_thinking_mask"]).sum().item()
    answers = own.sum().item() - thoughts
    both = (log["thinking/entropy"] * thoughts + log["answer/entropy"] * answers) / (thoughts + answers)
    assert log["thinking/entropy"] > 0.1 and log["entropy"] == pytest.approx(both, rel=1e-4)


def test_thoughts_never_meet_the_whole_head(tmp_path, monkeypatch):
    """TRL's head is given the answers' rows alone, and a gumbel thought asks for its candidates alone (a sample of 32
    positions aside, for a metric)."""
    from trl.trainer import utils

    rows = []
    apply = utils._ChunkedLogProbFunction.apply

    class Counting:
        @staticmethod
        def apply(hidden, *args):
            rows.append(hidden.size(0))
            return apply(hidden, *args)

    def refused(self, *args):
        raise AssertionError("a gumbel thought multiplied by the whole LM head")

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counting)
    dense = HeadLogits.dense
    monkeypatch.setattr(HeadLogits, "dense", lambda self: dense(self) if len(self) <= 32 else refused(self))
    for name in ("mixture", "log_prob", "entropy"):
        monkeypatch.setattr(HeadLogits, name, refused)
    trainer = tiny.trainer(tmp_path, max_steps=1)
    trainer.train()
    batch = trainer.last_batch
    answers = batch["completion_mask"].bool() & ~batch["soft_thinking_mask"]
    # Once for the loss, and once for the first look at what its shadow tokens would score.
    assert rows == [answers.sum().item()] * 2 and batch["soft_thinking_mask"].sum() > 32


def test_the_mixture_is_what_is_fed(tmp_path):
    """A control: the same completions scored with hard inputs give other log-probabilities."""
    trainer = tiny.trainer(tmp_path, max_steps=1, gumbel_temperature=2.0)
    trainer.train()
    batch = trainer.last_batch
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    model = tiny.model()
    hard = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits[:, :-1], -1)
    hard = hard.gather(-1, ids[:, 1:, None]).squeeze(-1)[:, -batch["completion_ids"].size(1) :]
    answers = (
        batch["completion_mask"].bool()
        & ~batch["soft_thinking_mask"]
        & batch.get("tool_mask", batch["completion_mask"]).bool()
    )
    assert (hard - batch["soft_log_probs"])[answers].abs().max() > 0.1


def test_everything_is_left_as_found(tmp_path):
    trainer = tiny.trainer(tmp_path, max_steps=1)
    trainer.train()
    model = trainer.model
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    state = torch.get_rng_state()
    inputs = [trainer.train_dataset[0]] * 4
    for training in (True, False):
        model.train(training)
        trainer._generate([row["prompt"] for row in inputs])
        assert model.training is training
    assert torch.equal(state, torch.get_rng_state())
    assert "generate" not in vars(model)
    assert hooks == {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}


def test_an_error_in_the_rollout_leaves_the_model_as_found(tmp_path, monkeypatch):
    trainer = tiny.trainer(tmp_path)
    monkeypatch.setattr(
        "trl_soft.training.soft_tokens_mixin.assemble", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "generate" not in vars(trainer.model) and trainer.model.training


def test_same_constructor_as_grpo():
    ours, theirs = (inspect.signature(c.__init__).parameters for c in (SoftGRPOTrainer, GRPOTrainer))
    assert list(ours) == list(theirs)


def test_evaluation_thinks_as_told(tmp_path):
    trainer = tiny.trainer(
        tmp_path,
        eval_dataset=tiny.prompts(1),
        eval_thought="soft",
        per_device_eval_batch_size=4,
        num_generations_eval=2,
    )
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_reward"] == second["eval_reward"]
    assert first["eval_thinking/top1_weight"] < 1
    assert trainer._plans["eval"].thought.name == "soft" and trainer._plans["train"].thought.name == "gumbel"


@pytest.mark.parametrize("settings", [{}, {"thought": "gaussian"}], ids=["gumbel", "gaussian"])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, settings):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **settings}
    whole = tiny.trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = tiny.trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("extra", [{}, {"peft_config": LORA}], ids=["full", "lora"])
def test_settings_travel_with_the_weights(tmp_path, extra):
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "gumbel_temperature": 0.3, **extra}
    trainer = tiny.trainer(tmp_path / "run", **options)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    trainer.model.save_pretrained(tmp_path / "by_hand")
    for folder in (tmp_path / "run" / "checkpoint-1", tmp_path / "final", tmp_path / "by_hand"):
        assert ThinkingSettings.load_thinking(folder).gumbel_temperature == 0.3
    for folder in (tmp_path / "run" / "checkpoint-1", tmp_path / "final"):
        assert json.loads((folder / "thinking_config.json").read_text())["thought"] == "gumbel"
    if not extra:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
        trained = trainer.model.state_dict()
        assert all(torch.equal(value, trained[name]) for name, value in plain.state_dict().items())
        assert os.path.exists(tmp_path / "final" / "tokenizer.json")


def test_forced_text_is_neither_scored_nor_counted(tmp_path):
    trainer = tiny.trainer(tmp_path, max_steps=1, max_thinking_length=3, answer_prefill=["", "=a"], num_iterations=2)
    trainer.train()
    batch, length = trainer.last_batch, 3
    forced = torch.tensor([tiny.TOKENS.index("="), tiny.TOKENS.index("a")])
    cut = batch["tool_mask"][:, length] == 0
    assert cut.any()
    assert (batch["completion_ids"][cut][:, length : length + 2] == forced).all()
    assert (batch["tool_mask"][cut][:, length : length + 2] == 0).all()
    own = (batch["tool_mask"] * batch["completion_mask"]).sum(-1)
    assert (own == batch["completion_mask"].sum(-1) - 2 * cut).all()
    assert not batch["soft_thinking_mask"][cut][:, length:].any()


@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_reports_offline(tmp_path, monkeypatch, logger):
    pytest.importorskip(logger)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    tiny.trainer(tmp_path / "out", max_steps=1, report_to=logger, log_completions=logger == "wandb").train()
    if logger == "wandb":
        import wandb

        wandb.finish()
    written = [os.path.join(root, f) for root, _, names in os.walk(tmp_path) for f in names]
    assert any(("run-" in f and f.endswith(".wandb")) if logger == "wandb" else "tfevents" in f for f in written)
    if logger == "wandb":
        (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/thoughts/page_*.html")
        assert page.read_text("utf-8") == (tmp_path / "out" / "thoughts" / "step-00000.html").read_text("utf-8")
        (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/thoughts/table_*.table.json")
        assert "candidates" in json.loads(table.read_text("utf-8"))["columns"]


def test_bfloat16_autocast_trains(tmp_path):
    trainer = tiny.trainer(tmp_path, max_steps=2, bf16=True, gradient_checkpointing=True)
    trainer.train()
    assert all(torch.tensor(row["loss"]).isfinite() for row in trainer.state.log_history if "loss" in row)


def test_streamed_prompts(tmp_path):
    trainer = tiny.trainer(tmp_path, train_dataset=tiny.prompts().to_iterable_dataset(), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_conversational_prompts(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>"
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": "1+2="}]] * 8})
    seen = []

    def reward(completions, **kwargs):
        seen.extend(completions)
        return [float(len(c[0]["content"]) % 3) for c in completions]

    tiny.trainer(tmp_path, processing_class=tokenizer, train_dataset=rows, reward_funcs=reward, max_steps=1).train()
    assert seen[0][0]["role"] == "assistant"


def test_far_thoughts_are_bounded_without_a_cliff_of_gradient(tmp_path):
    """Old and reference 45 nats away: the k3 estimate and the ratio are finite, and neither has a gradient there."""
    trainer = tiny.trainer(tmp_path)
    thought = trainer._plans["train"].thought
    mask = torch.tensor([[True, False]])
    record = SoftTokens(thought, mask, {}, torch.zeros(1, 2))
    logps = torch.tensor([[-50.0, -50.0]], requires_grad=True)
    inputs = {name: torch.full((1, 2), -5.0) for name in ("old_per_token_logps", "ref_per_token_logps")}
    given = {"completion_ids": torch.zeros(1, 2), **inputs}
    with trainer._flying(Phase.LOSS, record, given) as flight:
        flight.see(logps)
        bounded = trainer._bound(logps, flight)
    assert flight.held.tolist() == [[True, False]] and trainer._flight is None
    assert given["old_per_token_logps"] is inputs["old_per_token_logps"]  # the caller's batch stays as it was
    inputs = flight.batch
    ratio = (bounded - inputs["old_per_token_logps"])[0].exp()
    delta = (inputs["ref_per_token_logps"] - bounded)[0]
    assert ratio.log().tolist() == pytest.approx([-10, -45]) and delta.tolist() == [10, 45]
    (gradient,) = torch.autograd.grad((delta.exp() - delta - 1)[0] + ratio[0] + 0 * logps.sum(), logps)
    assert gradient.tolist() == [[0, 0]]


def test_a_batch_that_was_cut_without_its_record_is_refused(tmp_path):
    trainer = tiny.trainer(tmp_path)
    record = SoftTokens(trainer._plans["train"].thought, torch.ones(1, 2, dtype=torch.bool), {}, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"is \(1, 2\) and the completions are \(1, 3\)"):
        with trainer._flying(Phase.LOSS, record, {"completion_ids": torch.zeros(1, 3)}):
            pass
    assert trainer._flight is None


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_nothing_is_in_flight_afterwards(tmp_path, error):
    trainer, ended = tiny.trainer(tmp_path), []
    with suppress(ZeroDivisionError), trainer._flying(Phase.ROLLOUT) as flight:
        flight.exits.callback(ended.append, True)
        if error is not None:
            raise error
    assert trainer._flight is None and ended == [True]


@pytest.mark.parametrize("stance", ["default", "force_eager"])
def test_a_compiled_run_is_the_run(tmp_path, stance):
    """
    `torch_compile` compiles the update, thoughts and all, and leaves rollouts eager. Tracing takes its time, so the longer
    run, with a reference, is of the wrapped models alone.
    """
    import torch._dynamo

    tiny.model(num_hidden_layers=1).save_pretrained(tmp_path / "model")  # the reference is loaded from there
    longer = {"beta": 0.1, "max_steps": 2, "num_iterations": 2} if stance == "force_eager" else {"max_steps": 1}
    trainers = []
    torch._dynamo.utils.counters.clear()
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        net = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        trainers.append(tiny.trainer(tmp_path / "out", net, **longer, **options))
        with torch.compiler.set_stance(stance):
            trainers[-1].train()
    assert type(trainers[1].model_wrapped).__name__ == "OptimizedModule"
    assert stance == "force_eager" or torch._dynamo.utils.counters["frames"]["ok"] > 0
    plain, compiled = (trainer.state.log_history for trainer in trainers)
    for ours, theirs in zip(compiled[: longer["max_steps"]], plain, strict=False):
        for name in {"loss", "grad_norm", "kl", "reward", "thinking/logp_difference/max"} & set(theirs):
            assert ours[name] == theirs[name], name
    ours, theirs = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_log_probs_from_outside(tmp_path):
    """Hard tokens are answered as TRL answers them; of soft ones the ids do not say what was fed."""
    ids = torch.tensor([[0, 4, 5, 6, 7]])
    asked = ids, (ids != 0).long(), 2
    hard = tiny.trainer(tmp_path / "hard", thought="hard")
    plain = GRPOTrainer._get_per_token_logps_and_entropies(hard, hard.model, *asked, compute_entropy=True)
    ours = hard._get_per_token_logps_and_entropies(hard.model, *asked, compute_entropy=True)
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])
    soft = tiny.trainer(tmp_path / "soft")
    with pytest.raises(ValueError, match=r"token ids do not say which mixtures were fed.*soft_tokens=record"):
        soft._get_per_token_logps_and_entropies(soft.model, *asked)
    soft.train()
    batch = soft.last_batch
    record = SoftTokens.from_batch(batch, soft._plans["train"].thought)
    ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : -record.shape[1]] = -100
    scored = soft.model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, soft_tokens=record)
    assert scored.log_probs.isfinite().all()


def test_learned_positions_are_the_rollouts(tmp_path):
    """GPT-2 counts positions: padding on the left must not be among them, in the update as in the rollout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": len(tiny.TOKENS), "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    net = GPT2LMHeadModel(
        GPT2Config(**sizes, bos_token_id=1, eos_token_id=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    )
    with torch.no_grad():
        net.transformer.wpe.weight.mul_(50)
        net.transformer.wte.weight.mul_(20)
    trainer = tiny.trainer(tmp_path, net, max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["thinking/logp_difference/max"] <= 1e-4 and log["answer/logp_difference/max"] <= 1e-4


def test_train_soft_infer_hard_takes_the_answers_sampling(tmp_path):
    args = tiny.config(tmp_path, thought="gaussian", thinking_temperature=1e-4, eval_thought="hard", temperature=0.8)
    hard = args.make_thought(Hard(0.8, 7, 0.9), 1.0, evaluation=True)
    assert (hard.temperature, hard.top_k, hard.top_p) == (0.8, 7, 0.9)
    assert args.make_thought(Hard(0.8), 1.0).temperature == 1e-4


def test_detached_inputs_pass_no_gradient(tmp_path):
    """With one thought that is all there is between prompt and answer, the table's rows are untouched by its feed."""
    gradients = {}
    for detach in (False, True):
        trainer = tiny.trainer(
            tmp_path,
            tiny.model(tie_word_embeddings=False),
            max_steps=1,
            detach_soft_inputs=detach,
            gumbel_temperature=1.0,
        )
        trainer.train()
        batch = trainer.last_batch
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, batch).backward()
        gradients[detach] = trainer.model.get_input_embeddings().weight.grad
        fed = torch.cat([batch["prompt_ids"].flatten(), batch["completion_ids"][~batch["soft_thinking_mask"]]])
    others = torch.ones(len(tiny.TOKENS), dtype=torch.bool)
    others[fed] = False
    if others.any():
        assert (gradients[True][others] == 0).all()
    assert not torch.equal(gradients[True], gradients[False])
