# SPDX-License-Identifier: Apache-2.0
"""One HTML page, nothing beside it, that shows thoughts as they were: candidates, weights, entropy, where two part.

python -m trl_soft.evaluate.inspect outputs/eval/run -o thoughts.html
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

from ...files import read_object
from ..store import Store
from .run_results import decodings_of


PROBLEMS = 8
SAMPLES = 4
CANDIDATES = 16
_TEMPLATE = Path(__file__).with_name("thoughts_page.html")
_FIELDS = ("benchmark", "decoding", "problem", "sample", "text")
PathLike = str | Path


def inspect_page(
    run_folder: PathLike,
    output_html: PathLike,
    benchmark: str | None = None,
    decodings: Sequence[str] | None = None,
    problems: Iterable[int] | None = None,
    samples: int = SAMPLES,
) -> Path:
    """
    Write a self-contained page: it loads nothing, and its policy forbids it to.

    Args:
        run_folder (`path`): with `manifest.json` and `samples/*.jsonl`; samples without `thoughts` show their text.
        output_html (`path`): the page.
        benchmark (`str`, *optional*): the only one to show. Default: all.
        decodings (`list[str]`, *optional*): those to show. Default: all. The page opens with a hard and a soft one.
        problems (`Iterable[int]`, *optional*): their numbers. Default: the first 8 of each benchmark.
        samples (`int`): how many of each problem, from number 0 on.

    Returns the page's path. Raises a `ValueError` if nothing is left to show.
    """
    folder = Path(run_folder)
    manifest = read_object(folder / "manifest.json", "nothing says which run this is")
    known = decodings_of(manifest)
    unknown = [name for name in decodings or () if name not in known]
    if unknown:
        raise ValueError(f"`decodings` names {unknown}, but the run has {list(known)}. Choose among those.")
    names = list(decodings or known)
    wanted = None if problems is None else sorted(set(problems))
    kept, seen = _gather(folder, benchmark, names, wanted, samples)
    if not kept:
        raise ValueError(
            f"{folder} has no sample of benchmark {benchmark or 'any'}, decodings {names} and problems "
            f"{'any' if wanted is None else wanted}, so there is nothing to show. It has the benchmarks "
            f"{sorted(seen)}."
        )
    data = _page_data(manifest, folder, names, known, kept, seen)
    output = Path(output_html)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_fill(data), encoding="utf-8", newline="\n")
    return output


def read_samples(folder: Path) -> Iterator[dict]:
    """The sealed samples of a run, one at a time; what a killed run left unsealed is passed over."""
    found = False
    for _, samples, _ in Store(folder).chunks():
        found = True
        yield from samples
    if not found:
        raise FileNotFoundError(
            f"{folder}/samples holds no finished chunk of samples, so there is nothing to show. Give a run folder, or let "
            "the run go on."
        )


def _gather(folder: Path, benchmark: str | None, names: list[str], wanted: list[int] | None, samples: int):
    """Samples by benchmark, problem, decoding and number; and the problem and sample numbers there are of each benchmark."""
    kept: dict[str, dict[int, dict[str, dict[int, dict]]]] = {}
    seen: dict[str, tuple[set[int], set[int]]] = {}
    for sample in read_samples(folder):
        where, decoding, problem, number = (sample[name] for name in _FIELDS[:4])
        there = seen.setdefault(where, (set(), set()))
        there[0].add(problem)
        there[1].add(number)
        chosen = wanted is None or problem in wanted
        if decoding not in names or not chosen or number >= samples or benchmark not in (None, where):
            continue
        by = kept.setdefault(where, {})
        by.setdefault(problem, {}).setdefault(decoding, {})[number] = sample
        if wanted is None and len(by) > PROBLEMS:
            del by[max(by)]
    return kept, seen


def _page_data(manifest: dict, folder: Path, names: list[str], known: dict, kept: dict, seen: dict) -> dict[str, Any]:
    prompts: dict[str, int] = {}
    order = [b for b in manifest.get("benchmarks") or [] if b in kept]
    benchmarks = {}
    for benchmark in [*order, *sorted(set(kept) - set(order))]:
        by = kept[benchmark]
        numbers = {n for decodings in by.values() for samples in decodings.values() for n in samples}
        benchmarks[benchmark] = {
            "note": f"This page holds {len(by)} of {len(seen[benchmark][0])} problems and {len(numbers)} of "
            f"{len(seen[benchmark][1])} samples of each.",
            "problems": {
                problem: {
                    decoding: {
                        number: _line(sample, known[decoding].get("thinking") or {}, prompts)
                        for number, sample in sorted(samples.items())
                    }
                    for decoding, samples in decodings.items()
                }
                for problem, decodings in sorted(by.items())
            },
        }
    entropies = [
        _finite(step.get("entropy")) or 0.0
        for by in kept.values()
        for decodings in by.values()
        for samples in decodings.values()
        for sample in samples.values()
        for step in sample.get("thoughts") or ()
    ]
    return {
        "name": str(manifest.get("name") or folder.name),
        "model": str(manifest.get("model") or "model not recorded"),
        "ceiling": max(0.5, math.ceil(2 * max(entropies, default=0.0)) / 2),
        "decodings": [_decoding(known[name]) for name in names],
        "benchmarks": benchmarks,
        "prompts": list(prompts),
    }


def _decoding(entry: dict) -> dict[str, Any]:
    """A decoding and its settings in a line."""
    thinking = entry.get("thinking") or {}
    settings = thinking | {f"answer {key}": value for key, value in (entry.get("answer") or {}).items()}
    about = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    return {"name": str(entry["name"]), "about": about, "soft": thinking.get("thought", "hard") != "hard"}


def _line(sample: dict, thinking: dict, prompts: dict[str, int]) -> dict[str, Any]:
    """What the page needs of a sample."""
    steps = sample.get("thoughts") or None
    length = int(sample.get("thinking_length") or 0)
    text = str(sample["text"])
    return {
        "decoding": sample["decoding"],
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
    Where in the text the answer begins: as the sample has it, which may be inside the token that closed the thought; else by
    the steps' tokens, or by what ends a thought; `None` if nothing tells.
    """
    if isinstance(sample.get("answer_at"), int):
        return _units(text[: sample["answer_at"]])
    if steps:
        thought = "".join(str(step["token"]) for step in steps[:length])
        if text.startswith(thought):
            return _units(thought)
    end = thinking.get("end_of_thinking")
    before, found, _ = text.partition(end) if isinstance(end, str) and end else (text, "", "")
    return _units(before + found) if found else None


def _units(text: str) -> int:
    """Length of a text as JavaScript counts it: in UTF-16."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _step(step: dict, in_thought: bool) -> dict[str, Any]:
    return {
        "token": str(step["token"]),
        "entropy": _finite(step.get("entropy")),
        "thought": bool(step.get("thought", in_thought)),
        "candidates": [[str(token), _finite(weight)] for token, weight in (step.get("candidates") or [])[:CANDIDATES]],
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _finite(value: Any) -> float | None:
    """A number to five decimals; `None` for what JSON has no word for."""
    return round(float(value), 5) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _fill(data: dict) -> str:
    """
    The page with its data.

    `<` is written as an escape in the data, so that no text in it can end the element it stands in or begin a comment;
    and the policy admits the page's own script by its hash alone, so that markup that got in all the same runs nothing.
    """
    page = _TEMPLATE.read_text(encoding="utf-8")
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate, half of a character that a token cut through, cannot be written in UTF-8.
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    script, style = (_digest(page, tag) for tag in ("script", "style"))
    policy = f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'"
    fields = {"__POLICY__": policy, "__TITLE__": html.escape(f"Thoughts of {data['name']}"), "__DATA__": text}
    # One pass, so that a run that is named after a placeholder stays a name.
    return re.sub("__(POLICY|TITLE|DATA)__", lambda match: fields[match[0]], page)


def _digest(page: str, tag: str) -> str:
    """The hash by which a policy admits the template's element."""
    content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `inspect_page`."""
    parser = argparse.ArgumentParser(
        prog="python -m trl_soft.evaluate.inspect", description="One HTML page that shows thoughts as they were."
    )
    parser.add_argument("run", help="run folder, with its thoughts recorded")
    parser.add_argument("-o", "--output", required=True, metavar="HTML", help="the page")
    parser.add_argument("--benchmark", help="the only one to show (default: all)")
    parser.add_argument("--decodings", nargs="+", help="those to show (default: all)")
    parser.add_argument("--problems", nargs="+", type=int, help=f"their numbers (default: the first {PROBLEMS})")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="how many of each problem (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        page = inspect_page(
            options.run, options.output, options.benchmark, options.decodings, options.problems, options.samples
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(f"Wrote {page} ({page.stat().st_size / 1000:.0f} kB).")
