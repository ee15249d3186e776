# SPDX-License-Identifier: Apache-2.0
"""A completion as a line: its text, its lengths, its entropy, and its steps with their candidates.

An evaluation writes such lines into `samples/`, and the page of thoughts shows them.
"""

from collections import defaultdict
from typing import Any

from ..files import printable
from ..rollout import Rollout
from ..rollout.completion_text import answer_start, completion_texts
from ..rollout.interface import Plan


LEAST = 5e-5  # a smaller weight is 0 in four decimals


class TokenTexts:
    """The text of each token of a tokenizer, decoded once."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self.tokenizer.decode([token]))
        return self._texts[token]


def visible(text: str) -> str:
    """A token's text on one line, with a sign for each blank."""
    return printable(repr(text)[1:-1].replace(" ", "·")) or "∅"


def completion_line(tokenizer, plan: Plan, rollout: Rollout) -> dict[str, Any]:
    """
    Text, lengths and entropy of one completion.

    Args:
        rollout (`Rollout`, one row).
    """
    length = int(rollout.completion_mask.sum())
    ids = rollout.completion_ids[0, :length].tolist()
    lengths = int(rollout.thinking_length), int(rollout.thinking_surplus)
    (text,) = completion_texts(tokenizer, [ids], plan)
    entropy = rollout.entropies[0, :length][rollout.record.thinking_mask[0, :length]]
    return {
        "text": text,
        "answer_at": answer_start(tokenizer, ids, *lengths, plan),
        "length": length,
        "thinking_length": lengths[0],
        "thinking_surplus": lengths[1],
        "thinking_cut": rollout.thinking_cut.item(),
        "clipped": ids[-1] not in plan.eos_token_ids,  # a cap ended it: of the completion, or of the answer
        "entropy": entropy.mean().item() + 0.0 if len(entropy) else None,  # -0.0 is 0.0
    }


def completion_steps(
    texts: TokenTexts, rollout: Rollout, count: int, others: dict[int, list[tuple[int, float]]] | None = None
) -> list[dict[str, Any]]:
    """
    The token, the entropy and the candidates of each step of one completion.

    Args:
        rollout (`Rollout`, one row).
        count (`int`): candidates of a soft thought to write, the heaviest first.
        others (`dict`, *optional*):
            What tokens could have been, by position, with their probabilities. Their steps are `drawn`. A token without an entry
            has no candidates.

    Returns:
        For each position of the completion: `token`, `entropy` (nats), `thought` (bool), `candidates` (pairs of a token's text
        and its weight or probability), and `drawn` where it is True.
    """
    record, others = rollout.record, others or {}
    length = int(rollout.completion_mask.sum())
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
        pairs = others[t] if drawn else sorted(weights.items(), key=lambda pair: -pair[1])[:count]
        step: dict[str, Any] = {
            "token": texts(token),
            "entropy": round(entropy, 4) + 0.0,
            "thought": thought,
            "candidates": [[texts(i), round(w, 4)] for i, w in pairs if w >= LEAST or (drawn and i == token)],
        }
        steps.append(step | ({"drawn": True} if drawn else {}))
    return steps
