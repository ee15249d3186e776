# SPDX-License-Identifier: Apache-2.0
"""Ends of thinking for benchmarks, where there is no tokenizer."""


class Never:
    """A token that never comes, so that a thought ends by its cap or not at all."""

    is_token, ids = True, (-1,)

    def closes(self, prompt) -> bool:
        return False
