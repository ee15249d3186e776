# SPDX-License-Identifier: Apache-2.0
"""`trl-soft train`: GRPO or RLOO, by the keys of the recipe."""

from collections.abc import Sequence

from ..command_line import CommandParser
from . import grpo, rloo
from .parser import algorithm_of


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser("trl-soft train", add_help=False, allow_abbrev=False)
    parser.add_argument("--algorithm", choices=("grpo", "rloo"))
    own, flags = parser.parse_known_args(argv)
    {"grpo": grpo, "rloo": rloo}[own.algorithm or algorithm_of(flags)].main(flags)
