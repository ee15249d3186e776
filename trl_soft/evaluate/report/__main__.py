# SPDX-License-Identifier: Apache-2.0
"""`python -m trl_soft.evaluate.report`."""

from ...command_line import one_sentence
from .command import main


if __name__ == "__main__":
    with one_sentence():
        main()
