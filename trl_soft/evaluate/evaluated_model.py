# SPDX-License-Identifier: Apache-2.0
"""A model that is evaluated: it completes prompts, a grader judges the answers, and each sample becomes a line."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from statistics import mean
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..forward import soft_tokens_added
from ..rollout import ENGINES, EngineOptions, Key, Rollout
from ..rollout.completion_text import answer_phase, answer_start, completion_texts
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
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=run.dtype).to(device).eval()
        self.saved = saved_beside(path)
        self._texts: dict[int, str] = {}
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
        length = int(rollout.completion_mask.sum())
        ids = rollout.completion_ids[0, :length].tolist()
        lengths = int(rollout.thinking_length), int(rollout.thinking_surplus)
        (text,) = completion_texts(self.tokenizer, [ids], plan)
        phase = answer_phase(self.tokenizer, ids, *lengths, plan) if self.preset.formats[kind].answer_prefill else None
        grader: Callable = GRADERS[self.run.grader or problem.meta["grader"]]
        verdict = grader(answer_text(text, self.preset, kind, phase), problem.gold)
        entropy = rollout.entropies[0, :length][rollout.record.thinking_mask[0, :length]]
        line: dict[str, Any] = {
            "text": text,
            "answer_at": answer_start(self.tokenizer, ids, *lengths, plan),
            "length": length,
            "thinking_length": lengths[0],
            "thinking_surplus": lengths[1],
            "thinking_cut": rollout.thinking_cut.item(),
            "clipped": ids[-1] not in self.eos,  # a cap ended it: of the completion, or of the answer
            "entropy": entropy.mean().item() + 0.0 if len(entropy) else None,  # -0.0 is 0.0
        }
        if others is not None:
            line["thoughts"] = self._steps(rollout, length, others)
        line |= {"answer": verdict.answer, "vote": verdict.vote, "correct": verdict.correct}
        return line | ({"reason": verdict.reason} if verdict.reason else {})

    def _steps(self, rollout: Rollout, length: int, others: dict[int, list[tuple[int, float]]]) -> list[dict]:
        """
        The token, the entropy and the candidates of each step. Of a soft thought they are its heaviest ones with their weights; of a
        token, which is `drawn`, the likeliest ones with their probabilities.
        """
        record = rollout.record
        thinks = record.thinking_mask[0, :length].tolist()
        mixtures = iter(zip(record.candidates(0).tolist(), record.weights(0).tolist(), strict=True))
        steps: list[dict] = []
        for t, (token, entropy, thought) in enumerate(
            zip(rollout.completion_ids[0].tolist(), rollout.entropies[0].tolist(), thinks, strict=False)
        ):
            weights: dict[int, float] = defaultdict(float)  # a token may be drawn twice
            for candidate, weight in zip(*next(mixtures), strict=True) if thought else ():
                weights[candidate] += weight
            drawn = t in others
            pairs = others[t] if drawn else sorted(weights.items(), key=lambda pair: -pair[1])[: self.run.candidates]
            step: dict[str, Any] = {
                "token": self._text_of(token),
                "entropy": round(entropy, 4) + 0.0,
                "thought": thought,
                "candidates": [
                    [self._text_of(i), round(w, 4)] for i, w in pairs if w >= 5e-5 or (drawn and i == token)
                ],
            }
            steps.append(step | ({"drawn": True} if drawn else {}))
        return steps

    def _text_of(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self.tokenizer.decode([token]))
        return self._texts[token]
