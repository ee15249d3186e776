# SPDX-License-Identifier: Apache-2.0
"""The bounds of metrics outside which a run needs a look. `docs/metrics.md` explains each metric, and says what to do."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """
    Args:
        above (`float`, *optional*), below (`float`, *optional*): a healthy value is above the first and below the second.
    """

    above: float = -math.inf
    below: float = math.inf

    def __str__(self) -> str:
        bounds = {"above": self.above, "below": self.below}
        return " and ".join(f"{name} {value:g}" for name, value in bounds.items() if math.isfinite(value))

    def holds(self, value: float) -> bool:
        return self.above < value < self.below


BOUNDS = {
    "thinking/mean_length": Bound(above=1),
    "thinking/clipped_ratio": Bound(below=0.5),
    "thinking/entropy": Bound(above=0),
    "thinking/soft_ratio": Bound(above=0, below=1),
    "thinking/clip_ratio": Bound(below=0.3),
    "frac_reward_zero_std": Bound(below=0.9),
    "nonfinite/skipped": Bound(below=0.01),
}
DIFFERENCE = "thinking/logp_difference/mean"


def outside(row: Mapping[str, Any], limit: float | None = None) -> dict[str, str]:
    """
    The metrics of a log that are outside their bound.

    Args:
        row: a log.
        limit (`float`, *optional*): of `thinking/logp_difference/mean`, which depends on thought and precision.

    Returns:
        By metric, a sentence without its full stop.
    """
    bounds = BOUNDS if limit is None else {DIFFERENCE: Bound(below=limit), **BOUNDS}
    found = {}
    for name, bound in bounds.items():
        value = row.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value) and not bound.holds(value):
            found[name] = f"{name} is {value:.3g}; a healthy value is {bound}"
    return found
