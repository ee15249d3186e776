# SPDX-License-Identifier: Apache-2.0
"""Make a parameter whole where its rows are read, if this process holds only a shard (ZeRO-3, FSDP2)."""

from contextlib import nullcontext

import torch


def gathered(*params):
    """Context in which ZeRO-3 shards of `params` are whole. Without ZeRO-3 it does nothing."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    # A model that was not built under ZeRO-3 has ordinary parameters even while ZeRO-3 is configured.
    shards = [param for param in params if hasattr(param, "ds_status")]
    if not shards or not is_deepspeed_zero3_enabled():
        return nullcontext()
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    return maybe_gather_lm_head_ctx(*shards)


def whole(param: torch.Tensor) -> torch.Tensor:
    """The full tensor of an FSDP2 shard, with its gradient averaged over ranks as in FSDP2. Other tensors as they are."""
    if not hasattr(param, "full_tensor"):
        return param
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(param, DTensor)
    # By default torch assumes that a full tensor's gradient is equal on all ranks. Each rank then keeps only its own rows.
    mesh = param.device_mesh
    return _DividedGradient.apply(param.full_tensor(grad_placements=[Partial()] * mesh.ndim), mesh.size())


class _DividedGradient(torch.autograd.Function):
    """A tensor as it is, with its gradient divided by `ranks`: gloo sums over ranks and has no mean."""

    @staticmethod
    def forward(ctx, x, ranks: int):
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g / ctx.ranks, None
