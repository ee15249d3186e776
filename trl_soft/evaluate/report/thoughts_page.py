# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page that shows the thoughts of a run: candidates, weights, and entropy at each step.

python -m trl_soft.evaluate.inspect outputs/eval/run -o thoughts.html
python -m trl_soft.evaluate.inspect outputs/eval/before outputs/eval/after -o thoughts.html
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
    manifests = [read_manifest(folder) for folder in folders]
    _check_problems(folders, manifests)
    labels = _labels(folders, manifests)
    shown: dict[str, dict] = {}
    first: dict[str, Any] = {}
    counts: dict[str, tuple[set[int], set[int]]] = {}
    selection: dict[str, dict[int, dict[str, dict[int, dict]]]] = {}
    pairs = []
    for folder, manifest, label in zip(folders, manifests, labels, strict=True):
        entries = decodings_of(manifest)
        unknown = [name for name in decodings or () if name not in entries]
        if unknown:
            raise ValueError(f"`decodings` names {unknown}, but {folder} has {list(entries)}. Choose among these.")
        names = {name: f"{label}: {name}" if label else name for name in decodings or entries}
        pairs.append({name: names[name] for name in names if _is_soft(entries[name])} or names)
        shown |= {names[name]: entries[name] | {"name": names[name]} for name in names}
        _select(folder, benchmark, names, numbers, samples, selection, counts)
    if not selection:
        raise ValueError(
            f"{', '.join(map(str, folders))} has no sample of benchmark {benchmark or 'any'}, decodings "
            f"{list(decodings or shown)} and problems {'any' if numbers is None else numbers}, so there is nothing to show. It has "
            f"the benchmarks {sorted(counts)}."
        )
    if len(folders) > 1:
        for both in [name for name in pairs[0] if name in pairs[-1]][:1]:
            first = {"left": pairs[0][both], "right": pairs[-1][both]}
    name = " and ".join(dict.fromkeys(str(m.get("name") or f.name) for f, m in zip(folders, manifests, strict=True)))
    model = ", then ".join(dict.fromkeys(str(m.get("model") or "model not recorded") for m in manifests))
    data = _page_data(name, model, manifests[0], list(shown.values()), selection, counts) | {"first": first}
    output = Path(output_html)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_fill(data), encoding="utf-8", newline="\n")
    return output


def _labels(folders: list[Path], manifests: list[dict]) -> list[str]:
    """What tells runs apart: their names, or else their folders. Empty for one run."""
    if len(folders) == 1:
        return [""]
    for labels in (
        [str(m.get("name") or f.name) for f, m in zip(folders, manifests, strict=True)],
        [f.resolve().name for f in folders],
    ):
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _check_problems(folders: list[Path], manifests: list[dict]) -> None:
    """The same number is the same problem in every run."""
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        for benchmark, problems in (manifest.get("problems") or {}).items():
            ours = (manifests[0].get("problems") or {}).get(benchmark)
            if ours is not None and ours.get("sha256") != problems.get("sha256"):
                raise ValueError(
                    f"{folders[0]} and {folder} have other problems under the name {printable(benchmark)!r}, so they cannot stand "
                    "side by side. Evaluate both on the same problems."
                )


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
    folder: Path,
    benchmark: str | None,
    names: dict[str, str],
    numbers: list[int] | None,
    samples: int,
    selection: dict,
    counts: dict,
) -> None:
    """
    Add the samples of a run that are shown to `selection`, by benchmark, problem, decoding (by the name on the page) and number;
    and to `counts`, for each benchmark, the numbers of all its problems and of all its samples.
    """
    for line in read_samples(folder):
        where, decoding, problem, sample = (line[name] for name in ("benchmark", "decoding", "problem", "sample"))
        all_problems, all_samples = counts.setdefault(where, (set(), set()))
        all_problems.add(problem)
        all_samples.add(sample)
        if benchmark not in (None, where) or decoding not in names or sample >= samples:
            continue
        if numbers is not None and problem not in numbers:
            continue
        by_problem = selection.setdefault(where, {})
        by_problem.setdefault(problem, {}).setdefault(names[decoding], {})[sample] = line
        if numbers is None and len(by_problem) > PROBLEMS:
            del by_problem[max(by_problem)]


def _page_data(
    name: str, model: str, manifest: dict, entries: list[dict], selection: dict, counts: dict
) -> dict[str, Any]:
    thinking = {str(entry["name"]): entry.get("thinking") or {} for entry in entries}
    prompts: dict[str, int] = {}
    order = [b for b in manifest.get("benchmarks") or [] if b in selection]
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
        "name": name,
        "model": model,
        "ceiling": max(0.5, math.ceil(2 * max(entropies, default=0.0)) / 2),
        "decodings": [_decoding(entry) for entry in entries],
        "benchmarks": benchmarks,
        "prompts": list(prompts),
    }


def _decoding(entry: dict) -> dict[str, Any]:
    """A decoding, with the settings that its thought reads in one line."""
    answer = {f"answer {key}": value for key, value in (entry.get("answer") or {}).items() if value is not None}
    about = ", ".join(f"{key} {value}" for key, value in (_read(entry.get("thinking") or {}) | answer).items())
    return {"name": str(entry["name"]), "about": about, "soft": _is_soft(entry)}


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
        prog="python -m trl_soft.evaluate.inspect", description="One HTML page that shows the thoughts of a run."
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
