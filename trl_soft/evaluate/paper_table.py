# SPDX-License-Identifier: Apache-2.0
"""The command `python -m trl_soft.evaluate.paper_table`, which prints a paper's tables with ours."""

from ..command_line import one_sentence
from .report.replication import main


__all__ = ["main"]


if __name__ == "__main__":
    with one_sentence():
        main()
