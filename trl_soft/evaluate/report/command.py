# SPDX-License-Identifier: Apache-2.0
"""The command line of the report.

trl-soft report outputs/eval/* -o outputs/report --papers papers.yaml
"""

from collections.abc import Sequence
from pathlib import Path

from ...command_line import CommandParser
from ...files import printable
from .document import TRAINING_METRICS, report
from .training_logs import PathLike, log_label


def _pairs(values: list[str] | None) -> list[tuple[str, str]]:
    """`LABEL=PATH` as a pair. A path without a label, which may itself hold an equals sign, has an empty label."""
    parts = [("", "", value) if Path(value).exists() else value.rpartition("=") for value in values or ()]
    return [(label, path) for label, _, path in parts]


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        example="trl-soft report outputs/quickstart/evaluation -o outputs/report",
        prog="trl-soft report",
        description="Tables and figures of evaluation runs.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; runs that share a name are seeds")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write")
    parser.add_argument("--papers", metavar="FILE", help="the papers' numbers: .yaml or .csv, in percent")
    parser.add_argument(
        "--training_log", action="append", metavar="[LABEL=]PATH", help="trainer_state.json, its folder, .jsonl or .csv; repeat"
    )  # fmt: skip
    parser.add_argument(
        "--reference", action="append", metavar="[METRIC=]CSV", help="curves: step,value,label; repeat"
    )
    parser.add_argument("--metrics", nargs="+", help="columns: mean@n pass@16 maj@16 first@16")
    parser.add_argument(
        "--training_metrics", nargs="+", default=TRAINING_METRICS, help="metrics of the training figure"
    )
    parser.add_argument("--no_figures", action="store_true", help="tables only; matplotlib is not needed")
    options = parser.parse_args(argv)
    logs: dict[str, list[PathLike]] = {}
    for label, path in _pairs(options.training_log):
        logs.setdefault(label or log_label(path), []).append(path)
    references: dict[str, list[PathLike]] = {}
    for metric, path in _pairs(options.reference):
        references.setdefault(metric or "reward", []).append(path)
    try:
        document = report(
            options.runs, options.output, options.papers, logs, references, options.metrics,
            options.training_metrics, not options.no_figures,
        )  # fmt: skip
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"{printable(str(error))}\n")
    print(f"Wrote {document}.")
