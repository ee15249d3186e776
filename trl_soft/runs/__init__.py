# SPDX-License-Identifier: Apache-2.0
"""What lets a run be stopped, continued and trusted."""
