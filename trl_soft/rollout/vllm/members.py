# SPDX-License-Identifier: Apache-2.0
"""The members of a batch: rows that are drawn together, and places where thoughts are fed.

They are computed again only if a batch differs from the previous one. Consecutive decode steps of the same requests are equal.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .pool import Pool


@dataclass
class Member:
    """
    Rows of a batch whose plans have one kind.

    Args:
        number (`int`): the plan of one of them.
        places (`numpy.ndarray`): their rows in the batch, on the host. rows: the same on the device, a slice if all.
        slots (`numpy.ndarray`), index (`torch.Tensor`, int64): the slots of the rows, on the host and on the device.
    """

    number: int
    places: np.ndarray
    rows: slice | torch.Tensor
    slots: np.ndarray
    index: torch.Tensor


class Members:
    """
    Args:
        pool (`Pool`).

    Attributes:
        drawn (`list[Member]`): rows drawn together. fed (`list[Member]`): rows fed together, only for decode steps.
        softs, hards (`bool`): whether any request of the batch is soft, and whether any is hard.
    """

    def __init__(self, pool: Pool):
        self.pool = pool
        self._known: tuple | None = None

    def of(self, slots: np.ndarray, draws: np.ndarray) -> "Members":
        """The members of a batch of N requests: their `slots` (N,), and True for those at the end of their text (N,) bool."""
        numbers = self.pool.number[slots]
        known = slots.tobytes(), numbers.tobytes(), draws.tobytes()
        if known != self._known:
            self.softs, self.hards = bool((numbers > 0).any()), bool((numbers == 0).any())
            ruled = self.pool.ruled
            self.drawn = self._together(slots, np.where(draws, numbers, 0), lambda number: ruled[number].kind)
            self.fed = self._together(slots, numbers, lambda number: ruled[number].fed)
            self.fed = [m for m in self.fed if not ruled[m.number].group.thought.is_token]
            self._known = known
        return self

    def _together(self, slots: np.ndarray, numbers: np.ndarray, kind) -> list[Member]:
        rows_of: dict[tuple, list[int]] = {}
        first: dict[tuple, int] = {}
        kinds = {number: kind(number) for number in set(numbers.tolist()) - {0}}
        for row, number in enumerate(numbers.tolist()):
            if number:
                rows_of.setdefault(kinds[number], []).append(row)
                first.setdefault(kinds[number], number)
        made = []
        for kind_, rows in rows_of.items():
            places, mine = np.array(rows), slots[rows]
            on_device = slice(0, len(slots)) if len(rows) == len(slots) else self.pool.on_device(places)
            made.append(Member(first[kind_], places, on_device, mine, self.pool.on_device(mine)))
        return made
