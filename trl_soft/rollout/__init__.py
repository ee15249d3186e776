# SPDX-License-Identifier: Apache-2.0
"""Rollouts: from prompts to shadow text and a record of the thoughts behind it."""

from .generate import SoftCompletions, soft_generate
from .stop import EndOfThinking, StopRule
from .transformers import Plan, Rollout, rollout


__all__ = ["EndOfThinking", "Plan", "Rollout", "SoftCompletions", "StopRule", "rollout", "soft_generate"]
