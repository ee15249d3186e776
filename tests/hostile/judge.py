# SPDX-License-Identifier: Apache-2.0
"""What an attack came to. Standard library only: an unprivileged user runs it with another interpreter."""

import re

from tests.hostile.programs import FAMILIES, Attack
from trl_soft.evaluate.sandbox import run_program


def fault(attack: Attack) -> str:
    """Run an attack; what went wrong, or nothing where the sandbox held it."""
    limits = {"timeout": 60} | attack.limits  # most end by themselves, on a busy machine later
    result = run_program(attack.source, tests=attack.tests, tested=["f"], **limits)
    if result.passed:
        return "passed"
    if "did" in result.stdout.split():
        return f"reached what is not its own: {result.stdout.strip()[:300]}"
    if not re.search(attack.reason, result.reason):
        return f"ended otherwise: {result.reason} {result.stderr[-200:]}"
    return ""


def faults(families=tuple(FAMILIES), every: int = 1) -> dict[str, dict[str, str]]:
    """What went wrong, by family and attack; of each family every so-manieth attack."""
    return {
        family: {name: fault(FAMILIES[family][name]) for name in list(FAMILIES[family])[::every]}
        for family in families
    }
