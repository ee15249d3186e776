# SPDX-License-Identifier: Apache-2.0
"""What a thinking step feeds back: one file a kind, all under one protocol."""

from .base import Action, Embed, Thought
from .gaussian import Gaussian
from .gumbel import DENSITIES, Gumbel
from .hard import Hard
from .soft import Soft


THOUGHTS: dict[str, type[Thought]] = {kind.name: kind for kind in (Hard, Soft, Gaussian, Gumbel)}

__all__ = ["DENSITIES", "THOUGHTS", "Action", "Embed", "Gaussian", "Gumbel", "Hard", "Soft", "Thought"]
