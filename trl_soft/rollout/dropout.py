# SPDX-License-Identifier: Apache-2.0
"""One policy draws and is scored: the network without dropout.

A thought is a continuous action, and its log-probability moves by tenths of a nat (Gaussian thoughts: by far more) with the
units that happen to be dropped. A rollout under one dropout mask, scored under another and updated under a third would be
three policies, and the ratio between them noise. vLLM serves without dropout as well.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


# Probabilities and magnitudes of noise that transformers' models keep as attributes of their modules.
_NOISE = re.compile(r"drop|jitter")
_READ = re.compile(r"self\.config\.(\w*(?:drop|jitter)\w*)")


def switch_off_dropout(model: nn.Module) -> dict[str, float]:
    """
    Make training mode deterministic, for good: dropout of modules and of functions, dropped layers and routing noise.

    Returns:
        What was switched off, by name, with its largest value. Empty where there was nothing.

    Raises:
        ValueError: if a module reads such a value from the model's configuration at every call, where changing it would
            change what is saved.
    """
    found: dict[str, float] = {}
    for path, module in model.named_modules():
        if isinstance(module, _DropoutNd):
            if module.p > 0:
                # PEFT names its own `lora_dropout.default`.
                name = next((part for part in reversed(path.split(".")) if _NOISE.search(part)), path)
                found[name] = max(found.get(name, 0.0), module.p)
                module.p = 0.0
            continue
        for name, value in vars(module).items():
            if _NOISE.search(name) and isinstance(value, float) and value > 0:
                found[name] = max(found.get(name, 0.0), value)
                setattr(module, name, 0.0)
    for kind, config in {type(m): m.config for m in model.modules() if hasattr(m, "config")}.items():
        try:
            source = inspect.getsource(kind.forward)
        except (OSError, TypeError):
            continue  # compiled or made at run time; `thinking/logp_difference` tells what happens there
        for name in _READ.findall(source):
            if (getattr(config, name, None) or 0) > 0:
                raise ValueError(
                    f"`{name}` of the model's configuration is {getattr(config, name)}, and {kind.__name__} drops at random "
                    "at every call in training, so a thought would be scored by another policy than drew it. Load the model "
                    f"with `{name}` 0 (`model_init_kwargs`)."
                )
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode inside the block, each as it was found afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
