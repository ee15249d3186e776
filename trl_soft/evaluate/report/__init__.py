# SPDX-License-Identifier: Apache-2.0
"""What is made of finished evaluation runs: tables, figures, a paper's tables with ours, and a page of thoughts."""

from .command import main
from .document import report


__all__ = ["main", "report"]
