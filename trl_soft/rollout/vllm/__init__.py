# SPDX-License-Identifier: Apache-2.0
"""Soft thinking in stock vLLM, as a plugin: `docs/vllm.md`.

    request -> spec       flat keys of a request, checked where it arrives          request.py, frontend.py
    slot -> embeddings    what a step feeds: a token's row, or a thought's mixture  state.py, table.py
    logits -> token       what a step draws, by the other engines' own arithmetic   sampler.py, pool.py
    slot -> record        what was drawn, in bulk, by request                       records.py, worker.py

Nothing of vLLM is imported until vLLM loads `plugin`.
"""
