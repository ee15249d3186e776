# SPDX-License-Identifier: Apache-2.0
"""The memory of a recipe on each device: `trl-soft plan`."""

from .recipe import estimate
from .world import World


__all__ = ["World", "estimate"]
