# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page that shows the thoughts of a run: candidates, weights, and entropy at each step.

trl-soft inspect outputs/eval/run -o thoughts.html
trl-soft inspect outputs/eval/before outputs/eval/after -o thoughts.html
"""

import argparse
import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...files import printable
from ...settings import ThinkingSettings
from ...thoughts import THOUGHTS
from ..run_files import read_manifest, shown_samples
from ..store import Store
from .run_results import decodings_of


PROBLEMS = 8
SAMPLES = 4
CANDIDATES = 16
_TEMPLATE = Path(__file__).with_name("thoughts_page.html")
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
    output.write_text(_fill(_page_data(chosen, selection, counts)), encoding="utf-8", newline="\n")
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
                        number: _line(decoding, sample, thinking[decoding], prompts)
                        for number, sample in sorted(samples.items())
                    }
                    for decoding, samples in decodings.items()
                }
                for problem, decodings in sorted(by.items())
            },
        }
    entropies = [
        _finite(step.get("entropy")) or 0.0
        for by in selection.values()
        for decodings in by.values()
        for samples in decodings.values()
        for sample in samples.values()
        for step in sample.get("thoughts") or ()
    ]
    return {
        "name": " and ".join(dict.fromkeys(run.name for run in runs)),
        "model": ", then ".join(dict.fromkeys(str(run.manifest.get("model") or "model not recorded") for run in runs)),
        "first": _opening(runs),
        "ceiling": max(0.5, math.ceil(2 * max(entropies, default=0.0)) / 2),
        "decodings": [_decoding(run, name) for run in runs for name in run.entries],
        "benchmarks": benchmarks,
        "prompts": list(prompts),
    }


def _decoding(run: ShownRun, name: str) -> dict[str, Any]:
    """A decoding, with the settings that its thought reads in one line."""
    entry = run.entries[name]
    try:
        read = _read(entry.get("thinking") or {})
    except ValueError as error:
        raise ValueError(
            f"{printable(str(run.folder / 'manifest.json'))}: the decoding {printable(name)!r} cannot be shown: {error}"
        ) from error
    answer = {f"answer {key}": value for key, value in (entry.get("answer") or {}).items() if value is not None}
    about = ", ".join(f"{key} {value}" for key, value in (read | answer).items())
    return {"name": run.shown[name], "about": about, "soft": _is_soft(entry)}


def _read(thinking: dict) -> dict[str, Any]:
    """The settings that the thought of a manifest reads; those that are set, where the kind is not installed here."""
    if thinking.get("thought") not in THOUGHTS:
        return {key: value for key, value in thinking.items() if value is not None}
    return ThinkingSettings.of_stored(thinking, "The manifest").resolved()


def _line(decoding: str, sample: dict, thinking: dict, prompts: dict[str, int]) -> dict[str, Any]:
    """The parts of a sample that the page shows."""
    steps = sample.get("thoughts") or None
    length = int(sample.get("thinking_length") or 0)
    text = str(sample["text"])
    return {
        "decoding": decoding,
        "prompt": prompts.setdefault(str(sample.get("prompt", "")), len(prompts)),
        "text": text,
        "answer_at": _answer_at(sample, text, steps, length, thinking),
        "answer": _text(sample.get("answer")),
        "vote": _text(sample.get("vote")),
        "correct": bool(sample.get("correct")),
        "length": int(sample.get("length") or 0),
        "thinking_length": length,
        "thinking_cut": bool(sample.get("thinking_cut")),
        "clipped": bool(sample.get("clipped")),
        "entropy": _finite(sample.get("entropy")),
        "thoughts": steps and [_step(step, index < length) for index, step in enumerate(steps)],
    }


def _answer_at(sample: dict, text: str, steps: list[dict] | None, length: int, thinking: dict) -> int | None:
    """
    Where in the text the answer begins; `None` if that is unknown.

    It is the place that the sample names, which may lie inside the token that closed the thought. A sample without it has
    the place after its thinking steps' tokens, or else after the end of thinking.
    """
    if isinstance(sample.get("answer_at"), int):
        return _units(text[: sample["answer_at"]])
    if steps:
        thought = "".join(str(step["token"]) for step in steps[:length])
        if text.startswith(thought):
            return _units(thought)
    end = thinking.get("end_of_thinking")
    before, closing, _ = text.partition(end) if isinstance(end, str) and end else (text, "", "")
    return _units(before + closing) if closing else None


def _units(text: str) -> int:
    """Length of a text in UTF-16 units, which JavaScript counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _step(step: dict, in_thought: bool) -> dict[str, Any]:
    return {
        "token": str(step["token"]),
        "entropy": _finite(step.get("entropy")),
        "thought": bool(step.get("thought", in_thought)),
        "drawn": bool(step.get("drawn")),
        "candidates": [[str(token), _finite(weight)] for token, weight in (step.get("candidates") or [])[:CANDIDATES]],
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _finite(value: Any) -> float | None:
    """A number rounded to five decimals, -0.0 as 0.0; `None` for a number that JSON cannot hold."""
    return round(float(value), 5) + 0.0 if isinstance(value, (int, float)) and math.isfinite(value) else None


def _fill(data: dict) -> str:
    """
    The page with its data.

    In the data `<` is an escape, so that no text ends its element or begins a comment. The policy allows the page's own
    script only, by its hash, so that other markup could run nothing.
    """
    page = _TEMPLATE.read_text(encoding="utf-8")
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # UTF-8 cannot hold a lone surrogate, which is half of a character that a token cut in two.
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    script, style = (_digest(page, tag) for tag in ("script", "style"))
    policy = f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'"
    fields = {"__POLICY__": policy, "__TITLE__": html.escape(f"Thoughts of {data['name']}"), "__DATA__": text}
    # One pass, so that a run may have the name of a placeholder.
    return re.sub("__(POLICY|TITLE|DATA)__", lambda match: fields[match[0]], page)


def _digest(page: str, tag: str) -> str:
    """The hash by which the policy allows the template's element."""
    content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `inspect_page`."""
    parser = argparse.ArgumentParser(
        prog="trl-soft inspect", description="One HTML page that shows the thoughts of a run."
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
