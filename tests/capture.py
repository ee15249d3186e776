# SPDX-License-Identifier: Apache-2.0
"""What a CUDA graph cannot hold, refused on any device."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


aten = torch.ops.aten
# Numbers that the host reads, and shapes that depend on values.
_READS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.repeat_interleave,
}
_INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# Tensors that the host makes: on CUDA a copy from memory that is not pinned.
_MADE_BY_HOST = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor}
# And back. On the CPU itself they read nothing, so no operator tells.
_FETCHED = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item}


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket
        if name in _READS:
            raise RuntimeError(f"{name} waits for the device")
        if name in _INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1]):
            raise RuntimeError(f"{name} with a mask has a shape that the host must read")
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _MADE_BY_HOST or func in _FETCHED:
            raise RuntimeError(f"{func.__name__} copies between host and device")
        return func(*args, **(kwargs or {}))


@contextmanager
def as_captured():
    """Raises a `RuntimeError` where a CUDA graph that is being captured would."""
    with _Operators(), _Functions():
        yield
