# SPDX-License-Identifier: Apache-2.0
"""Gates: which steps of a thought are soft, in both engines, in the update and in what is saved."""

import math

import pytest
import torch

from tests import tiny
from tests.test_engine import ARRANGEMENTS, PROMPTS, assert_same, plan, run
from trl_soft import SoftGRPOConfig, SoftRLOOConfig, SoftRLOOTrainer, ThinkingSettings
from trl_soft.gates import GATES, Gate, GateStep, register_gate
from trl_soft.noise import KeyedNoise
from trl_soft.thoughts import THOUGHTS, Gumbel, Hard
from trl_soft.vocabulary.head_logits import DenseLogits


# The bounds lie in the middle of what the random model predicts.
RULES = {
    "first": {"gate_length": 3},
    "random": {"gate_probability": 0.5},
    "entropy": {"gate_entropy": 3.18, "gate_dwell": 2},
    "entropy_trend": {"gate_dwell": 2},
    "confidence": {"gate_confidence": 0.1},
}
SOFT = [settings for settings in tiny.THOUGHTS if settings["thought"] != "hard"]


def settings_of(gate: str, thought: dict | None = None) -> dict:
    return {"thinking_gate": gate, **RULES[gate], **(thought or {"thought": "gumbel", "gumbel_temperature": 0.5})}


def steps_of(rollout):
    """Which steps of thoughts are soft, without the closing ones, and all of those steps: (B, C) bool each."""
    phase = torch.arange(rollout.completion_ids.size(1)) < rollout.thinking_length.unsqueeze(1) - 1
    return rollout.record.thinking_mask & phase, phase


@pytest.mark.parametrize("gate", RULES)
def test_engines_decide_what_the_oracle_decides(gate):
    net = tiny.model()
    made = plan(net, settings_of(gate))
    theirs = run(net, made, "naive")
    soft, phase = steps_of(theirs)
    assert 0.1 < soft.sum() / phase.sum() < 0.9
    for name in ("all at once", "refilled", "seldom looked at", "padded batches"):
        assert_same(run(net, made, **ARRANGEMENTS[name]), theirs)


def test_engines_and_the_oracle_read_the_entropy_of_the_most_likely_tokens():
    """SeLaR's gate and its thought: three candidates, the bound half of their largest entropy."""
    net = tiny.model()
    selar = {"gate_entropy": 0.9 * math.log(3), "gate_top_k": 3, "gate_dwell": 1}
    thought = {"thought": "soft", "thinking_top_k": 3, "soft_width": 3, "soft_contrast": 1.0}
    made = plan(net, settings_of("entropy", thought) | selar)
    theirs = run(net, made, "naive")
    soft, phase = steps_of(theirs)
    assert 0.1 < soft.sum() / phase.sum() < 0.9
    for name in ("refilled", "padded batches"):
        assert_same(run(net, made, **ARRANGEMENTS[name]), theirs)


@pytest.mark.parametrize("thought", SOFT, ids=tiny.name)
def test_a_gate_is_around_every_thought(thought):
    net = tiny.model()
    made = plan(net, settings_of("random", thought))
    theirs = run(net, made, "naive")
    for name in ("refilled", "padded batches"):
        assert_same(run(net, made, **ARRANGEMENTS[name]), theirs, thought["thought"] == "gaussian")


@pytest.mark.parametrize("gate", ["entropy", "entropy_trend"])
@pytest.mark.parametrize("engine", [{"slots": 5}, {"engine": "simple", "slots": 5}], ids=["slots", "simple"])
def test_a_step_that_is_taken_again_is_remembered_once(gate, engine):
    """A text that ends thoughts, a Cold Stop and a repetition penalty, all with the memory of a gate."""
    net = tiny.model()
    stops = {"end_of_thinking": ";", "cold_stop_entropy": 3.18, "cold_stop_length": 3, "thinking_top_k": 20}
    made = plan(net, settings_of(gate) | stops, repetition_penalty=1.3)
    theirs = run(net, made, "naive", prompts=PROMPTS * 2)
    assert theirs.thinking_cut.any() and not theirs.thinking_cut.all()
    assert_same(run(net, made, prompts=PROMPTS * 2, **engine), theirs)


def test_always_and_never():
    """A gate that is always open is no gate, to the last bit; one that is never open leaves hard thoughts."""
    net = tiny.model()
    thought = {"thought": "gumbel", "gumbel_temperature": 0.5}
    open_gate = plan(net, thought | {"thinking_gate": "random", "gate_probability": 1.0})
    shut_gate = plan(net, thought | {"thinking_gate": "random", "gate_probability": 0.0})
    for ours, theirs in ((open_gate, plan(net, thought)), (shut_gate, plan(net, {"thought": "hard"}))):
        ours, theirs = run(net, ours), run(net, theirs)
        assert torch.equal(ours.completion_ids, theirs.completion_ids)
        assert torch.equal(ours.record.log_probs, theirs.record.log_probs)
        assert torch.equal(ours.thinking_length, theirs.thinking_length)


def rule_step(logits, position, run=None, reference=None):
    run = torch.zeros_like(position) if run is None else run
    bits = torch.zeros(len(position), dtype=torch.float64) if reference is None else reference.double()
    noise = KeyedNoise(0, 0, torch.arange(len(position)), position)
    return GateStep(DenseLogits(logits), noise, 1.0, run, bits.view(torch.int64))


def test_each_rule_by_hand():
    position = torch.arange(6)
    flat, sharp = torch.zeros(4), torch.tensor([9.0, 0, 0, 0])
    logits = torch.stack([flat, sharp, flat, sharp, flat, sharp])  # entropies log 4 and 0.005
    sure = torch.tensor([False, True] * 3)
    first = rule_step(logits, position)
    assert GATES["first"](gate_length=2).soft(first).tolist() == [True, True, False, False, False, False]
    assert GATES["confidence"](gate_confidence=0.3).soft(first).tolist() == sure.tolist()
    above = GATES["entropy"](gate_entropy=1.0, gate_side="above", gate_dwell=3, gate_top_k=0)
    below = GATES["entropy"](gate_entropy=1.0, gate_side="below", gate_dwell=3, gate_top_k=0)
    assert above.soft(first).tolist() == (~sure).tolist() and below.soft(first).tolist() == sure.tolist()
    # After two steps of a kind it stays; after three the entropy decides.
    runs = torch.tensor([2, 2, -2, -2, 3, 3])
    assert above.soft(rule_step(logits, position, runs)).tolist() == [True, True, False, False, True, False]
    # Of the three most likely tokens: at most log 3, and the same whatever the others are.
    three = GATES["entropy"](gate_entropy=1.0, gate_side="above", gate_dwell=1, gate_top_k=3)
    assert three.soft(first).tolist() == (~sure).tolist()
    assert first.entropy_of_top(3).tolist()[0] == pytest.approx(math.log(3), abs=1e-6)
    assert first.entropy_of_top(100).tolist() == pytest.approx(first.entropy.tolist(), abs=1e-6)
    # Soft until the entropy is below the reference; hard until it is above it and three steps have passed.
    trend = GATES["entropy_trend"](gate_dwell=3)
    runs, reference = torch.tensor([1, 1, -2, -3, -3, 0]), torch.ones(6)
    assert trend.soft(rule_step(logits, position, runs, reference)).tolist() == [
        True, False, False, False, True, True,
    ]  # fmt: skip


def test_memory_counts_steps_and_keeps_the_entropy_of_the_change():
    logits = torch.stack([torch.zeros(4), torch.zeros(4), torch.zeros(4)])
    step = rule_step(logits, torch.arange(3), torch.tensor([0, 4, -4]), torch.tensor([0.0, 0.5, 0.5]))
    assert step.entropy.tolist() == pytest.approx([1.3863] * 3, abs=1e-4)
    assert step.memory(torch.tensor([True, True, True])) == {}  # a rule that has read neither needs neither
    assert step.dwell.tolist() == [0, 4, 4] and step.reference.tolist() == [0.0, 0.5, 0.5]
    after = step.memory(torch.tensor([True, True, True]))
    assert after["run"].tolist() == [1, 5, 1]
    assert after["reference"].view(torch.float64).tolist() == pytest.approx([1.3863, 0.5, 1.3863], abs=1e-4)


def test_a_random_gate_is_independent_of_the_draw_after_it():
    """The score of a gated step has mean zero: the gate's noise is not the noise of the token or of the thought."""
    n, rho = 40_000, 0.3
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    z = logits.expand(n, -1).clone().requires_grad_()
    noise = KeyedNoise(1, 0, torch.arange(n), torch.zeros(n, dtype=torch.long))
    soft = GATES["random"](gate_probability=rho).soft(
        GateStep(DenseLogits(z), noise, 1.0, torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long))
    )
    assert abs(soft.double().mean() - rho) < 4 * (rho * (1 - rho) / n) ** 0.5
    for kind, chosen in ((Gumbel(top_k=4, top_p=1.0), soft), (Hard(), ~soft)):
        view, mine = DenseLogits(z[chosen]), noise[chosen]
        with torch.no_grad():
            action, _ = kind.sample(DenseLogits(z[chosen].detach()), mine)
        (score,) = torch.autograd.grad(kind.log_prob(view, action).sum(), z)
        score = score[chosen]
        assert (score.mean(0).abs() < 4 * score.std(0) / len(score) ** 0.5).all()


def test_evaluation_has_the_gate_unless_its_thought_is_hard():
    settings = ThinkingSettings(**settings_of("first"), eval_thought="hard")
    assert settings.make_gate() == GATES["first"](gate_length=3) and settings.make_gate(evaluation=True) is None
    settings = ThinkingSettings(**settings_of("first"), eval_thought="soft")
    assert settings.make_gate(evaluation=True) == settings.make_gate()
    assert ThinkingSettings().make_gate() is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"thinking_gate": "sometimes"}, "no gate"),
        ({"thinking_gate": 3}, "no gate"),
        ({"thinking_gate": "entropy"}, "`gate_entropy`, its bound, is unset"),
        ({"thinking_gate": "confidence"}, "`gate_confidence`, its bound, is unset"),
        ({"thinking_gate": "first", "thought": "hard"}, "already"),
        ({"gate_length": 3}, "first does"),
        ({"thinking_gate": "first", "gate_dwell": 2}, "entropy and entropy_trend"),
        ({"thinking_gate": "first", "gate_top_k": 2}, "entropy does"),
        ({"thinking_gate": "first", "gate_length": 0}, "at least 1"),
        ({"thinking_gate": "random", "gate_probability": 1.5}, "at most 1"),
        ({"thinking_gate": "entropy", "gate_entropy": 1.0, "gate_side": "left"}, "above, below"),
        ({"thinking_gate": "entropy", "gate_entropy": 2.0, "gate_top_k": 3}, "every step would be hard"),
    ],
)
def test_what_a_gate_refuses(given, said):
    with pytest.raises(ValueError, match=said):
        ThinkingSettings(**given)


def test_a_bound_that_no_distribution_reaches():
    """Known when the vocabulary is."""
    net = tiny.model()
    reached = math.log(net.config.vocab_size)
    plan(net, {"thinking_gate": "entropy", "gate_entropy": reached - 1e-3})
    with pytest.raises(
        ValueError, match=r"the entropy of \d+ tokens is at most log \d+ = 3\.\d+, so every step would be hard"
    ):
        plan(net, {"thinking_gate": "entropy", "gate_entropy": reached})


def test_saved_settings_lose_a_gate_with_their_soft_thought(tmp_path):
    ThinkingSettings(**settings_of("entropy")).save_thinking(tmp_path)
    assert ThinkingSettings.load_thinking(tmp_path).gate_entropy == 3.18
    assert ThinkingSettings.load_thinking(tmp_path, thought="hard").thinking_gate == "always"
    other = ThinkingSettings.load_thinking(tmp_path, thinking_gate="first")
    assert other.gate_entropy is None and other.gate_length == 32
    assert ThinkingSettings.load_thinking(tmp_path, thought="multiplex").thinking_gate == "entropy"


@pytest.mark.parametrize("gate", ["first", "random", "entropy", "entropy_trend", "confidence"])
@pytest.mark.parametrize(
    "thought", [None, {"thought": "multiplex", "multiplex_ratio": "draw"}], ids=["gumbel", "draws"]
)
def test_the_update_scores_what_was_drawn(tmp_path, gate, thought):
    trainer = tiny.trainer(tmp_path, **settings_of(gate, thought), max_steps=2, num_iterations=2)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "thinking/soft_ratio" in entry)
    assert 0 < log["thinking/soft_ratio"] < 1
    for name in ("thinking", "hard_step", "answer"):
        assert log[f"{name}/logp_difference/max"] < 1e-4
    assert log["hard_step/entropy"] > 0 and log["thinking/log_ratio/max"] == 0.0


@pytest.mark.parametrize("thought", [None, {"thought": "gaussian"}], ids=["gumbel", "gaussian"])
def test_a_gate_that_never_opens_trains_as_hard_thoughts(tmp_path, thought):
    """No step is soft, so the losses and the weights are those of `thought: hard`, to the rounding of another order of sums."""
    never = {"thinking_gate": "random", "gate_probability": 0.0, **(thought or {})}
    weights = []
    for settings in (never, {"thought": "hard"}):
        trainer = tiny.trainer(tmp_path, **settings, max_steps=2, max_grad_norm=0.0)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_rloo_trains_gated_thoughts(tmp_path):
    trainer = tiny.trainer(
        tmp_path,
        trainer_class=SoftRLOOTrainer,
        config_class=SoftRLOOConfig,
        max_steps=1,
        beta=0.0,
        **settings_of("first", {"thought": "gaussian"}),
    )
    trainer.train()
    assert trainer.state.log_history[0]["hard_step/logp_difference/max"] < 1e-4


def test_the_gradient_of_a_gated_completion_is_that_of_its_parts(tmp_path):
    """Finite differences of the log-probability of whole completions, with the decisions of the rollout held."""
    trainer = tiny.trainer(tmp_path, **settings_of("entropy"))
    net = trainer.model.double()
    made = trainer._plans["train"]
    rollout = run(net, made)
    prompts = [tiny.tokenizer()(prompt)["input_ids"] for prompt in PROMPTS]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.cat([ids.ne(0), rollout.completion_mask], 1)
    whole = torch.cat([ids, rollout.completion_ids], 1)
    labels = whole.masked_fill(~torch.cat([torch.zeros_like(ids, dtype=torch.bool), rollout.completion_mask], 1), -100)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)

    def log_prob():
        output = net(
            input_ids=whole, attention_mask=mask.long(), position_ids=positions, labels=labels, fused_lm_head=True,
            soft_tokens=rollout.record,
        )  # fmt: skip
        return output.log_probs.double().sum()

    weight = net.model.layers[1].mlp.down_proj.weight
    (gradient,) = torch.autograd.grad(log_prob(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
    step = 1e-4
    with torch.no_grad():
        weight += step * direction
        above = log_prob()
        weight -= 2 * step * direction
        below = log_prob()
        weight += step * direction
    slope = float((above - below) / (2 * step))
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3)


def test_a_gate_of_your_own():
    @register_gate
    class Odd(Gate):
        name = "odd"

        def soft(self, step):
            return step.position % 2 == 1

    try:
        net = tiny.model()
        rollout = run(net, plan(net, {"thinking_gate": "odd"}))
        soft, phase = steps_of(rollout)
        assert torch.equal(soft, phase & (torch.arange(soft.size(1)) % 2 == 1))
        with pytest.raises(ValueError, match="already a gate"):
            register_gate(Odd)
    finally:
        del GATES["odd"]


def test_a_rule_of_your_own_remembers_what_it_reads():
    """Two soft steps, then two hard ones, by `was_soft` and `dwell`; and a rule by the entropy at the last change alone."""

    class Two(Gate):
        name = "two"

        def soft(self, step):
            return torch.where(step.dwell >= 2, ~step.was_soft, step.was_soft | (step.dwell == 0))

    class Higher(Gate):
        name = "higher"

        def soft(self, step):
            return step.top_probability > 1 / (1 + step.reference)

    net = tiny.model()
    for rule in (Two(), Higher()):
        made = plan(net, {"thought": "gumbel"})
        made.gate = rule
        theirs = run(net, made, "naive")
        for name in ("all at once", "padded batches"):
            assert_same(run(net, made, **ARRANGEMENTS[name]), theirs)
        if rule.name == "two":
            soft, phase = steps_of(theirs)
            assert torch.equal(soft, phase & (torch.arange(soft.size(1)) % 4 < 2))


@pytest.mark.parametrize(
    "rule",
    [lambda step: step.entropy, lambda step: True, lambda step: (step.position > 0)[:1]],
    ids=["numbers", "no tensor", "too few"],
)
def test_a_rule_that_decides_nothing_is_told_what_to_return(rule):
    class Wrong(Gate):
        name = "wrong"

        def soft(self, step):
            return rule(step)

    net = tiny.model()
    made = plan(net, {"thought": "gumbel"})
    made.gate = Wrong()
    with pytest.raises(TypeError, match="Return a bool tensor of shape"):
        run(net, made)


def test_settings_that_nothing_reads_are_not_saved(tmp_path):
    """A model that is saved where a gate of one's own is registered loads where it is not."""
    stored = ThinkingSettings(thought="gumbel").thinking_dict()
    assert "gumbel_density" in stored and "gate_length" not in stored and "multiplex_width" not in stored
    stored = ThinkingSettings(**settings_of("first")).thinking_dict()
    assert stored["gate_length"] == 3 and ThinkingSettings(**stored) == ThinkingSettings(**settings_of("first"))
    with pytest.raises(ValueError, match="of your own reads them, import its file"):
        ThinkingSettings.of_stored({**stored, "gate_period": 2}, "The config")


def test_a_model_card_names_the_gate(tmp_path):
    trainer = tiny.trainer(tmp_path, **settings_of("random"))
    trainer.save_model(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "The gate `random` makes some steps ordinary tokens; it does not depend on the policy." in " ".join(
        card.split()
    )
    assert "2606.10768" in card


def test_every_gate_has_a_line_of_help():
    for config in (SoftGRPOConfig, SoftRLOOConfig):
        for kind in GATES.values():
            for name in kind.options:
                assert config.__dataclass_fields__[name].metadata["help"]
    assert not set(GATES) & set(THOUGHTS)
