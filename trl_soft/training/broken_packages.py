# SPDX-License-Identifier: Apache-2.0
"""
Packages that are installed but cannot be imported. TRL and accelerate import these wherever they find them, also for a run
that does not use them, so one broken package would end every run.
"""

import importlib
import logging
import sys
from importlib.util import find_spec

from ..files import in_one_line


logger = logging.getLogger(__name__)
# What TRL's trainers import while they are imported. A run without LoRA needs peft too, because other modules of TRL import it.
OF_TRL = ("mlflow", "trackio", "vllm", "wandb")
_failures: dict[str, str] = {}


def failure_of(name: str) -> str | None:
    """Import an installed package. Returns the error in one line if that fails. `None`: it works, or it is not installed."""
    if name not in _failures and name not in sys.modules and find_spec(name) is not None:
        try:
            importlib.import_module(name)
        except Exception as error:  # a package's own code can fail in any way
            _failures[name] = in_one_line(error)
    return _failures.get(name)


def why_not(name: str) -> str | None:
    """Why a package cannot be used, as a clause with what to do. `None` if it can."""
    failure = failure_of(name)
    if failure is not None:
        return (
            f"the import of the package {name}, which is installed, fails ({failure}). Run "
            f"`pip install --force-reinstall {name}`"
        )
    if sys.modules.get(name) is None and find_spec(name) is None:
        return f"the package {name} is not installed. Run `pip install {name}`"
    return None


def leave_out_broken(*names: str) -> None:
    """Make the packages whose import fails look as if they were not installed, to all of this process. Each is a warning."""
    for name in names:
        failure = failure_of(name)
        if failure is not None and name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]  # Python's own mark of a module that must not be found
            logger.warning(
                f"The import of {name} fails ({failure}), so this run works as if {name} were not installed. Run "
                f"`pip install --force-reinstall {name}`, or `pip uninstall {name}`."
            )
