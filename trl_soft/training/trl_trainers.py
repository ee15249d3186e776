# SPDX-License-Identifier: Apache-2.0
"""TRL's trainers. Import them from here: a package that TRL imports with them and that is broken is left out first."""

from .broken_packages import OF_TRL, leave_out_broken


leave_out_broken(*OF_TRL)

from trl import GRPOTrainer, RLOOTrainer  # noqa: E402


__all__ = ["GRPOTrainer", "RLOOTrainer"]
