# SPDX-License-Identifier: Apache-2.0
"""`make test-real`: the package on a real language model and real tokenizers. Not part of `make test`.

`prepare` finds or makes the model; the tests skip with its sentence where it could not. `data/` holds the shortest
questions of GSM8K (Cobbe et al., arXiv 2110.14168; MIT License, see `data/LICENSE.txt`).
"""
