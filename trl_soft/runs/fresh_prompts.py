# SPDX-License-Identifier: Apache-2.0
"""The order of the prompts that replace others: passes over the training set, each in an order of its own.

The order depends on the seed and the number of the pass alone, and not on the order in which the run trains. A checkpoint
holds how many prompts were taken.
"""

from collections.abc import Callable

import numpy as np


class FreshPrompts:
    """
    Args:
        seed (`int`): seed of the run.
        size (`int`): number of prompts of the training set.
        shuffle (`bool`): whether a pass is in a random order. Without it, a pass is in the order of the training set.

    Attributes:
        taken (`int`): how many prompts of this order were taken or passed over so far.
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
            fresh: whether a place may be taken; each is asked for in order. A place that may not is passed over.

        Returns:
            `list[int]`: fewer than `count` only if a whole pass has no more that may be taken.
        """
        found: list[int] = []
        after = [self.taken]  # how many were taken before each of `found`, and after the last
        for number in range(self.taken, self.taken + self.size):
            if len(found) == count:
                break
            place = self._place(number)
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
