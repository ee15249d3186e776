# SPDX-License-Identifier: Apache-2.0
"""
What a step of the pool launches: on tensors without memory, so that nothing can be read, for 256 requests and a real vocabulary.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.test_vllm_parts import plan
from trl_soft import kernels
from trl_soft.rollout import book
from trl_soft.rollout.vllm.layout import layout_of
from trl_soft.rollout.vllm.members import Members
from trl_soft.rollout.vllm.pool import Pool
from trl_soft.rollout.vllm.table import ServedLogits, Table


V, H, C = 151_936, 896, 64
# Operators that launch nothing.
_FREE = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty", "permute",
    "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "promote_types",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """How many kernels a block of code launches: torch's, one for each operator, and ours, which `made` names."""

    def __init__(self):
        super().__init__()
        self.made: Counter[str] = Counter()
        self.torch: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.torch[name] += 1
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        kernels.watchers.append(lambda name, moved: self.made.update([name]))
        return super().__enter__()

    def __exit__(self, *of):
        kernels.watchers.pop()
        return super().__exit__(*of)

    def total(self) -> int:
        return sum(self.made.values()) + sum(self.torch.values())


def step(settings: list[dict], count: int = 256, fused: bool = True) -> tuple[Launches, Launches]:
    """What one step of `count` requests launches, to draw and to feed; request i is under the i-th settings."""
    plans = [plan(some, vocab_size=V, max_completion_length=C) for some in settings]
    pool = Pool(count, C, 2 * H, V, "meta")
    numbers = [pool.add(str(i), made, layout_of(made.thought, V, H, torch.bfloat16)) for i, made in enumerate(plans)]
    of = [numbers[i % len(numbers)] for i in range(count)]
    pool.admit(range(count), of, [(3, 0, i) for i in range(count)], [2] * count, [C] * count)
    weight = torch.empty(V, H, dtype=torch.bfloat16, device="meta")
    table, fed = Table(lambda: weight, 0, V), torch.empty(count, H, dtype=torch.bfloat16, device="meta")
    logits, every = torch.empty(count, V, dtype=torch.bfloat16, device="meta"), torch.arange(count, device="meta")
    positions = torch.full((count,), 2, device="meta")
    members, drawing, feeding = Members(pool), Launches(), Launches()
    slots, draws = np.arange(count), np.ones(count, dtype=bool)
    members.of(slots, draws)  # as in the step before
    with kernels.interpreted() if fused else kernels.plain():
        with feeding:
            for member in members.of(slots, draws).fed:
                mask, mixed = pool.fed(member.number, member.index, positions[member.rows], table)
                book.feed(fed, mixed, every[member.rows], mask)
        with drawing:
            for member in members.of(slots, draws).drawn:
                view = ServedLogits(logits[member.rows], table, torch.bfloat16)
                pool.step(member.number, member.slots, member.index, view)
    return drawing, feeding


def test_neither_requests_nor_plans_that_share_a_thought_add_launches():
    one = [launches.total() for launches in step([{}])]
    assert [launches.total() for launches in step([{}], count=32)] == one
    several = [{"max_thinking_length": 2 + i, "answer_prefill": [f"={'a' * (i % 3)}", "b+"]} for i in range(16)]
    several += [{"end_of_thinking": "=", "max_answer_length": 5}]
    assert [launches.total() for launches in step(several)] == one


@pytest.mark.parametrize("settings", [{}, {"thought": "hard"}, {"thought": "gaussian"}], ids=str)
def test_bookkeeping_is_a_few_launches(settings):
    """One launch decides, one writes each tensor of a record; a hard thought is fed as the token that it is."""
    drawing, feeding = step([settings])
    fields = {"gumbel": 4, "hard": 1, "gaussian": 1}[settings.get("thought", "gumbel")]
    assert [drawing.made[name] for name in ("decide_rows", "put_pairs", "put_rows")] == [1, 2, fields]
    if settings.get("thought") == "hard":
        assert feeding.total() == 0
    else:
        assert feeding.made["find_thoughts"] == feeding.made["put_rows"] == 1 and feeding.made["take_rows"] <= 2
