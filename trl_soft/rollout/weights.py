# SPDX-License-Identifier: Apache-2.0
"""A model whose weights are in another precision, for the length of a rollout."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def weights_in(
    model: nn.Module, dtype: torch.dtype, forward: Callable | None = None, keep: Sequence[nn.Parameter] = ()
) -> Iterator[None]:
    """
    Inside the block every module of `model` has a copy in `dtype` in the place of each parameter that is wider.

    The parameters themselves, which an optimiser and DDP hold, are not touched, and are back when the block ends. A
    parameter of several modules (tied tables) has one copy. Buffers stay as they are, rotary frequencies among them, as
    in a model that is loaded in `dtype`; so does what transformers keeps in float32 whatever a model is loaded in.

    Args:
        keep: parameters that stay as they are.
        forward (*optional*): what `model.forward` is inside the block, to leave out what was wrapped around it (autocast).
    """
    copies: dict[int, nn.Parameter] = {}
    kept = {id(parameter) for parameter in keep}
    places = []
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in kept or not _is_wider(parameter, dtype):
                continue
            if not _stays_wide(model, f"{path}.{name}"):
                places.append((module, name, parameter))
    own = vars(model).get("forward")
    try:
        for module, name, parameter in places:
            if id(parameter) not in copies:
                copies[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
            module._parameters[name] = copies[id(parameter)]
        if forward is not None:
            model.forward = forward
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
        if forward is not None:
            del model.forward
            if own is not None:
                model.forward = own


def widest(model: nn.Module) -> torch.dtype:
    """Of the floating-point types of a model's parameters, the one with most bits."""
    return max((p.dtype for p in model.parameters() if p.is_floating_point()), key=lambda dtype: dtype.itemsize)


def _is_wider(parameter: torch.Tensor, dtype: torch.dtype) -> bool:
    return parameter.is_floating_point() and parameter.dtype.itemsize > dtype.itemsize


def _stays_wide(model: nn.Module, name: str) -> bool:
    patterns = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return any(re.search(re.escape(pattern).replace(r"\*", ".*"), name) for pattern in patterns)
