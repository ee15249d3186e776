# SPDX-License-Identifier: Apache-2.0
"""TRL's trainer, as the mixins of this room see it."""

from typing import TYPE_CHECKING

from transformers import Trainer


if TYPE_CHECKING:
    from trl import GRPOTrainer as Host  # the type checker sees the class that the mixins are mixed into
else:
    Host = object


def require(*names: str, purpose: str) -> None:
    """
    Check that transformers' `Trainer` has some private methods that a mixin overrides.

    transformers may rename a private method at any time. Then nothing would call the override, and no error would say so.

    Args:
        names (`str`): the methods.
        purpose (`str`): what trl_soft does in them, as the end of a sentence.

    Raises:
        ImportError: if a method is missing.
    """
    if missing := [name for name in names if not hasattr(Trainer, name)]:
        raise ImportError(
            f"transformers' `Trainer` has no {', '.join(missing)} in this version, and trl_soft needs it to {purpose}. "
            "Install a version of transformers that trl_soft's pyproject.toml allows."
        )
