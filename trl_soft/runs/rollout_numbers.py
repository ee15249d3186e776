# SPDX-License-Identifier: Apache-2.0
"""The keys of a trainer's noise: no two rollouts of a run share a key.

    training     (seed, number of the rollout, sample within it)
    evaluation   (seed and the evaluation set's name, update, sample within the set)

The rollouts of training are counted, and a checkpoint holds the count. The key of an evaluation is its set and update, so it
draws the same when it is repeated, resumed, or run beside other sets.
"""

import zlib


# A seed has 32 of the 64 bits of the noise's key (one bit is a sign). In training the other bits are zero.
_NAMES = 2**31 - 1


class RolloutNumbers:
    """
    Args:
        seed (`int`): seed of the run, below 2**32.

    Attributes:
        rollouts (`int`): number of rollouts of training so far.
    """

    def __init__(self, seed: int):
        self.seed, self.rollouts = seed, 0
        self._names: dict[int, str] = {}
        self.begin_evaluation("eval")

    def begin_evaluation(self, name: str) -> None:
        """Start an evaluation of the set `name`: the next draws are for it, from its first sample on."""
        word = 1 + zlib.crc32(name.encode()) % _NAMES
        known = self._names.setdefault(word, name)
        if known != name:
            raise ValueError(
                f"The evaluation sets {known!r} and {name!r} would draw the same noise. Rename one of them."
            )
        self._evaluation, self._samples = self.seed | word << 32, 0

    def training(self) -> tuple[int, int, int]:
        """Seed, generation and first sample of the next rollout of training."""
        number = self.rollouts
        self.rollouts += 1
        return self.seed, number, 0

    def evaluation(self, step: int, samples: int) -> tuple[int, int, int]:
        """Seed, generation and first sample of the next `samples` of the current set, over all processes, after `step` updates."""
        first = self._samples
        self._samples += samples
        return self._evaluation, step, first
