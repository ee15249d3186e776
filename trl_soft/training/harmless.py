# SPDX-License-Identifier: Apache-2.0
"""What a run shows never ends it."""

import functools
import logging
from contextlib import suppress


logger = logging.getLogger(__name__)


def harmless(parts: str):
    """
    A decorator for methods that show a run. If one fails, a warning says so, `close` is called, `failed` is set, and the object
    stays off.

    Args:
        parts (`str`): what the run goes on without.
    """

    def decorate(method):
        @functools.wraps(method)
        def call(self, *args, **kwargs):
            if self.failed:
                return
            try:
                method(self, *args, **kwargs)
            except (Exception, SystemExit) as error:  # rich leaves by SystemExit where a pipe is closed
                self.failed = True
                with suppress(Exception, SystemExit):
                    self.close()
                logger.warning(
                    f"The run goes on without {parts}, because this failed: {type(error).__name__}: {error}"
                )

        return call

    return decorate
