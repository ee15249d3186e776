# SPDX-License-Identifier: Apache-2.0
"""Which noise a trainer's rollout draws: no two rollouts of a run share a key.

    training     (seed, number of the rollout, sample within it)
    evaluation   (seed and the evaluation set's name, update, sample within the set)

Training's rollouts are counted, and a checkpoint holds the count. Evaluation is keyed by what it is of, so that it draws the
same when it is repeated, resumed, or run beside other sets.
"""

import zlib


# Seeds have 32 bits of the 64 that noise is keyed by (one of which is a sign); training's others are zero.
_NAMES = 2**31 - 1


class RolloutNumbers:
    """
    Args:
        seed (`int`): of the run, below 2**32.

    Attributes:
        rollouts (`int`): training's rollouts so far.
    """

    def __init__(self, seed: int):
        self.seed, self.rollouts = seed, 0
        self._names: dict[int, str] = {}
        self.begin_evaluation("eval")

    def begin_evaluation(self, name: str) -> None:
        """From here on evaluation draws for the set called `name`, from its first sample."""
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
        """The same of the next `samples`, over all processes, of the set under evaluation after `step` updates."""
        first = self._samples
        self._samples += samples
        return self._evaluation, step, first
