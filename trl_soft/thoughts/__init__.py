# SPDX-License-Identifier: Apache-2.0
"""The kinds of thought: what a thinking step feeds back. Each kind is one file; all follow one protocol."""

from .option import Option as Option
from .paper import Paper as Paper
from .protocol import Action as Action
from .protocol import Thought as Thought
from .registry import THOUGHTS as THOUGHTS
from .registry import load_installed
from .registry import register as register


# The kinds, in the order in which errors and `--help` name them. A kind registers itself: a line here is all it needs.
# isort: off
from .hard import Hard as Hard
from .gumbel import Gumbel as Gumbel
from .gaussian import Gaussian as Gaussian
from .dirichlet import Dirichlet as Dirichlet
from .mixture import Mixture as Mixture
from .soft import Soft as Soft
from .multiplex import Multiplex as Multiplex
from .neighbour import Neighbour as Neighbour
from .latent import Latent as Latent


load_installed()
