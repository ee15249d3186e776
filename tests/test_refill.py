# SPDX-License-Identifier: Apache-2.0
"""Groups whose rewards are all equal are replaced by fresh prompts, and nothing else changes."""

import itertools
import json
import math

import pytest
import torch

from tests import tiny
from tests.test_nonfinite import reward_with
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.runs.fresh_prompts import FreshPrompts
from trl_soft.runs.nonfinite import NonfiniteError


GRPO, RLOO = (SoftGRPOTrainer, SoftGRPOConfig), (SoftRLOOTrainer, SoftRLOOConfig)
# Six groups of four, and prompts of their own for three batches.
SIX = {"per_device_train_batch_size": 24, "max_steps": 1}
DATA = tiny.distinct_prompts()
G = 4


def batched(rows: list, size: int) -> list[list]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class Witness:
    """A reward that keeps what it was shown: prompts, completions and its own values, one entry a rollout."""

    __name__ = "witness"

    def __init__(self, reward=tiny.rare_reward):
        self.reward, self.calls = reward, []

    def __call__(self, prompts, completion_ids, log_extra, log_metric, number, **kwargs):
        values = self.reward(completion_ids)
        log_extra("number", number)
        log_metric("calls", len(self.calls))
        self.calls.append(list(zip(prompts, completion_ids, values, strict=True)))
        return values


def expected(calls: list) -> tuple[list, int]:
    """
    The batch that a reader of the docs would put together from single rollouts, and the groups that were replaced. A row is
    (rollout, row of it).
    """
    batch, *further = [
        [[(k, i + j) for j in range(G)] for i in range(0, len(call), G)] for k, call in enumerate(calls)
    ]
    equal = lambda group: len({calls[k][i][2] for k, i in group}) == 1  # noqa: E731
    replaced = 0
    for groups in further:
        idle = [place for place, group in enumerate(batch) if equal(group)]
        assert len(groups) == len(idle)
        for place, group in zip(idle, [group for group in groups if not equal(group)], strict=False):
            batch[place] = group
            replaced += 1
    return [row for group in batch for row in group], replaced


def trainer(folder, classes=GRPO, witness=None, **changes):
    """Keeps, as `batches`, what goes to TRL's shuffle, and as `rollouts` what was drawn."""

    class Keeping(classes[0]):
        batches, rollouts = [], []

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            self.batches.append(output)
            return output

        def _draw_samples(self, inputs, prompts):
            drawn = super()._draw_samples(inputs, prompts)
            self.rollouts.append(drawn[0]._rollout)
            return drawn

    settings = {
        **SIX,
        "train_dataset": DATA,
        "reward_funcs": witness or Witness(),
        "max_refill_rollouts": 3,
        **changes,
    }
    net = None
    if changes.get("beta"):  # the reference model is loaded by the name of the model
        net = str(folder / "model")
        tiny.model().save_pretrained(net)
    elif classes is RLOO:
        settings["beta"] = 0.0
    return tiny.trainer(folder / "out", net, Keeping, classes[1], **settings)


KINDS = [
    ("hard", GRPO, {"max_thinking_length": None}),
    ("gumbel", GRPO, {"scale_rewards": "batch", "beta": 0.1, "num_iterations": 2, "answer_prefill": ["=", "="]}),
    ("gaussian", RLOO, {"beta": 0.1, "normalize_advantages": True}),
    ("multiplex", GRPO, {"scale_rewards": "none", "rollout_engine": "simple"}),
    ("hard", RLOO, {"max_thinking_length": None, "answer_prefill": ["=", "="]}),
    ("gumbel", GRPO, {"rollout_dtype": "bfloat16", "thinking_gate": "random", "gate_probability": 0.5}),
]


@pytest.mark.parametrize("thought, classes, changes", KINDS)
def test_idle_groups_are_replaced(tmp_path, thought, classes, changes):
    """Completions, rewards, advantages and records of the batch are those of the single rollouts."""
    run = trainer(tmp_path, classes, thought=thought, **changes)
    run.train()
    (witness,), (batch,), (log,) = run.reward_funcs, run.batches, [x for x in run.state.log_history if "loss" in x]
    places, replaced = expected(witness.calls)
    rows = [witness.calls[k][i] for k, i in places]
    assert len(witness.calls) > 1 and replaced > 0
    ids = [
        row[mask.bool()].tolist() for row, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    assert ids == [row[1] for row in rows]
    prompts = [row[mask.bool()].tolist() for row, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    assert prompts == [run._tokenizer(row[0])["input_ids"] for row in rows]
    # Up to padding, the record of a row is that of the rollout in which it was drawn.
    for i, (rollout, row) in enumerate(places):
        part = run.rollouts[rollout][row : row + 1].record.to_length(batch["completion_ids"].size(1)).to_batch()
        assert all(torch.equal(batch[name][i : i + 1], value) for name, value in part.items())
        if "soft_thinking_length" in batch:
            assert batch["soft_thinking_length"][i] == run.rollouts[rollout].thinking_length[row]
    rewards = torch.tensor([row[2] for row in rows])
    if classes is GRPO:
        scale = {"batch": rewards.std(), "none": None}.get(
            changes.get("scale_rewards"), rewards.view(-1, G).std(1, keepdim=True)
        )
        advantages = rewards.view(-1, G) - rewards.view(-1, G).mean(1, keepdim=True)
        torch.testing.assert_close(
            batch["advantages"].view(-1, G), advantages / (1 if scale is None else scale + 1e-4)
        )
        assert batch["num_items_in_batch"] == (batch["completion_mask"] * batch.get("tool_mask", 1)).sum()
    else:
        assert batch["advantages"].view(-1, G).any(1).sum() == 6
    assert ("soft_thinking_length" in batch) == ("thinking_gate" in changes)
    assert ("importance_sampling_ratio" in batch) == ("rollout_dtype" in changes)
    if "rollout_dtype" not in changes:
        assert log["thinking/logp_difference/max"] < (1e-3 if thought == "gaussian" else 1e-5)
    assert log["refill/replaced"] == replaced and log["refill/rollouts"] == len(witness.calls) - 1
    assert log["refill/groups"] == sum(map(len, witness.calls[1:])) / G
    equal = sum(len({row[2] for row in group}) == 1 for group in batched(rows, G))
    assert log["refill/remaining"] == equal
    assert log["reward"] == pytest.approx(rewards.mean().item())
    assert log["refill/reward_before"] == pytest.approx(sum(row[2] for row in witness.calls[0]) / 24)


def test_a_prompt_is_drawn_once_for_a_batch(tmp_path):
    run = trainer(tmp_path, witness=Witness(lambda completion_ids: [0.0] * len(completion_ids)))
    run.train()
    prompts = [row[0] for call in run.reward_funcs[0].calls for row in call[::G]]
    assert len(prompts) == len(set(prompts)) == 24


def test_the_budget_is_kept(tmp_path):
    """With nothing to learn, the batch is the first rollout, and all is counted."""
    settings = {"max_refill_rollouts": 2, "max_steps": 2, "num_iterations": 2, "gradient_accumulation_steps": 1}
    run = trainer(tmp_path, witness=Witness(lambda completion_ids: [0.5] * len(completion_ids)), **settings)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    first, further, last = run.reward_funcs[0].calls
    (batch,) = run.batches
    assert [row[1] for row in first] == [
        x[m.bool()].tolist() for x, m in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    log = run.state.log_history[0]
    found = {name: log[f"refill/{name}"] for name in ("replaced", "remaining", "rollouts", "groups")}
    assert found == {"replaced": 0, "remaining": 6, "rollouts": 2, "groups": 12}
    # As TRL counts tokens: prompts and completions, without forced tokens.
    drawn = sum(len(run._tokenizer(prompt)["input_ids"]) + len(ids) for prompt, ids, _ in [*further, *last])
    forced = sum(int(rollout.record.forced_mask.sum()) for rollout in run.rollouts[1:])
    assert log["refill/tokens"] == drawn - forced and log["refill/seconds"] >= 0
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())


def test_without_idle_groups_nothing_changes(tmp_path):
    """Weights, tables and all metrics but refill's own are those of a run without refill."""
    runs = []
    for budget in (0, 3):
        runs.append(trainer(tmp_path, witness=Witness(tiny.reward), max_steps=3, max_refill_rollouts=budget))
        runs[-1].train()
    logs = [
        {
            name: value
            for name, value in row.items()
            if not name.startswith(("refill/", "train_")) and "time" not in name
        }
        for run in runs
        for row in run.state.log_history
    ]
    assert [repr(row) for row in logs[:4]] == [repr(row) for row in logs[4:]]
    assert not any(name.startswith("refill/") for name in runs[0].state.log_history[0])
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert runs[1]._fresh_prompts.taken == 0


def test_the_metrics_of_a_rollout_are_those_of_the_first(tmp_path):
    """So that they compare with a run without refill. The table of completions has the batch, and all tokens are counted."""
    runs = [trainer(tmp_path, max_refill_rollouts=n) for n in (0, 3)]
    for run in runs:
        run.train()
    without, log = (run.state.log_history[0] for run in runs)
    same = [
        name
        for name in without
        if name.startswith(("completions/", "thinking/mean", "thinking/clipped", "answer/mean"))
    ]
    assert len(same) >= 10 and all(without[name] == log[name] for name in same)
    assert without["calls"] == log["calls"] == 0
    assert log["num_tokens"] == without["num_tokens"] + log["refill/tokens"] > without["num_tokens"]
    calls = runs[1].reward_funcs[0].calls
    rows = [calls[k][i] for k, i in expected(calls)[0]]
    assert list(runs[1]._logs["prompt"]) == [row[0] for row in rows]
    assert list(runs[1]._logs["rewards"]["witness"]) == [row[2] for row in rows]
    numbers = dict(zip(DATA["prompt"], DATA["number"], strict=True))
    assert list(runs[1]._logs["extra"]["number"]) == [numbers[row[0]] for row in rows]


def test_an_evaluation_is_never_refilled(tmp_path):
    runs = [
        trainer(tmp_path, max_refill_rollouts=n, eval_dataset=DATA.select(range(4)), num_generations_eval=2)
        for n in (0, 3)
    ]
    found = [run.evaluate() for run in runs]
    kept = [
        {name: repr(x) for name, x in row.items() if "per_second" not in name and "time" not in name} for row in found
    ]
    assert kept[0] == kept[1] and not any("refill" in name for name in kept[1])


NAN = math.nan
# Groups of four with two functions, weights 1 and 2: whether the group has no advantage.
GROUPS = {
    "differ": ([[0, 0], [1, 0], [0, 0], [0, 0]], False),
    "equal": ([[1, 1], [1, 1], [1, 1], [1, 1]], True),
    "equal sums of unequal rewards": ([[2, 0], [0, 1], [2, 0], [0, 1]], True),
    "equal up to rounding": ([[0.1, 0.1], [0.3, 0.0], [0.1, 0.1], [0.3, 0.0]], True),
    "large and equal": ([[100.1, 0], [100.1, 0], [100.1, 0], [100.1, 0]], True),
    "one counts": ([[NAN, NAN], [1, 0], [NAN, NAN], [NAN, NAN]], True),
    "none counts": ([[NAN, NAN]] * 4, True),
    "two count and differ": ([[NAN, NAN], [1, 0], [0, NAN], [NAN, NAN]], False),
    "two count and are equal": ([[NAN, NAN], [1, 0], [1, NAN], [NAN, NAN]], True),
    "above the clip": ([[5, 0], [7, 0], [9, 0], [5, 0]], False),
}


@pytest.mark.parametrize(
    "classes, changes, other",
    [
        (GRPO, {}, set()),
        (GRPO, {"multi_objective_aggregation": "normalize_then_sum"}, {"equal sums of unequal rewards", "equal up to rounding"}),
        (RLOO, {"reward_clip_range": (0.0, 3.0)}, {"above the clip"}),
    ],
    ids=["grpo", "normalize_then_sum", "rloo"],
)  # fmt: skip
def test_a_group_without_an_advantage(tmp_path, classes, changes, other):
    """`other` are the groups of which these settings say the opposite."""
    run = trainer(
        tmp_path, classes, reward_weights=[1.0, 2.0], reward_funcs=[tiny.reward, tiny.rare_reward], **changes
    )
    rewards = torch.tensor([row for rows, _ in GROUPS.values() for row in rows], dtype=torch.float32)
    found = dict(zip(GROUPS, run._without_advantage(None, rewards).tolist(), strict=True))
    assert found == {name: idle != (name in other) for name, (_, idle) in GROUPS.items()}


def test_a_group_that_is_masked_is_idle(tmp_path):
    """`mask_truncated_completions` takes a group out of the loss if no completion of it has ended."""

    class Drawn:
        completion_ids = [[5, 1], [5, 5], [5, 5], [5, 5], *[[5, 5]] * 4]  # noqa: RUF012 (1 is the end of sequence)

    rewards = torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 1]).unsqueeze(1)
    for masked, idle in ((False, [False, False]), (True, [False, True])):
        run = trainer(tmp_path, mask_truncated_completions=masked)
        assert run._without_advantage(Drawn, rewards).tolist() == idle


@pytest.mark.parametrize("at", [1, 2])
def test_a_bad_reward_ends_the_refill(tmp_path, at):
    """In the rollout that holds it. Nothing more is drawn, and the file of the batch has its rewards."""
    bad = reward_with(math.nan, at)
    calls = []

    def reward(completion_ids, **kwargs):
        calls.append(1)
        return [value if math.isnan(value) else 0.0 for value in bad(completion_ids)]

    run = trainer(tmp_path, reward_funcs=reward)
    with pytest.raises(NonfiniteError, match="returned nan for completion 2"):
        run.train()
    assert len(calls) == at
    (path,) = (tmp_path / "out" / "nonfinite").glob("*.json")
    samples = json.loads(path.read_text())["samples"]
    assert len(samples) == 24 and [sample["rewards"]["reward"] for sample in samples][3:] == [0.0] * 21


# The order of fresh prompts


def test_fresh_prompts_pass_over_the_data():
    order = FreshPrompts(7, 10, shuffle=True)
    passes = [order.take(10, 1, lambda place: True) for _ in range(3)]
    assert all(sorted(places) == list(range(10)) for places in passes)
    assert len(set(map(tuple, passes))) == 3 and order.taken == 30
    resumed = FreshPrompts(7, 10, shuffle=True)
    resumed.taken = 13
    rest = passes[1][3:]  # and then the other three, in the order of the pass after it
    assert resumed.take(10, 1, lambda place: True) == rest + [place for place in passes[2] if place not in rest]
    assert FreshPrompts(8, 10, shuffle=True).take(10, 1, lambda place: True) != passes[0]
    assert FreshPrompts(7, 10, shuffle=False).take(12, 1, lambda place: True) == list(range(10))


def test_fresh_prompts_are_multiples_and_lose_none():
    order = FreshPrompts(7, 10, shuffle=False)
    assert order.take(2, 2, lambda place: place > 3) == [4, 5] and order.taken == 6
    # Three may be taken, and two are: the third comes next.
    assert order.take(4, 2, lambda place: place > 6) == [7, 8] and order.taken == 9
    assert order.take(2, 2, lambda place: place == 9) == [] and order.taken == 9
    assert order.take(1, 1, lambda place: place == 9) == [9]


def check_scan(seed: int, start: int, free: int):
    """From `start` taken prompts on, the only free one of four is found, each is asked for once, and the order goes on after it."""
    order = FreshPrompts(seed, 4, shuffle=True)
    order.taken = start
    asked = []
    assert order.take(2, 1, lambda place: asked.append(place) or place == free) == [free]
    assert sorted(asked) == [0, 1, 2, 3]
    resting = order.taken
    assert start < resting <= (start // 4 + 2) * 4 and order._place(resting - 1) == free
    assert order.take(2, 1, lambda place: False) == [] and order.taken == resting


def test_fresh_prompts_are_found_from_everywhere_in_a_pass():
    """The rest of one pass and a part of the pass after it do not have every prompt, so the scan goes to the end of that one."""
    for seed, start, free in itertools.product(range(10), range(8), range(4)):
        check_scan(seed, start, free)
