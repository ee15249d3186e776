# SPDX-License-Identifier: Apache-2.0
"""Every loss with every thought, and RLOO against 2509.19170's objective written out."""

import pytest
import torch
from trl import RLOOTrainer

from tests import tiny
from trl_soft import SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.forward import soft_tokens_added
from trl_soft.score_variance import score_variance
from trl_soft.thoughts import Hard
from trl_soft.vocabulary.head_logits import HeadLogits


LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
THOUGHTS = [
    {"thought": "gumbel"},
    {"thought": "gumbel", "gumbel_density": "concrete"},
    {"thought": "gumbel", "gumbel_density": "softgrpo"},
    {"thought": "gaussian"},
    {"thought": "gaussian", "noise_placement": "hidden"},
    {"thought": "gaussian", "noise_placement": "logits", "noise_scale": 1.0, "thinking_top_k": 8},
    {"thought": "gaussian", "noise_placement": "probabilities", "noise_scale": 0.05, "thinking_top_k": 8},
    {"thought": "dirichlet"},
    {"thought": "mixture"},
    {"thought": "multiplex"},
    {"thought": "multiplex", "multiplex_weights": "probability"},
    {"thought": "neighbour"},
]
DRAWS = {"thought": "multiplex", "multiplex_ratio": "draw"}


def ids(settings: dict) -> str:
    return "-".join(str(value) for value in settings.values())


def losses(trainer) -> list[dict]:
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("thought", [*THOUGHTS, DRAWS], ids=ids)
def test_every_loss_takes_two_steps(tmp_path, thought):
    """On-policy first, off-policy second, with a threshold mask, two-sided clipping and the sequence level in turn."""
    for loss in LOSSES:
        options = {"off_policy_mask_threshold": 0.5} if loss in ("dapo", "grpo") else {}
        options |= {"delta": 4.0} if loss in ("bnpo", "dr_grpo") else {}
        if loss in ("luspo", "grpo") and thought is not DRAWS:  # whose ratios are not the whole completion's
            options |= {"importance_sampling_level": "sequence"}
        trainer = tiny.trainer(tmp_path, max_steps=2, num_iterations=2, loss_type=loss, **options, **thought)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        first, second = losses(trainer)
        assert torch.tensor([first["loss"], second["loss"], first["grad_norm"]]).isfinite().all(), loss
        assert first["thinking/log_ratio/max"] < 1e-3 and second["thinking/log_ratio/max"] > 0
        tolerance = 1e-3 if thought["thought"] == "gaussian" else 1e-5
        assert first["thinking/logp_difference/max"] <= tolerance
        if thought.get("noise_placement") != "hidden":
            assert first["thinking/score_variance"] > 0 and 0 < first["answer/score_variance"] <= 2
        assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items()), loss


def test_each_draw_has_a_ratio_of_its_own(tmp_path):
    """The DAPO loss of Multiplex Thinking written out: K clipped terms a thought, one a token, over the positions."""

    class Keeping(tiny.SoftGRPOTrainer):
        def _compute_loss(self, model, inputs):
            self.batch = inputs
            return super()._compute_loss(model, inputs)

    settings = {**DRAWS, "temperature": 1.0, "loss_type": "dapo", "num_iterations": 2, "max_steps": 1}
    trainer = tiny.trainer(tmp_path, trainer_class=Keeping, **settings)
    trainer.train()
    model, batch = trainer.model, trainer.batch
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)  # far enough for some ratios to be clipped
    model.zero_grad()
    loss = trainer._compute_loss(model, batch)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    P, (B, C), K = batch["prompt_ids"].size(1), batch["completion_ids"].shape, 3
    input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    thinking, drawn, w = (batch[f"soft_{n}"] for n in ("thinking_mask", "action_ids", "action_weights"))
    inputs = model.get_input_embeddings()(input_ids)
    rows = model.get_input_embeddings()(drawn)
    inputs[:, P:][thinking] = (w.unsqueeze(-1) * rows).sum(-2)[thinking]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    z = model(inputs_embeds=inputs, attention_mask=mask, position_ids=positions).logits[:, P - 1 : -1]
    ids = torch.where(thinking.unsqueeze(-1), drawn, batch["completion_ids"].unsqueeze(-1))
    log_p = torch.log_softmax(z, -1).gather(-1, ids)  # (B, C, K)
    scored = torch.ones(B, C, K)
    scored[..., 1:] = (thinking & ~batch["soft_action_closed"]).unsqueeze(-1)
    scored *= (batch["completion_mask"].bool() & ~batch["soft_forced_mask"]).unsqueeze(-1)
    ratio = torch.exp(log_p - batch["old_per_token_logps"])
    A = batch["advantages"].view(-1, 1, 1)
    terms = -torch.minimum(ratio * A, ratio.clamp(0.8, 1.2) * A) * scored
    expected = terms.sum() / (batch["completion_mask"].bool() & ~batch["soft_forced_mask"]).sum()
    expected.backward()
    clipped = ((ratio * A > ratio.clamp(0.8, 1.2) * A) & scored.bool()).sum()
    assert clipped > 0 and loss.item() == pytest.approx(expected.item(), abs=1e-5)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    for have, parameter in zip(gradients, model.parameters(), strict=True):
        assert (have - parameter.grad).norm() <= 1e-5 * norm


def test_one_ratio_for_the_completion_has_no_draws(tmp_path):
    with pytest.raises(ValueError, match="multiplex_ratio: step"):
        tiny.config(tmp_path, importance_sampling_level="sequence", **DRAWS)
    with pytest.raises(ValueError, match="multiplex_ratio: step"):
        rloo_config(tmp_path, **DRAWS)


def test_score_variance_is_what_it_says(tmp_path):
    """Against one-hot minus p over every position, where few enough that none is left out of the sample."""
    hidden, head = torch.randn(20, 8), torch.nn.Linear(8, 12, bias=False)
    logits, x = HeadLogits(hidden, head, torch.nn.Embedding(12, 8)), torch.randint(0, 12, (20,))
    p = torch.softmax(head(hidden) / 0.7, -1)
    expected = ((torch.nn.functional.one_hot(x, 12) - p) / 0.7).square().sum()
    total, count = score_variance(Hard(0.7), logits, {"ids": x})
    assert count == 20
    torch.testing.assert_close(total, expected.detach())
    assert score_variance(
        Hard(), HeadLogits(hidden[:0], head, torch.nn.Embedding(12, 8)), {"ids": x[:0]}
    ).tolist() == [0, 0]


class RLOO(SoftRLOOTrainer):
    """Keeps its batch."""

    def _generate_and_score_completions(self, inputs):
        self.batch = super()._generate_and_score_completions(inputs)
        return self.batch


def rloo_config(tmp_path, **changes) -> SoftRLOOConfig:
    settings = {"bf16": False, "use_cpu": True, "max_completion_length": 16, "max_thinking_length": 8}
    settings |= {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 1, "learning_rate": 1e-3}
    settings |= {"logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    settings |= {"gradient_checkpointing": False, "beta": 0.0, "normalize_advantages": False, "seed": 7}
    return SoftRLOOConfig(str(tmp_path), **{**settings, **changes})


def rloo(tmp_path, **changes) -> RLOO:
    args = rloo_config(tmp_path, **changes)
    return RLOO(tiny.model(), tiny.reward, args, tiny.prompts(), processing_class=tiny.tokenizer())


def reference(model, batch, rewards, G: int, sigma: float, temperature: float):
    """2509.19170, Eq. 10-14, for gaussian thoughts: the loss, from plain logits over the vocabulary."""
    P = batch["prompt_ids"].size(1)
    input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    E = model.get_input_embeddings().weight
    thinking, noisy = batch["soft_thinking_mask"], batch["soft_action_embedding"]
    inputs = model.get_input_embeddings()(input_ids)  # its padding row takes no gradient
    inputs[:, P:][thinking] = noisy[thinking]
    z = model(inputs_embeds=inputs, attention_mask=mask).logits[:, P - 1 : -1]  # (B, C, V)
    h = torch.softmax(z / temperature, -1) @ E  # Eq. 5
    log_thought = -(noisy - h).square().sum(-1) / (2 * sigma**2)  # Eq. 10
    log_token = torch.log_softmax(z, -1).gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
    own = batch["completion_mask"].bool() & ~batch["soft_forced_mask"]
    log_pi = (torch.where(thinking, log_thought, log_token) * own).sum(1)  # Eq. 13
    r = rewards.view(-1, G)
    A = (r - (r.sum(1, keepdim=True) - r) / (G - 1)).flatten()  # Eq. 12
    return -(A * log_pi).mean(), A  # Eq. 14


def test_rloo_is_the_objective_of_soft_tokens(tmp_path):
    """Loss and gradient to 1e-6 relative to the gradient's size (float32; gaussian scores have terms of tens of nats)."""
    trainer = rloo(tmp_path, thought="gaussian")
    model, thought = trainer.model, trainer._plans["train"].thought
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.train()
    gradients = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    batch = trainer.batch
    rewards = torch.tensor(
        tiny.reward([row[m.bool()].tolist() for row, m in zip(batch["completion_ids"], batch["completion_mask"])])
    )
    model.zero_grad()
    loss = trainer._compute_loss(model, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected, A = reference(model, batch, rewards, 4, thought.sigma, thought.temperature)
    expected.backward()
    # TRL's surrogate exp(l - l_old) has the gradient of l where the ratio is 1; its value there is the mean advantage.
    assert loss.item() == pytest.approx(-A.mean().item(), abs=1e-6)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm > 1e-3
    for name, parameter in model.named_parameters():
        assert (gradients[name] - parameter.grad).norm() <= 1e-6 * norm, name


@pytest.mark.parametrize("thought", [{"thought": "hard"}, *THOUGHTS], ids=ids)
def test_rloo_trains_with_every_thought(tmp_path, thought):
    trainer = rloo(tmp_path, max_steps=2, num_iterations=2, **thought)
    trainer.train()
    first, second = losses(trainer)
    assert torch.tensor([first["loss"], second["loss"]]).isfinite().all()
    assert first["thinking/log_ratio/max"] < 1e-3 and second["answer/log_ratio/max"] > 0


def test_hard_rloo_is_rloo(tmp_path):
    """Same completions, three steps: losses and weights differ by exactly 0.0."""
    rollouts, trainers = [], []

    class Recording(SoftRLOOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            rollouts.append(super()._generate_single_turn(*args, **kwargs))
            return rollouts[-1]

    class Replaying(RLOOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            return rollouts.pop(0)

    tiny.model().save_pretrained(tmp_path / "model")
    for trainer_class in (Recording, Replaying):
        args = rloo_config(tmp_path, thought="hard", max_thinking_length=None, max_steps=3, beta=0.05)
        net = type(tiny.model()).from_pretrained(tmp_path / "model")
        trainers.append(trainer_class(net, tiny.reward, args, tiny.prompts(), processing_class=tiny.tokenizer()))
        trainers[-1].train()
    ours, theirs = (losses(trainer) for trainer in trainers)
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs] and len(ours) == 3
    assert ours[2]["kl"] == theirs[2]["kl"] != 0
    ours, theirs = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_forced_tokens_have_no_part_in_rloo(tmp_path):
    trainer = rloo(tmp_path, max_thinking_length=3, answer_prefill=["", "=a"])
    trainer.train()
    batch = trainer.batch
    assert batch["soft_forced_mask"].any()
    with soft_tokens_added(trainer.model):
        assert (batch["old_per_token_logps"][batch["soft_forced_mask"]] == 0).all()


def test_stale_gaussian_thoughts_stay_finite(tmp_path):
    """A learning rate that throws the policy hundreds of nats away: bounded, finite, and said so."""
    for make in (tiny.trainer, rloo):
        trainer = make(
            tmp_path, thought="gaussian", learning_rate=1.0, num_iterations=4, max_steps=4, noise_scale=0.05
        )
        trainer.train()
        rows = losses(trainer)
        assert all(torch.tensor(row["loss"]).isfinite() for row in rows)
        assert max(row["thinking/log_ratio/max"] for row in rows) > 100
        assert max(row["thinking/clamped_ratio"] for row in rows) > 0


def test_a_completion_far_from_the_old_policy_is_seen(tmp_path):
    """RLOO bounds whole completions, answers and all; the metrics say so."""
    trainer = rloo(tmp_path, thought="gumbel", num_iterations=4, max_steps=4, learning_rate=0.1)
    trainer.train()
    rows = losses(trainer)
    assert rows[0]["answer/clamped_ratio"] == rows[0]["thinking/clamped_ratio"] == 0
    assert rows[-1]["answer/clamped_ratio"] > 0 and rows[-1]["thinking/clamped_ratio"] > 0


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("loss", ["cispo", "vespo"])
def test_kl_does_not_multiply_what_a_detached_weight_keeps(tmp_path, loss, corrected):
    """A far thought keeps the gradient of its log-probability, but not times exp(10): KL adds what it adds to DAPO."""
    tiny.model().save_pretrained(tmp_path / "model")  # the reference is loaded from there
    added = {}
    for kind in ("dapo", loss):
        norms = []
        for beta in (1e-8, 0.1):
            options = {"use_bias_correction_kl": corrected, "loss_type": kind, "beta": beta, "max_grad_norm": 0.0}
            options |= {"thought": "gaussian", "noise_scale": 0.05, "learning_rate": 0.01}
            net = type(tiny.model()).from_pretrained(tmp_path / "model")
            trainer = tiny.trainer(tmp_path, net, num_iterations=2, max_steps=2, **options)
            trainer.train()
            row = losses(trainer)[1]
            assert row["thinking/clamped_ratio"] > 0.1
            norms.append(row["grad_norm"])
        added[kind] = norms[1] - norms[0]
    print(added)
    assert added[loss] < 10 * abs(added["dapo"]) + 10
