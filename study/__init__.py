# SPDX-License-Identifier: Apache-2.0
"""The study: every method of this package under one budget and one evaluation. README.md beside this file says what it asks."""
