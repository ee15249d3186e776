# SPDX-License-Identifier: Apache-2.0
"""The quickstart: train the embedded reasoner with soft thoughts, and compare it before and after.

    python examples/quickstart/run.py --seed 0

Writes `outputs/quickstart/summary.json`, a reward curve, a page that shows thoughts before and after, and the trained model.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from datasets import load_dataset
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_soft import ThinkingSettings, soft_generate
from trl_soft.evaluate import Decoding, Evaluation
from trl_soft.evaluate import evaluate as run_evaluation
from trl_soft.evaluate.inspect import inspect_page
from trl_soft.rewards import exact_answer_reward
from trl_soft.saved_settings import FILE_NAME


HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SAMPLES = 16
SHOWN = 4  # samples of a problem on the page of thoughts


def accuracy(model_dir: Path, settings: ThinkingSettings, problems: list[dict], samples: int, **sampling) -> tuple:
    """Share of problems that one sample solves, share that any of `samples` solves, and the mean number of thoughts."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p["question"]}], add_generation_prompt=True)[
            "input_ids"
        ]
        for p in problems
    ]
    out = soft_generate(
        model, tokenizer, prompts, settings,
        num_generations=samples, max_completion_length=48, slots=800, progress=True, **sampling,
    )  # fmt: skip
    gold = [p["answer"] for p in problems for _ in range(samples)]
    verdicts = exact_answer_reward(out.texts, gold)
    groups = [verdicts[i : i + samples] for i in range(0, len(verdicts), samples)]
    return statistics.mean(verdicts), statistics.mean(map(max, groups)), statistics.mean(out.thinking_lengths)


def evaluate(model_dir: Path, settings: ThinkingSettings, problems: list[dict]) -> tuple[dict[str, float], float]:
    """The quickstart's five figures, and the mean number of soft thoughts in a completion."""
    hard = ThinkingSettings(thought="hard")
    greedy, _, _ = accuracy(model_dir, hard, problems, 1, temperature=0.0)
    hard_pass1, hard_any, _ = accuracy(model_dir, hard, problems, SAMPLES)
    soft_pass1, soft_any, length = accuracy(model_dir, settings, problems, SAMPLES)
    figures = {
        "greedy": greedy,
        "hard_pass1": hard_pass1,
        f"hard_pass{SAMPLES}": hard_any,
        "soft_pass1": soft_pass1,
        f"soft_pass{SAMPLES}": soft_any,
    }
    return figures, length


def show_thoughts(before: Path, after: Path, settings: ThinkingSettings, out: Path) -> Path:
    """A page with the steps of some completions of both models, side by side."""
    shutil.rmtree(out / "thoughts", ignore_errors=True)  # of an earlier run, whose weights were others
    kinds = {"hard": {"thought": "hard"}} | {settings.thought: settings.resolved()}
    decodings = [Decoding(name, thinking, {}, SHOWN) for name, thinking in kinds.items()]
    runs = []
    for name, model in (("before", before), ("after", after)):
        runs.append(out / "thoughts" / name)
        run_evaluation(
            Evaluation(
                os.path.relpath(model), [os.path.relpath(HERE / "test.jsonl")], decodings, str(runs[-1]), grader="exact", limit=8,
                max_completion_length=48, candidates=8, dtype="float32",
            )
        )  # fmt: skip
    return inspect_page(runs, out / "thoughts.html")


def plot(rewards: list[tuple[int, float]], path: Path) -> None:
    """Reward of the policy's own soft samples over optimizer steps."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*rewards, strict=True))
    axes.set(
        xlabel="optimizer step", ylabel="reward of soft samples", ylim=(0, 1.02), title="SofT-GRPO, tiny reasoner"
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--config", type=Path, default=ROOT / "recipes/quickstart/gumbel.yaml")
    options = parser.parse_args()

    # One thread is nearly as fast on a model this small, and does not wait for a busy core.
    torch.set_num_threads(1)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    console, start = Console(), time.perf_counter()
    out = options.output_dir.resolve()
    trained = out / "model"
    problems = list(load_dataset("json", data_files=str(HERE / "test.jsonl"), split="train"))

    console.rule("Training")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "examples/grpo_soft.py")]
    command += ["--config", str(options.config), "--output_dir", str(trained), "--seed", str(options.seed)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    rewards = [(row["step"], row["reward"]) for row in history if "reward" in row]
    steps = max(row["step"] for row in history)

    console.rule("Before and after")
    settings = ThinkingSettings.load_thinking(trained)
    before, length_before = evaluate(HERE / "reasoner", settings, problems)
    after, length_after = evaluate(trained, settings, problems)
    table = Table(title=f"{len(problems)} held-out problems, {SAMPLES} samples each")
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for name in before:
        table.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}")
    table.add_row("soft thought, tokens", f"{length_before:.1f}", f"{length_after:.1f}")
    console.print(table)

    plot(rewards, out / "reward.png")
    show_thoughts(HERE / "reasoner", trained, settings, out)
    summary = {
        # Means over five steps: one step's 32 problems leave a standard error of 0.03.
        "reward_first": statistics.mean(reward for _, reward in rewards[:5]),
        "reward_last": statistics.mean(reward for _, reward in rewards[-5:]),
        "before": before,
        "after": after,
        "thinking_length": {"before": length_before, "after": length_after},
        "steps": steps,
        "seconds": round(time.perf_counter() - start, 1),
        "seed": options.seed,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(
        f"Wrote {out}/summary.json, reward.png, thoughts.html and model/ (weights, {FILE_NAME} and a model card)."
    )


if __name__ == "__main__":
    main()
