# SPDX-License-Identifier: Apache-2.0
"""The largest difference that rounding makes between a thought's log-probability as drawn and as re-scored.

`trl_soft.runs.replay` uses it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """
    Largest healthy mean of |drawn - re-scored| in nats, and what it grows with.

    Args:
        exact (`float`): the tolerance in float32 on one engine, measured with the `size` and `noise` below.
        rounded (`float`): the same otherwise.
        size (`int`): how many terms the density had: candidates, coordinates or draws. 1 if it has no terms.
        noise (`float`): which `noise_scale` the run had.
        power (`int`): the difference is proportional to `noise_scale ** -power`.
    """

    exact: float
    rounded: float
    size: int = 1
    noise: float = 1.0
    power: int = 0

    def of(self, exact: bool, size: int, noise: float) -> float:
        return (self.exact if exact else self.rounded) * size / self.size * (self.noise / noise) ** self.power
