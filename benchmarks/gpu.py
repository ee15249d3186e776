# SPDX-License-Identifier: Apache-2.0
"""What soft rollouts and their scoring cost on a GPU. Needs a CUDA device, torch, transformers and TRL.

    python benchmarks/gpu.py [--slots 64 256] [--steps 200] [--repeats 3]

A random bfloat16 model of the shape of Qwen2.5-1.5B with 2,048 tokens in every slot. Prints one JSON object last:

    soft_vs_hard_tokens_per_second   a step of gumbel thoughts (K = 10) against a step of hard tokens, by slots
    full_vocabulary_mix_vs_topk      a step of gaussian thoughts against one of gumbel thoughts
    share_of_roofline                of the time that reading weights, keys, values and logits takes at the memory's speed
    engine_vs_generate               hard tokens, against transformers' `generate` with as many rows, prefill left out
    graph_vs_eager                   the captured step against the same step launched kernel by kernel
    scoring                          the figures of benchmarks/scoring.py, which runs by itself too (`make bench-scoring`)
"""

import argparse
import json
import statistics
import sys
import time

import scoring
import torch
from ends import Never
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_soft.forward import soft_tokens_added
from trl_soft.rollout import EngineOptions, Key, Plan, StopRule
from trl_soft.rollout.slot_engine import _Run
from trl_soft.thoughts import Gaussian, Gumbel, Hard


V, CONTEXT, K = 151_936, 2048, 10
# Bytes a second, from the makers' data sheets.
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100-SXM4-80GB": 2.04e12, "B200": 8.0e12}


def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=V, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=32_768, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("cuda"):
        return Qwen2ForCausalLM(config).to(torch.bfloat16).eval()


@torch.no_grad()
def seconds_a_step(net, thought, slots: int, steps: int, repeats: int, graphs: bool = True) -> float:
    """Median over `repeats` runs of `steps` steps with about CONTEXT tokens in every slot."""
    warm = 4
    length = warm + steps * repeats
    prompt = torch.randint(3, V, (CONTEXT - length // 2,)).tolist()
    plan = Plan(thought, Hard(), StopRule(Never()), length + 8, eos_token_ids=[], pad_token_id=0)  # type: ignore[arg-type]
    key = Key(0, 0, torch.arange(slots, device="cuda"))
    run = _Run(net, [prompt] * slots, plan, key, EngineOptions(slots, cuda_graphs=graphs))
    if run.cache.slots != slots:
        raise RuntimeError(f"The device's memory holds {run.cache.slots} of {slots} slots. Ask for fewer.")
    times = []
    with run.attached():
        run.admit()
        for _ in range(warm):
            run.step()
        for _ in range(repeats):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                run.step()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) / steps)
    return statistics.median(times)


@torch.no_grad()
def generate_seconds_a_step(net, rows: int, steps: int) -> float:
    ids = torch.randint(3, V, (rows, CONTEXT - steps // 2), device="cuda")

    def seconds(count: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        net.generate(ids, do_sample=True, top_k=0, max_new_tokens=count, min_new_tokens=count, pad_token_id=0)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds(2)
    return (seconds(steps + 1) - seconds(1)) / steps


def roofline_seconds(net, slots: int, bandwidth: float) -> float:
    """Weights once, keys and values of every slot, and the logits written in bf16 and read in float32."""
    c = net.config
    head = c.hidden_size // c.num_attention_heads
    weights = 2 * sum(p.numel() for p in net.parameters())
    cache = slots * CONTEXT * 4 * c.num_hidden_layers * c.num_key_value_heads * head
    return (weights + cache + slots * V * 6) / bandwidth


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark measures a CUDA device and there is none. `make bench-rollout` runs on the CPU.")
    name = torch.cuda.get_device_name()
    net = model()
    results: dict = {"device": name, "torch": torch.__version__}
    bandwidth = next((value for key, value in BANDWIDTH.items() if key in name), None)
    with soft_tokens_added(net):
        for slots in options.slots:
            hard, soft, full = (
                seconds_a_step(net, thought, slots, options.steps, options.repeats)
                for thought in (Hard(), Gumbel(top_k=K), Gaussian(0.5, 0.01))
            )
            figures = {
                "hard_tokens_per_second": slots / hard,
                "soft_tokens_per_second": slots / soft,
                "soft_vs_hard_tokens_per_second": hard / soft,
                "full_vocabulary_mix_vs_topk": soft / full,
                "share_of_roofline": roofline_seconds(net, slots, bandwidth) / soft if bandwidth else None,
            }
            if slots == options.slots[0]:
                eager = seconds_a_step(net, Gumbel(top_k=K), slots, options.steps // 4, 2, graphs=False)
                figures["graph_vs_eager"] = eager / soft
                figures["engine_vs_generate"] = generate_seconds_a_step(net, slots, options.steps // 4) / hard
            results[f"slots={slots}"] = figures
            print(json.dumps(figures), flush=True)
    del net
    torch.cuda.empty_cache()
    results["scoring"] = scoring.timed((8192, V, 1536), 10, "cuda")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
