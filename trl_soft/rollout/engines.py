# SPDX-License-Identifier: Apache-2.0
"""The engines by name, as `rollout_engine` chooses among them. None takes another's place by itself."""

from .interface import Engine
from .padded_engine import simple
from .slot_engine import slots


ENGINES: dict[str, Engine] = {"slots": slots, "simple": simple}
