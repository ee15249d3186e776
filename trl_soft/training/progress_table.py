# SPDX-License-Identifier: Apache-2.0
"""The display of a training run: a table that updates in place, or one line for each log without a terminal.

The table has the few metrics that say whether a run is healthy. All metrics go to the tracker and to `metrics.jsonl`.
"""

import json
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..shipped import page
from .harmless import harmless
from .healthy import outside


METRICS_FILE = "metrics.jsonl"
_harmless = harmless(f"its table and `{METRICS_FILE}`")
_ROWS = 8
_BLOCKS = "▁▂▃▄▅▆▇█"
# Heading, metric, format. `tokens/s` and `seconds` are measured here.
COLUMNS = (
    ("step", "step", "{:.0f}"),
    ("reward", "reward", "{:.3f}"),
    ("thought", "thinking/mean_length", "{:.1f}"),
    ("answer", "answer/mean_length", "{:.1f}"),
    ("cut", "thinking/clipped_ratio", "{:.0%}"),
    ("entropy", "thinking/entropy", "{:.3f}"),
    ("logp diff", "thinking/logp_difference/mean", "{:.1e}"),
    ("tokens/s", "tokens/s", "{:,.0f}"),
    ("s/step", "seconds", "{:.2f}"),
)


def trend(values: Sequence[float], width: int = 24) -> str:
    """The last values as blocks of height, lowest to highest."""
    shown = [value for value in list(values)[-width:] if math.isfinite(value)]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in shown)


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def memory() -> str:
    """The most memory that this process has held: the device's, or the host's without one."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB of the GPU"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


def cells(row: dict[str, float]) -> list[str]:
    """A log as the text of each column. `-` for a missing metric."""
    values = [(number(row.get(name)), form) for _, name, form in COLUMNS]
    return [form.format(value) if math.isfinite(value) else "-" for value, form in values]


def number(value: Any) -> float:
    """A metric as a number; nan for what is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def encodable(text: str, encoding: str) -> str:
    """A text as a terminal or a file of this encoding can show it."""
    return text.encode(encoding, "replace").decode(encoding)


def line_of(row: dict[str, float], rewards: Sequence[float], of: int, left: float) -> str:
    """A log as one line."""
    texts = dict(zip((heading for heading, _, _ in COLUMNS), cells(row), strict=True))
    arrow = ""
    if len(rewards) > 1 and math.isfinite(rewards[-1] - rewards[-2]):
        arrow = " ↑" if rewards[-1] > rewards[-2] else " ↓" if rewards[-1] < rewards[-2] else " →"
    parts = [f"step {texts.pop('step')}/{of}", f"reward {texts.pop('reward')}{arrow}"]
    return "  ".join([*parts, *(f"{name} {text}" for name, text in texts.items()), f"left {duration(left)}"])


def table_of(rows: Sequence[dict[str, float]], width: int) -> Table:
    """The last logs, one in each row. If the terminal is too narrow for the headings, one in each column."""
    lines = [[heading for heading, _, _ in COLUMNS], *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sum(widths) + 3 * len(widths) > width:
        table = Table(box=None, padding=(0, 1), show_header=False)
        room = max((width - max(map(len, lines[0])) - 2) // (max(widths) + 2), 1)
        for column in zip(*[lines[0], *lines[1:][-room:]], strict=True):
            table.add_row(*column)
        return table
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in lines[0]:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    return table


class ProgressTable(TrainerCallback):
    """
    Shows the main process's logs, and writes all of them to `output_dir/metrics.jsonl`.

    Args:
        console (`Console`, *optional*): where to show them. Default: standard output.
        limit (`float`, *optional*): largest healthy `thinking/logp_difference/mean`.

    A metric outside its healthy bound has a sentence: below the table, or once, after its line.
    """

    def __init__(self, console: Console | None = None, limit: float | None = None):
        self.console = console or Console(highlight=False)
        self.rows: deque[dict[str, float]] = deque(maxlen=_ROWS)
        self.rewards: list[float] = []
        self.live: Live | None = None
        self.limit, self.told = limit, set[str]()
        self.failed = False
        self.begun = self.last = time.monotonic()
        self.first = self.last_step = 0
        self.tokens = 0.0
        self._streams: list[tuple[logging.StreamHandler, Any]] = []

    @_harmless
    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.begun = self.last = time.monotonic()
        self.first = self.last_step = state.global_step
        self.tokens = float(state.num_input_tokens_seen or 0)
        keep_until(Path(args.output_dir) / METRICS_FILE, state.global_step)
        if self.console.is_terminal and not args.disable_tqdm:
            self.live = Live(console=self.console, auto_refresh=False, transient=False)
            self.live.start()
            self._take_streams()

    @_harmless
    def on_step_end(self, args, state, control, **kwargs):
        if self.live is not None:
            self._refresh(state)

    @_harmless
    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step, **logs}
        os.makedirs(args.output_dir, exist_ok=True)  # an evaluation by itself comes before anything is saved
        with open(os.path.join(args.output_dir, METRICS_FILE), "a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")
        if "reward" not in row:
            return  # an evaluation, or the summary at the end
        row |= self._speed(state, number(logs.get("num_tokens", self.tokens)))
        self.rows.append(row)
        self.rewards.append(number(row["reward"]))
        if self.live is not None:
            self._refresh(state)
        else:
            line = line_of(row, self.rewards, state.max_steps, self._left(state))
            self.console.print(encodable(line, self.console.encoding), soft_wrap=True)
            for name, sentence in outside(row, self.limit).items():
                if name not in self.told:
                    self.console.print(f"{sentence}: {page('metrics.md')}", soft_wrap=True)
                    self.told.add(name)

    @_harmless
    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        reward = number((metrics or {}).get("eval_reward"))
        if state.is_world_process_zero and math.isfinite(reward):
            self.console.print(f"evaluation at step {state.global_step}: reward {reward:.3f}")

    @_harmless
    def on_train_end(self, args, state, control, **kwargs):
        if self.live is not None:
            self._refresh(state)
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams = []
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _take_streams(self) -> None:
        """Warnings go through the table's console, which prints above it. Their handlers have kept the bare stream."""
        names = [None, *logging.root.manager.loggerDict]
        for name in names:
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler and handler.stream is sys.__stderr__:
                    self._streams.append((handler, handler.setStream(sys.stderr)))

    def _speed(self, state, tokens: float) -> dict[str, float]:
        now, steps = time.monotonic(), max(state.global_step - self.last_step, 1)
        seconds = max(now - self.last, 1e-9)
        speed = {"seconds": seconds / steps, "tokens/s": (tokens - self.tokens) / seconds}
        self.last, self.last_step, self.tokens = now, state.global_step, tokens
        return speed

    def _left(self, state) -> float:
        done = max(state.global_step - self.first, 1)
        return (time.monotonic() - self.begun) / done * max(state.max_steps - state.global_step, 0)

    def _refresh(self, state) -> None:
        assert self.live is not None
        passed, left = (duration(x) for x in (time.monotonic() - self.begun, self._left(state)))
        head = f"step {state.global_step}/{state.max_steps}  {passed} passed, {left} left, {memory()}"
        bar = ProgressBar(
            total=max(state.max_steps, 1), completed=state.global_step, width=min(self.console.width, 60)
        )
        parts: list[Any] = [Text(head, no_wrap=True), Padding(bar)]  # a bar alone ends no line
        if self.rewards:
            parts += [
                table_of(self.rows, self.console.width),
                Text(encodable(f"reward {trend(self.rewards)}", self.console.encoding), no_wrap=True),
            ]
            found = [] if not self.rows else list(outside(self.rows[-1], self.limit).values())
            parts += [Text(sentence, style="yellow") for sentence in found]
            where = Text("healthy ranges: ", style="dim").append(page("metrics.md"))
            parts.append(where)
        self.live.update(Group(*parts), refresh=True)


def keep_until(file: Path, step: int) -> None:
    """
    Leave out the logs after a step, which a run that continues from it writes again. The logs of an earlier run in the folder,
    which this one does not continue, move to `metrics.jsonl.old`.
    """
    if not file.exists():
        return
    if step == 0:
        file.replace(file.with_name(f"{file.name}.old"))
        return
    lines = file.read_bytes().splitlines(keepends=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(b"".join(line for line in lines if line.endswith(b"\n") and _step_of(line) <= step))
    temporary.replace(file)


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def show_progress_table(trainer) -> ProgressTable:
    """
    Replace transformers' progress bar, or its printed dicts, by a [`ProgressTable`].

    TRL's `log_completions` prints each rollout whole. Without a terminal it prints none, unless `num_completions_to_print` asks for
    some. The trackers and the files in `output_dir/completions` get all of them.
    """
    for kind in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(kind)
    table = ProgressTable(limit=trainer._watch.limit)
    if trainer.num_completions_to_print is None and not table.console.is_terminal:
        trainer.num_completions_to_print = 0
    trainer.add_callback(table)
    return table
