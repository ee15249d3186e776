# SPDX-License-Identifier: Apache-2.0
"""What a thinking step feeds back: one file a kind, all under one protocol."""

from .dirichlet import Dirichlet
from .gaussian import PLACEMENTS, Gaussian
from .gumbel import DENSITIES, Gumbel
from .hard import Hard
from .latent import Latent
from .mixture import Mixture
from .multiplex import RATIOS, WEIGHTS, Multiplex
from .protocol import Action, Thought
from .soft import Soft


THOUGHTS: dict[str, type[Thought]] = {
    kind.name: kind for kind in (Hard, Soft, Gaussian, Gumbel, Dirichlet, Mixture, Multiplex, Latent)
}

__all__ = [
    "DENSITIES",
    "PLACEMENTS",
    "RATIOS",
    "THOUGHTS",
    "WEIGHTS",
    "Action",
    "Dirichlet",
    "Gaussian",
    "Gumbel",
    "Hard",
    "Latent",
    "Mixture",
    "Multiplex",
    "Soft",
    "Thought",
]
