# SPDX-License-Identifier: Apache-2.0
import sys

from ..command_line import one_sentence
from .recipe import main


if __name__ == "__main__":
    with one_sentence():
        sys.exit(main())
