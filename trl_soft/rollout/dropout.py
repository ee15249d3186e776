# SPDX-License-Identifier: Apache-2.0
"""Dropout is off for soft thoughts, so that the same policy draws and is scored.

A thought is a continuous action. Dropout changes its log-probability by tenths of a nat (Gaussian thoughts: by far more). A
rollout with one dropout mask, a score with another and an update with a third would be three policies, and the ratio between
them would be noise. vLLM serves without dropout as well.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


# Names of dropout probabilities and noise magnitudes that transformers' models keep as attributes of their modules.
_NOISE = re.compile(r"drop|jitter")
_READ = re.compile(r"self\.config\.(\w*(?:drop|jitter)\w*)")


def switch_off_dropout(model: nn.Module) -> dict[str, float]:
    """
    Make training mode deterministic, for good: dropout of modules and of functions, dropped layers and routing noise.

    Returns:
        The values that were switched off, by name, each with its largest value. Empty if there were none.

    Raises:
        ValueError: if a module reads such a value from the model's configuration at every call. To change it there would
            change the saved model.
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
            continue  # compiled or made at run time; `thinking/logp_difference` shows dropout there
        for name in _READ.findall(source):
            if (getattr(config, name, None) or 0) > 0:
                raise ValueError(
                    f"`{name}` of the model's configuration is {getattr(config, name)}, and {kind.__name__} drops at random "
                    "at every call in training, so one policy would draw a thought and another would score it. Load the model "
                    f"with `{name}` 0 (`model_init_kwargs`)."
                )
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block all modules are in evaluation mode. Afterwards each has its own mode again."""
    training = [module for module in model.modules() if module.training]
    # Past `Module.__setattr__`, which takes milliseconds for all modules of a model: they are switched for every few steps.
    for module in training:
        vars(module)["training"] = False
    try:
        yield
    finally:
        for module in training:
            vars(module)["training"] = True
