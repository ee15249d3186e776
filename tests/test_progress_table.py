# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it trains, and the file with all of its metrics."""

import io
import json
import logging
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from tests import tiny
from trl_soft.shipped import page
from trl_soft.training.healthy import BOUNDS, DIFFERENCE, outside
from trl_soft.training.progress_table import COLUMNS, METRICS_FILE, duration, keep_until, line_of, table_of, trend


ROW = {
    "step": 12, "reward": 0.41, "thinking/mean_length": 1026.13, "answer/mean_length": 19.0, "thinking/clipped_ratio": 0.02,
    "thinking/entropy": 0.31, "thinking/logp_difference/mean": 1e-7, "tokens/s": 18200.0, "seconds": 11.25,
}  # fmt: skip


def run(tmp_path, terminal: bool, width: int = 120, **changes):
    """A trainer of two updates that shows itself on a stream, which is returned with it."""
    settings = {"max_steps": 2, "logging_steps": 1, "disable_tqdm": False, **changes}
    trainer, stream = tiny.trainer(tmp_path, **settings), io.StringIO()
    trainer._progress.console = Console(file=stream, force_terminal=terminal, width=width, highlight=False)
    return trainer, stream


def lines_of(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]


def test_the_pages_count_the_metrics_of_the_table():
    """What is in `metrics.jsonl` too: all columns but the step and the two of the speed."""
    assert len(COLUMNS) - len({"step", "tokens/s", "seconds"} & {name for _, name, _ in COLUMNS}) == 6
    root = Path(__file__).parent.parent
    for place, told in (
        ("docs/metrics.md", "shows six of them"),
        ("docs/trainers.md", "a table of six, with the step"),
    ):
        assert told in (root / place).read_text("utf-8"), place


def test_the_dict_of_metrics_is_not_printed(tmp_path):
    trainer, _ = run(tmp_path, False)
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert not kinds & {ProgressCallback, PrinterCallback}


def test_without_a_terminal_a_log_is_one_line_and_all_metrics_are_in_the_file(tmp_path):
    trainer, stream = run(tmp_path, False)
    trainer.train()
    shown = [line for line in stream.getvalue().splitlines() if "healthy" not in line]
    assert [line[:8] for line in shown] == ["step 1/2", "step 2/2"]
    logs = [row for row in lines_of(tmp_path) if "reward" in row]
    assert [row["step"] for row in logs] == [1, 2]
    for line, row in zip(shown, logs, strict=True):
        assert f"reward {row['reward']:.3f}" in line
        assert f"thought {row['thinking/mean_length']:.1f}" in line
    history = [row for row in trainer.state.log_history if "reward" in row]
    assert [set(row) for row in logs] == [set(row) - {"epoch"} | {"epoch"} for row in history]


def test_on_a_terminal_the_table_stays_and_warnings_stand_above_it(tmp_path, monkeypatch):
    trainer, stream = run(tmp_path, True)
    handler = logging.StreamHandler(sys.__stderr__)
    logger = logging.getLogger("a library")
    logger.addHandler(handler)
    logger.propagate = False
    bound = trainer._compute_loss

    def warn(*args, **kwargs):
        logger.warning("look here")
        return bound(*args, **kwargs)

    monkeypatch.setattr(trainer, "_compute_loss", warn)
    try:
        trainer.train()
    finally:
        logger.removeHandler(handler)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = text[text.rindex("step 2/2") :]
    assert all(heading in last for heading, _, _ in COLUMNS)
    assert "look here" in text and "look here" not in last
    assert handler.stream is sys.__stderr__ and trainer._progress.live is None


def test_an_error_gives_the_terminal_back(tmp_path):
    def reward(completions, **kwargs):
        raise ZeroDivisionError

    trainer, stream = run(tmp_path, True, reward_funcs=reward)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert trainer._progress.live is None and stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown


def test_a_continued_run_writes_no_step_twice(tmp_path):
    trainer, _ = run(tmp_path, False, save_strategy="steps", save_steps=1)
    trainer.train()
    resumed, stream = run(tmp_path, False, save_strategy="steps", save_steps=1)
    before = lines_of(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert stream.getvalue().startswith("step 2/2")
    after = lines_of(tmp_path)
    assert [row["step"] for row in after if "reward" in row] == [1, 2]
    assert after[0] == before[0]
    fresh, _ = run(tmp_path, False, max_steps=1)
    fresh.train()
    assert [row["step"] for row in lines_of(tmp_path) if "reward" in row] == [1]
    assert len((tmp_path / f"{METRICS_FILE}.old").read_text().splitlines()) == len(after)


def test_an_evaluation_by_itself_is_written_down(tmp_path):
    trainer, _ = run(
        tmp_path / "new", False, eval_dataset=tiny.prompts(1), per_device_eval_batch_size=4, num_generations_eval=2
    )
    trainer.evaluate()
    (row,) = lines_of(tmp_path / "new")
    assert row["step"] == 0 and "eval_reward" in row


def test_a_file_that_was_cut_in_the_middle_of_a_line_is_mended(tmp_path):
    file = tmp_path / METRICS_FILE
    file.write_text('{"step": 1}\n{"step": 3}\n{"ste')
    keep_until(file, 2)
    assert file.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text"])
def test_a_metric_that_is_no_number_is_a_dash(tmp_path, terminal, value):
    trainer, stream = run(tmp_path, terminal)
    table = trainer._progress
    state = SimpleNamespace(is_world_process_zero=True, global_step=1, max_steps=3, num_input_tokens_seen=0)
    table.on_train_begin(trainer.args, state, None)
    for reward in (0.5, value, 0.25):
        table.on_log(
            trainer.args, state, None, logs={"reward": reward, "thinking/entropy": value, "num_tokens": value}
        )
    table.on_train_end(trainer.args, state, None)
    assert not table.failed and "entropy" in stream.getvalue() and len(lines_of(tmp_path)) == 3


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
@pytest.mark.parametrize("terminal", [True, False])
def test_an_output_that_is_not_utf8_is_shown_without_its_arrows(tmp_path, terminal, encoding):
    trainer, _ = run(tmp_path, terminal)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    trainer._progress.console = Console(file=stream, force_terminal=terminal, width=120, highlight=False)
    trainer.train()
    stream.flush()
    assert b"step 2/2" in stream.buffer.getvalue() and not trainer._progress.failed


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [BrokenPipeError, OSError, SystemExit])
def test_a_display_that_fails_does_not_end_the_run(tmp_path, caplog, terminal, error):
    trainer, stream = run(tmp_path, terminal)

    def write(text):
        raise error

    stream.write = write
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2 and trainer._progress.failed
    assert caplog.text.count("goes on without its table") == 1


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_column_is_lost_at_any_width(width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(table_of([ROW, ROW | {"step": 13}], width))
    shown = stream.getvalue()
    assert all(heading in shown for heading, _, _ in COLUMNS) and "…" not in shown
    assert all(form.format(ROW[name]) in shown for heading, name, form in COLUMNS if heading != "step")
    assert max(map(len, shown.splitlines())) <= width


def test_metrics_that_a_run_does_not_have_are_dashes():
    assert line_of({"step": 1, "reward": 0.5}, [0.5], 10, 65).startswith(
        "step 1/10  reward 0.500  thought -  answer -"
    )
    assert line_of(ROW, [0.5, 0.41], 10, 65).endswith("left 1:05") and "↓" in line_of(ROW, [0.5, 0.41], 10, 65)


def test_trend_and_duration():
    assert trend([0.0, 0.5, 1.0]) == "▁▅█" and trend([1.0, 1.0]) == "▁▁" and trend([float("nan")]) == ""
    assert [duration(x) for x in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_has_a_line_of_its_own(tmp_path, width):
    trainer, stream = run(tmp_path, True, width, max_steps=1)
    trainer.train()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).split("step 1/1")[-1].splitlines()
    assert set(last[1].strip()) == {"━"} and "step" in "".join(last[2:4])


def test_a_value_out_of_its_range_is_named_with_the_page_that_explains_it(tmp_path):
    """Below the table; without a terminal once, after its line."""
    (terminal, table), (plain, lines) = run(tmp_path / "a", True), run(tmp_path / "b", False)
    for trainer, told in ((terminal, None), (plain, 1)):
        trainer._progress.limit = 0.0  # which rounding exceeds
        trainer.train()
        text = (table if trainer is terminal else lines).getvalue()
        found = re.findall(r"thinking/logp_difference/mean is \S+; a healthy value is below 0", text)
        assert found if told is None else len(found) == told
        assert "docs/metrics.md" in text
    assert "docs/metrics.md" not in line_of(ROW, [0.4], 60, 5.0)


def test_bounds():
    row = {
        "thinking/clipped_ratio": 0.5,
        "thinking/entropy": 0.31,
        "thinking/mean_length": 1.0,
        "x": 7,
        "nonfinite/skipped": None,
    }
    assert outside(row) == {
        "thinking/mean_length": "thinking/mean_length is 1; a healthy value is above 1",
        "thinking/clipped_ratio": "thinking/clipped_ratio is 0.5; a healthy value is below 0.5",
    }
    assert outside({DIFFERENCE: 1e-3}) == {} and DIFFERENCE in outside({DIFFERENCE: 1e-3}, 1e-4)
    assert outside({"thinking/entropy": math.nan}) == {}


def test_the_page_states_the_bounds():
    text = Path(page("metrics.md")).read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    for name, bound in BOUNDS.items():
        assert any(f"`{name}`" in row[0] and any(str(bound) in cell for cell in row[1:]) for row in rows), name
