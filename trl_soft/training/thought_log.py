# SPDX-License-Identifier: Apache-2.0
"""A few thoughts of training, every so many updates: a page in the output folder, and tables for the trackers.

TRL's own table of completions holds the shadow text. With `log_completions` it gets one more column, `candidates`: the candidates
of each step with their weights.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.integrations import TensorBoardCallback

from ..files import replace_text
from ..page.completion_lines import TokenTexts, completion_line, completion_steps, visible
from ..page.filled_page import ceiling, filled, settings_read, shown_line
from ..rollout import Rollout
from .harmless import harmless


FOLDER, COLUMN = "thoughts", "candidates"
STEPS = 512  # positions of each completion on the page, so that the page stays small
CANDIDATES = 8
TEXT_STEPS, TEXT_CANDIDATES, TEXT_LEAST = 32, 3, 0.005  # of a thought as a text in a table
HIGHEST, LOWEST = "highest advantage", "lowest advantage"


def thought_texts(rollout: Rollout, texts: TokenTexts) -> list[str] | None:
    """The thoughts of B completions as `thought_text` writes them. `None` for a kind of thought that has no candidates."""
    record = rollout.record
    if record.thought.is_token or record.weights(0).size(1) == 0:
        return None
    counts = record.thinking_mask.sum(1).tolist()
    head = rollout.columns(slice(0, TEXT_STEPS)).to("cpu")
    return [
        thought_text(completion_steps(texts, head[i : i + 1], TEXT_CANDIDATES), count)
        for i, count in enumerate(counts)
    ]


def thought_text(steps: list[dict], count: int) -> str:
    """
    A thought for a table: one line for each step, such as `3 .91, 4 .09`, with the heaviest candidates and their weights.

    Args:
        steps: of `completion_steps`. The first `TEXT_STEPS` are read.
        count (`int`): soft thoughts in the whole completion.
    """
    lines = []
    for step in steps[:TEXT_STEPS]:
        if step["thought"]:
            pairs = [pair for pair in step["candidates"][:TEXT_CANDIDATES] if pair[1] >= TEXT_LEAST]
            lines.append(", ".join(f"{visible(token)} {f'{weight:.2f}'.removeprefix('0')}" for token, weight in pairs))
    return "\n".join([*lines, *([f"and {count - len(lines)} more"] if count > len(lines) else [])])


def chosen_rows(advantages: list[float], group: int, prompts: int) -> list[tuple[int, str, int]]:
    """
    The prompts whose completions differ most in their advantage, and of each the completions with the lowest and the highest.

    Args:
        advantages: of this process, with `group` completions of each prompt after one another.
        prompts (`int`): most prompts.

    Returns:
        Number of the prompt, `LOWEST` or `HIGHEST`, and row. A prompt with one completion has no lowest one.
    """
    found = []
    for start in range(0, len(advantages), group):
        rows = sorted(range(start, min(start + group, len(advantages))), key=lambda row: -advantages[row])
        found.append((advantages[rows[-1]] - advantages[rows[0]], start // group, rows))
    chosen = []
    for _, prompt, rows in sorted(found)[:prompts]:
        chosen += [(prompt, LOWEST, rows[-1])] if len(rows) > 1 else []
        chosen.append((prompt, HIGHEST, rows[0]))
    return chosen


class ThoughtLog:
    """
    Shows thoughts of rollouts of training. Only the main process does, with its own completions, so processes exchange nothing.

    Args:
        trainer: of TRL, with the thinking settings.
    """

    def __init__(self, trainer):
        self.trainer, self.args = trainer, trainer.args
        self.texts = TokenTexts(trainer._tokenizer)
        self.failed = False
        self._period: int | None = None

    def close(self) -> None:
        """Nothing is held open."""

    def add_column(self, rollout: Rollout) -> None:
        """Give TRL's table of completions the candidates. TRL gathers the column from all processes."""
        column = thought_texts(rollout, self.texts)
        if column is not None:
            self.trainer._log_completion_extra(COLUMN, column)

    def due(self, step: int) -> bool:
        """Whether to show the rollout that follows `step` updates: the first one, and the first of each period."""
        every = self.args.log_thoughts_steps
        if every == 0:
            return False
        before = (step - 1) // every if self._period is None else self._period
        self._period = step // every
        return before != self._period

    @harmless("its page of thoughts")
    def note(self, rollout: Rollout, output: dict[str, Any]) -> None:
        """
        Show a rollout of training if it is due.

        Args:
            rollout (`Rollout`): the completions of this process.
            output (`dict`): TRL's batch of the same rows.
        """
        step = self.trainer.state.global_step
        if not self.trainer.accelerator.is_main_process or not self.due(step):
            return
        lines = list(self._lines(rollout, output))
        page = filled(self._page_data(step, lines))
        folder = Path(self.args.output_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / f"step-{step:05d}.html", page)
        rows = [self._row(step, line) for line in lines]
        if "wandb" in self.args.report_to:
            to_wandb(step, page, rows)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("thoughts", markdown(rows), step)

    def _lines(self, rollout: Rollout, output: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chosen completions, as the lines of an evaluation, with scores in place of a verdict."""
        trainer, plan = self.trainer, self.trainer._plans["train"]
        advantages = output["advantages"].tolist()
        every = trainer.accelerator.num_processes * len(advantages)
        for prompt, name, row in chosen_rows(advantages, trainer.num_generations, self.args.log_thoughts_prompts):
            one = rollout[row : row + 1]
            # TRL's logs end with this rollout, the main process's rows first.
            rewards = {key: list(values)[-every:][row] for key, values in trainer._logs["rewards"].items()}
            ids = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
            steps = completion_steps(self.texts, one.columns(slice(0, STEPS)).to("cpu"), CANDIDATES)
            yield {
                "prompt": trainer._tokenizer.decode(ids),
                "problem": prompt,
                "decoding": name,
                "scores": {**rewards, "advantage": advantages[row]},
                **completion_line(trainer._tokenizer, plan, one),
                "thoughts": steps,
                COLUMN: thought_text(steps, int(one.record.thinking_mask.sum())),
            }

    def _page_data(self, step: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
        thinking = self.trainer.thinking.thinking_dict()
        prompts: dict[str, int] = {}
        problems: dict[int, dict[str, dict[int, dict]]] = {}
        for line in lines:
            shown = shown_line(line["decoding"], line, thinking, prompts)
            problems.setdefault(line["problem"], {})[line["decoding"]] = {0: shown}
        about = ", ".join(f"{key} {value}" for key, value in settings_read(thinking).items())
        soft = thinking["thought"] != "hard"
        note = (
            f"{len(problems)} prompts of one rollout, each with two of its {self.trainer.num_generations} completions."
        )
        benchmarks = {"training": {"note": note, "problems": problems}}
        return {
            "name": f"{Path(self.args.output_dir).name} after {step} updates",
            "model": str(self.trainer.model.config._name_or_path or "model without a name"),
            "first": {"left": LOWEST, "right": HIGHEST},
            "ceiling": ceiling(benchmarks),
            "decodings": [{"name": name, "about": about, "soft": soft} for name in (LOWEST, HIGHEST)],
            "benchmarks": benchmarks,
            "prompts": list(prompts),
        }

    @staticmethod
    def _row(step: int, line: dict[str, Any]) -> dict[str, Any]:
        """The line as a row of a table."""
        return {
            "step": step,
            "prompt": line["prompt"],
            "completion": line["text"],
            **line["scores"],
            "thoughts": line["thinking_length"],
            COLUMN: line[COLUMN],
        }


def to_wandb(step: int, page: str, rows: list[dict[str, Any]]) -> None:
    """The page and the table of one rollout, if a run of W&B is open."""
    import wandb

    if wandb.run is None:
        return
    table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
    shown = {"thoughts/page": wandb.Html(page, inject=False), "thoughts/table": table}
    wandb.log({**shown, "train/global_step": step})


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as TensorBoard shows text. What Markdown or HTML would read in a token is escaped."""

    def cell(value: Any) -> str:
        text = f"{value:.3f}" if isinstance(value, float) else html.escape(str(value), quote=False)
        return re.sub(r"([\\`*_\[\]|])", r"\\\1", text).replace("\n", "<br>")

    lines = [list(map(cell, rows[0])), ["---"] * len(rows[0]), *(map(cell, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
