# SPDX-License-Identifier: Apache-2.0
"""Everything as large as the vocabulary: next-token logits, the embedding table and the LM head, without a (positions, V) tensor."""
