# SPDX-License-Identifier: Apache-2.0
"""Does the plugin draw the same in vLLM with its CUDA graphs as without them? Needs a CUDA device and vLLM.

    make check-vllm-gpu PYTHON=...      the Python of an environment that has vLLM for the device

    mixed    every kind of thought, gate and end in one batch: requests that are drawn in several groups
    alone    a batch of each, whose requests end one after the other, so that graphs have more rows than the batch

Each batch is drawn with the graphs and again without them, from the same keys: the same tokens, and log-probabilities to 1e-5. Those
of gaussian thoughts to 1e-3: a product with the table is rounded otherwise for another number of rows, and the density multiplies
this by 1/sigma^2. The model is random, of one layer, in bfloat16.
Prints a table, and one JSON object last. Ends with 1 where a check fails.
"""

import json
import sys
import tempfile

import numpy as np
import torch

from tests import tiny
from tests.check_gpu import ENDS, GATED
from tests.vllm import served


CASES = [*tiny.THOUGHTS, *GATED, *ENDS]
SLOTS = 64


def drawn(llm, params: list) -> list[tuple[list[int], torch.Tensor]]:
    """Tokens and log-probabilities of each request."""
    prompts = [served.PROMPTS[i % len(served.PROMPTS)] for i in range(len(params))]
    out, bulks = served.generate(llm, prompts, params)
    of = {}
    for bulk in bulks:
        values = torch.from_numpy(np.frombuffer(bulk["arrays"]["values"], dtype=np.float32).copy()).view(-1, 2)
        of |= zip(bulk["requests"], values[:, 0].split(bulk["lengths"]), strict=True)
    return [(list(one.outputs[0].token_ids), of[one.request_id]) for one in out]


def compared(llm, params: list, limit: float) -> dict:
    """What a batch draws with graphs, when they have all been made, against what it draws without."""
    state = served.state(llm)
    graphs = state.graphs
    for _ in range(2):
        ours = drawn(llm, params)
    state.graphs = None
    try:
        theirs = drawn(llm, params)
    finally:
        state.graphs = graphs
    same = sum(a == b for (a, _), (b, _) in zip(ours, theirs, strict=True))
    apart = max(
        (x - y).abs().max().item() for (a, x), (b, y) in zip(ours, theirs, strict=True) if a == b and len(x) == len(y)
    )
    return {"ok": same == len(params) and apart <= limit, "same": f"{same} of {len(params)}", "logp": apart}


def main() -> int:
    if not torch.cuda.is_available():
        print("There is no CUDA device here, and the plugin makes graphs only there. Nothing was checked.")
        return 1
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        net = tiny.model(hidden_size=128, num_attention_heads=2, num_key_value_heads=1)
        llm = served.engine(
            served.save(net.bfloat16(), folder), dtype="bfloat16", enforce_eager=False, max_num_seqs=SLOTS, block_size=16,
            kv_cache_memory_bytes=2**28, compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, SLOTS]},
        )  # fmt: skip
        mixed = [served.soft(case, sample=2 * i + j) for j in range(2) for i, case in enumerate(CASES)]
        rows["mixed"] = compared(llm, mixed, 1e-3)
        for case in CASES:
            alone = [served.soft(case, sample=j, max_tokens=17 + j) for j in range(20)]
            rows[tiny.name(case)] = compared(llm, alone, 1e-3 if case["thought"] == "gaussian" else 1e-5)
        made = served.state(llm).graphs
        told = {
            "device": torch.cuda.get_device_name(), "torch": torch.__version__,
            "graphs": 0 if made is None else made.made,
            "failed": [name for name, row in rows.items() if not row["ok"]], "checks": rows,
        }  # fmt: skip
        served.shut(llm)
    for name, row in rows.items():
        print(f"{name:60} {'ok' if row['ok'] else 'FAILED':8} {row['same']:12} {row['logp']:.3g}")
    if not told["graphs"]:
        print("The plugin made no graph. The log says why.")
    print(json.dumps(told))
    return int(bool(told["failed"]) or not told["graphs"])


if __name__ == "__main__":
    sys.exit(main())
