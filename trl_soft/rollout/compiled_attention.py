# SPDX-License-Identifier: Apache-2.0
"""FlexAttention by compiled functions, of which each kind of step has its own."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

_FUNCTIONS = 512  # compiled functions that are kept; one more costs a compilation when it comes again
_compile = functools.partial(torch.compile, fullgraph=True)
_functions: OrderedDict[tuple, Callable] = OrderedDict()  # the least recently used first


def call_compiled(kind: tuple, tensors: tuple[torch.Tensor, ...], options: dict) -> Any:
    """
    FlexAttention by the compiled function of this `kind` of step.

    torch counts the compilations of a function and raises beyond a limit. So each kind has a function, and a function that
    reached the limit, by many lengths of slots, makes way for another.
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
    """A compiled FlexAttention with compilations of its own."""
    from torch.nn.attention.flex_attention import flex_attention

    def attend(query, key, value, **options):
        return flex_attention(query, key, value, **options)

    # torch counts by code object, and all closures of one `def` share theirs. By the name it remembers which sizes differ
    # from call to call: kinds that are alike but for the number of slots learn from each other.
    code = attend.__code__.replace(co_name=f"attend_{abs(hash(kind[1:])):x}")
    return _compile(FunctionType(code, attend.__globals__, code.co_name, closure=attend.__closure__))
