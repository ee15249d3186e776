# SPDX-License-Identifier: Apache-2.0
"""Rollouts: from prompts to shadow text and a record of the thoughts behind it."""

from .generate import SoftCompletions, soft_generate
from .stop import EndOfThinking
from .transformers import Plan, Rollout, rollout


__all__ = ["EndOfThinking", "Plan", "Rollout", "SoftCompletions", "rollout", "soft_generate"]
