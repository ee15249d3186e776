# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page that shows the thoughts of a run: candidates, weights, and entropy at each step.

trl-soft inspect outputs/eval/run -o thoughts.html
trl-soft inspect outputs/eval/before outputs/eval/after -o thoughts.html
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...command_line import CommandParser
from ...files import printable
from ...page.filled_page import ceiling, filled, settings_read, shown_line
from ..run_files import read_manifest, shown_samples
from ..store import Store
from .run_results import decodings_of


PROBLEMS = 8
SAMPLES = 4
PathLike = str | Path


def inspect_page(
    runs: PathLike | Sequence[PathLike],
    output_html: PathLike,
    benchmark: str | None = None,
    decodings: Sequence[str] | None = None,
    problems: Iterable[int] | None = None,
    samples: int = SAMPLES,
) -> Path:
    """
    Write a self-contained page. It loads nothing, and its security policy forbids it to load anything.

    Args:
        runs (`path` or `list[path]`):
            A folder with `manifest.json` and `samples/*.jsonl`, or several whose problems are the same. A sample without
            `thoughts` shows its text.
        output_html (`path`): the page.
        benchmark (`str`, *optional*): the only benchmark to show. Default: all.
        decodings (`list[str]`, *optional*): the decodings to show. Default: all.
        problems (`Iterable[int]`, *optional*): numbers of the problems. Default: the first 8 of each benchmark.
        samples (`int`): how many samples of each problem, from number 0 on.

    Returns:
        The path of the page. Of one run it opens with a hard and a soft decoding side by side, of several with the same soft
        decoding of the first and of the last, such as before and after training.

    Raises:
        ValueError: if there is nothing to show, or if the problems of the runs differ.
    """
    folders = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    numbers = None if problems is None else sorted(set(problems))
    chosen = [ShownRun(folder, decodings) for folder in folders]
    _check_problems(chosen)
    _name_apart(chosen)
    selection: dict[str, dict[int, dict[str, dict[int, dict]]]] = {}
    counts: dict[str, tuple[set[int], set[int]]] = {}
    for run in chosen:
        _select(run, benchmark, numbers, samples, selection, counts)
    if not selection:
        raise ValueError(
            f"{', '.join(map(str, folders))} has no sample of benchmark {benchmark or 'any'}, decodings "
            f"{list(chosen[0].entries)} and problems {'any' if numbers is None else numbers}, so there is nothing to show. It has "
            f"the benchmarks {sorted(counts)}."
        )
    output = Path(output_html)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(filled(_page_data(chosen, selection, counts)), encoding="utf-8", newline="\n")
    return output


class ShownRun:
    """
    A run on a page.

    Args:
        folder (`Path`).
        decodings (`list[str]`, *optional*): those to show; `None`: all.

    Attributes:
        manifest (`dict`), name (`str`): what the run says of itself.
        entries (`dict`): the shown decodings by name.
        shown (`dict`): their names on the page.
    """

    def __init__(self, folder: Path, decodings: Sequence[str] | None):
        self.folder, self.manifest = folder, read_manifest(folder)
        entries = decodings_of(self.manifest)
        unknown = [name for name in decodings or () if name not in entries]
        if unknown:
            raise ValueError(f"`decodings` names {unknown}, but {folder} has {list(entries)}. Choose among these.")
        self.entries = {name: entries[name] for name in decodings or entries}
        self.shown = {name: name for name in self.entries}
        self.name = str(self.manifest.get("name") or folder.name)

    @property
    def soft(self) -> list[str]:
        """The soft decodings; all where none is soft."""
        return [name for name, entry in self.entries.items() if _is_soft(entry)] or list(self.entries)


def _name_apart(runs: list[ShownRun]) -> None:
    """Put before the decodings of several runs the runs' names, or else their folders, whichever differ."""
    if len(runs) == 1:
        return
    for labels in (
        [run.name for run in runs],
        [run.folder.resolve().name for run in runs],
        [str(run.folder) for run in runs],
    ):
        if len(set(labels)) == len(labels):
            break
    for run, label in zip(runs, labels, strict=True):
        run.shown = {name: f"{label}: {name}" for name in run.entries}


def _check_problems(runs: list[ShownRun]) -> None:
    """The same number is the same problem in every run."""
    first = runs[0].manifest.get("problems") or {}
    for run in runs[1:]:
        for benchmark, problems in (run.manifest.get("problems") or {}).items():
            if benchmark in first and first[benchmark].get("sha256") != problems.get("sha256"):
                raise ValueError(
                    f"{runs[0].folder} and {run.folder} have other problems under the name {printable(benchmark)!r}, so they cannot "
                    "stand side by side. Evaluate both on the same problems."
                )


def _opening(runs: list[ShownRun]) -> dict[str, str]:
    """Of several runs, the decodings with which the page opens: the same one of the first and of the last."""
    if len(runs) > 1:
        for name in runs[0].soft:
            if name in runs[-1].entries:
                return {"left": runs[0].shown[name], "right": runs[-1].shown[name]}
    return {}


def _is_soft(entry: dict) -> bool:
    return (entry.get("thinking") or {}).get("thought", "hard") != "hard"


def read_samples(folder: Path) -> Iterator[dict]:
    """The sealed samples of a run, one at a time. Samples that a killed run did not seal are skipped."""
    empty = True
    for sample in shown_samples(Store(folder)):
        empty = False
        yield sample
    if empty:
        raise FileNotFoundError(
            f"{folder}/samples holds no finished chunk of samples, so there is nothing to show. Give a run folder, or let "
            "the run continue."
        )


def _select(
    run: ShownRun, benchmark: str | None, numbers: list[int] | None, samples: int, selection: dict, counts: dict
) -> None:
    """
    Add the samples of a run that are shown to `selection`, by benchmark, problem, decoding (by the name on the page) and number;
    and to `counts`, for each benchmark, the numbers of all its problems and of all its samples.
    """
    for line in read_samples(run.folder):
        where, decoding, problem, sample = (line[name] for name in ("benchmark", "decoding", "problem", "sample"))
        all_problems, all_samples = counts.setdefault(where, (set(), set()))
        all_problems.add(problem)
        all_samples.add(sample)
        if benchmark not in (None, where) or decoding not in run.shown or sample >= samples:
            continue
        if numbers is not None and problem not in numbers:
            continue
        by_problem = selection.setdefault(where, {})
        by_problem.setdefault(problem, {}).setdefault(run.shown[decoding], {})[sample] = line
        if numbers is None and len(by_problem) > PROBLEMS:
            del by_problem[max(by_problem)]


def _page_data(runs: list[ShownRun], selection: dict, counts: dict) -> dict[str, Any]:
    thinking = {run.shown[name]: entry.get("thinking") or {} for run in runs for name, entry in run.entries.items()}
    prompts: dict[str, int] = {}
    order = [b for b in runs[0].manifest.get("benchmarks") or [] if b in selection]
    benchmarks = {}
    for benchmark in [*order, *sorted(set(selection) - set(order))]:
        by = selection[benchmark]
        numbers = {n for decodings in by.values() for samples in decodings.values() for n in samples}
        benchmarks[benchmark] = {
            "note": f"This page holds {len(by)} of {len(counts[benchmark][0])} problems and {len(numbers)} of "
            f"{len(counts[benchmark][1])} samples of each.",
            "problems": {
                problem: {
                    decoding: {
                        number: shown_line(decoding, sample, thinking[decoding], prompts)
                        for number, sample in sorted(samples.items())
                    }
                    for decoding, samples in decodings.items()
                }
                for problem, decodings in sorted(by.items())
            },
        }
    return {
        "name": " and ".join(dict.fromkeys(run.name for run in runs)),
        "model": ", then ".join(dict.fromkeys(str(run.manifest.get("model") or "model not recorded") for run in runs)),
        "first": _opening(runs),
        "ceiling": ceiling(benchmarks),
        "decodings": [_decoding(run, name) for run in runs for name in run.entries],
        "benchmarks": benchmarks,
        "prompts": list(prompts),
    }


def _decoding(run: ShownRun, name: str) -> dict[str, Any]:
    """A decoding, with the settings that its thought reads in one line."""
    entry = run.entries[name]
    try:
        read = settings_read(entry.get("thinking") or {})
    except ValueError as error:
        raise ValueError(
            f"{printable(str(run.folder / 'manifest.json'))}: the decoding {printable(name)!r} cannot be shown: {error}"
        ) from error
    answer = {f"answer {key}": value for key, value in (entry.get("answer") or {}).items() if value is not None}
    about = ", ".join(f"{key} {value}" for key, value in (read | answer).items())
    return {"name": run.shown[name], "about": about, "soft": _is_soft(entry)}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `inspect_page`."""
    parser = CommandParser(
        example="trl-soft inspect outputs/quickstart/evaluation -o thoughts.html",
        prog="trl-soft inspect",
        description="One HTML page that shows the thoughts of a run.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="run", help="run folder, with its thoughts recorded; two stand side by side"
    )
    parser.add_argument("-o", "--output", required=True, metavar="HTML", help="the page")
    parser.add_argument("--benchmark", help="the only benchmark to show (default: all)")
    parser.add_argument("--decodings", nargs="+", help="the decodings to show (default: all)")
    parser.add_argument(
        "--problems", nargs="+", type=int, help=f"numbers of the problems (default: the first {PROBLEMS})"
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, help="samples of each problem (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        page = inspect_page(
            options.runs, options.output, options.benchmark, options.decodings, options.problems, options.samples
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"{printable(str(error))}\n")
    print(f"Wrote {page} ({page.stat().st_size / 1000:.0f} kB).")
