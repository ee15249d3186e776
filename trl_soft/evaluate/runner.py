# SPDX-License-Identifier: Apache-2.0
"""Evaluate models on benchmarks under any ways of thinking, a chunk of samples at a time.

    problems x samples -> chunks -> rollout -> grade -> samples/<rank>.jsonl -> metrics.json

Processes (`accelerate launch`) take every so-manieth chunk. Noise is keyed by the sample's number, and the samples of a
chunk are always computed together, so neither the number of processes nor an interruption changes a result.
"""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from .. import saved_settings
from ..files import printable
from ..forward import soft_tokens_added
from ..rollout import ENGINES, EngineOptions, Key, Rollout
from ..rollout.base import Plan
from ..rollout.plan import check_prompts, make_plan, table_rms
from ..rollout.text import answer_phase, answer_start, completion_texts
from ..settings import ThinkingSettings
from ..thoughts import Hard
from .benchmarks import Problem, answer_text, build_prompt, get_preset, load_problems
from .decoding import Decoding
from .entropy import PositionMeans, entropies
from .grading import GRADERS
from .scores import summary
from .store import Chunk, Store


@dataclass
class Evaluation:
    """
    What to evaluate, and how.

    Args:
        model (`str`): path or hub id; a decoding may name another.
        benchmarks (`list[str]`): names, files or hub ids, see `load_problems`.
        decodings (`list[Decoding]`).
        output_dir (`str`): the run's folder; one that holds a part of this run is gone on with.
        preset (`str`): prompts, caps, sampling and where the answer is read.
        data_dir (`str`, *optional*), limit (`int`, *optional*), question_column, answer_column: see `load_problems`.
        grader (`str`, *optional*): in place of the benchmark's own.
        chunk (`int`): samples that are computed and written together.
        candidates (`int`): heaviest candidates of each step that are written down; 0 writes no steps.
        entropy_positions (`int`):
            Positions, from the first, whose entropy is measured by reading each completion once more
            (`trl_soft.evaluate.entropy`); 0 measures none.
        slots, cache_gb, engine, dtype: of the rollout.
        max_completion_length (`int`, *optional*): in place of the preset's.
        option_seed (`int`): of the order of multiple-choice options.
        k_values (`list[int]`, *optional*): of pass@k and maj@k; `None` is powers of two.
        name (`str`, *optional*): in reports, where runs of one name are its seeds; `None` is the folder's.
    """

    model: str
    benchmarks: list[str]
    decodings: list[Decoding]
    output_dir: str
    preset: str = "plain"
    data_dir: str | None = None
    limit: int | None = None
    question_column: str | None = None
    answer_column: str | None = None
    grader: str | None = None
    chunk: int = 256
    candidates: int = 0
    entropy_positions: int = 0
    slots: int = 64
    cache_gb: float | None = None
    engine: str = "slots"
    dtype: str = "auto"
    max_completion_length: int | None = None
    option_seed: int = 0
    k_values: list[int] | None = None
    name: str | None = None

    # What makes a sample what it is: a run with another value is another run.
    ASKED = (
        "model", "benchmarks", "decodings", "preset", "limit", "question_column", "answer_column", "grader", "chunk",
        "engine", "dtype", "max_completion_length", "option_seed",
    )  # fmt: skip
    # And what was found when it began: the same path can hold other rows or weights later.
    SETTLED = (*ASKED, "problems", "weights")

    def check(self) -> None:
        """Raise a `ValueError` for what cannot be evaluated, before anything is loaded."""
        get_preset(self.preset)
        names = [decoding.name for decoding in self.decodings]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated or not names:
            raise ValueError(
                f"`decodings` has the names {names}, but each must be there, and once: samples are told apart by it."
            )
        if not self.benchmarks:
            raise ValueError("`benchmarks` is empty, so there is nothing to evaluate on. Name at least one.")
        if self.grader is not None and self.grader not in GRADERS:
            raise ValueError(f"`grader` is {self.grader!r}. Choose one of {', '.join(GRADERS)}.")
        if self.engine not in ENGINES:
            raise ValueError(f"`engine` is {self.engine!r}. Choose one of {', '.join(ENGINES)}.")
        if self.entropy_positions < 0:
            raise ValueError(
                f"`entropy_positions` is {self.entropy_positions}, but it counts positions: 0 measures none."
            )
        if self.chunk < 1:
            raise ValueError(f"`chunk` is {self.chunk}, but it counts samples and must be at least 1.")
        for name in filter(None, [self.name, *names]):
            if printable(name) != name:
                raise ValueError(
                    f"A run or decoding has the name {name!r}, whose control characters a terminal or a figure would "
                    "obey. Choose a name of printable characters."
                )
        for model in {decoding.model or self.model for decoding in self.decodings}:
            if (os.path.isabs(model) or model.startswith(".") or model.count("/") > 1) and not os.path.isdir(model):
                raise FileNotFoundError(f"The model folder {model} does not exist (looked from {os.getcwd()}).")
        if self.k_values is not None and (not self.k_values or min(self.k_values) < 1):
            raise ValueError(f"`k_values` is {self.k_values}, but each k counts samples and must be at least 1.")


def evaluate(run: Evaluation) -> dict[str, dict[str, dict]]:
    """
    Compute what is missing of a run, and its metrics.

    Returns:
        `{benchmark: {decoding: metrics}}`, as `metrics.json` holds it; empty on processes other than the first.
    """
    run.check()
    state = _processes()
    store = Store(run.output_dir, state.process_index)
    store.lock()  # before anything is read or written: another run may begin in the same folder at this moment
    problems = {
        name: load_problems(
            name, run.data_dir, run.limit, run.question_column, run.answer_column, seed=run.option_seed
        )
        for name in run.benchmarks
    }
    if state.is_main_process:
        asked = {name: getattr(run, name) for name in run.ASKED}
        asked["decodings"] = [_told(decoding, run, problems) for decoding in run.decodings]
        found = environment(state)
        seeds = sorted({decoding.seed for decoding in run.decodings})
        told: dict[str, Any] = {"name": run.name or Path(run.output_dir).name}
        told |= {"seed": seeds[0] if len(seeds) == 1 else seeds, "commit": found["commit"], "environment": found}
        told["problems"] = {name: {"count": len(rows), "sha256": _digest(rows)} for name, rows in problems.items()}
        models = sorted({decoding.model or run.model for decoding in run.decodings})
        told["weights"] = {model: fingerprint(model) for model in models}
        store.open({**asked, **told}, run.SETTLED)
    state.wait_for_everyone()
    done = {chunk for chunk, _, _ in store.chunks()}
    state.wait_for_everyone()  # all have read before anyone writes

    by_model: dict[str, list[Decoding]] = defaultdict(list)
    for decoding in run.decodings:
        by_model[decoding.model or run.model].append(decoding)
    for model, decodings in by_model.items():
        policy: _Policy | None = None
        for name, rows in problems.items():
            for decoding in decodings:
                samples = decoding.num_samples or get_preset(run.preset).num_samples
                items = [(problem, sample) for problem in rows for sample in range(samples)]
                parts = [items[i : i + run.chunk] for i in range(0, len(items), run.chunk)]
                mine = [
                    (number, part)
                    for number, part in enumerate(parts)
                    if number % state.num_processes == state.process_index
                    and (name, decoding.name, number) not in done
                ]
                if mine:
                    policy = policy or _Policy(run, model, state.device)
                    policy.complete(name, decoding, mine, samples, store, state)
        del policy
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}
    metrics = score(store, run.k_values, {(name, d.name) for name in problems for d in run.decodings})
    store.write("metrics.json", metrics)
    return metrics


def _processes() -> PartialState:
    """The processes of this run; a `RuntimeError` where several were started and do not know of each other."""
    state = PartialState(cpu=torch.accelerator.current_accelerator() is None)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise RuntimeError(
            f"{started} processes were started and accelerate sees {state.num_processes}: each would compute everything and "
            "write over the others. Start them with `accelerate launch --num_processes` or `torchrun`, or start one."
        )
    return state


class _Policy:
    """A model on its device, and what is saved beside it."""

    def __init__(self, run: Evaluation, path: str, device):
        self.run, self.preset = run, get_preset(run.preset)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=run.dtype).to(device).eval()
        self.saved = saved_beside(path)
        eos = self.model.generation_config.eos_token_id
        eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self.eos = sorted({*eos, *([] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id])})

    def complete(self, benchmark: str, decoding: Decoding, parts, samples: int, store: Store, state) -> None:
        """Compute, grade and write chunks, with a bar that shows the running score."""
        kind = parts[0][1][0][0].meta["kind"]
        settings = decoding.settings(self.preset, kind, self.saved)
        length = decoding.max_completion_length or self.run.max_completion_length
        plan = make_plan(
            settings,
            self.tokenizer,
            Hard(**{k: v for k, v in decoding.sampling(self.preset).items() if k != "repetition_penalty"}),
            vocab_size=self.model.config.get_text_config().vocab_size,
            max_completion_length=length or self.preset.completion_length(kind, self.tokenizer),
            eos_token_ids=self.eos,
            rms=table_rms(self.model),
            repetition_penalty=decoding.sampling(self.preset).get("repetition_penalty", 1.0),
        )
        total, right = sum(len(part) for _, part in parts), []
        title = f"{benchmark} · {decoding.name}"
        with tqdm(total=total, desc=title, unit="sample", disable=not state.is_main_process) as bar:
            for number, part in parts:
                start = time.perf_counter()
                lines, entropy = self._chunk(benchmark, decoding, plan, kind, part, samples, bar)
                seconds = time.perf_counter() - start
                right += [line["correct"] for line in lines]
                bar.set_postfix_str(f"mean {mean(right):.3f}")
                tokens = sum(line["length"] for line in lines)
                chunk: Chunk = (benchmark, decoding.name, number)
                more = {} if entropy is None else {"entropy_by_position": entropy.to_json()}
                store.append(chunk, lines, tokens=tokens, seconds=round(seconds, 3), **more)

    def _chunk(self, benchmark, decoding, plan, kind, part, samples, bar) -> tuple[list[dict], PositionMeans | None]:
        prompts = [build_prompt(problem, self.preset, self.tokenizer) for problem, _ in part]
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        check_prompts(ids, self.model.config.get_text_config().vocab_size, self.tokenizer)
        numbers = [problem.number * samples + sample for problem, sample in part]
        key = Key(decoding.seed, 0, torch.tensor(numbers, device=self.model.device))
        options = EngineOptions(self.run.slots, self.run.cache_gb)
        lines: list[dict | None] = [None] * len(part)
        entropy = PositionMeans(self.run.entropy_positions) if self.run.entropy_positions else None
        with (
            soft_tokens_added(self.model),
            closing(ENGINES[self.run.engine](self.model, ids, plan, key, options)) as out,
        ):
            for rows, rollout in out:
                for index, row in enumerate(rows):
                    problem, sample = part[row]
                    one = rollout[index : index + 1]
                    if entropy is not None:
                        forced = one.record.forced_mask[0, : int(one.completion_mask.sum())]  # nobody drew those
                        entropy.add(entropies(self.model, ids[row], one), ~forced)
                    one = one.to("cpu")
                    lines[row] = {
                        "benchmark": benchmark,
                        "decoding": decoding.name,
                        "problem": problem.number,
                        "sample": sample,
                        "prompt": prompts[row],
                        **self._described(one, plan),
                        **self._graded(one, plan, problem, kind),
                    }
                bar.update(len(rows))
        return [line for line in lines if line is not None], entropy

    def _text(self, rollout: Rollout, plan: Plan) -> tuple[str, int]:
        """A completion's text, as it is judged, and where in it the answer begins."""
        ids = rollout.completion_ids[0, : int(rollout.completion_mask.sum())].tolist()
        (text,) = completion_texts(self.tokenizer, [ids], plan)
        thoughts, surplus = int(rollout.thinking_length), int(rollout.thinking_surplus)
        return text, answer_start(self.tokenizer, ids, thoughts, surplus, plan)

    def _described(self, rollout: Rollout, plan: Plan) -> dict[str, Any]:
        length = int(rollout.completion_mask.sum())
        ids = rollout.completion_ids[0, :length]
        thoughts = rollout.record.thinking_mask[0, :length]
        entropy = rollout.entropies[0, :length]
        text, answer_at = self._text(rollout, plan)
        line: dict[str, Any] = {
            "text": text,
            "answer_at": answer_at,
            "length": length,
            "thinking_length": rollout.thinking_length.item(),
            "thinking_surplus": rollout.thinking_surplus.item(),
            "thinking_cut": rollout.thinking_cut.item(),
            "clipped": int(ids[-1]) not in self.eos,  # a cap, of all or of the answer, and not its own end
            "entropy": entropy[thoughts].mean().item() if thoughts.any() else None,
        }
        if self.run.candidates:
            line["thoughts"] = self._steps(rollout, length)
        return line

    def _steps(self, rollout: Rollout, length: int) -> list[dict]:
        """Each step's token, entropy and heaviest candidates."""
        record, decode = rollout.record, self.tokenizer.decode
        weights = record.thought.weights({name: value[0, :length] for name, value in record.action.items()})
        steps: list[dict] = []
        for t in range(length):
            thought = bool(record.thinking_mask[0, t])
            step: dict[str, Any] = {
                "token": decode([int(rollout.completion_ids[0, t])]),
                "entropy": round(rollout.entropies[0, t].item(), 4),
                "thought": thought,
                "candidates": [],
            }
            if thought and record.thought.is_token:
                step["candidates"] = [[step["token"], 1.0]]
            elif thought and weights is not None:
                heaviest = weights[t].topk(min(self.run.candidates, weights.size(-1)))
                ids = record.action["ids"][0, t][heaviest.indices]
                pairs = zip(ids.tolist(), heaviest.values.tolist(), strict=True)
                step["candidates"] = [[decode([i]), round(w, 4)] for i, w in pairs if w > 0]
            steps.append(step)
        return steps

    def _graded(self, rollout: Rollout, plan: Plan, problem: Problem, kind: str) -> dict[str, Any]:
        ids = rollout.completion_ids[0, : int(rollout.completion_mask.sum())].tolist()
        lengths = int(rollout.thinking_length), int(rollout.thinking_surplus)
        phase = answer_phase(self.tokenizer, ids, *lengths, plan) if self.preset.asks[kind].answer_prefill else None
        text, _ = self._text(rollout, plan)
        grader: Callable = GRADERS[self.run.grader or problem.meta["grader"]]
        verdict = grader(answer_text(text, self.preset, kind, phase), problem.gold)
        found = {"answer": verdict.answer, "vote": verdict.vote, "correct": verdict.correct}
        return found | ({"reason": verdict.reason} if verdict.reason else {})


_SCORED = ("problem", "sample", "correct", "vote", "length", "thinking_length", "clipped", "thinking_cut", "entropy")


def score(
    store: Store, k_values: list[int] | None = None, wanted: set[tuple[str, str]] | None = None
) -> dict[str, dict[str, dict]]:
    """Metrics of every benchmark and decoding of a run, or of some (`wanted`), from its sealed samples."""
    samples: dict[tuple[str, str], list[dict]] = defaultdict(list)
    spent: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    positions: dict[tuple[str, str], PositionMeans] = defaultdict(lambda: PositionMeans(0))
    unmeasured: set[tuple[str, str]] = set()  # a mean over some of the chunks would be of other problems
    for (benchmark, decoding, _), lines, seal in store.chunks():
        if wanted is not None and (benchmark, decoding) not in wanted:
            continue
        lacking = sorted({key for line in lines for key in _SCORED if key not in line})
        if lacking:
            raise ValueError(
                f"{store.folder}/samples has samples of {decoding!r} on {benchmark!r} without {', '.join(lacking)}, so "
                "they cannot be scored. They were changed after the run wrote them: put the original files back."
            )
        samples[benchmark, decoding] += lines
        spent[benchmark, decoding][0] += seal["tokens"]
        spent[benchmark, decoding][1] += seal["seconds"]
        if "entropy_by_position" in seal:
            positions[benchmark, decoding].add_sums(**seal["entropy_by_position"])
        else:
            unmeasured.add((benchmark, decoding))
    result: dict[str, dict[str, dict]] = defaultdict(dict)
    for (benchmark, decoding), lines in samples.items():
        by_problem: dict[int, list[dict]] = defaultdict(list)
        for line in sorted(lines, key=lambda line: (line["problem"], line["sample"])):
            by_problem[line["problem"]].append(line)
        correct = [[line["correct"] for line in rows] for rows in by_problem.values()]
        votes = [[line["vote"] for line in rows] for rows in by_problem.values()]
        voted = any(vote is not None for row in votes for vote in row)
        fewest = min(map(len, correct))
        chosen = None if k_values is None else [k for k in k_values if k <= fewest]
        tokens, seconds = spent[benchmark, decoding]
        right = [line["length"] for line in lines if line["correct"]]
        entropies = [line["entropy"] for line in lines if line["entropy"] is not None]
        result[benchmark][decoding] = {
            **summary(correct, votes if voted else None, chosen),
            "length": {"mean": mean(line["length"] for line in lines)},
            "correct_length": {"mean": mean(right)} if right else None,  # tokens of the right completions alone
            "thinking_length": {"mean": mean(line["thinking_length"] for line in lines)},
            "clipped": mean(line["clipped"] for line in lines),
            "thinking_cut": mean(line["thinking_cut"] for line in lines),
            "entropy": mean(entropies) if entropies else None,
            "tokens_per_second": tokens / seconds if seconds else None,
        }
        if (benchmark, decoding) in positions.keys() - unmeasured:
            result[benchmark][decoding]["entropy_by_position"] = positions[benchmark, decoding].means()
    return dict(result)


def saved_beside(path: str) -> ThinkingSettings | None:
    """The thinking settings beside a model's weights, if there are any."""
    stored = saved_settings.read(path)
    return None if stored is None else ThinkingSettings.of_stored(stored, path)


def _told(decoding: Decoding, run: Evaluation, problems: dict[str, list[Problem]]) -> dict[str, Any]:
    """A decoding as the manifest has it: what was asked, and what it came to."""
    preset, saved = get_preset(run.preset), saved_beside(decoding.model or run.model)
    kinds = {rows[0].meta["kind"] for rows in problems.values()}
    settings = {kind: decoding.settings(preset, kind, saved).thinking_dict() for kind in sorted(kinds)}
    common = {k: v for k, v in next(iter(settings.values())).items() if all(s[k] == v for s in settings.values())}
    told = {**asdict(decoding), "thinking": common, "answer": decoding.sampling(preset)}
    return told | {"num_samples": decoding.num_samples or preset.num_samples}


def _digest(problems: list[Problem]) -> str:
    text = json.dumps([[p.number, p.question, p.gold] for p in problems], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def fingerprint(path: str) -> str | None:
    """Of the weights in a local folder: sizes, first and last megabyte of each file. `None` for a hub id."""
    files = sorted(file for ending in ("*.safetensors", "*.bin") for file in Path(path).glob(ending))
    if not files:
        return None
    found = hashlib.sha256()
    for file in files:
        with open(file, "rb") as weights:
            found.update(f"{file.name} {file.stat().st_size}".encode())
            found.update(weights.read(2**20))
            weights.seek(max(file.stat().st_size - 2**20, 0))
            found.update(weights.read(2**20))
    return found.hexdigest()


def environment(state) -> dict[str, Any]:
    """Where a run was made: versions, commit, machine."""
    versions: dict[str, str | None] = {}
    for name in ("trl_soft", "trl", "transformers", "torch", "accelerate", "math-verify"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
        "commit": commit or None,
        "python": platform.python_version(),
        "device": device,
        "processes": state.num_processes,
        "threads": torch.get_num_threads(),
    }
