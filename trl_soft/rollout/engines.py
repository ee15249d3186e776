# SPDX-License-Identifier: Apache-2.0
"""The engines by name, as `rollout_engine` chooses among them. None takes another's place by itself."""

from .base import Engine
from .reference import simple
from .transformers import slots


ENGINES: dict[str, Engine] = {"slots": slots, "simple": simple}
