# SPDX-License-Identifier: Apache-2.0
"""The curve of a training run: what a result keeps of the metrics of each update."""

import json
from pathlib import Path


_CURVE = ("reward", "reward_std", "frac_reward_zero_std", "grad_norm", "kl", "completions/mean_length", "num_tokens")
_CURVE_PARTS = ("thinking/", "answer/", "hard_step/", "nonfinite/")


def read_curve(path: Path) -> dict[str, list[float | None]]:
    """The metrics of each update, by name. `None` at an update without a value."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows = [row for row in rows if "reward" in row]
    names = dict.fromkeys(name for row in rows for name in row if name in _CURVE or name.startswith(_CURVE_PARTS))
    return {name: [row.get(name) for row in rows] for name in names}
