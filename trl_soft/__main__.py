# SPDX-License-Identifier: Apache-2.0
"""`python -m trl_soft`, the same as the command `trl-soft`."""

import sys

from .scripts.console import main


if __name__ == "__main__":
    sys.exit(main())
