# SPDX-License-Identifier: Apache-2.0
"""The page that shows thoughts, of an evaluation and of training: what it shows of a completion, and the page itself."""
