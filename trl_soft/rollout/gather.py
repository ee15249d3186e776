# SPDX-License-Identifier: Apache-2.0
"""A model sharded by FSDP2, whole for the length of a rollout.

Each rank's thoughts end when they end, so a rollout in which every forward gathers weights would wait for a rank that has
finished. Gathered once, and not taken apart between forwards, ranks need not agree again before the end. (ZeRO-3 and
FSDP1 are gathered by TRL, around `generate`.)
"""

from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def unsharded(model):
    """All FSDP2 modules of `model` hold their whole parameters inside the block. A model without them is left alone."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # a torch built without distributed
        modules = []
    else:
        modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not modules:
        yield
        return
    groups = [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]
    # torch has a setter for this and no getter.
    before = [group.post_forward_mesh_info for group in groups]
    automatic = [module._get_fsdp_state()._auto_reshard_after_forward for module in modules]
    try:
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        yield
        dist.barrier()
    finally:
        for group, mesh in zip(groups, before, strict=True):
            group.post_forward_mesh_info = mesh
        for module, value in zip(modules, automatic, strict=True):
            module._get_fsdp_state()._auto_reshard_after_forward = value
            module.reshard()
