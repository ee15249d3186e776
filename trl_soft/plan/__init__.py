# SPDX-License-Identifier: Apache-2.0
"""The memory of a recipe on each device: `python -m trl_soft.plan`."""

from .recipe import estimate
from .world import World


__all__ = ["World", "estimate"]
