# SPDX-License-Identifier: Apache-2.0
"""The scripts that users start: training, evaluation, and how they read YAML files and flags."""
