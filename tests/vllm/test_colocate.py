# SPDX-License-Identifier: Apache-2.0
"""Whole trainer steps with TRL's colocated vLLM: the steps that the in-process engine makes, to the rounding of forwards."""

import functools

import pytest

from tests import tiny
from tests.vllm import served
from tests.vllm.served import needs_vllm
from trl_soft import SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer


pytestmark = needs_vllm
VLLM = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 64, "vllm_gpu_memory_utilization": 0.1}
# The same sampling and training in both; what vLLM drew is scored again, as it is in process only with more steps a rollout.
SHARED = {"max_completion_length": 20, "max_thinking_length": 10, "num_generations": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served.save(served.model(), tmp_path_factory.mktemp("model"))


@pytest.fixture
def on_a_cpu(monkeypatch):
    """What TRL leaves to vLLM, and vLLM would choose otherwise for a CPU; shut down after the test."""
    import trl.generation.vllm_generation as module

    served.plain_linear()
    made = []

    def engine(**options):
        made.append(module_llm(dtype="float32", enforce_eager=True, **options))
        return made[-1]

    module_llm = module.LLM
    monkeypatch.setattr(module, "LLM", engine)
    yield made
    for llm in made:
        served.shut(llm)


def steps(folder, output, trainer_class=SoftGRPOTrainer, **changes):
    """Logged metrics of every step and of an evaluation, and the parameters after the last."""
    if trainer_class is SoftRLOOTrainer:
        config = functools.partial(rloo_config, output)
        given = {"train_dataset": tiny.prompts(), "processing_class": tiny.tokenizer(), "reward_funcs": tiny.reward}
        trainer = SoftRLOOTrainer(model=folder, args=config(**SHARED | changes), **given)
    else:
        trainer = tiny.trainer(output, folder, **SHARED | changes)
    trainer.train()
    trainer.evaluate(tiny.prompts(1))
    parameters = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return [log for log in trainer.state.log_history if "loss" in log or "eval_loss" in log], parameters


def assert_moved_alike(ours: dict, theirs: dict) -> None:
    """
    Parameters that went the same way: apart by at most a hundredth of how far they went, on average, since Adam turns a
    gradient that is all rounding into a whole step. They did move, so what vLLM drew last was not from where it began.
    """
    started = dict(served.model().named_parameters())
    moved = sum((value - started[name]).abs().sum() for name, value in ours.items())
    apart = sum((value - theirs[name]).abs().sum() for name, value in ours.items())
    print(f"apart {apart:.2e} of {moved:.2e}")
    assert moved > 1 and apart <= 1e-2 * moved


def rloo_config(output, **changes):
    base = tiny.config(output).to_dict()
    names = set(SoftRLOOConfig.__dataclass_fields__)
    kept = ("bf16", "use_cpu", "per_device_train_batch_size", "max_steps", "logging_steps", "report_to", "save_strategy",
            "disable_tqdm", "gradient_checkpointing", "seed")  # fmt: skip
    return SoftRLOOConfig(str(output), **{**{k: base[k] for k in kept if k in names}, "report_to": "none", **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # Rollouts of fewer prompts, for groups that teach nothing.
        {"thought": "multiplex", "max_refill_rollouts": 2, "reward_funcs": tiny.rare_reward},
        # Its density multiplies the rounding of a forward by 1/sigma^2, and so do the steps' differences.
        {"thought": "gaussian", "answer_prefill": ["=a", "b+"], "learning_rate": 1e-3},
    ],
    ids=["gumbel", "multiplex", "gaussian"],
)
def test_colocated_steps_are_in_process_steps(changes, folder, on_a_cpu, tmp_path):
    their_logs, their_parameters = steps(folder, tmp_path / "theirs", **changes)
    our_logs, our_parameters = steps(folder, tmp_path / "ours", **changes, **VLLM)
    assert len(our_logs) == len(their_logs) == 4
    for our_log, their_log in zip(our_logs, their_logs, strict=True):
        for name in ("reward", "thinking/mean_length", "thinking/entropy", "completions/mean_length", "eval_reward"):
            assert our_log.get(name) == pytest.approx(their_log.get(name), abs=2e-4)
        if "grad_norm" in their_log:
            assert our_log["grad_norm"] == pytest.approx(their_log["grad_norm"], rel=1e-2)
    if "max_refill_rollouts" in changes:
        counts = [[log[f"refill/{name}"] for name in ("replaced", "groups", "tokens")] for log in our_logs[:3]]
        assert counts == [
            [log[f"refill/{name}"] for name in ("replaced", "groups", "tokens")] for log in their_logs[:3]
        ]
        assert sum(replaced for replaced, *_ in counts) > 0
    for log in our_logs[:3]:
        for statistic in ("min", "mean", "max"):
            # In float32 both draw from the same policy; what is left is a density's share of the rounding.
            ratio = log[f"sampling/importance_sampling_ratio/{statistic}"]
            assert ratio == pytest.approx(1, abs=1e-3 if changes.get("thought") != "gaussian" else 1e-2)
        assert log["sampling/sampling_logp_difference/max"] < 1e-2
        assert log["thinking/logp_difference/max"] < 1e-2
    assert_moved_alike(our_parameters, their_parameters)


def test_colocated_rloo(folder, on_a_cpu, tmp_path):
    their_logs, their_parameters = steps(folder, tmp_path / "theirs", SoftRLOOTrainer)
    our_logs, our_parameters = steps(folder, tmp_path / "ours", SoftRLOOTrainer, **VLLM)
    for our_log, their_log in zip(our_logs, their_logs, strict=True):
        assert our_log.get("reward") == pytest.approx(their_log.get("reward"), abs=2e-4)
    assert_moved_alike(our_parameters, their_parameters)
