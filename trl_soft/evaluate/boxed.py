# SPDX-License-Identifier: Apache-2.0
"""Where a brace closes in LaTeX, for all who read the content of a `\\boxed`."""

import re


def closing_brace(text: str) -> int | None:
    """Where the brace that opened before `text` closes; escaped braces do not count. `None` where it never does."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None
