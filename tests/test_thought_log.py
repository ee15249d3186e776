# SPDX-License-Identifier: Apache-2.0
"""The thoughts that a run shows while it trains: the page, the table, and what trackers get."""

import logging
from types import SimpleNamespace

import pandas
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import tiny
from tests.test_evaluate_inspect import page_data
from trl_soft import SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.training.config import SoftGRPOConfig
from trl_soft.training.thought_log import (
    CANDIDATES,
    COLUMN,
    HIGHEST,
    LOWEST,
    ThoughtLog,
    chosen_rows,
    markdown,
    thought_text,
    to_wandb,
)


GUMBEL = {"thought": "gumbel", "gumbel_temperature": 0.5, "thinking_top_k": 5}
KINDS = {"grpo": (SoftGRPOTrainer, SoftGRPOConfig), "rloo": (SoftRLOOTrainer, SoftRLOOConfig)}


@pytest.fixture
def wandb():
    return pytest.importorskip("wandb", reason="wandb is not installed")


def run(tmp_path, kind="grpo", **changes):
    """A trained trainer, and what it was given to show."""
    settings = {
        **({} if "thought" in changes else GUMBEL),
        "log_thoughts_steps": 2,
        "log_thoughts_prompts": 1,
        "max_steps": 4,
        "beta": 0.0,
        **changes,
    }
    trainer = tiny.trainer(tmp_path, None, *KINDS[kind], **settings)
    seen, note = [], trainer._thought_log.note

    def watch(rollout, output):
        note(rollout, output)
        rewards = {name: list(values) for name, values in trainer._logs["rewards"].items()}
        seen.append((rollout, output["advantages"].tolist(), rewards))

    trainer._thought_log.note = watch
    trainer.train()
    return trainer, seen


def pages(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "thoughts").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_shows_the_candidates_and_the_scores_of_two_completions(tmp_path, kind):
    _, seen = run(tmp_path, kind)
    assert pages(tmp_path) == ["step-00000.html", "step-00002.html"]
    rollout, advantages, rewards = seen[2]
    data = page_data(tmp_path / "thoughts" / "step-00002.html")
    assert data["first"] == {"left": LOWEST, "right": HIGHEST} and "after 2 updates" in data["name"]
    chosen = chosen_rows(advantages, 4, 1)
    (problem,) = {prompt for prompt, _, _ in chosen}
    assert list(data["benchmarks"]["training"]["problems"]) == [str(problem)]
    for _, name, row in chosen:
        line = data["benchmarks"]["training"]["problems"][str(problem)][name]["0"]
        assert line["scores"] == pytest.approx(
            {"reward": rewards["reward"][row], "advantage": advantages[row]}, abs=1e-5
        )
        assert line["correct"] is None  # a reward is no verdict
        record = rollout.record
        soft = [step for step in line["thoughts"] if step["thought"]]
        assert len(soft) == int(record.thinking_mask[row].sum()) > 0
        for step, ids, weights in zip(
            soft, record.candidates(row).tolist(), record.weights(row).tolist(), strict=True
        ):
            pairs = sorted(zip(weights, ids, strict=True), key=lambda pair: -pair[0])
            expected = [[tiny.TOKENS[i], w] for w, i in pairs if w >= 5e-5][:CANDIDATES]
            assert [token for token, _ in step["candidates"]] == [token for token, _ in expected]
            assert [w for _, w in step["candidates"]] == pytest.approx(
                [w for _, w in expected], abs=5e-5
            )  # four decimals


def test_the_prompts_that_differ_most_are_chosen():
    advantages = [0.0, 0.0, 0.0, 1.0, -1.0, 0.5, 2.0, 2.0, -2.0]
    assert chosen_rows(advantages, 3, 2) == [(2, LOWEST, 8), (2, HIGHEST, 6), (1, LOWEST, 4), (1, HIGHEST, 3)]
    assert chosen_rows([0.0, 0.0], 2, 5) == [(0, LOWEST, 1), (0, HIGHEST, 0)]
    assert chosen_rows([0.0], 8, 1) == [(0, HIGHEST, 0)]


@pytest.mark.parametrize(
    "every, steps, shown",
    [(2, [0, 1, 2, 3, 4], [0, 2, 4]), (5, [0, 4, 8, 12], [0, 8, 12]), (4, [0, 0, 1, 4, 4], [0, 4]), (3, [4, 5, 6], [6]), (0, [0, 1], [])],
    ids=["each", "several updates a rollout", "several rollouts an update", "continued", "never"],
)  # fmt: skip
def test_when_a_rollout_is_shown(every, steps, shown):
    trainer = SimpleNamespace(args=SimpleNamespace(log_thoughts_steps=every), _tokenizer=None)
    log = ThoughtLog(trainer)
    assert [step for step in steps if log.due(step)] == shown


def step(*candidates, thought=True) -> dict:
    return {"thought": thought, "candidates": [list(pair) for pair in candidates]}


def test_a_thought_as_text_has_one_line_for_each_step():
    steps = [step(("3", 0.91), ("4", 0.0849), ("5", 0.004)), step((" a\n", 1.0)), step(("9", 1.0), thought=False)]
    assert thought_text(steps, 2) == "3 .91, 4 .08\n·a\\n 1.00"
    assert thought_text(steps, 5).endswith("and 3 more")
    assert thought_text([step(("x", 1.0))] * 40, 40).splitlines()[-1] == "and 8 more"


def test_the_table_of_completions_has_the_candidates(tmp_path):
    _, seen = run(tmp_path, log_completions=True, max_steps=1)
    table = pandas.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    record = seen[0][0].record
    assert len(table) == 8
    for row, text in enumerate(table[COLUMN]):
        heaviest = record.candidates(row).gather(1, record.weights(row).argmax(1, keepdim=True)).squeeze(1).tolist()
        assert [line.split()[0] for line in text.splitlines()] == [tiny.TOKENS[i] for i in heaviest]


@pytest.mark.parametrize("terminal, asked, printed", [(False, None, 0), (False, 2, 2), (True, None, 8)])
def test_completions_are_printed_on_a_terminal_or_where_they_are_asked_for(
    tmp_path, monkeypatch, terminal, asked, printed
):
    rows = []
    monkeypatch.setattr("rich.table.Table.add_section", lambda table: rows.append(table))
    monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
    run(tmp_path, log_completions=True, max_steps=1, num_completions_to_print=asked)
    assert len(rows) == 2 * printed  # at the log of the update, and at that of the whole run
    assert len(pandas.read_parquet(tmp_path / "completions" / "completions_00001.parquet")) == 8


@pytest.mark.parametrize("settings", [{"thought": "hard"}, {"thought": "gaussian"}], ids=tiny.name)
def test_thoughts_without_candidates_add_no_column_and_have_a_page(tmp_path, settings):
    run(tmp_path, **settings, log_completions=True, max_steps=1)
    table = pandas.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert COLUMN not in table
    assert pages(tmp_path) == ["step-00000.html"]


def test_tensorboard_has_curves_and_a_table(tmp_path):
    run(tmp_path, report_to="tensorboard")
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Scalars("train/thinking/entropy")) == len(events.Scalars("train/reward")) == 4
    texts = events.Tensors("thoughts/text_summary")
    assert [event.step for event in texts] == [0, 2]
    rows = texts[0].tensor_proto.string_val[0].decode().splitlines()
    assert rows[0].startswith("| step | prompt | completion | reward | advantage |") and len(rows) == 2 + 2
    assert "</think>" not in "".join(rows)  # TensorBoard drops what looks like an element


def test_markdown_leaves_tokens_as_they_are():
    table = markdown([{"a_b": "<x>*|\\\n&", "c": 0.5}])
    assert table.splitlines()[0] == "| a\\_b | c |"
    assert table.splitlines()[2] == "| &lt;x&gt;\\*\\|\\\\<br>&amp; | 0.500 |"


def test_wandb_has_the_page_and_a_table(tmp_path, monkeypatch, wandb):
    """With the client's own table and page, without its process."""
    logged = []
    monkeypatch.setattr(wandb, "run", object())
    monkeypatch.setattr(wandb, "log", logged.append)
    trainer = tiny.trainer(tmp_path, **GUMBEL, log_thoughts_steps=2, max_steps=4)
    trainer.args.report_to = ["wandb"]
    trainer.train()
    entries = [entry for entry in logged if "thoughts/page" in entry]  # TRL logs the time of each step too
    assert [entry["train/global_step"] for entry in entries] == [0, 2]
    table, page = entries[1]["thoughts/table"], entries[1]["thoughts/page"]
    assert table.columns == ["step", "prompt", "completion", "reward", "advantage", "thoughts", COLUMN]
    assert len(table.data) == 4 and all(row[0] == 2 for row in table.data)  # two prompts, two completions of each
    assert page.html == (tmp_path / "thoughts" / "step-00002.html").read_text()


def test_without_an_open_run_wandb_gets_nothing(monkeypatch, wandb):
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setattr(wandb, "log", pytest.fail)
    to_wandb(0, "", [])


def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "thoughts").write_text("a file in its place")
    with caplog.at_level(logging.WARNING):
        trainer, _ = run(tmp_path)
    assert trainer.state.global_step == 4
    assert caplog.text.count("goes on without its page of thoughts") == 1


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    trainer = tiny.trainer(tmp_path, **GUMBEL, max_steps=1)
    trainer._thought_log.trainer = SimpleNamespace(
        state=trainer.state, accelerator=SimpleNamespace(is_main_process=False)
    )
    trainer.train()
    assert not (tmp_path / "thoughts").exists()


def test_an_evaluation_shows_no_thoughts(tmp_path):
    trainer = tiny.trainer(
        tmp_path, **GUMBEL, eval_dataset=tiny.prompts(1), log_completions=True, per_device_eval_batch_size=4
    )
    trainer.evaluate()
    assert not (tmp_path / "thoughts").exists()
    table = pandas.read_parquet(tmp_path / "completions" / "completions_00000.parquet")
    assert COLUMN in table and len(table) == 8


@pytest.mark.parametrize(
    "field, value", [("log_thoughts_steps", -1), ("log_thoughts_prompts", 0), ("log_thoughts_steps", 1.5)]
)
def test_numbers_out_of_range_are_refused(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}` is {value}"):
        tiny.config(tmp_path, **{field: value})


def test_a_page_and_a_table_show_the_groups_that_took_the_place_of_others(tmp_path):
    _, seen = run(tmp_path, log_completions=True, max_steps=1, max_refill_rollouts=1, reward_funcs=reward_of_few)
    rollout, advantages, _ = seen[0]
    assert max(map(abs, advantages)) > 0
    table = pandas.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    for row, text in enumerate(table[COLUMN]):
        record = rollout.record
        heaviest = record.candidates(row).gather(1, record.weights(row).argmax(1, keepdim=True)).squeeze(1).tolist()
        assert [line.split()[0] for line in text.splitlines()] == [tiny.TOKENS[i] for i in heaviest]


def reward_of_few(prompts, completion_ids, **kwargs):
    """All completions of one prompt have the same reward."""
    return [
        0.0 if prompt == "1+2=" else float(sum(ids) % 7) for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]
