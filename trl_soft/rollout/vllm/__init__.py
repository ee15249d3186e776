# SPDX-License-Identifier: Apache-2.0
"""Soft thinking in stock vLLM, as a plugin: `docs/vllm.md`.

    engine -> settings    which engines can think softly, and what they are set to      engine_support.py
    request -> spec       flat keys of a request, checked where it arrives              request.py, frontend.py
    slot -> embeddings    the input of a step: a token's row, or a thought's mixture    model_state.py, served_table.py
    logits -> token       the draw of a step, by the arithmetic of the other engines    sampler.py, pool.py
    slot -> record        the drawn thoughts, in bulk, by request                       records.py, worker.py

vLLM is imported only when vLLM loads `plugin`.
"""
