# SPDX-License-Identifier: Apache-2.0
"""
The naive oracle, which every engine is held against: plain Python for each completion, and a forward of its whole text for each step.

There is no cache, no padding and no batch of different lengths, so nothing has to be kept right from step to step. The oracle shares
with the engines what a thought is (`trl_soft.thoughts`), the keyed noise, the record, what a decoded text closes
(`EndOfThinking`), and which forced text follows (`forced_row`). It shares nothing else of how a step is drawn, decided or
written down.
"""

from collections.abc import Sequence

import torch

from trl_soft.gates import GateStep
from trl_soft.noise import KeyedNoise
from trl_soft.record import SoftTokens
from trl_soft.rollout import EngineOptions, Key, Plan, Rollout
from trl_soft.rollout.dropout import evaluating
from trl_soft.rollout.interface import Parts, forced_row, packed
from trl_soft.vocabulary.embedding_table import mixing_table
from trl_soft.vocabulary.head_logits import DenseLogits, logit_transform, transformed
from trl_soft.vocabulary.neighbours import nearest_tokens


@torch.no_grad()
def naive(model, prompts: Sequence[Sequence[int]], plan: Plan, key: Key, options: EngineOptions) -> Parts:
    """An engine; see `trl_soft.rollout.interface`. Of the options it reads `lengths`."""
    limits = options.limits(len(prompts), plan)
    completions = [Completion(plan, key, *row) for row in zip(range(len(prompts)), prompts, limits, strict=True)]
    for length in {len(prompt) for prompt in prompts}:
        # Completions of one length, prompt included, are one batch without padding.
        running = [completion for completion in completions if len(completion.prompt) == length]
        while running:
            with evaluating(model):
                logits = next_logits(model, running, plan)
            for row, completion in enumerate(running):
                completion.step(logits[row : row + 1])
            running = [completion for completion in running if not completion.is_over]
    for completion in completions:
        yield [completion.number], completion.result()


def next_logits(model, completions: list["Completion"], plan: Plan) -> DenseLogits:
    """Logits of the next token of each completion: one forward of all their tokens, with the thoughts in their places."""
    ids = torch.tensor([completion.prompt + completion.ids for completion in completions], device=model.device)
    record = {}
    if not plan.thought.is_token and completions[0].ids:
        record = {"soft_tokens": SoftTokens.cat([completion.record() for completion in completions])}
    output = model(input_ids=ids, use_cache=False, output_hidden_states=True, **record)
    hidden, head = output.hidden_states[-1][:, -1], model.get_output_embeddings()

    def project(other: torch.Tensor) -> torch.Tensor:
        return transformed(head(other).float(), *logit_transform(model.config))

    embedding = model.get_input_embeddings()
    table = mixing_table(embedding, plan.thought.mixes_vocabulary)
    nearest = nearest_tokens(embedding.weight, plan.thought.neighbours) if plan.thought.neighbours else None
    return DenseLogits(output.logits[:, -1].float(), *table, hidden=hidden, project=project, nearest=nearest)


class Completion:
    """
    One completion while it is drawn.

    Args:
        number (`int`): which of the prompts. prompt (sequence of ids). limit (`int`): most tokens of the completion.
    """

    def __init__(self, plan: Plan, key: Key, number: int, prompt: Sequence[int], limit: int):
        self.plan, self.key, self.number, self.prompt, self.limit = plan, key, number, list(prompt), limit
        # One entry a token.
        self.ids: list[int] = []
        self.is_thought: list[bool] = []
        self.is_forced: list[bool] = []
        self.scores: list[tuple[float, float]] = []  # log-probability and entropy
        self.actions: list[dict[str, torch.Tensor]] = []
        # How far it is.
        self.thinks = not plan.stop.end.closes(self.prompt)
        self.to_force: list[int] = [] if self.thinks else list(plan.forced[0])
        self.thoughts = self.cold_steps = self.answered = self.surplus = 0
        self.cut = self.ended = False
        # What a gate remembers: the kind of the last steps, how many there were, and the entropy before the first of them.
        self.run = 0
        self.reference = 0.0

    @property
    def is_over(self) -> bool:
        capped = self.plan.max_answer_length is not None and self.answered >= self.plan.max_answer_length
        return self.ended or capped or len(self.ids) == self.limit

    def step(self, logits: DenseLogits) -> None:
        """One token more, from logits of one row."""
        sample = self.key.sample[self.number : self.number + 1]
        noise = KeyedNoise(self.key.seed, self.key.generation, sample, torch.full_like(sample, len(self.ids)))
        if self.thinks:
            self.think(logits, noise)
        elif self.to_force:
            self.write(self.to_force.pop(0), self.no_action(logits, noise), (0.0, 0.0), is_forced=True)
        else:
            self.answer(logits, noise)

    def think(self, logits: DenseLogits, noise: KeyedNoise) -> None:
        thought, stop = self.plan.thought, self.plan.stop
        is_soft = self.gated(logits, noise)
        if is_soft:
            action, token = thought.sample(self.penalised(logits) if thought.is_token else logits, noise)
        else:
            action, (_, token) = self.no_action(logits, noise), self.plan.answer.sample(self.penalised(logits), noise)
        shadow = [*self.ids, int(token)]
        self.ended = shadow[-1] in self.plan.eos_token_ids
        rest = (
            None if self.ended else stop.end.rests([shadow])[0]
        )  # what the token writes beyond the end of the thought
        closes = self.ended or rest is not None
        if thought.closes_one_hot and is_soft:
            action = thought.close(action, torch.tensor([closes], device=token.device), token)
        # Where the closing step is not scored as a thought, it is a token.
        is_token = not is_soft or (closes and thought.closes_one_hot and not thought.scores_closing)
        score = self.plan.answer.score(logits, {"ids": token}) if is_token else thought.score(logits, action)
        self.write(shadow[-1], action, score, is_thought=not is_token)
        self.thoughts += 1
        if stop.cold_entropy is not None:
            is_cold = float(logits.entropy(stop.temperature)) < stop.cold_entropy
            self.cold_steps = self.cold_steps + 1 if is_cold else 0
        capped = stop.cap is not None and self.thoughts >= stop.cap
        if rest is not None:
            self.thinks, self.surplus = False, len(rest)
            self.to_force = list(self.plan.forced[forced_row(rest, self.plan.prefill)])
        elif not self.ended and (capped or (stop.cold_entropy is not None and self.cold_steps >= stop.cold_length)):
            self.thinks, self.cut = False, True
            self.to_force = list(self.plan.forced[1])

    def gated(self, logits: DenseLogits, noise: KeyedNoise) -> bool:
        """Whether the gate makes this step of a thought soft. It remembers its decision."""
        gate = self.plan.gate
        if gate is None:
            return True
        bits = torch.tensor([self.reference], dtype=torch.float64, device=self.key.sample.device).view(torch.int64)
        step = GateStep(logits, noise, self.plan.stop.temperature, self.row(self.run), bits)
        is_soft = bool(gate.soft(step))
        if self.run == 0 or is_soft != (self.run > 0):
            self.run, self.reference = 0, float(logits.entropy(self.plan.stop.temperature))
        self.run += 1 if is_soft else -1
        return is_soft

    def answer(self, logits: DenseLogits, noise: KeyedNoise) -> None:
        action, token = self.plan.answer.sample(self.penalised(logits), noise)
        self.write(int(token), self.no_action(logits, noise), self.plan.answer.score(logits, action))
        self.answered += 1
        self.ended = int(token) in self.plan.eos_token_ids

    def penalised(self, logits: DenseLogits) -> DenseLogits:
        """Logits that are less likely to repeat the prompt and the shadow, as `generate` has them. Scores are of the model's own."""
        if self.plan.repetition_penalty == 1.0:
            return logits
        z, seen = logits.dense().clone(), sorted({*self.prompt, *self.ids})
        penalty = torch.full_like(z[0, seen], self.plan.repetition_penalty)
        z[0, seen] *= torch.where(z[0, seen] < 0, penalty, 1 / penalty)
        return DenseLogits(z)

    def no_action(self, logits: DenseLogits, noise: KeyedNoise) -> dict[str, torch.Tensor]:
        """Tensors of a thought's shapes, for a step that is none."""
        action = self.actions[0] if self.actions else self.plan.thought.sample(logits, noise)[0]
        return {name: torch.zeros_like(value) for name, value in action.items()}

    def write(self, token: int, action, score, is_thought: bool = False, is_forced: bool = False) -> None:
        self.ids.append(token)
        self.actions.append(packed(action))
        self.scores.append(tuple(map(float, score)))  # type: ignore[arg-type]
        self.is_thought.append(is_thought)
        self.is_forced.append(is_forced)

    def record(self) -> SoftTokens:
        """Of all tokens so far, (1, C)."""
        action = {name: torch.stack([at[name] for at in self.actions], 1) for name in self.actions[0]}
        log_probs = self.row([log_prob for log_prob, _ in self.scores])
        return SoftTokens(self.plan.thought, self.row(self.is_thought), action, log_probs, self.row(self.is_forced))

    def row(self, values) -> torch.Tensor:
        return torch.tensor([values], device=self.key.sample.device)

    def result(self) -> Rollout:
        ids = self.row(self.ids)
        cut = self.cut or (self.thinks and not self.ended)  # by its own cap, or by that of the completion
        of_thought = (torch.tensor([value], device=ids.device) for value in (self.thoughts, self.surplus, cut))
        entropies = self.row([entropy for _, entropy in self.scores])
        return Rollout(ids, torch.ones_like(ids, dtype=torch.bool), self.record(), entropies, *of_thought)
