# SPDX-License-Identifier: Apache-2.0
"""The command `python -m trl_soft.evaluate.picture`, which draws the thoughts of one completion."""

from ..command_line import one_sentence
from .report.thought_picture import main, thought_picture


__all__ = ["main", "thought_picture"]


if __name__ == "__main__":
    with one_sentence():
        main()
