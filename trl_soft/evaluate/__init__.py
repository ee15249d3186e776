# SPDX-License-Identifier: Apache-2.0
"""Evaluation as the papers do it: metrics with intervals, over problems that were each answered several times."""
