# SPDX-License-Identifier: Apache-2.0
"""The command `trl-soft inspect`, which writes a page of thoughts."""

from ..command_line import one_sentence
from .report.thoughts_page import inspect_page, main


__all__ = ["inspect_page", "main"]


if __name__ == "__main__":
    with one_sentence():
        main()
