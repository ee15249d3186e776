# SPDX-License-Identifier: Apache-2.0
"""The one switch that keeps accelerate from sharding on a CPU: it looks for an FSDP config on accelerators alone.

Where two CPU processes meet an FSDP config, accelerate runs DDP without a word. With the switch on, everything that
follows is its own: `fsdp2_prepare_model` with a CPU mesh over gloo, the optimizer's sharded parameters, clipping by
DTensors, TRL's sharded reference model, and transformers' checkpoints.
"""

import functools
import os

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """Let `AcceleratorState` take an FSDP config of CPU processes at its word."""
    original = AcceleratorState.__init__

    @functools.wraps(original)
    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no" and fsdp_plugin is not None:
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init
