# SPDX-License-Identifier: Apache-2.0
"""Draw the samples of all arms in rounds, within a number of minutes.

    round 1: 4 samples of every arm, the most important first; round 2: up to 8; and so on up to 64

So what is finished when the time is up is balanced. The noise of a sample is keyed by its problem and its number, so the samples of a
later call are the further ones, and all samples together are those of one long call.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_soft.evaluate import Problem
from trl_soft.forward import soft_tokens_added
from trl_soft.rollout import ENGINES, EngineOptions, Key, Rollout
from trl_soft.rollout.generate import prompt_ids
from trl_soft.rollout.interface import Plan
from trl_soft.rollout.make_plan import check_prompts, make_plan, table_rms
from trl_soft.thoughts import Hard

from .arms import Arm, RealDesign
from .parts import Drawn, Parts, Round


SPACE = 2**20  # of the numbers of one benchmark's problems in the key of the noise


class Budget:
    """
    The time of a call.

    Args:
        seconds (`float`): from `start`.
        now (`Callable[[], float]`): a clock, in seconds.
        start (`float`, *optional*): on that clock; `None` means now.
        reserve (`float`): seconds at the end in which nothing is drawn, to write the last files.
    """

    def __init__(
        self,
        seconds: float,
        now: Callable[[], float] = time.monotonic,
        start: float | None = None,
        reserve: float = 4.0,
    ):
        self.now, self.start = now, now() if start is None else start
        self.end = self.start + seconds - reserve

    def spent(self) -> float:
        return self.now() - self.start

    def left(self) -> float:
        """Seconds in which something may be drawn. Negative if the time is up."""
        return self.end - self.now()


class Policy:
    """
    The model on its device, which completes the problems by any arm.

    Args:
        design (`RealDesign`), problems (`dict[str, list[Problem]]`): by benchmark.
        path (`str`): path or hub id of the model.
        device (`torch.device`).
        options (`EngineOptions`): of every rollout.
    """

    def __init__(
        self,
        design: RealDesign,
        problems: dict[str, list[Problem]],
        path: str,
        device: torch.device,
        options: EngineOptions,
    ):
        self.design, self.options = design, options
        self.eager: set[str] = set()  # arms whose steps are launched kernel by kernel
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        dtype = getattr(torch, design["dtype"]["cuda" if device.type == "cuda" else "cpu"])
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
        self.eos = end_ids(self.model.generation_config.eos_token_id, self.tokenizer)
        self.vocab_size = self.model.config.get_text_config().vocab_size
        self.rms = table_rms(self.model)
        asked = [(i, problem) for i, rows in enumerate(problems.values()) for problem in rows]
        self.keys = [i * SPACE + problem.number for i, problem in asked]
        chats = [[{"role": "user", "content": self._prompt(problem)}] for _, problem in asked]
        self.prompts = prompt_ids(
            self.tokenizer, chats if self.tokenizer.chat_template else [self._prompt(p) for _, p in asked], None
        )
        check_prompts(self.prompts, self.vocab_size, self.tokenizer)

    def _prompt(self, problem: Problem) -> str:
        return self.design["prompt"].replace("{question}", problem.question)

    def plan(self, arm: Arm) -> Plan:
        return make_plan(
            arm.settings, self.tokenizer, Hard(**arm.sampling), vocab_size=self.vocab_size,
            max_completion_length=self.design["max_completion_length"], eos_token_ids=self.eos, rms=self.rms,
        )  # fmt: skip

    def complete(self, arm: Arm, rows: list[tuple[int, int]]) -> Generator[Drawn, None, None]:
        """
        Draw some samples. They come in parts, as they finish.

        Args:
            rows: pairs of a problem's index and a sample's number.
        """
        plan = self.plan(arm)
        numbers = [self.keys[problem] * self.design.most + sample for problem, sample in rows]
        key = Key(self.design["seed"], 0, torch.tensor(numbers, device=self.model.device))
        ids = [self.prompts[problem] for problem, _ in rows]
        options = replace(self.options, cuda_graphs=self.options.cuda_graphs and arm.name not in self.eager)
        with (
            soft_tokens_added(self.model),
            closing(ENGINES["slots"](self.model, ids, plan, key, options)) as parts,
        ):
            for which, rollout in parts:
                yield self._drawn([rows[number] for number in which], rollout)

    def _drawn(self, rows: list[tuple[int, int]], rollout: Rollout) -> Drawn:
        """What is kept of finished completions. Candidates and noise stay on the device."""
        mask = rollout.completion_mask
        thinks = rollout.record.thinking_mask & mask
        entropy = rollout.entropies.masked_fill(~thinks, 0.0).sum(-1) / thinks.sum(-1)
        length = mask.sum(-1)
        last = rollout.completion_ids.gather(-1, (length - 1).unsqueeze(-1)).squeeze(-1)
        clipped = ~torch.isin(last, torch.tensor(self.eos, device=last.device))
        ids = rollout.completion_ids[mask]  # row by row
        problem, sample = np.array(rows, dtype=np.int32).T
        arrays = (length, ids, rollout.thinking_length, rollout.thinking_cut, clipped, entropy)
        kinds = (np.int32, np.int32, np.int32, bool, bool, np.float32)
        return Drawn(problem, sample, *(x.cpu().numpy().astype(kind) for x, kind in zip(arrays, kinds, strict=True)))


def end_ids(of_model: int | list[int] | None, tokenizer) -> list[int]:
    """The ids that end a sequence: those of the model's generation config, and the tokenizer's."""
    of_model = [] if of_model is None else [of_model] if isinstance(of_model, int) else list(of_model)
    return sorted({*of_model, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})


def schedule(design: RealDesign, rounds: list[int]) -> Iterator[Round]:
    """Every round of every arm, in the order in which they are drawn."""
    for first, last in zip([0, *rounds[:-1]], rounds, strict=True):
        for arm in design.arms.values():
            if first < arm.samples:
                yield Round(arm.name, first, min(last, arm.samples))


class Drawing:
    """
    Draws what a folder lacks, until it has all or the time is up.

    Args:
        policy (`Policy`), parts (`Parts`).
        problems (`int`): how many, over all benchmarks.
        budget (`Budget`).
        say (`Callable[[str], None]`): prints a line.
        drawn (`Callable[[Round, Drawn], None]`): called with each round that is complete.
    """

    def __init__(
        self,
        policy: Policy,
        parts: Parts,
        problems: int,
        budget: Budget,
        say: Callable[[str], None],
        drawn: Callable[[Round, Drawn], None] = lambda part, drawn: None,
    ):
        self.policy, self.parts, self.problems, self.budget = policy, parts, problems, budget
        self.say, self.drawn = say, drawn
        self.costs: dict[str, float] = {}  # seconds a completion of each arm, in this call
        self.failed: list[str] = []

    def run(self, todo: Iterator[Round]) -> bool:
        """Draw. Returns whether everything is drawn."""
        for part in todo:
            if part.arm in self.failed:
                continue
            before, about = self._before(part)
            have = set(before.rows()) if before is not None else set()
            rows = [row for row in part.rows(self.problems) if row not in have]
            if not rows:
                continue
            expected, left = self.estimate(part.arm) * len(rows), self.budget.left()
            if left <= 0 or expected > left:
                self.say(
                    f"{part.arm}: {left:.0f} s are left and {part.last - part.first} samples take about {expected:.0f} s"
                )
                return False
            try:
                if not self._captured_or_not(part, rows, before, about):
                    return False
            except (RuntimeError, ValueError) as error:
                self.failed.append(part.arm)
                self.say(f"{part.arm}: failed, the other arms go on. {type(error).__name__}: {error}")
        return not self.failed

    def _captured_or_not(self, part: Round, rows: list[tuple[int, int]], before: Drawn | None, about: dict) -> bool:
        """Draw one round. An arm whose steps no CUDA graph can hold is drawn kernel by kernel, which changes no sample."""
        try:
            return self._one(part, rows, before, about)
        except RuntimeError as error:
            if "captured" not in str(error) or part.arm in self.policy.eager:
                raise
            self.policy.eager.add(part.arm)
            self.say(f"{part.arm}: without CUDA graphs. {error}")
        return self._one(part, rows, before, about)

    def estimate(self, arm: str) -> float:
        """Seconds a completion: of the arm in this call, or else of the middle arm. 0 before the first."""
        return self.costs.get(arm, median(self.costs.values()) if self.costs else 0.0)

    def _before(self, part: Round) -> tuple[Drawn | None, dict[str, Any]]:
        found = self.parts.read(part)
        if found is None:
            return None, {}
        self.parts.check(part, found[1], self.policy.design.settings(part.arm))
        return found

    def _one(self, part: Round, rows: list[tuple[int, int]], before: Drawn | None, about: dict[str, Any]) -> bool:
        """Draw one round, and write it. Returns whether it is complete."""
        start, found, stopped = self.budget.now(), [] if before is None else [before], False
        with closing(self.policy.complete(self.policy.design.arms[part.arm], rows)) as finished:
            for drawn in finished:
                found.append(drawn)
                stopped = self.budget.left() <= 0
                if stopped:
                    break
        if not found:
            return False
        whole = Drawn.cat(found)
        fresh = len(whole) - (0 if before is None else len(before))
        seconds = self.budget.now() - start
        tokens = int(whole.length.sum()) - (0 if before is None else int(before.length.sum()))
        spent = {
            "seconds": round(about.get("seconds", 0.0) + seconds, 3),
            "settings": self.policy.design.settings(part.arm),
        }
        self.parts.write(part, whole, **spent)
        complete = len(whole) == len(part.rows(self.problems))
        self.say(
            f"[{self.budget.spent():6.1f} s] {part.arm}: samples {part.first} to {part.last - 1}, {fresh} completions, {tokens} "
            f"tokens, {tokens / max(seconds, 1e-9):.0f} tokens/s, {seconds:.1f} s{'' if complete else ', not complete: the time is up'}"
        )
        if complete:
            self.costs[part.arm] = seconds / max(fresh, 1)
            self.drawn(part, whole)
        return complete
