# SPDX-License-Identifier: Apache-2.0
"""A copy of a model's weights in another precision, during a rollout."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def weights_in(
    model: nn.Module, dtype: torch.dtype, forward: Callable | None = None, keep: Sequence[nn.Parameter] = ()
) -> Iterator[None]:
    """
    Inside the block, `model` uses a copy in `dtype` of each wider parameter, and of each wider buffer that is saved with the
    model.

    The parameters themselves, which an optimiser and DDP hold, do not change. They are back when the block ends, also after an
    error. A parameter of several modules (tied tables) has one copy. Some tensors stay as they are: those that transformers
    keeps in float32 in a model loaded in `dtype`, and buffers that are not saved, such as rotary frequencies.

    Args:
        keep: parameters that stay as they are.
        forward (*optional*): `model.forward` inside the block, without a wrapper such as autocast.
    """
    copies: dict[int, torch.Tensor] = {}
    kept = {id(parameter) for parameter in keep}
    with ExitStack() as back:
        for path, module in model.named_modules():
            for name, tensor in _saved(module):
                if id(tensor) in kept or not _is_wider(tensor, dtype) or _stays_wide(model, f"{path}.{name}", dtype):
                    continue
                if id(tensor) not in copies:
                    copy = tensor.detach().to(dtype)
                    copies[id(tensor)] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
                of: dict = module._parameters if name in module._parameters else module._buffers
                back.callback(of.__setitem__, name, tensor)
                of[name] = copies[id(tensor)]
        if forward is not None:
            own = vars(model).get("forward")
            back.callback(vars(model).pop, "forward") if own is None else back.callback(setattr, model, "forward", own)
            model.forward = forward
        yield


def _saved(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """A module's own parameters and persistent buffers."""
    buffers = [item for item in module._buffers.items() if item[0] not in module._non_persistent_buffers_set]
    return [(name, tensor) for name, tensor in (*module._parameters.items(), *buffers) if tensor is not None]


def widest(model: nn.Module) -> torch.dtype:
    """The floating-point type with the most bits among a model's parameters."""
    return max((p.dtype for p in model.parameters() if p.is_floating_point()), key=lambda dtype: dtype.itemsize)


def _is_wider(parameter: torch.Tensor, dtype: torch.dtype) -> bool:
    return parameter.is_floating_point() and parameter.dtype.itemsize > dtype.itemsize


def _stays_wide(model: nn.Module, name: str, dtype: torch.dtype) -> bool:
    """As in transformers' `_get_dtype_plan`: one list for both half types, and one only for float16."""
    patterns = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        patterns |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return any(re.search(pattern.replace("*", ".*"), name) for pattern in patterns)
