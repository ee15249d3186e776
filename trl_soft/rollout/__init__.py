# SPDX-License-Identifier: Apache-2.0
"""Rollouts: from prompts to completions, with their shadow text and the record of their thoughts."""

from .engines import ENGINES
from .generate import SoftCompletions, soft_generate
from .interface import Engine, EngineOptions, Key, Plan, Rollout, assemble
from .stop import EndOfThinking, StopRule
from .streaming import SoftStep, SoftStreamer


__all__ = [
    "ENGINES",
    "EndOfThinking",
    "Engine",
    "EngineOptions",
    "Key",
    "Plan",
    "Rollout",
    "SoftCompletions",
    "SoftStep",
    "SoftStreamer",
    "StopRule",
    "assemble",
    "soft_generate",
]
