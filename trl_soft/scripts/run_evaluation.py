# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model under any ways of thinking, hard tokens included: `accelerate launch -m trl_soft.scripts.run_evaluation`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..command_line import one_sentence
from ..evaluate import PRESETS
from ..evaluate.decoding import Decoding, soft_tokens_grid
from ..evaluate.runner import Evaluation, evaluate, saved_beside
from ..files import printable
from .parser import SoftParser


def _help(text: str, default=None):
    return field(default=default, metadata={"help": text})


@dataclass
class EvaluationArguments:
    """The settings of an evaluation. See `trl_soft.evaluate.Evaluation`."""

    model_name_or_path: str | None = _help("Path or hub id of the model.")
    benchmarks: list[str] = field(default_factory=list, metadata={"help": "Names, files or hub ids."})
    name: str | None = _help("The run's name in reports, where runs of one name are its seeds; unset: the folder's.")
    output_dir: str = _help("The run's folder. Run again to continue.", "outputs/evaluation")
    preset: str = _help(f"Prompts, caps, sampling: {', '.join(PRESETS)}.", "plain")
    decodings: list[dict] | None = _help("YAML only: a list of {name, thought, temperature, num_samples, ...}.")
    grid_models: list[str] | None = _help(
        "label=path of trained models: the six inference settings of 2509.19170 each."
    )
    num_samples: int | None = _help("Samples of each problem, for decodings without their own number.")
    data_dir: str | None = _help("Folder with local files of the benchmarks; unset: the hub.")
    limit: int | None = _help("Use only this many problems, from the first.")
    question_column: str | None = _help("Column of the question, for files and hub ids.")
    answer_column: str | None = _help("Column of the answer, for files and hub ids.")
    grader: str | None = _help("Grader instead of the benchmark's own: math, exact, letters.")
    max_completion_length: int | None = _help("Cap of thought and answer, instead of the preset's.")
    k_values: list[int] | None = _help("The k of pass@k and maj@k; unset: powers of two.")
    seed: int = _help("Seed of the noise.", 0)
    chunk: int = _help("Samples computed and written together.", 256)
    candidates: int = _help("Candidates of each step to write down, for `inspect`; 0: none.", 0)
    candidates_samples: int | None = _help("Of so many samples of each problem; unset: all.")
    entropy_positions: int = _help(
        "Positions whose entropy is measured, by reading completions once more; 0: none.", 0
    )
    slots: int = _help("Completions in flight.", 64)
    cache_gb: float | None = _help("Gigabytes of keys and values; unset: half of what is free.")
    engine: str = _help("Rollout engine: slots or simple.", "slots")
    dtype: str = _help("Precision of the weights: auto, float32, bfloat16.", "auto")


def decodings_of(arguments: EvaluationArguments) -> list[Decoding]:
    """The list in the YAML file, or the grid, or the thought saved with the model."""
    if arguments.grid_models:
        pairs = [entry.partition("=") for entry in arguments.grid_models]
        if not all(equals and label and path for label, equals, path in pairs):
            raise ValueError(
                f"`grid_models` is {arguments.grid_models}, but each must be label=path, such as soft=outputs/soft."
            )
        if arguments.decodings:
            raise ValueError("`grid_models` and `decodings` are both set, and each says how to think. Leave one out.")
        models = {label: path for label, _, path in pairs}
        return soft_tokens_grid(models, arguments.num_samples or 32, arguments.seed)
    saved = saved_beside(arguments.model_name_or_path or "")
    entries = arguments.decodings or [{"name": f"the preset's, {arguments.preset}" if saved is None else "as saved"}]
    return [Decoding.parse({"num_samples": arguments.num_samples, **entry}, arguments.seed) for entry in entries]


_HEADINGS = ("problems", "n", "mean@n", "interval", "pass@n", "maj@n", "tokens")
_NARROWEST = 80  # columns of a terminal in which the table has all of its own


def show(metrics: dict, console: Console | None = None) -> None:
    """One row for each benchmark and decoding; lines in place of a table where the terminal is too narrow for it."""
    console = console or Console(highlight=False)
    table = Table(title="mean@n with its 95 % interval over problems", box=None, pad_edge=False)
    for heading in ("benchmark", "decoding"):
        table.add_column(heading, overflow="fold", min_width=len(heading))
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for benchmark, decodings in metrics.items():
        name = os.path.basename(benchmark) if os.path.isfile(benchmark) else benchmark
        for decoding, row in decodings.items():
            cells = _cells(row)
            if console.width < _NARROWEST:
                text = ", ".join(f"{heading} {cell}" for heading, cell in zip(_HEADINGS, cells, strict=True))
                console.print(Text(f"{printable(name)}, {printable(decoding)}: {text}"))
            else:
                table.add_row(Text(printable(name)), Text(printable(decoding)), *cells)
    if table.row_count:
        console.print(table)


def _cells(row: dict) -> list[str]:
    mean = row["mean@n"]
    last = [list(row[name].values())[-1]["value"] if name in row else None for name in ("pass@k", "maj@k")]
    return [
        str(row["problems"]), str(row["samples"]), f"{mean['value']:.3f}", f"{mean['low']:.3f}-{mean['high']:.3f}",
        *("-" if x is None else f"{x:.3f}" for x in last), f"{row['length']['mean']:.1f}",
    ]  # fmt: skip


def run(arguments: EvaluationArguments) -> None:
    """Evaluate as the arguments say, and print one row for each benchmark and decoding."""
    decodings = decodings_of(arguments)
    if arguments.model_name_or_path is None and any(decoding.model is None for decoding in decodings):
        raise ValueError(
            "`model_name_or_path` is not set and a decoding names no model. Set it to a path or a hub id, for example: "
            "`trl-soft evaluate --config recipes/quickstart/evaluate.yaml`."
        )
    evaluation = Evaluation(
        model=arguments.model_name_or_path or "",
        decodings=decodings,
        **{
            name: getattr(arguments, name)
            for name in (
                "name", "benchmarks", "output_dir", "preset", "data_dir", "limit", "question_column", "answer_column", "grader",
                "chunk", "candidates", "candidates_samples", "entropy_positions", "slots", "cache_gb", "engine", "dtype", "max_completion_length", "k_values",
            )
        },
    )  # fmt: skip
    metrics = evaluate(evaluation)
    if PartialState().is_main_process:
        show(metrics)
        print(f"Wrote {arguments.output_dir}/metrics.json and samples/*.jsonl")


def main(argv: Sequence[str] | None = None) -> None:
    prog = None if argv is None else "trl-soft evaluate"  # a script is named by its file
    run(*SoftParser((EvaluationArguments,), prog=prog).parse_args_and_config(argv))


if __name__ == "__main__":
    with one_sentence():
        main()
