# SPDX-License-Identifier: Apache-2.0
"""A parameter of which this process holds a shard (ZeRO-3, FSDP2), made whole where its rows are read."""

from contextlib import nullcontext

import torch


def gathered(*params):
    """Context in which ZeRO-3 shards of `params` are whole; no context at all elsewhere."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    # A model that was not built under ZeRO-3 has ordinary parameters even while ZeRO-3 is configured.
    shards = [param for param in params if hasattr(param, "ds_status")]
    if not shards or not is_deepspeed_zero3_enabled():
        return nullcontext()
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    return maybe_gather_lm_head_ctx(*shards)


def whole(param: torch.Tensor) -> torch.Tensor:
    """The full tensor behind an FSDP2 shard, its gradient averaged over ranks as FSDP2 does; anything else as it is."""
    if not hasattr(param, "full_tensor"):
        return param
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(param, DTensor)
    # By default a full tensor's gradient is taken to be the same on every rank, and each keeps its own rows of its own.
    mesh = param.device_mesh
    return _DividedGradient.apply(param.full_tensor(grad_placements=[Partial()] * mesh.ndim), mesh.size())


class _DividedGradient(torch.autograd.Function):
    """A tensor as it is, and its gradient divided: gloo sums over ranks, and has no mean."""

    @staticmethod
    def forward(ctx, x, ranks: int):
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g / ctx.ranks, None
