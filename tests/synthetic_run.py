# SPDX-License-Identifier: Apache-2.0
"""Run folders as the evaluation writes them, made up from a seed: for tests, and for the examples in the docs.

python -m tests.synthetic_run OUT
"""

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

from trl_soft.evaluate.store import Store


GUMBEL = {"thought": "gumbel", "thinking_temperature": 0.6, "thinking_top_k": 5, "end_of_thinking": "</think>"}
DECODINGS = {
    "hard": {"thought": "hard", "thinking_temperature": 0.6, "end_of_thinking": "</think>"},
    "gumbel": GUMBEL | {"gumbel_temperature": 0.1},
    "soft": GUMBEL | {"thought": "soft"},
}
THINGS = ("apples", "tickets", "marbles", "stamps", "loaves", "pencils")
RIVALS = ("So", " then", " we", " the", " total", " that", " is", " So", " left", " each", " gives", " now", "\n")


def problem_of(benchmark: str, number: int) -> tuple[str, list[int]]:
    """A question and its numbers."""
    r = random.Random(f"{benchmark}/{number}")
    a, b, c = r.randint(3, 19), r.randint(2, 9), r.randint(2, 12)
    thing = THINGS[r.randrange(len(THINGS))]
    return f"A shop has {a} boxes of {b} {thing} each, and {c} {thing} beside them. How many is that?", [a, b, c]


def _words(a: int, b: int, c: int, opening: str) -> list[tuple[str, float]]:
    """A thought in tokens, each with how unsure a model would be of it."""
    product, total = a * b, a * b + c
    text = [(opening, 1.6), (" there", 0.5), (" are", 0.1), (f" {a}", 0.2), (" boxes", 0.1), (" of", 0.1)]
    text += [(f" {b}", 0.1), (".", 0.4), ("\n", 0.3), (f"{a}", 0.4), (" *", 0.7), (f" {b}", 0.05), (" =", 0.05)]
    text += [(f" {product}", 0.9), (".", 0.2), (" Then", 1.3), (" add", 1.7), (f" {c}", 0.3), (":", 0.8)]
    text += [(f" {product}", 0.1), (" +", 0.2), (f" {c}", 0.05), (" =", 0.05), (f" {total}", 1.0), (".", 0.3)]
    if opening == "Okay":
        text += [(" Let", 1.8), (" me", 0.02), (" check", 0.4), (":", 0.5), (f" {total}", 0.6), (" -", 0.9)]
        text += [(f" {c}", 0.2), (" =", 0.05), (f" {product}", 0.2), (",", 0.7), (" yes", 1.1), (".", 0.2)]
    return [*text, ("\n", 0.6), ("</think>", 0.3)]


def _step(r: random.Random, token: str, unsure: float, thought: str, kept: int) -> dict:
    """One step: the token with the most weight, its rivals, and what a thought of this kind makes of them."""
    unsure *= r.uniform(0.6, 1.4)
    rivals = r.sample([rival for rival in RIVALS if rival != token], kept - 1)
    if token.strip().isdigit():
        near = {str(int(token) + d) for d in (-10, -2, -1, 1, 2, 10) if int(token) + d >= 0}
        rivals = [token[: len(token) - len(token.strip())] + x for x in sorted(near)][: kept - 1]
    logits = [0.0] + [-1.7 / (0.3 + unsure) - 0.6 * i + r.uniform(-0.3, 0.3) for i in range(len(rivals))]
    mass = sum(map(math.exp, logits))
    p = [math.exp(x) / mass for x in logits]
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    if thought == "gumbel":  # sharpened by noise; the shadow is whatever came out heaviest
        p = sorted((x ** r.uniform(0.7, 1.8) for x in p), reverse=True)
        p = [x / sum(p) for x in p]
    candidates = [[token, 1.0]] if thought == "hard" else [[t, round(x, 5)] for t, x in zip([token, *rivals], p)]
    return {"token": token, "entropy": round(entropy, 4), "candidates": candidates, "thought": True}


def make_sample(benchmark: str, decoding: str, number: int, sample: int, seed: int, skill: float, steps: bool) -> dict:
    """One line of `samples/*.jsonl`."""
    question, (a, b, c) = problem_of(benchmark, number)
    ease = random.Random(f"ease/{benchmark}/{number}").gauss(0, 1.4)
    r = random.Random(f"{seed}/{benchmark}/{decoding}/{number}/{sample}")
    correct = r.random() < 1 / (1 + math.exp(-(skill + ease)))
    opening = ("First", "Okay", "Let's see:")[r.randrange(3)] if decoding != "soft" else "First"
    wrong = 0 if correct else r.choice((1, 2, 10))
    words = _words(a, b, c + wrong, opening)
    answer = str(a * b + c + wrong)
    thought = DECODINGS[decoding]["thought"]
    made = [_step(r, token, unsure, thought, 5) for token, unsure in words]
    tail = [("The", 0.5), (" answer", 0.1), (" is", 0.05), (" \\boxed{", 0.3), (answer, 0.2), ("}", 0.05), (".", 0.1)]
    made += [_step(r, token, unsure, "hard", 5) | {"thought": False} for token, unsure in tail]
    line = {
        "benchmark": benchmark, "decoding": decoding, "problem": number, "sample": sample, "prompt": question,
        "text": "".join(step["token"] for step in made), "answer": answer, "vote": answer, "correct": correct,
        "length": len(made), "thinking_length": len(words), "thinking_cut": False, "clipped": False,
        "entropy": sum(step["entropy"] for step in made[: len(words)]) / len(words),
    }  # fmt: skip
    return line | ({"thoughts": made} if steps else {})


def _interval(values: list[float], r: random.Random) -> dict[str, float]:
    """Mean and 95 % bootstrap interval over problems."""
    n = len(values)
    means = sorted(sum(r.choices(values, k=n)) / n for _ in range(200))
    return {"value": sum(values) / n, "low": means[4], "high": means[194]}


def _scores(lines: list[dict], samples: int) -> dict:
    """A decoding's entry in `metrics.json`."""
    r = random.Random(0)
    by: dict[int, list[dict]] = {}
    for line in lines:
        by.setdefault(line["problem"], []).append(line)
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    solved = [sum(line["correct"] for line in group) for group in by.values()]

    def vote(group, k):
        return sum(
            Counter(x["vote"] for x in r.sample(group, k)).most_common(1)[0][0] == gold(group) for _ in range(20)
        )

    def gold(group):
        a, b, c = problem_of(group[0]["benchmark"], group[0]["problem"])[1]
        return str(a * b + c)

    def passed(c, k):
        return 1 - math.comb(samples - c, k) / math.comb(samples, k)

    return {
        "mean@n": _interval([c / samples for c in solved], r),
        "pass@k": {str(k): _interval([passed(c, k) for c in solved], r) for k in ks},
        "maj@k": {str(k): _interval([vote(group, k) / 20 for group in by.values()], r) for k in ks},
        "first_k": {str(k): _interval([float(any(x["correct"] for x in g[:k])) for g in by.values()], r) for k in ks},
        "problems": len(by),
        "samples": samples,
        "length": {"mean": sum(x["length"] for x in lines) / len(lines)},
        "thinking_length": {"mean": sum(x["thinking_length"] for x in lines) / len(lines)},
        "clipped": sum(x["clipped"] for x in lines) / len(lines),
        "entropy": sum(x["entropy"] for x in lines) / len(lines),
        "tokens_per_second": 812.5,
    }


def write_run(
    folder: Path,
    name: str = "soft-grpo",
    seed: int = 0,
    benchmarks: dict[str, float] | None = None,
    decodings: dict[str, float] | None = None,
    problems: int = 8,
    samples: int = 4,
    thoughts: int = 3,
) -> Path:
    """
    A run folder.

    Args:
        folder (`Path`): made.
        name (`str`), seed (`int`): of the manifest; the seed also draws the samples.
        benchmarks (`dict[str, float]`): how easy each is, in logits.
        decodings (`dict[str, float]`): of `DECODINGS`, and how good each is, in logits.
        problems, samples (`int`): how many a benchmark, a problem.
        thoughts (`int`): problems whose thoughts are recorded.
    """
    benchmarks = benchmarks or {"gsm8k": 0.4, "math500": -1.2}
    decodings = decodings or {"hard": 0.0, "gumbel": 0.5}
    (folder / "samples").mkdir(parents=True)
    scores: dict[str, dict] = {}
    for benchmark, ease in benchmarks.items():
        for decoding, skill in decodings.items():
            lines = [
                make_sample(benchmark, decoding, p, s, seed, ease + skill, p < thoughts)
                for p in range(problems)
                for s in range(samples)
            ]
            Store(folder).append((benchmark, decoding, 0), lines, tokens=0, seconds=0.0)
            scores.setdefault(benchmark, {})[decoding] = _scores(lines, samples)
    manifest = {
        "name": name, "model": "synthetic/reasoner-0.6b", "commit": "0" * 40, "versions": {}, "hardware": {},
        "seed": seed, "benchmarks": [*benchmarks],
        "decodings": [
            {"name": d, "thinking": DECODINGS[d], "answer": {"temperature": 0.6}, "num_samples": samples}
            for d in decodings
        ],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    (folder / "metrics.json").write_text(json.dumps(scores, indent=2))
    return folder


def write_log(
    path: Path, seed: int = 0, steps: int = 200, ceiling: float = 0.8, keys=("reward", "kl", "thinking/entropy")
):
    """A `trainer_state.json` whose reward rises and whose entropy falls."""
    r = random.Random(seed)
    history = []
    for step in range(1, steps + 1):
        progress = 1 - math.exp(-step / (steps / 3))
        values = {
            "reward": 0.3 + (ceiling - 0.3) * progress + r.gauss(0, 0.03),
            "kl": 0.04 * progress * step / steps + abs(r.gauss(0, 0.002)),
            "thinking/entropy": 0.9 - 0.5 * progress + r.gauss(0, 0.02),
        }
        history.append({"step": step, "loss": r.gauss(0, 0.01)} | {key: values[key] for key in keys})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log_history": history}))
    return path


PAPERS = """\
- source: made up
  name: soft-grpo
  decoding: gumbel
  values:
    gsm8k: {mean@32: 66.0, pass@16: 95.5}
    math500: {mean@32: 36.9, pass@16: 80.0}
- source: made up
  name: GRPO
  decoding: hard
  values:
    gsm8k: {mean@32: 60.2}
"""


def main(out: Path) -> None:
    """What the examples in the docs are made of."""
    for seed in range(3):
        write_run(
            out / f"soft-grpo-{seed}", "soft-grpo", seed,
            decodings={"hard": 0.1, "gumbel": 0.6, "soft": 0.3}, problems=40, samples=16, thoughts=8,
        )  # fmt: skip
    write_run(out / "base", "base", 0, decodings={"hard": -0.4, "gumbel": -0.6}, problems=40, samples=16, thoughts=0)
    for seed in range(2):
        write_log(out / f"logs/soft-{seed}/trainer_state.json", seed)
    write_log(out / "logs/hard-0/trainer_state.json", 9, ceiling=0.7, keys=("reward", "kl"))
    (out / "papers.yaml").write_text(PAPERS)
    lines = [
        f"{step},{0.3 + 0.45 * (1 - math.exp(-step / 60)):.4f},a paper's curve (made up)" for step in range(0, 201, 10)
    ]
    (out / "reference.csv").write_text("\n".join(["step,value,label", *lines]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
