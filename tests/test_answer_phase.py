# SPDX-License-Identifier: Apache-2.0
"""Where the answer of a completion begins, as rewards and evaluation are told it."""

import pytest

from tests import tiny
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer, ThinkingSettings
from trl_soft.evaluate.grading.forced import final_box
from trl_soft.evaluate.presets import answer_text
from trl_soft.rollout.completion_text import answer_phase
from trl_soft.rollout.make_plan import make_plan
from trl_soft.thoughts import Hard


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "thought"),
    [
        (SoftGRPOTrainer, SoftGRPOConfig, "gumbel"),
        (SoftRLOOTrainer, SoftRLOOConfig, "gaussian"),
        (SoftRLOOTrainer, SoftRLOOConfig, "hard"),
    ],
    ids=["grpo", "rloo", "hard"],
)
def test_rewards_are_told_where_the_answer_begins(tmp_path, trainer_class, config_class, thought):
    seen = []

    def reward(completions, completion_ids, answer_phase, **kwargs):
        seen.extend(zip(completions, completion_ids, answer_phase, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    changes = {
        "thought": thought, "end_of_thinking": "f", "answer_prefill": ["12", "f12"], "max_thinking_length": 6,
        "max_completion_length": 24, "max_answer_length": 4, "beta": 0.0, "max_steps": 2, "per_device_train_batch_size": 16,
    }  # fmt: skip
    tiny.trainer(
        tmp_path, trainer_class=trainer_class, config_class=config_class, reward_funcs=reward, **changes
    ).train()
    assert len(seen) == 32 and all(text.endswith(phase) for text, _, phase in seen)
    ended = [(text, phase) for text, _, phase in seen if phase.startswith("12")]
    cut = [(text, phase) for text, _, phase in seen if phase.startswith("f12")]
    silent = [(text, ids) for text, ids, phase in seen if phase == ""]
    assert ended and cut and len(ended) + len(cut) + len(silent) == 32
    assert all(text.removesuffix(phase).endswith("f") for text, phase in ended)
    assert all("f" not in text.removesuffix(phase) for text, phase in cut)
    eos = tiny.tokenizer().eos_token_id
    assert all(eos in ids[:6] for _, ids in silent)  # the thought ended the sequence


def test_rewards_are_told_nothing_where_nothing_is_forced(tmp_path):
    seen = []

    def reward(completions, **kwargs):
        seen.append("answer_phase" in kwargs)
        return [0.0] * len(completions)

    tiny.trainer(tmp_path, reward_funcs=reward, max_steps=1).train()
    assert seen and not any(seen)


def plan_of(tokenizer, prefill):
    settings = ThinkingSettings(end_of_thinking="a", answer_prefill=prefill, max_thinking_length=6)
    eos = [tokenizer.eos_token_id]
    return make_plan(settings, tokenizer, Hard(1.0), vocab_size=32, max_completion_length=24, eos_token_ids=eos)


def test_the_phase_of_a_completion():
    """Characters are the tokens of the tiny world: the thought is the first, the rest was forced or drawn."""
    tokenizer = tiny.tokenizer()
    plan = plan_of(tokenizer, ["12", "a12"])
    ids = tokenizer("12+34", add_special_tokens=False)["input_ids"]
    assert answer_phase(tokenizer, ids, 2, 0, plan) == "+34"
    assert answer_phase(tokenizer, ids, 2, 1, plan) == "2+34"  # the closing token reached into the answer
    assert answer_phase(tokenizer, [*ids, tokenizer.eos_token_id], 6, 0, plan) == ""
    pad = [tokenizer.pad_token_id]
    assert answer_phase(tokenizer, [*ids[:2], *pad, *ids[2:]], 3, 2, plan) == "+34"  # what closed is not written
    # Without a prefill the end of a thought that was cut is forced, and no answer.
    assert answer_phase(tokenizer, ids, 2, 0, plan_of(tokenizer, None)) is None
    assert answer_phase(tokenizer, ids, 2, 0, plan_of(tokenizer, ["", "a12"])) == "+34"


def test_code_that_was_forced_is_read_from_its_fence():
    text = "I think ```python\nx\n```. The final answer is: \n```python\ndef f(): return 1\n```"
    phase = "The final answer is: \n```python\ndef f(): return 1\n```"
    assert answer_text(text, "soft_tokens", "mbpp", phase) == "\n```python\ndef f(): return 1\n```"
    assert answer_text(text, "soft_tokens", "mbpp", "") == ""
    assert final_box("\\boxed{1}", "") is None
