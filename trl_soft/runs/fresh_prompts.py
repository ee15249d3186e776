# SPDX-License-Identifier: Apache-2.0
"""The order of the prompts that replace others: passes over the training set, each in an order of its own.

The order depends on the seed and the number of the pass alone, and not on the order in which the run trains. A checkpoint
holds how many prompts were taken.
"""

import hashlib
import json
from collections.abc import Callable, Iterable

import numpy as np


def prompt_key(prompt) -> str:
    """A short text that stands for a prompt: a text, or a list of messages."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).hexdigest()[:32]


def different_prompts(rows: Iterable[dict], enough: int) -> int:
    """How many different prompts `rows` have. The count ends at `enough`."""
    keys: set[str] = set()
    for row in rows:
        if len(keys) == enough:
            break
        keys.add(prompt_key(row["prompt"]))
    return len(keys)


class FreshPrompts:
    """
    Args:
        seed (`int`): seed of the run.
        size (`int`): number of prompts of the training set.
        shuffle (`bool`): whether a pass is in a random order. Without it, a pass is in the order of the training set.

    Attributes:
        taken (`int`):
            Where the order goes on: the number of prompts up to the last taken one, with those that were passed over before it.
            Prompts that were passed over after it are asked for again.
    """

    def __init__(self, seed: int, size: int, shuffle: bool):
        self.seed, self.size, self.shuffle = seed, size, shuffle
        self.taken = 0
        self._pass, self._order = -1, np.arange(size)

    def take(self, count: int, multiple: int, fresh: Callable[[int], bool]) -> list[int]:
        """
        The next prompts of the order, as places in the training set.

        Args:
            count (`int`): how many at most, a multiple of `multiple`.
            multiple (`int`): the number of prompts must be a multiple of this.
            fresh: whether a place may be taken; each is asked for in order, and once. A place that may not is passed over.

        Returns:
            `list[int]`: different places; fewer than `count` only if the whole training set has no more that may be taken.
        """
        found: list[int] = []
        asked: set[int] = set()
        after = [self.taken]  # how many were taken before each of `found`, and after the last
        # The rest of a pass does not have every place. The pass after it has.
        end = (self.taken // self.size + 2) * self.size
        for number in range(self.taken, end):
            if len(found) == count or len(asked) == self.size:
                break
            place = self._place(number)
            if place in asked:
                continue
            asked.add(place)
            if fresh(place):
                found.append(place)
                after.append(number + 1)
        used = len(found) // multiple * multiple
        self.taken = after[used]
        return found[:used]

    def _place(self, number: int) -> int:
        of_pass, place = divmod(number, self.size)
        if self.shuffle and of_pass != self._pass:
            self._pass = of_pass
            self._order = np.random.default_rng((self.seed, of_pass)).permutation(self.size)
        return int(self._order[place])
