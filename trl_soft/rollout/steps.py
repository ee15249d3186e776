# SPDX-License-Identifier: Apache-2.0
"""One step of a rollout for some rows: it draws, scores and updates the columns of each row.

The step owns no memory and knows no engine. The draw of a row depends only on the row's columns, plan, logits and noise. Rows
whose plans share a thought are drawn together.
"""

from types import SimpleNamespace
from typing import Any

import torch

from .. import kernels
from ..gates import GateStep
from ..noise import KeyedNoise
from ..thoughts import Hard
from ..vocabulary.head_logits import DenseLogits
from . import book
from .columns import Rows
from .interface import Plan
from .rules import Rules


class Steps:
    """
    One step of some rows: draw the next token or thought of each, and update its state.

    Args:
        plan (`Plan`): one of the rows' plans. All of them have the same `kind`.
        rules (`Rules`): the tables with a row for each plan.
    """

    def __init__(self, plan: Plan, rules: Rules):
        self.thought, self.answer, self.rules = plan.thought, plan.answer, rules
        self.cold = plan.stop.temperature if plan.stop.cold_entropy is not None else None
        self.gate, self.temperature = plan.gate, plan.stop.temperature
        self.penalised = plan.repetition_penalty != 1.0
        self.one_sampler = isinstance(plan.thought, Hard) and plan.thought.same_as(plan.answer)
        # If true, the closing step is a token, in the record and in the update.
        self.closes_as_token = plan.thought.closes_one_hot and not plan.thought.scores_closing

    @staticmethod
    def kind(plan: Plan) -> tuple:
        """The part of a plan that must be equal for rows to be drawn together."""
        cold = plan.stop.temperature if plan.stop.cold_entropy is not None else None
        gate = None if plan.gate is None else plan.gate.key()
        return plan.thought.key(), plan.answer.key(), cold, plan.repetition_penalty != 1.0, gate

    def __call__(self, rows: Rows, logits: DenseLogits, noise: KeyedNoise, room, every_row: bool) -> torch.Tensor:
        """
        Draw for the active rows, from N rows of `logits` and `noise`. `room(name, value)` returns the memory of an action's tensor
        by its name, (S, C, ...).

        Returns:
            (N,) int64: the tokens to write down. For a finished completion this is the filler of its plan.
        """
        thought = self.thought
        turns, thinks, answers, gated, cold = self._who(rows, logits, noise, every_row)
        tokens = self._penalised(logits, rows)  # the logits for sampling tokens; scores use the model's own logits
        hard = made = token = mine = None
        if answers.any:
            hard = self._token(answers, tokens, logits, noise)
        shared = self.one_sampler and every_row
        if thinks.any:
            mine = thinks.of(logits)
            if shared:
                assert hard is not None
                made, token = hard.action, hard.token
            else:
                drawn_from = thinks.of(tokens) if thought.is_token and self.penalised else mine
                made, token = thought.sample(drawn_from, thinks.of(noise))
        drawn = thinks.spread(token), answers.spread(None if hard is None else hard.token)
        soft = None if gated is None else gated.soft
        turn = book.decide(rows, self.rules, *drawn, cold, self.closes_as_token, soft, turns)
        values = rows.blocks["values"]
        if thinks.any:
            assert made is not None and token is not None
            if thought.closes_one_hot:
                made = thought.close(made, thinks.of(turn.closed), token)
            score = hard.score if shared else thought.score(mine, made)  # type: ignore[union-attr]
            rooms = [room(name, value) for name, value in made.items()]
            thinks.put(rooms, list(made.values()), turn.t, turn.thinks)
            if every_row:
                assert hard is not None
                book.put_scores(values, score, hard.score, rows.index, turn.t, turn.thinks, turn.answers)
            else:
                thinks.put_score(values, score, turn.t, turn.thinks)
            if self.closes_as_token:
                self._score_closing(thinks if every_row else _Some(rows, turn.closed), turn, logits, values)
        if hard is not None and not every_row:
            answers.put_score(values, hard.score, turn.t, turn.answers)
        if rows.seen is not None:
            rows.seen[rows.index, turn.token] |= turn.active
        if gated is not None:
            book.remember(rows, gated.memory, gated.thinks)
        return turn.written

    def _who(self, rows: Rows, logits: DenseLogits, noise: KeyedNoise, every_row: bool):
        """
        The rows that draw a soft step and the rows that draw a token, with what decides it.

        Returns:
            The turns (`None` for `every_row`), the rows that draw a soft step, those that draw a token, the result of `_gated`, and
            the entropies for Cold Stop (N,), if it is set.
        """
        turns = None if every_row else book.turns(rows, self.rules)
        thinks: Any = _Every(rows) if turns is None else _Some(rows, turns.thinks)
        answers = thinks if turns is None else _Some(rows, turns.answers)
        if not thinks.any:
            return turns, thinks, answers, None, None
        cold = None if self.cold is None else thinks.spread(thinks.of(logits).entropy(self.cold))
        gated = self._gated(thinks, logits, noise)
        if gated is not None and turns is not None:
            thinks = _Some(rows, turns.thinks & gated.soft)
            answers = _Some(rows, turns.answers | turns.thinks & ~gated.soft)
        return turns, thinks, answers, gated, cold

    def _gated(self, thinks, logits: DenseLogits, noise: KeyedNoise) -> SimpleNamespace | None:
        """
        What the gate decides for thinking rows, and what it remembers afterwards. `None` without a gate.

        Returns:
            `soft` (N,) bool, arbitrary for other rows; `thinks` (N,) bool, the thinking rows; and `memory`, the columns of a gate by
            name, (N,) each.
        """
        if self.gate is None:
            return None
        rows: Rows = thinks.rows
        phase = rows.flags["active"] & rows.flags["thinking"]
        before = thinks.of(rows["run"]), thinks.of(rows["reference"])
        step = GateStep(thinks.of(logits), thinks.of(noise), self.temperature, *before)
        soft = self.gate.decide(step)
        memory = {name: thinks.spread(value) for name, value in step.memory(soft).items()}
        return SimpleNamespace(soft=thinks.spread(soft), thinks=phase, memory=memory)

    def _score_closing(self, closing, turn: book.Turn, logits: DenseLogits, values: torch.Tensor) -> None:
        """Score the steps that end a thought as tokens of the answer."""
        if closing.any:
            score = self.answer.score(closing.of(logits), {"ids": closing.of(turn.token)})
            closing.put_score(values, score, turn.t, turn.closed)

    def _token(self, rows, tokens: DenseLogits, logits: DenseLogits, noise: KeyedNoise) -> SimpleNamespace:
        """Draw and score a hard token for each row, as for answers."""
        scored = rows.of(logits)
        if self.penalised:
            action, token = self.answer.sample(rows.of(tokens), rows.of(noise))
            score = self.answer.score(scored, action)
        else:
            action, token, score = self.answer.sample_and_score(scored, rows.of(noise))
        return SimpleNamespace(action=action, token=token, score=score)

    def _penalised(self, logits: DenseLogits, rows: Rows) -> DenseLogits:
        """Logits with the repetition penalty over prompt and shadow, as in `generate`. For sampling, not for scoring."""
        if not self.penalised:
            return logits
        assert rows.seen is not None
        if kernels.fused(logits.logits.device):
            kernels.passed_over(
                "A repetition penalty",
                "Each step makes other logits in float32, which takes some 10 more operations and tens of passes over the logits, and the "
                "draw reads these once more. Without a penalty the logits are read once.",
            )
        z, penalty = logits.dense(), self.rules.penalty.index_select(0, rows["rule"]).unsqueeze(-1)
        seen = rows.seen.index_select(0, rows.index)
        return DenseLogits(torch.where(seen, torch.where(z < 0, z * penalty, z / penalty), z))


class _Some:
    """The rows in a mask, by index. The host learns their number."""

    def __init__(self, rows: Rows, mask: torch.Tensor):
        self.rows, self.mask = rows, mask
        self.some = mask.nonzero().squeeze(-1)
        self.any = len(self.some) > 0
        self.all = len(self.some) == len(mask)

    def of(self, value):
        return value if self.all else value[self.some]

    def spread(self, value: torch.Tensor | None) -> torch.Tensor:
        """Values of these rows as values of all N rows, arbitrary elsewhere."""
        if value is None:
            return torch.zeros_like(self.rows.index)
        return value if self.all else value.new_zeros(len(self.mask)).index_copy_(0, self.some, value)

    def put(
        self, targets: list[torch.Tensor], values: list[torch.Tensor], t: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Write into the t-th columns. These rows are the rows in the mask."""
        for target, value in zip(targets, values, strict=True):
            target[self.of(self.rows.index), self.of(t)] = value.to(target.dtype)

    def put_score(self, values: torch.Tensor, score: tuple, t: torch.Tensor, mask: torch.Tensor) -> None:
        """Write a log-probability and an entropy."""
        self.put([values], [torch.stack(score, -1)], t, mask)


class _Every:
    """All rows. Rows outside a mask are computed too, and written back unchanged, so that no count leaves the device."""

    any = True

    def __init__(self, rows: Rows):
        self.rows = rows

    def of(self, value):
        return value

    def spread(self, value: torch.Tensor | None) -> torch.Tensor:
        assert value is not None
        return value

    def put(
        self, targets: list[torch.Tensor], values: list[torch.Tensor], t: torch.Tensor, mask: torch.Tensor
    ) -> None:
        book.put(targets, values, self.rows.index, t, mask)

    def put_score(self, values: torch.Tensor, score: tuple, t: torch.Tensor, mask: torch.Tensor) -> None:
        book.put_scores(values, score, score, self.rows.index, t, mask, mask)
