# SPDX-License-Identifier: Apache-2.0
"""The hub of models and data sets, where it may be out of reach: one try of a few seconds, then its cache."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from huggingface_hub import constants, get_session


logger = logging.getLogger(__name__)
SECONDS = 5.0


def answers() -> bool:
    """Whether the hub answers one request within `SECONDS`, whatever it says."""
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # the errors of huggingface_hub's HTTP library, which is another one in another version
        return False
    return True


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """
    Within the block, Hugging Face's libraries use only their cache if the hub does not answer. They would try each file again
    for half a minute, or for minutes where a firewall drops the requests. `HF_HUB_OFFLINE=1` saves the try.
    """
    if constants.is_offline_mode() or answers():
        yield
        return
    logger.warning(
        f"The hub ({constants.ENDPOINT}) does not answer, so only files in its cache are used. `HF_HUB_OFFLINE=1` saves the try."
    )
    flags: list[Any] = [constants]
    if find_spec("datasets") is not None:
        import datasets.config

        flags.append(datasets.config)
    before = [module.HF_HUB_OFFLINE for module in flags]
    try:
        for module in flags:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(flags, before, strict=True):
            module.HF_HUB_OFFLINE = value
