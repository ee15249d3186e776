# SPDX-License-Identifier: Apache-2.0
"""The trainers: TRL's, with rollouts and scores of soft thoughts."""
