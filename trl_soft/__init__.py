# SPDX-License-Identifier: Apache-2.0
"""trl_soft: reinforcement learning on soft chain-of-thought tokens, on top of TRL.

Names load when they are first used. So everything except the trainers and their configs imports where only torch and
transformers are installed.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from .version import __version__


_HOMES = {
    "GATES": "gates",
    "Gate": "gates",
    "KeyedNoise": "noise",
    "SoftGRPOConfig": "training.config",
    "SoftGRPOTrainer": "training.trainer",
    "SoftRLOOConfig": "training.config",
    "SoftRLOOTrainer": "training.trainer",
    "SoftStep": "rollout",
    "SoftStreamer": "rollout",
    "SoftTokens": "record",
    "THOUGHTS": "thoughts",
    "ThinkingSettings": "settings",
    "Thought": "thoughts",
    "add_soft_tokens": "forward",
    "soft_generate": "rollout",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from .forward import add_soft_tokens
    from .gates import GATES, Gate
    from .noise import KeyedNoise
    from .record import SoftTokens
    from .rollout import SoftStep, SoftStreamer, soft_generate
    from .settings import ThinkingSettings
    from .thoughts import THOUGHTS, Thought
    from .training.config import SoftGRPOConfig, SoftRLOOConfig
    from .training.trainer import SoftGRPOTrainer, SoftRLOOTrainer


# Modules that stand elsewhere: an import of the old name says where.
_MOVED = {"config": "training.config", "trainer": "training.trainer", "memory": "plan.memory"}


class _Moved:
    @staticmethod
    def find_spec(name: str, path=None, target=None):
        package, _, module = name.rpartition(".")
        if package == __name__ and module in _MOVED:
            raise ModuleNotFoundError(f"{name} is {__name__}.{_MOVED[module]}. Import that.", name=name)


if _Moved not in sys.meta_path:
    sys.meta_path.append(_Moved)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
