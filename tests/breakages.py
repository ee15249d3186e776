# SPDX-License-Identifier: Apache-2.0
"""Break the package on purpose, one place at a time, and see whether the tests of `make test` notice.

    python -m tests.breakages                  every breakage, each in a copy of the package
    python -m tests.breakages -k ratio         those whose name holds "ratio"

A breakage is seen if one of its test files fails. It is not seen if they pass. The run ends with a table, and with exit
status 1 if a breakage is not seen. `tests/test_breakages.py`, which `make test` runs, holds that each old text stands
exactly once in its file.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trl_soft"
# What the tests read beside the package.
BESIDE = ("tests", "examples", "recipes", "docs", "benchmarks", "setup.cfg", "pyproject.toml", "README.md", "Makefile")
# Exit statuses of pytest: a test failed; the collection was interrupted, as by an import that fails.
FAILED = (1, 2)


@dataclass(frozen=True)
class Breakage:
    """
    Args:
        name (`str`): what goes wrong.
        file (`str`): below the package.
        old, new (`str`): the text that is replaced, which stands once in the file, and the text in its place.
        tests (`str`): the test files that must see it, names below `tests/` with blanks between them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def paths(self) -> list[str]:
        return [f"tests/{name}.py" for name in self.tests.split()]


BREAKAGES = [
    # Thoughts and noise
    Breakage(
        "gumbel: the density forgets the scale of the noise",
        "thoughts/gumbel.py",
        "(-r - torch.exp(-r) - math.log(self.noise_scale)) * kept",
        "(-r - torch.exp(-r)) * kept",
        "test_thoughts",
    ),
    Breakage(
        "gaussian: the density has twice its exponent",
        "thoughts/gaussian.py",
        "/ (-2 * self.sigma**2)",
        "/ -(self.sigma**2)",
        "test_thoughts",
    ),
    Breakage(
        "dirichlet: the density has alpha - 1 where it has alpha",
        "thoughts/dirichlet.py",
        "alpha * log_y - torch.lgamma(alpha)",
        "(alpha - 1) * log_y - torch.lgamma(alpha)",
        "test_thoughts",
    ),
    Breakage(
        "multiplex: a closing step is scored with the draws it discarded",
        "thoughts/multiplex.py",
        'torch.where(first | ~action["closed"].unsqueeze(-1), log_p, 0.0)',
        "log_p",
        "test_thoughts",
    ),
    Breakage(
        "candidates: top-p drops the token that reaches it",
        "thoughts/candidates.py",
        "p.cumsum(-1) - p >= top_p",
        "p.cumsum(-1) >= top_p",
        "test_thoughts",
    ),
    Breakage(
        "noise: all samples of a rollout share their noise",
        "noise.py",
        "self.sample.unsqueeze(-1) & _MASK",
        "self.sample.unsqueeze(-1) & 0",
        "test_noise",
    ),
    # What is as large as the vocabulary
    Breakage(
        "tiles: the entropy loses a token that stopped being the most likely one",
        "vocabulary/tiles.py",
        "u = shrink * (sums.u + shift * sums.r) + shift * joins",
        "u = shrink * (sums.u + shift * sums.r)",
        "test_tiles",
    ),
    Breakage(
        "embedding: a mixture is not scaled as the model scales its rows",
        "vocabulary/embedding_table.py",
        "return scaled(mixed, embedding_scale(self.embedding))",
        "return mixed",
        "test_families",
    ),
    Breakage(
        "rows: the gradient of a table row ignores its weight",
        "vocabulary/row_sums.py",
        "rows.index_add_(0, i, c.unsqueeze(-1) * vectors)",
        "rows.index_add_(0, i, vectors)",
        "test_scoring",
    ),
    Breakage(
        "kernels: the mean of a support counts what is not kept",
        "kernels/support.py",
        "mean = tl.sum(x, 0) / tl.sum(kept.to(tl.float32), 0)",
        "mean = tl.sum(x, 0) / K",
        "test_kernels",
    ),
    # Rollouts
    Breakage(
        "steps: a repetition penalty makes negative logits likelier",
        "rollout/steps.py",
        "torch.where(z < 0, z * penalty, z / penalty)",
        "z / penalty",
        "test_engine",
    ),
    Breakage(
        "book: Cold Stop counts cold steps that are not in a row",
        "rollout/book.py",
        "torch.where(low, calm + 1, 0)",
        "calm + low",
        "test_engine",
    ),
    Breakage(
        "book: a completion is one token longer than its limit",
        "rollout/book.py",
        '(t < rows["limit"])',
        '(t <= rows["limit"])',
        "test_engine",
    ),
    Breakage(
        "slots: what is sent back is read again without its thoughts",
        "rollout/slot_engine.py",
        'soft = {"soft_tokens": record.columns(tokens)}',
        "pass",
        "test_engine",
    ),
    Breakage(
        "stop: an end of thinking anywhere in the prompt closes its thought",
        "rollout/stop.py",
        "return bool(found) and not after.strip()",
        "return bool(found)",
        "test_ends",
    ),
    Breakage(
        "matcher: half a match is forgotten within a token",
        "rollout/matcher.py",
        "classes.split(same, within[:, j], np.full(len(same), j + n))",
        "classes.split(same, within[:, j], np.full(len(same), n))",
        "test_ends",
    ),
    Breakage(
        "vLLM: a request may ask for a grammar",
        "rollout/vllm/request.py",
        'if getattr(params, "structured_outputs", None) is not None:',
        "if False:",
        "test_vllm_parts test_vllm_limits",
    ),
    Breakage(
        "vLLM: a thought that was still open does not count as cut",
        "rollout/vllm/records.py",
        '(flag["cut"] | (flag["thinking"] & ~flag["done"])).tolist()',
        'flag["cut"].tolist()',
        "test_vllm_parts",
    ),
    # Record and forward
    Breakage(
        "record: mixtures are fed where the prompt stands",
        "record.py",
        "(input_ids.size(1) - self.shape[1], 0)).unsqueeze(-1)",
        "(0, input_ids.size(1) - self.shape[1])).unsqueeze(-1)",
        "test_rollout",
    ),
    Breakage(
        "forward: positions outside the labels are scored as thoughts",
        "forward.py",
        "thoughts = valid & F.pad(record.thinking_mask, (offset, 0))",
        "thoughts = F.pad(record.thinking_mask, (offset, 0))",
        "test_scoring test_trainer",
    ),
    # Training
    Breakage(
        "ratio: a thought far below the old policy is not bounded",
        "training/ratio_bound.py",
        "far = (log_ratio.abs() > LOG_RATIO_BOUND) & where",
        "far = (log_ratio > LOG_RATIO_BOUND) & where",
        "test_ratio",
    ),
    Breakage(
        "loss: a forced token has a log-probability",
        "training/soft_tokens_mixin.py",
        "logps = logps.masked_fill(forced if logps.dim() == 2 else forced.unsqueeze(-1), 0.0)",
        "pass",
        "test_answer_phase test_algorithms test_trainer",
    ),
    Breakage(
        "ratios: each draw of a closing step has a ratio of its own",
        "training/per_draw_ratios.py",
        "drawn[record.thinking_mask] = record.thought.draw_mask(record.flat_action(record.thinking_mask))",
        "drawn[record.thinking_mask] = True",
        "test_algorithms",
    ),
    Breakage(
        "metrics: the KL estimate is not k3",
        "training/metrics.py",
        "(delta.exp() - delta - 1).sum()",
        "delta.sum()",
        "test_trainer",
    ),
    Breakage(
        "numbering: all evaluation sets draw the same noise",
        "runs/rollout_numbers.py",
        "self.seed | word << 32, 0",
        "self.seed, 0",
        "test_numbering",
    ),
    Breakage(
        "checkpoint: a file that changed counts as whole",
        "runs/checkpoint.py",
        'if contents and _digest(path)["sha256"] != digest["sha256"]:',
        "if False:",
        "test_checkpoint",
    ),
    Breakage(
        "checkpoint: the best one is deleted as the oldest",
        "runs/checkpoint.py",
        "if os.path.realpath(folder) not in protected]",
        "if folder]",
        "test_checkpoint",
    ),
    Breakage(
        "nonfinite: an update with a NaN in its gradient is made",
        "runs/nonfinite.py",
        "model.zero_grad(set_to_none=True)",
        "pass",
        "test_nonfinite",
    ),
    # Several processes
    Breakage(
        "processes: all draw the samples of the first",
        "training/soft_tokens_mixin.py",
        "first += self.accelerator.process_index * rows\n        sample",
        "sample",
        "test_processes",
    ),
    Breakage(
        "processes: a metric is of one of them",
        "training/metrics.py",
        'total, count = accelerator.reduce(pairs, reduction="sum").unbind(-1)',
        "total, count = pairs.unbind(-1)",
        "test_processes",
    ),
    Breakage(
        "processes: each knows only of its own signal or bad reward",
        "runs/processes.py",
        'return accelerator.reduce(count, reduction="sum").item() > 0',
        'return bool(count + 0 * accelerator.reduce(count, reduction="sum"))',
        "test_interruptions",
    ),
    Breakage(
        "FSDP2: the weights stay whole after a rollout",
        "rollout/gather.py",
        "            module.reshard()",
        "            pass",
        "test_processes",
    ),
    # Settings and data
    Breakage(
        "settings: a thought may have any number of candidates",
        "ranges.py",
        '"thinking_top_k": COUNT',
        '"thinking_top_k": Range(-1, _COUNT, whole=True)',
        "test_ranges",
    ),
    Breakage(
        "data: an answer begins behind the first mark",
        "data.py",
        "_, found, rest = answer.rpartition(marker)",
        "_, found, rest = answer.partition(marker)",
        "test_data",
    ),
    # Evaluation
    Breakage(
        "grading: a line break before `boxed` is a box",
        "evaluate/grading/boxes.py",
        "None if (start - before) % 2 else _OPENING.match",
        "_OPENING.match",
        "test_grading_boxes",
    ),
    Breakage(
        "grading: a per cent sign is no hundredth",
        "evaluate/grading/comparison.py",
        "number_key(value / 100 if share and element.per_cent else value)",
        "number_key(value)",
        "test_grading_mathematics",
    ),
    Breakage(
        "sandbox: a program may call the whole kernel",
        "evaluate/sandbox/inside.py",
        "    kernel.filter_calls()\n",
        "",
        "test_evaluate_sandbox",
    ),
    Breakage(
        "scores: pass@k counts subsets of another size",
        "evaluate/scores.py",
        "(math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)",
        "(math.comb(n, k) - math.comb(n - c, k - 1)) / math.comb(n, k)",
        "test_evaluate_scores",
    ),
    Breakage(
        "intervals: both tails together are one of them",
        "evaluate/intervals.py",
        "tail = (1 - level) / 2",
        "tail = 1 - level",
        "test_evaluate_intervals",
    ),
    Breakage(
        "run: a chunk without all of its samples counts",
        "evaluate/store.py",
        'and len(current) == line["samples"] and chunk not in seen',
        "and chunk not in seen",
        "test_evaluate_damage test_evaluate_runner",
    ),
    Breakage(
        "report: the standard deviation divides by n",
        "evaluate/report/run_results.py",
        "statistics.stdev(values)",
        "statistics.pstdev(values)",
        "test_evaluate_report",
    ),
    # Planning
    Breakage(
        "plan: the record of thoughts takes no memory",
        "plan/memory.py",
        "((0 if run.hard else run.action) + 2 + 3 * FLOAT) * run.completion",
        "(2 + 3 * FLOAT) * run.completion",
        "test_plan",
    ),
]


def problem_of(breakage: Breakage, package: Path = PACKAGE) -> str | None:
    """Why a breakage cannot be made, in a sentence; `None` if it can."""
    path = package / breakage.file
    if not path.is_file():
        return f"{breakage.name!r} is to break {breakage.file}, which does not exist. Name the file that has its text."
    count = path.read_text(encoding="utf-8").count(breakage.old)
    if count != 1:
        return f"{breakage.name!r} is to replace a text that stands {count} times in {breakage.file}. Take one that stands once."
    missing = [name for name in breakage.paths if not (ROOT / name).is_file()]
    return f"{breakage.name!r} is to be seen by {missing[0]}, which does not exist." if missing else None


def copy_of_the_sources(folder: Path) -> None:
    shutil.copytree(PACKAGE, folder / "trl_soft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)


def first_failure(output: str) -> str:
    """The test that failed, as pytest names it."""
    lines = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" - ")[0].split(" ", 1)[1].removeprefix("tests/") if lines else ""


def run(breakage: Breakage) -> tuple[bool, str, float]:
    """Whether the tests see a breakage, the first test that does, and the seconds it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of_the_sources(folder)
        path = folder / "trl_soft" / breakage.file
        path.write_text(path.read_text(encoding="utf-8").replace(breakage.old, breakage.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *breakage.paths]
        environment = {**os.environ, "PYTHONPATH": name, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, *FAILED):
        raise RuntimeError(f"pytest ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode in FAILED, first_failure(done.stdout), time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the package on purpose and see whether the tests notice.")
    parser.add_argument("-k", default="", help="only breakages whose name holds this text")
    chosen = [breakage for breakage in BREAKAGES if parser.parse_args().k in breakage.name]
    problems = [problem for breakage in BREAKAGES if (problem := problem_of(breakage))]
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 2
    rows = []
    for breakage in chosen:
        seen, test, seconds = run(breakage)
        rows.append((breakage, seen, test))
        print(f"{'seen' if seen else 'NOT SEEN':8} {seconds:5.0f} s  {breakage.name}", flush=True)
    print("\n| file | what goes wrong | seen by |\n| --- | --- | --- |")
    for breakage, seen, test in rows:
        print(f"| {breakage.file} | {breakage.name} | {test if seen else 'nothing'} |")
    unseen = sum(not seen for _, seen, _ in rows)
    print(f"\n{len(rows) - unseen} of {len(rows)} breakages are seen.")
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
