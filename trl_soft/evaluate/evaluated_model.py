# SPDX-License-Identifier: Apache-2.0
"""A model that is evaluated: it completes prompts, a grader judges the answers, and each sample becomes a line."""

import time
from collections.abc import Callable
from contextlib import closing
from statistics import mean
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..command_line import model_at
from ..forward import soft_tokens_added
from ..page.completion_lines import TokenTexts, completion_line, completion_steps
from ..rollout import ENGINES, EngineOptions, Key, Rollout
from ..rollout.completion_text import answer_phase
from ..rollout.interface import Plan
from ..rollout.make_plan import check_prompts, make_plan, table_rms
from ..thoughts import Hard
from .alternatives import alternatives
from .decoding import Decoding, saved_beside
from .entropy import PositionMeans, read_again
from .evaluation import Evaluation
from .grading import GRADERS
from .presets import answer_text, build_prompt, get_preset
from .problems import Problem
from .store import Chunk, Store


class EvaluatedModel:
    """
    A model on its device, with its tokenizer and the thinking settings saved beside it.

    Args:
        run (`Evaluation`): the run's settings.
        path (`str`): path or hub id of the model.
        device: of torch.
    """

    def __init__(self, run: Evaluation, path: str, device):
        self.run, self.preset = run, get_preset(run.preset)
        with model_at(path):
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=run.dtype).to(device).eval()
        self.saved = saved_beside(path)
        self._texts = TokenTexts(self.tokenizer)
        eos = self.model.generation_config.eos_token_id
        eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self.eos = sorted({*eos, *([] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id])})

    def complete(self, benchmark: str, decoding: Decoding, parts, samples: int, store: Store, state) -> None:
        """
        Compute, grade and write chunks. A progress bar shows the running score.

        Args:
            parts: pairs of a chunk's number and its samples. A sample is a pair of a problem and the sample's number.
            samples (`int`): samples of each problem.
        """
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
            closing(ENGINES[self.run.engine](self.model, ids, plan, key, options)) as completions,
        ):
            for rows, rollout in completions:
                for index, row in enumerate(rows):
                    problem, sample = part[row]
                    one = rollout[index : index + 1]
                    steps = self.run.candidates > 0 and (
                        self.run.candidates_samples is None or sample < self.run.candidates_samples
                    )
                    others = {}
                    if steps or entropy is not None:
                        logits = read_again(self.model, ids[row], one)
                        if entropy is not None:
                            forced = one.record.forced_mask[0, : len(logits)]  # forced tokens are not drawn
                            entropy.add(logits.entropy(1.0), ~forced)
                        if steps:
                            others = alternatives(logits, ids[row], one, plan, self.run.candidates)
                    lines[row] = {
                        "benchmark": benchmark,
                        "decoding": decoding.name,
                        "problem": problem.number,
                        "sample": sample,
                        "prompt": prompts[row],
                        **self._line(one.to("cpu"), plan, problem, kind, others if steps else None),
                    }
                bar.update(len(rows))
        return [line for line in lines if line is not None], entropy

    def _line(self, rollout: Rollout, plan: Plan, problem: Problem, kind: str, others: dict | None) -> dict[str, Any]:
        """
        One completion as a line: its text, its verdict, its lengths and entropy, and its steps where `others`, what its tokens could
        have been, is given.
        """
        line = completion_line(self.tokenizer, plan, rollout)
        ids = rollout.completion_ids[0, : line["length"]].tolist()
        phase = None
        if self.preset.formats[kind].answer_prefill:
            phase = answer_phase(self.tokenizer, ids, line["thinking_length"], line["thinking_surplus"], plan)
        grader: Callable = GRADERS[self.run.grader or problem.meta["grader"]]
        verdict = grader(answer_text(line["text"], self.preset, kind, phase), problem.gold)
        if others is not None:
            line["thoughts"] = completion_steps(self._texts, rollout, self.run.candidates, others)
        line |= {"answer": verdict.answer, "vote": verdict.vote, "correct": verdict.correct}
        return line | ({"reason": verdict.reason} if verdict.reason else {})
