# SPDX-License-Identifier: Apache-2.0
"""The engines by name. `rollout_engine` chooses one; an engine never switches to another on its own."""

from .interface import Engine
from .padded_engine import simple
from .slot_engine import slots


ENGINES: dict[str, Engine] = {"slots": slots, "simple": simple}
