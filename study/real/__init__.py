# SPDX-License-Identifier: Apache-2.0
"""Part B of the study: a real language model on GSM8K and MATH-500. README.md beside this file registers its questions."""
