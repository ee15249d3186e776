# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page of thoughts, filled with data. `thoughts_page.html` is its template.

The page loads nothing, and its security policy forbids it to load anything.
"""

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

from ..settings import ThinkingSettings
from ..thoughts import THOUGHTS


CANDIDATES = 16
_TEMPLATE = Path(__file__).with_name("thoughts_page.html")


def ceiling(benchmarks: dict[str, dict]) -> float:
    """The entropy at the end of the page's scale: the largest of all steps, rounded up to half a nat, at least 0.5."""
    entropies = [
        step["entropy"] or 0.0
        for benchmark in benchmarks.values()
        for decodings in benchmark["problems"].values()
        for samples in decodings.values()
        for line in samples.values()
        for step in line["thoughts"] or ()
    ]
    return max(0.5, math.ceil(2 * max(entropies, default=0.0)) / 2)


def settings_read(thinking: dict) -> dict[str, Any]:
    """The settings that the thought of a manifest reads; those that are set, where the kind is not installed here."""
    if thinking.get("thought") not in THOUGHTS:
        return {key: value for key, value in thinking.items() if value is not None}
    return ThinkingSettings.of_stored(thinking, "The manifest").resolved()


def shown_line(decoding: str, sample: dict, thinking: dict, prompts: dict[str, int]) -> dict[str, Any]:
    """
    The parts of a sample that the page shows.

    An evaluation's sample has a verdict. A completion of training has none; it has `scores`, such as its reward, by name.
    """
    steps = sample.get("thoughts") or None
    length = int(sample.get("thinking_length") or 0)
    text = str(sample["text"])
    return {
        "decoding": decoding,
        "prompt": prompts.setdefault(str(sample.get("prompt", "")), len(prompts)),
        "text": text,
        "answer_at": answer_at(sample, text, steps, length, thinking),
        "answer": _text(sample.get("answer")),
        "vote": _text(sample.get("vote")),
        "correct": None if "scores" in sample else bool(sample.get("correct")),
        "scores": {name: _finite(value) for name, value in sample.get("scores", {}).items()},
        "length": int(sample.get("length") or 0),
        "thinking_length": length,
        "thinking_cut": bool(sample.get("thinking_cut")),
        "clipped": bool(sample.get("clipped")),
        "entropy": _finite(sample.get("entropy")),
        "thoughts": steps and [_step(step, index < length) for index, step in enumerate(steps)],
    }


def answer_at(sample: dict, text: str, steps: list[dict] | None, length: int, thinking: dict) -> int | None:
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


def filled(data: dict) -> str:
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
