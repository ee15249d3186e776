# SPDX-License-Identifier: Apache-2.0
"""Will a recipe fit on a device? `python -m trl_soft.plan`."""

from .recipe import estimate
from .world import World


__all__ = ["World", "estimate"]
