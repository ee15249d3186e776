# SPDX-License-Identifier: Apache-2.0
"""Break the package on purpose, one place at a time, and see whether the tests of `make test` notice.

    python -m tests.breakages                  every breakage, each in a copy of the package
    python -m tests.breakages -k ratio         those whose name holds "ratio"

A breakage is seen if a test in one of its test files fails, and that test passes in a copy that is not broken. The run ends
with a table, and with exit status 1 if a breakage is not seen. `tests/test_breakages.py`, which `make test` runs, holds that each old text stands
exactly once in its file.
"""

import argparse
import json
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
BESIDE = (
    "tests",
    "examples",
    "study",
    "recipes",
    "docs",
    "benchmarks",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "Makefile",
)
# Exit statuses of pytest: a test failed; the collection was interrupted, as by an import that fails.
FAILED = (1, 2)


@dataclass(frozen=True)
class Breakage:
    """
    Args:
        name (`str`): what goes wrong.
        file (`str`): below the package.
        old, new (`str`): the text that is replaced, which stands once in the file, and the text in its place.
        tests (`str`): what must see it, with blanks between: files below `tests/`, or tests in them (`test_x::test_y`).
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def paths(self) -> list[str]:
        """As pytest takes them."""
        parts = (name.partition("::") for name in self.tests.split())
        return [f"tests/{file}.py{colons}{test}" for file, colons, test in parts]


BREAKAGES = [
    # Thoughts and noise
    Breakage(
        "gumbel: the density forgets the scale of the noise",
        "thoughts/gumbel.py",
        "(-r - torch.exp(-r) - math.log(self.noise_scale)) * kept",
        "(-r - torch.exp(-r)) * kept",
        "test_thoughts::test_gumbel_is_the_sum_of_torch_gumbel_densities",
    ),
    Breakage(
        "gaussian: the density has twice its exponent",
        "thoughts/gaussian.py",
        "/ (-2 * self.sigma**2)",
        "/ -(self.sigma**2)",
        "test_thoughts::test_gaussian_is_the_normal_density_up_to_its_constant",
    ),
    Breakage(
        "dirichlet: the density has alpha - 1 where it has alpha",
        "thoughts/dirichlet.py",
        "alpha * log_y - torch.lgamma(alpha)",
        "(alpha - 1) * log_y - torch.lgamma(alpha)",
        "test_thoughts::test_dirichlet_is_torch_dirichlet",
    ),
    Breakage(
        "multiplex: a closing step is scored with the draws it discarded",
        "thoughts/multiplex.py",
        'torch.where(first | ~action["closed"].unsqueeze(-1), log_p, 0.0)',
        "log_p",
        "test_locks::test_lock_multiplex_ends_with_its_first_draw_and_scores_that_alone",
    ),
    Breakage(
        "neighbour: the mixture is that of the most likely token, not of the one that was drawn",
        "thoughts/neighbour.py",
        "ids = logits.neighbours(token)",
        "ids = logits.neighbours(logits.argmax())",
        "test_thoughts::test_the_score_has_mean_zero test_thoughts::test_likelihood_ratios_have_mean_one test_neighbours",
    ),
    Breakage(
        "neighbours: the table of neighbours outlives the weights that it was made of",
        "vocabulary/neighbours.py",
        "key = fingerprint(table), tuple(table.shape)",
        "key = 0, tuple(table.shape)",
        "test_neighbours",
    ),
    Breakage(
        "hard tokens: the end of a thought forgets which steps are hard",
        "thoughts/token_class.py",
        "closed | self._members(token) if self._closes else closed",
        "closed",
        "test_token_class",
    ),
    Breakage(
        "hard tokens: a mixture of another token still holds them",
        "thoughts/token_class.py",
        "others & (self._members(ids) | hard.unsqueeze(-1))",
        "others & hard.unsqueeze(-1)",
        "test_token_class",
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
        "test_families::test_logits_and_embeddings_are_the_models_own",
    ),
    Breakage(
        "rows: the gradient of a table row ignores its weight",
        "vocabulary/row_sums.py",
        "rows.index_add_(0, i, c.unsqueeze(-1) * vectors)",
        "rows.index_add_(0, i, vectors)",
        "test_tiles::test_gradients_of_rows_are_those_of_torch",
    ),
    Breakage(
        "kernels: the mean of a support counts what is not kept",
        "kernels/support.py",
        "mean = tl.sum(x, 0) / tl.sum(kept.to(tl.float32), 0)",
        "mean = tl.sum(x, 0) / K",
        "test_kernels::test_support test_kernels::test_rollouts_of_both_engines",
    ),
    # Rollouts
    Breakage(
        "steps: a repetition penalty makes negative logits likelier",
        "rollout/steps.py",
        "torch.where(z < 0, z * penalty, z / penalty)",
        "z / penalty",
        "test_engine::test_a_repetition_penalty",
    ),
    Breakage(
        "book: Cold Stop counts cold steps that are not in a row",
        "rollout/book.py",
        "torch.where(low, calm + 1, 0)",
        "calm + low",
        "test_book::test_what_a_token_makes_of_a_row",
    ),
    Breakage(
        "book: a completion is one token longer than its limit",
        "rollout/book.py",
        '(t < rows["limit"])',
        '(t <= rows["limit"])',
        "test_engine::test_a_length_of_its_own_for_each",
    ),
    Breakage(
        "slots: what is sent back is read again without its thoughts",
        "rollout/slot_engine.py",
        'soft = {"soft_tokens": record.columns(tokens)}',
        "pass",
        "test_engine::test_a_cache_too_small_sends_the_youngest_back",
    ),
    Breakage(
        "stop: an end of thinking anywhere in the prompt closes its thought",
        "rollout/stop.py",
        "return bool(found) and not after.strip()",
        "return bool(found)",
        "test_ends::test_what_a_template_has_closed_is_answered",
    ),
    Breakage(
        "matcher: half a match is forgotten within a token",
        "rollout/matcher.py",
        "classes.split(same, within[:, j], np.full(len(same), j + n))",
        "classes.split(same, within[:, j], np.full(len(same), n))",
        "test_vllm_parts::test_a_text_as_a_table test_vllm_parts::test_a_table_over_every_piece",
    ),
    Breakage(
        "vLLM: a request may ask for a grammar",
        "rollout/vllm/request.py",
        'if getattr(params, "structured_outputs", None) is not None:',
        "if False:",
        "test_vllm_parts::test_requests_that_are_refused",
    ),
    Breakage(
        "vLLM: a thought that was still open does not count as cut",
        "rollout/vllm/records.py",
        '(flag["cut"] | (flag["thinking"] & ~flag["done"])).tolist()',
        'flag["cut"].tolist()',
        "test_vllm_parts::test_a_thought_that_is_open_at_the_end_was_cut",
    ),
    # Record and forward
    Breakage(
        "record: mixtures are fed where the prompt stands",
        "record.py",
        "(input_ids.size(1) - self.shape[1], 0)).unsqueeze(-1)",
        "(0, input_ids.size(1) - self.shape[1])).unsqueeze(-1)",
        "test_rollout::test_the_loop_equals_one_forward",
    ),
    Breakage(
        "forward: the entropy of thoughts is left out",
        "forward.py",
        "output.entropy = merged(output.entropy, entropy)",
        "output.entropy = merged(output.entropy, torch.zeros_like(entropy))",
        "test_trainer::test_entropy_is_filled_at_thoughts",
    ),
    # Training
    Breakage(
        "ratio: that of a stale thought is infinite",
        "training/ratio_bound.py",
        "LOG_RATIO_BOUND = 10.0",
        "LOG_RATIO_BOUND = 1e4",
        "test_trainer::test_far_thoughts_are_bounded_without_a_cliff_of_gradient",
    ),
    Breakage(
        "loss: a forced token has a log-probability",
        "training/soft_tokens_mixin.py",
        "logps = logps.masked_fill(forced if logps.dim() == 2 else forced.unsqueeze(-1), 0.0)",
        "pass",
        "test_trainer::test_forced_text_is_neither_scored_nor_counted test_algorithms::test_forced_tokens_have_no_part_in_rloo",
    ),
    Breakage(
        "ratios: each draw of a closing step has a ratio of its own",
        "training/per_draw_ratios.py",
        "drawn[record.thinking_mask] = record.thought.draw_mask(record.flat_action(record.thinking_mask))",
        "drawn[record.thinking_mask] = True",
        "test_algorithms::test_each_draw_has_a_ratio_of_its_own",
    ),
    Breakage(
        "metrics: the KL estimate is not k3",
        "training/metrics.py",
        "(delta.exp() - delta - 1).sum()",
        "delta.sum()",
        "test_metrics",
    ),
    Breakage(
        "numbering: all evaluation sets draw the same noise",
        "runs/rollout_numbers.py",
        "self.seed | word << 32, 0",
        "self.seed, 0",
        "test_numbering::test_evaluation_sets_draw_apart",
    ),
    Breakage(
        "checkpoint: a file that changed counts as whole",
        "runs/checkpoint.py",
        'if contents and _digest(path)["sha256"] != digest["sha256"]:',
        "if False:",
        "test_checkpoint::test_every_torn_file_is_named",
    ),
    Breakage(
        "checkpoint: the best one is deleted as the oldest",
        "runs/checkpoint.py",
        "if os.path.realpath(folder) not in protected]",
        "if folder]",
        "test_checkpoint::test_rotation_keeps_the_best_and_the_latest",
    ),
    Breakage(
        "nonfinite: an update with a NaN in its gradient is made",
        "runs/nonfinite.py",
        "model.zero_grad(set_to_none=True)",
        "pass",
        "test_nonfinite::test_skip",
    ),
    Breakage(
        "refill: a fresh group takes a place whatever its rewards are",
        "training/refill.py",
        "teaching = (~self._without_advantage(fresh, fresh_rewards)).nonzero().flatten().tolist()",
        "teaching = list(range(len(fresh_rewards) // self._group_size))",
        "test_refill::test_idle_groups_are_replaced",
    ),
    Breakage(
        "refill: the batch has the rewards of the groups that were replaced",
        "training/refill.py",
        "ours[j] = theirs[i]",
        "pass",
        "test_refill::test_idle_groups_are_replaced",
    ),
    Breakage(
        "refill: a further rollout adds to the metrics of the first",
        "training/refill.py",
        "del metrics[name][counts[name] :]",
        "pass",
        "test_refill::test_the_metrics_of_a_rollout_are_those_of_the_first",
    ),
    Breakage(
        "refill: prompts go on being drawn for a batch with a bad reward",
        "training/refill.py",
        "return any_process(self.accelerator, self._reward_problem is not None)",
        "return False",
        "test_refill::test_a_bad_reward_ends_the_refill",
    ),
    Breakage(
        "refill: an evaluation is refilled",
        "training/refill.py",
        'or self._mode == "eval" or',
        "or",
        "test_refill::test_an_evaluation_is_never_refilled",
    ),
    Breakage(
        "refill: fresh prompts begin again after a resume",
        "runs/progress.py",
        'trainer._fresh_prompts.taken = progress.get("fresh_prompts", 0)',
        "trainer._fresh_prompts.taken = 0",
        "test_checkpoint::test_a_resumed_run_is_the_same_run",
    ),
    # Gates
    Breakage(
        "gates: a decision has the noise of the draw after it",
        "noise.py",
        "return self._uniform(streams.GATE, 1).squeeze(-1)",
        "return self._uniform(streams.UNIFORM, 1).squeeze(-1)",
        "test_gates::test_a_random_gate_is_independent_of_the_draw_after_it",
    ),
    Breakage(
        "gates: nothing is remembered",
        "rollout/steps.py",
        "book.remember(rows, gated.memory, gated.thinks)",
        "pass",
        "test_gates::test_engines_decide_what_the_oracle_decides",
    ),
    Breakage(
        "gates: a hard step is recorded as a thought",
        "rollout/book.py",
        "masks = torch.stack((active, softly & ~closed if closes_as_token else softly, now.forced), -1)",
        "masks = torch.stack((active, thinks & ~closed if closes_as_token else thinks, now.forced), -1)",
        "test_gates::test_engines_decide_what_the_oracle_decides",
    ),
    Breakage(
        "gates: hard steps are counted as answers",
        "training/soft_tokens_mixin.py",
        "return batch | ({LENGTH: flight.rollout.thinking_length} if gated else {})",
        "return batch",
        "test_gates::test_the_update_scores_what_was_drawn",
    ),
    # Several processes
    Breakage(
        "refill: a fresh group is not sent to the process whose group it replaces",
        "training/refill.py",
        "if self.accelerator.num_processes > 1:",
        "if False:",
        "test_processes",
    ),
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
        "ZeRO-3: a table is read in parts",
        "vocabulary/sharding.py",
        "if not shards or not is_deepspeed_zero3_enabled():",
        "if True:",
        "test_processes",
    ),
    Breakage(
        "FSDP2: the gradient of a table is a sum over ranks",
        "vocabulary/sharding.py",
        "return g / ctx.ranks, None",
        "return g, None",
        "test_processes",
    ),
    # Settings and data
    Breakage(
        "settings: a truncation that the thought ignores is taken",
        "settings.py",
        "if name not in trained.truncations and getattr(self, name) is not None:",
        "if False:",
        "test_refusals::test_configs_that_cannot_be_soft",
    ),
    Breakage(
        "settings: a number may be below its range",
        "ranges.py",
        "if not (found.low <= value <= found.high or",
        "if not (value <= found.high or",
        "test_ranges::test_beyond_its_bounds_a_number_is_refused",
    ),
    Breakage(
        "data: an answer begins behind the first mark",
        "data.py",
        "_, found, rest = answer.rpartition(marker)",
        "_, found, rest = answer.partition(marker)",
        "test_data::test_an_answer_is_what_follows_the_last_mark",
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
        "test_grading_mathematics::test_equal_answers_are_right_and_share_a_vote test_grading_mathematics::test_several_answers_units_and_tolerance",
    ),
    Breakage(
        "sandbox: a program may call the whole kernel",
        "evaluate/sandbox/inside.py",
        "    kernel.filter_calls()\n",
        "",
        "test_evaluate_sandbox::test_a_hostile_program_fails_alone",
    ),
    Breakage(
        "scores: pass@k counts subsets of another size",
        "evaluate/scores.py",
        "(math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)",
        "(math.comb(n, k) - math.comb(n - c, k - 1)) / math.comb(n, k)",
        "test_evaluate_scores::test_pass_at_k_is_the_enumeration",
    ),
    Breakage(
        "intervals: both tails together are one of them",
        "evaluate/intervals.py",
        "tail = (1 - level) / 2",
        "tail = 1 - level",
        "test_evaluate_intervals::test_the_interval_covers_the_truth",
    ),
    Breakage(
        "run: a chunk without all of its samples counts",
        "evaluate/store.py",
        'and len(current) == line["samples"] and chunk not in seen',
        "and chunk not in seen",
        "test_evaluate_runner::test_a_chunk_that_lost_a_line_is_as_if_it_had_never_been",
    ),
    Breakage(
        "report: the standard deviation divides by n",
        "evaluate/report/run_results.py",
        "statistics.stdev(values)",
        "statistics.pstdev(values)",
        "test_evaluate_report::test_seeds_give_mean_and_sample_standard_deviation",
    ),
    # Planning
    Breakage(
        "plan: the record of thoughts takes no memory",
        "plan/memory.py",
        "((0 if run.hard else run.action) + 2 + 3 * FLOAT) * run.completion",
        "(2 + 3 * FLOAT) * run.completion",
        "test_plan::test_the_record_of_a_rollout",
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
    missing = [name for name in breakage.paths if not _exists(name)]
    return f"{breakage.name!r} is to be seen by {missing[0]}, which does not exist." if missing else None


def _exists(test: str) -> bool:
    file, _, function = test.partition("::")
    path = ROOT / file
    return path.is_file() and (not function or f"def {function}(" in path.read_text(encoding="utf-8"))


def copy_of_the_sources(folder: Path) -> None:
    shutil.copytree(PACKAGE, folder / "trl_soft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)


def pytest_in(folder: Path, arguments: list[str]) -> tuple[int, list[str]]:
    """The exit status of pytest in a copy of the sources, and the tests that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={folder / 'cache'}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, *FAILED):
        raise RuntimeError(f"pytest ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = folder / "cache/v/cache/lastfailed"
    return done.returncode, list(json.loads(failed.read_text())) if failed.is_file() else []


def first_failure(breakage: Breakage) -> str | None:
    """The first test that sees a breakage; `None` if none of its tests does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of_the_sources(folder)
        path = folder / "trl_soft" / breakage.file
        path.write_text(path.read_text(encoding="utf-8").replace(breakage.old, breakage.new), encoding="utf-8")
        status, failed = pytest_in(folder, ["-x", *breakage.paths])
    return failed[0] if status in FAILED else None


def fail_anyway(tests: set[str]) -> list[str]:
    """Which of some tests fail in a copy that nobody broke. They have seen nothing."""
    with tempfile.TemporaryDirectory() as name:
        copy_of_the_sources(Path(name))
        return pytest_in(Path(name), sorted(tests))[1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the package on purpose and see whether the tests notice.")
    parser.add_argument("-k", default="", help="only breakages whose name holds this text")
    chosen = [breakage for breakage in BREAKAGES if parser.parse_args().k in breakage.name]
    if not chosen:
        print("No breakage has that in its name.", file=sys.stderr)
        return 2
    problems = [problem for breakage in BREAKAGES if (problem := problem_of(breakage))]
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 2
    found: dict[Breakage, str | None] = {}
    for breakage in chosen:
        began = time.monotonic()
        found[breakage] = first_failure(breakage)
        print(
            f"{'seen' if found[breakage] else 'NOT SEEN':8} {time.monotonic() - began:5.0f} s  {breakage.name}",
            flush=True,
        )
    anyway = fail_anyway({test for test in found.values() if test})
    found = {breakage: None if test in anyway else test for breakage, test in found.items()}
    print("\n| file | what goes wrong | seen by |\n| --- | --- | --- |")
    for breakage, test in found.items():
        print(f"| {breakage.file} | {breakage.name} | {test.removeprefix('tests/') if test else 'nothing'} |")
    for test in anyway:
        print(f"{test} fails in a copy that is not broken, so it shows nothing.")
    seen = sum(test is not None for test in found.values())
    print(f"\n{seen} of {len(found)} breakages are seen.")
    return int(seen < len(found))


if __name__ == "__main__":
    sys.exit(main())
