# SPDX-License-Identifier: Apache-2.0
"""The entry point that vLLM calls in each of its processes: `vllm.general_plugins`."""


def register() -> None:
    """
    Let the supported architectures think softly, and let requests ask for it. A second call does nothing.

    Raises:
        ContractError: if this vLLM has moved a hook. The sentence names it.
    """
    from vllm import ModelRegistry

    from . import compat, frontend
    from .engine_support import ARCHITECTURES

    if getattr(register, "done", False):
        return
    compat.check()
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"{__package__}.models:Soft{architecture}")
    frontend.install()
    register.done = True  # type: ignore[attr-defined]
