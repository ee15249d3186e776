# SPDX-License-Identifier: Apache-2.0
"""The state updates of a step in plain torch: which rows think, what a token changes, and what is written.

On CUDA the kernels of `trl_soft.kernels.decisions` do the same, with one launch for each function.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import kernels
from .columns import FLAGS, NUMBERS, Rows
from .rules import RULES, Rules


Score = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Turns:
    """The part of each row in a step, (N,) bool each, and `token` (N,), the token of a forced row."""

    thinks: torch.Tensor
    forced: torch.Tensor
    answers: torch.Tensor
    token: torch.Tensor


@dataclass
class Turn:
    """
    The result of a step for each row, (N,) each.

    Args:
        token: the token that it drew or was forced to write. written: the same; for a finished row, the filler of its plan.
        t: the column of the token.
        active, thinks, answers (bool):
            Whether it wrote anything, a soft step of a thought, or a token that it drew: of the answer, or a hard step of a thought.
        closed (bool): whether its thought ended, by itself or with the end of sequence.
    """

    token: torch.Tensor
    written: torch.Tensor
    t: torch.Tensor
    active: torch.Tensor
    thinks: torch.Tensor
    answers: torch.Tensor
    closed: torch.Tensor


def _rules_of(rows: Rows, rules: Rules) -> dict[str, torch.Tensor]:
    """The numbers of each row's plan, by name."""
    return dict(zip(RULES, rules.numbers.index_select(0, rows["rule"]).unbind(-1), strict=True))


def turns(rows: Rows, rules: Rules) -> Turns:
    """What each row does next."""
    active, thinking = rows.flags["active"], rows.flags["thinking"]
    script = rules.numbers[:, RULES.index("script")].index_select(0, rows["rule"]) + rows["script"]
    begin, length = rules.scripts.index_select(0, script).unbind(-1)
    scripted = rows["cursor"] < length
    token = rules.script_ids[torch.where(scripted, begin + rows["cursor"], 0)]
    rest = active & ~thinking
    return Turns(active & thinking, rest & scripted, rest & ~scripted, token)


def decide(
    rows: Rows,
    rules: Rules,
    thought_token,
    answer_token,
    cold,
    closes_as_token: bool,
    soft=None,
    now: Turns | None = None,
) -> Turn:
    """
    Update numbers, flags, ids and masks after a draw.

    Args:
        thought_token, answer_token (`torch.Tensor` of shape `(N,)`): the token that each row would write as a thought and as an answer.
        cold (`torch.Tensor` of shape `(N,)`, *optional*): entropy of the prediction, if a plan has a Cold Stop.
        closes_as_token (`bool`): whether the step that ends a thought is recorded as a token instead of a thought.
        soft (`torch.Tensor` of shape `(N,)`, bool, *optional*): which steps of thoughts a gate makes soft. `None`: all.
        now (`Turns`, *optional*): the turns of these rows, if they are known.
    """
    if kernels.fused(rows.index.device):
        from ..kernels import decisions

        return Turn(*decisions.decide(rows, rules, thought_token, answer_token, cold, closes_as_token, soft))
    flags, rule = rows.flags, _rules_of(rows, rules)
    now = now or turns(rows, rules)
    active, thinks, answers = flags["active"], now.thinks, now.answers
    softly = thinks if soft is None else thinks & soft
    draws = answers | (thinks & ~softly)  # a token
    token = torch.where(softly, thought_token, torch.where(draws, answer_token, now.token))
    is_eos = (token.unsqueeze(-1) == rules.eos.index_select(0, rows["rule"])).any(-1)
    ended = token == rule["end"]
    texts: dict[str, torch.Tensor] = {}
    if rules.texts:
        texts, completed = _read_texts(rows, rules, rule, token, is_eos, thinks)
        ended |= completed
    closed = thinks & (ended | is_eos)
    thinking_length = rows["thinking_length"] + thinks
    calm, is_cold = _cold_stop(rows, rules, rule, cold, thinks)
    too_long = thinks & ~closed & ((thinking_length >= rule["cap"]) | is_cold)
    answered, t = rows["answered"] + answers, rows["t"] + active
    done = torch.where(thinks | answers, is_eos, flags["done"])
    changed = {
        "t": t, "cursor": rows["cursor"] + now.forced, "answered": answered, "calm": calm,
        "thinking_length": thinking_length, **texts,
        "script": torch.where(too_long, 1, texts.get("script", rows["script"])),
    }  # fmt: skip
    flagged = {
        "active": active & ~done & (t < rows["limit"]) & (answered < rule["answer_cap"]),
        "thinking": flags["thinking"] & ~((closed & ~is_eos) | too_long),
        "done": done,
        "cut": torch.where(thinks, too_long, flags["cut"]),
    }
    _write_state(rows, changed, flagged)
    blocks = rows.blocks
    column = rows["t"].clamp(max=blocks["ids"].size(1) - 1)
    masks = torch.stack((active, softly & ~closed if closes_as_token else softly, now.forced), -1)
    put([blocks["ids"], blocks["masks"]], [token, masks], rows.index, column, active)
    return Turn(token, torch.where(active, token, rule["filler"]), column, active, softly, draws, closed)


def _cold_stop(rows: Rows, rules: Rules, rule: dict[str, torch.Tensor], cold, thinks: torch.Tensor):
    """Cold steps in a row after a step (N,), and whether they end the thought (N,)."""
    calm = rows["calm"]
    if cold is None:
        return calm, torch.zeros_like(thinks)
    low = cold < rules.cold_entropy.index_select(0, rows["rule"])
    calm = torch.where(thinks, torch.where(low, calm + 1, 0), calm)
    return calm, calm >= rule["cold_length"]


def _read_texts(
    rows: Rows,
    rules: Rules,
    rule: dict[str, torch.Tensor],
    token: torch.Tensor,
    is_eos: torch.Tensor,
    thinks: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the tokens of thoughts change in the columns about the text that ends thoughts, and which of them complete it (N,)."""
    m = rule["text_length"]
    has, state = thinks & (m > 0), torch.minimum(rows["matched"], m - 1).clamp(min=0)
    token_class = rules.classes[torch.where(has, rule["classes"] + token, 0)]
    after = rules.matches[torch.where(has, rule["matches"] + state * rule["width"] + token_class, 0)].long()
    kind = torch.where(has, (after - m).clamp(min=0), 0)
    rest = rules.kinds.index_select(0, rule["kinds"] + kind)
    changed = {
        "matched": torch.where(has, after, rows["matched"]),
        "surplus": torch.where(has, torch.where(is_eos, 0, rest[:, 0]), rows["surplus"]),
        "script": torch.where(has, rest[:, 1], rows["script"]),
    }
    return changed, has & (after >= m)


def _write_state(rows: Rows, changed: dict[str, torch.Tensor], flags: dict[str, torch.Tensor]) -> None:
    """The columns that changed, and all flags; what was there before is kept where a step may be taken back."""
    blocks, index = rows.blocks, rows.index
    if rows.undo is not None:
        place = rows["t"] % rows.undo["numbers"].size(1)
        rows.undo["numbers"][index, place] = rows.numbers
        rows.undo["flags"][index, place] = torch.stack([rows.flags[name] for name in FLAGS], -1)
    blocks["numbers"][index] = torch.stack([changed.get(name, rows[name]) for name in NUMBERS], -1)
    blocks["flags"][index] = torch.stack([flags[name] for name in FLAGS], -1)


def remember(rows: Rows, memory: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
    """Write the columns of a gate, (N,) by name, where the mask (N,) is true. `decide` has kept the values before them."""
    numbers = rows.blocks["numbers"]
    for name, value in memory.items():
        numbers[rows.index, NUMBERS.index(name)] = torch.where(mask, value, rows[name])


def put(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor], index, t, mask) -> None:
    """Write rows of `values` (N, ...) where the mask (N,) is true into `targets` (S, C, ...), at `index` and `t` (N,)."""
    if kernels.fused(index.device):
        from ..kernels import decisions

        return decisions.put(targets, values, index, t, mask)
    for target, value in zip(targets, values, strict=True):
        target[index, t] = torch.where(_like(mask, value), value.to(target.dtype), target[index, t])


def put_scores(values: torch.Tensor, thought: Score, answer: Score, index, t, thinks, answers) -> None:
    """
    `put` log-probabilities and entropies (N,) into `values` (S, C, 2): those of thoughts where `thinks` (N,) bool is true, those
    of tokens where `answers` (N,) bool is true. A row is in at most one of the two.
    """
    if kernels.fused(values.device):
        from ..kernels import decisions

        return decisions.put_scores(values, thought, answer, index, t, thinks, answers)
    score = torch.where(thinks.unsqueeze(-1), torch.stack(thought, -1), torch.stack(answer, -1))
    put([values], [score], index, t, thinks | answers)


def take(sources: Sequence[torch.Tensor], index, t, mask) -> list[torch.Tensor]:
    """The rows of each of `sources` (S, C, ...) at `index` and `t` (N,), zeros outside the mask (N,): (N, ...)."""
    if kernels.fused(index.device):
        from ..kernels import decisions

        return decisions.take(sources, index, t, mask)
    values = [source[index, t] for source in sources]
    return [value.masked_fill(~_like(mask, value), 0) for value in values]


def thoughts_at(blocks: dict[str, torch.Tensor], index: torch.Tensor, position: torch.Tensor, rows=None):
    """
    Find the thoughts of completions `index` (N,) at some positions (N,) of their texts, with prompts. With `rows` (N,), the
    positions are `position[rows]`, of `position` (T,).

    Returns:
        (N,) int64, the column; and (N,) bool, whether there is a thought.
    """
    if kernels.fused(index.device):
        from ..kernels import decisions

        return decisions.thoughts_at(blocks, index, position, rows)
    position = position if rows is None else position[rows]
    t = position - blocks["numbers"][index, NUMBERS.index("prompt_length")]
    column = t.clamp(0, blocks["ids"].size(1) - 1)
    return column, blocks["masks"][index, column, 1] & (t == column)


def feed(target: torch.Tensor, value: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> None:
    """Write rows of `value` (N, H) where the mask (N,) is true into `target` (T, H), at `rows` (N,)."""
    if kernels.fused(target.device):
        from ..kernels import decisions

        return decisions.feed(target, value, rows, mask)
    target[rows] = torch.where(mask.unsqueeze(-1), value.to(target.dtype), target[rows])


def _like(mask: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return mask.view(-1, *[1] * (value.dim() - 1))
