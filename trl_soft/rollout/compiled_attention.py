# SPDX-License-Identifier: Apache-2.0
"""FlexAttention by compiled functions. Each kind of step has its own function."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

_FUNCTIONS = 512  # compiled functions that are kept; a function that was dropped is compiled again when it is needed
_compile = functools.partial(torch.compile, fullgraph=True)
_functions: OrderedDict[tuple, Callable] = OrderedDict()  # the least recently used first


def call_compiled(kind: tuple, tensors: tuple[torch.Tensor, ...], options: dict) -> Any:
    """
    Call FlexAttention by the compiled function of this `kind` of step.

    torch counts the compilations of a function and raises beyond a limit. So each kind has its own function. A function that
    reaches the limit, by many lengths of slots, is replaced by another one.
    """
    function = _functions.pop(kind, None) or _compiled(kind)
    try:
        found = function(*tensors, **options)
    except torch._dynamo.exc.FailOnRecompileLimitHit:
        logger.warning_once(
            "FlexAttention was compiled for as many lengths of slots as torch allows for one function, and starts again: "
            "steps of further lengths wait for a compilation."
        )
        function = _compiled(kind)
        found = function(*tensors, **options)
    _functions[kind] = function
    if len(_functions) > _FUNCTIONS:
        _functions.popitem(last=False)
    return found


def _compiled(kind: tuple) -> Callable:
    """A compiled FlexAttention whose compilations are counted separately."""
    from torch.nn.attention.flex_attention import flex_attention

    def attend(query, key, value, **options):
        return flex_attention(query, key, value, **options)

    # torch counts by code object, and all closures of one `def` share one. By the name of the code it remembers which sizes
    # change from call to call. So kinds that differ only in the number of slots share this knowledge.
    code = attend.__code__.replace(co_name=f"attend_{abs(hash(kind[1:])):x}")
    return _compile(FunctionType(code, attend.__globals__, code.co_name, closure=attend.__closure__))
