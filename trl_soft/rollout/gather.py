# SPDX-License-Identifier: Apache-2.0
"""Make a model that FSDP2 shards whole during a rollout.

Each rank ends its thoughts at its own time. If every forward gathered the weights, the ranks would wait for a rank that has
finished. So the weights are gathered once and stay whole between forwards, and the ranks meet again only at the end. (TRL
gathers ZeRO-3 and FSDP1, around `generate`.)
"""

from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def unsharded(model):
    """Inside the block all FSDP2 modules of `model` hold their whole parameters. A model without FSDP2 does not change."""
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
    # torch has a setter for this, but no getter.
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
