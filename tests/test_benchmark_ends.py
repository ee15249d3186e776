# SPDX-License-Identifier: Apache-2.0
"""The end of thinking that benchmarks measure with does all that an engine asks of one."""

import torch

from benchmarks.ends import Never
from trl_soft.rollout import Key, Plan, StopRule
from trl_soft.rollout.slots import Slots
from trl_soft.thoughts import Gumbel, Hard
from trl_soft.vocabulary.head_logits import DenseLogits


def test_a_thought_that_does_not_end_itself():
    plan = Plan(Gumbel(top_k=4), Hard(), StopRule(Never()), 6, eos_token_ids=[], pad_token_id=0)
    slots = Slots(2, plan, Key(0, 0, torch.arange(2)), 16, torch.device("cpu"))
    slots.admit([0, 1], [0, 1], [[3], [4, 5]], [6, 6])
    for _ in range(6):
        slots.advance(2, DenseLogits(torch.randn(2, 16)), every_row=False)
    assert slots.all.t.tolist() == slots.all.thinking_length.tolist() == [6, 6]
