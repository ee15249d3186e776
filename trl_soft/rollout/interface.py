# SPDX-License-Identifier: Apache-2.0
"""The arguments and the results of every engine.

An engine completes n prompts, and yields the completions in parts as they finish:

    engine(model, prompts, plan, key, options) -> iterator of (numbers of the prompts, their Rollout)

A part belongs to the caller: the engine does not change it any more.

`model` is a causal LM (or a PEFT model around one) with `add_soft_tokens`. The engine leaves it as it was.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..gates import Gate
from ..ranges import check_number
from ..record import SoftTokens
from ..thoughts import Hard, Thought
from .stop import StopRule, overlap


@dataclass
class Plan:
    """
    Everything that a rollout needs besides the model and the prompts.

    Args:
        thought, answer: the objects that draw a thinking step and an answer step.
        stop (`StopRule`): when a thought ends.
        max_completion_length (`int`): C.
        eos_token_ids (`list[int]`), pad_token_id (`int`).
        forced (`Sequence` of `list[int]`):
            Ids forced after a thought that ended itself, and after a thought that was cut. Row 1 + k is the rest of the
            first text after its first k characters, for a token that ended the thought and has written these k.
        prefill (`str`): the text forced after a thought that ended itself.
        repetition_penalty (`float`): for tokens (of hard thoughts and of answers), as in `generate`.
        max_answer_length (`int`, *optional*): cap of the answer's own tokens, without thoughts and forced tokens.
        gate (`Gate`, *optional*): which steps of a thought are soft. `None`: all of them.
    """

    thought: Thought
    answer: Hard
    stop: StopRule
    max_completion_length: int
    eos_token_ids: list[int]
    pad_token_id: int
    forced: Sequence[Sequence[int]] = ((), ())
    prefill: str = ""
    repetition_penalty: float = 1.0
    max_answer_length: int | None = None
    gate: Gate | None = None

    @property
    def begins_answers(self) -> bool:
        """Whether a forced text begins the answer. Without a prefill only the end of a cut thought is forced."""
        return bool(self.forced[0]) or list(self.forced[1]) not in ([], list(self.stop.end.ids))

    def closed(self, prompts: Sequence[Sequence[int]]) -> list[bool]:
        """Which prompts have closed their thought and begin with the answer. Equal prompts are checked once."""
        found = {prompt: self.stop.end.closes(prompt) for prompt in set(map(tuple, prompts))}
        return [found[tuple(prompt)] for prompt in prompts]


def forced_row(rest: str, prefill: str) -> int:
    """The row of `Plan.forced` that follows a thought that ended itself with this rest (see `EndOfThinking`)."""
    written = overlap(rest, prefill)
    return 1 + written if written else 0


@dataclass
class Key:
    """
    The key of a rollout's noise: see `KeyedNoise`.

    Args:
        seed, generation (`int`).
        sample (`torch.Tensor` of shape `(n,)`, int64): number of each completion within the rollout.
    """

    seed: int
    generation: int
    sample: torch.Tensor


@dataclass
class EngineOptions:
    """
    How an engine works. No option changes a completion, except for float rounding.

    Args:
        slots (`int`): completions in flight at once.
        cache_gb (`float`, *optional*):
            Most gigabytes (10**9 bytes) of keys and values. `None`: half of the memory that is free.
        prefill_tokens (`int`): most tokens of prompts in one forward. Longer prompts are read in pieces.
        cuda_graphs (`bool`): replay a captured step on CUDA. False runs every step eagerly.
        check_every (`int`, *optional*): steps between checks for finished completions. `None`: 8 on CUDA, 1 elsewhere.
        lengths (`list[int]`, *optional*): cap of each prompt's completion. `None`: `plan.max_completion_length`.
        share_prompts (`bool`): compute equal prompts once.
        static (`bool`): hold every slot until all have finished, as a padded batch does. It serves to measure that cost.
        watch (*optional*):
            Called after each step with the number of a prompt and the columns that its completion has gained, as a `Rollout` of
            one row in the host's memory. `thinking_length` and `thinking_surplus` are those so far. The host then waits for
            each step. The function must not use the model.
    """

    slots: int = 64
    cache_gb: float | None = None
    prefill_tokens: int = 4096
    cuda_graphs: bool = True
    check_every: int | None = None
    lengths: Sequence[int] | None = None
    share_prompts: bool = True
    static: bool = False
    watch: "Watch | None" = None

    def __post_init__(self):
        check_number("slots", self.slots, 1, None, whole=True)
        check_number("prefill_tokens", self.prefill_tokens, 1, None, whole=True)
        check_number("check_every", self.check_every, 1, None, whole=True, optional=True)
        check_number("cache_gb", self.cache_gb, 0, None, open_low=True, optional=True)

    def limits(self, n: int, plan: Plan) -> list[int]:
        """Longest completion of each of n prompts."""
        if self.lengths is None:
            return [plan.max_completion_length] * n
        most = plan.max_completion_length
        if len(self.lengths) != n or not all(isinstance(x, int) and 1 <= x <= most for x in self.lengths):
            raise ValueError(
                f"`lengths` holds {len(self.lengths)} numbers for {n} prompts, each of which must be whole and from 1 to "
                f"`max_completion_length`, {most}."
            )
        return list(self.lengths)


@dataclass
class Rollout:
    """
    The completions of B prompts.

    Args:
        completion_ids (`torch.Tensor` of shape `(B, C)`): the shadow text, padded on the right.
        completion_mask (`torch.Tensor` of shape `(B, C)`, bool): True up to and including the end of sequence.
        record (`SoftTokens`): the record of the thoughts, with the log-probabilities as drawn.
        entropies (`torch.Tensor` of shape `(B, C)`): in nats, of the distribution that each step was drawn from.
        thinking_length (`torch.Tensor` of shape `(B,)`):
            Number of thoughts, with the closing step. 0 if the prompt has closed its thought.
        thinking_surplus (`torch.Tensor` of shape `(B,)`):
            Characters that the token of the closing step writes beyond the end of thinking. They are the first characters of
            the answer. The text of the completion after its first `thinking_length` tokens follows them.
        thinking_cut (`torch.Tensor` of shape `(B,)`, bool): True if the thought reached a cap.
    """

    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    record: SoftTokens
    entropies: torch.Tensor
    thinking_length: torch.Tensor
    thinking_surplus: torch.Tensor
    thinking_cut: torch.Tensor

    def __getitem__(self, rows: slice | list[int]) -> "Rollout":
        """Some of the B rows."""
        return self._map(lambda x: x[rows])

    def columns(self, part: slice) -> "Rollout":
        """Some of the C positions."""
        return self._map(lambda x: x if x.dim() == 1 else x[:, part])

    def to(self, device) -> "Rollout":
        if self.completion_ids.device == torch.device(device):
            return self
        return self._map(lambda x: x.to(device))

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in a fixed order."""
        record = self.record
        of_record = [record.thinking_mask, record.forced_mask, record.log_probs, *record.action.values()]
        of_thought = [self.thinking_length, self.thinking_surplus, self.thinking_cut]
        return [self.completion_ids, self.completion_mask, self.entropies, *of_thought, *of_record]

    def _map(self, of) -> "Rollout":
        return Rollout(
            of(self.completion_ids), of(self.completion_mask), self.record.map(of),
            of(self.entropies), of(self.thinking_length), of(self.thinking_surplus), of(self.thinking_cut),
        )  # fmt: skip


Watch = Callable[[int, Rollout], None]
Parts = Generator[tuple[list[int], Rollout], None, None]
Engine = Callable[..., Parts]


def assemble(parts: Iterable[tuple[list[int], Rollout]], count: int, plan: Plan) -> Rollout:
    """The parts that an engine yields for `count` prompts, as one `Rollout` in the order of the prompts."""
    out, used = None, 0
    for numbers, part in parts:
        if out is None:
            out = _empty(part, count, plan)
        rows = slice(numbers[0], numbers[0] + 1) if len(numbers) == 1 else numbers
        for target, value in zip(out.tensors(), part.tensors(), strict=True):
            target[(rows, slice(0, value.size(1))) if value.dim() > 1 else rows] = value
        used = max(used, part.completion_ids.size(1))
    assert out is not None  # there was a prompt
    return out.columns(slice(0, used))


def _empty(like: Rollout, count: int, plan: Plan) -> Rollout:
    """Room for `count` completions."""

    def room(part: torch.Tensor) -> torch.Tensor:
        return part.new_zeros(count, *([plan.max_completion_length, *part.shape[2:]] if part.dim() > 1 else []))

    out = like._map(room)
    out.completion_ids.fill_(plan.pad_token_id)
    return out


def packed(action: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An action as a record keeps it, with candidates in 32 bits to halve their memory."""
    return {name: value.int() if name == "ids" else value for name, value in action.items()}


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each token in its row, without counting the padding on the left: (B, S) -> (B, S)."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def left_padded(rows: Sequence[Sequence[int]], pad_token_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, P) of prompts of unequal lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
