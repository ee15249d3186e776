# SPDX-License-Identifier: Apache-2.0
"""What vLLM calls in each of its processes: `vllm.general_plugins`."""


def register() -> None:
    """
    Let the architectures we know think softly, and requests say so. A second call does nothing.

    Raises:
        ContractError: if this vLLM has moved a hook; the sentence names it.
    """
    from vllm import ModelRegistry

    from . import compat, frontend
    from .models import ARCHITECTURES

    if getattr(register, "done", False):
        return
    compat.check()
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"{__package__}.models:Soft{architecture}")
    frontend.install()
    register.done = True  # type: ignore[attr-defined]
