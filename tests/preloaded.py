# SPDX-License-Identifier: Apache-2.0
"""What the server of `tests.forked` imports before it forks: all that the tests of several processes need."""

import deepspeed  # noqa: F401
import torch._dynamo  # noqa: F401

import tests.distributed.losses
import tests.evaluated
import tests.kill.world  # noqa: F401
import trl_soft.evaluate.runner  # noqa: F401
