# SPDX-License-Identifier: Apache-2.0
"""The command `python -m trl_soft.evaluate.report`."""

from .document import main


if __name__ == "__main__":
    main()
