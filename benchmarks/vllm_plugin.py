# SPDX-License-Identifier: Apache-2.0
"""What the vLLM plugin costs: loaded and idle against stock, soft against hard, and records on their way out.

    make bench-vllm          (the file is not called vllm.py, or `import vllm` would find it)

One process, two engines on the same random model: one built before the plugin was registered, one after. Prints one JSON
object last, of medians over interleaved rounds (wall time on a GPU, processor time on a CPU):

    idle_vs_stock         hard tokens a second with the plugin loaded, over those without it
    soft_vs_hard          gumbel thoughts all the way against hard tokens, both with the plugin
    record_us_per_token   processor time of 64 records of 600 tokens, K = 10, from slots to one bulk each in the host's memory
    hard_logprobs_us_per_token   what vLLM's own way out costs on the host, for comparison: `logprobs=10`, over none

On a CPU, Model Runner V2 runs its Triton kernels in an interpreter, which takes most of each step: the ratios say that the
plugin adds nothing of that order, and no more. Its true share takes a GPU: `--dtype bfloat16 --batch 64 --tokens 512`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_soft import ThinkingSettings
from trl_soft.rollout import Plan, StopRule
from trl_soft.rollout.vllm.layout import layout_of
from trl_soft.rollout.vllm.pool import Pool
from trl_soft.rollout.vllm.records import bulks
from trl_soft.thoughts import Gumbel, Hard


V = 1024


class Never:
    """A thought that does not end itself."""

    is_token, ids = True, (-1,)


def record_microseconds(count: int = 64, tokens: int = 600) -> float:
    """Records of `count` finished requests, parked as they leave their slots and taken together: processor microseconds a token."""
    plan = Plan(Gumbel(top_k=10), Hard(), StopRule(Never()), 2048, eos_token_ids=[], pad_token_id=0)
    layout = layout_of(plan.thought, V, 64, torch.float32)
    pool = Pool(count, 2048, layout.width, V, "cpu")
    number = pool.add("", plan, layout)
    slots = list(range(count))
    pool.admit(slots, [number] * count, [(0, 0, slot) for slot in slots], [3] * count, [2048] * count)
    pool.drawn[:] = tokens
    pool.columns.t.fill_(tokens)
    times = []
    for _ in range(9):
        start = time.process_time()
        made = bulks([("", slot, pool.park(slot)) for slot in slots])
        times.append(time.process_time() - start)
        assert sum(made[0]["lengths"]) == count * tokens
    return 1e6 * statistics.median(times) / (count * tokens)


def save(folder: str, layers: int, hidden: int, dtype: str) -> None:
    """A random model, and a tokenizer that knows where a thought ends."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=V, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, tie_word_embeddings=True,
        max_position_embeddings=4096, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    core.add_tokens(["w2"])
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w1", pad_token="w0").save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=14)
    options = parser.parse_args()

    os.environ["VLLM_PLUGINS"] = "none"  # registered below, after the stock engine
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader.utils import _MODEL_ARCH_BY_HASH

    from trl_soft.rollout.vllm import plugin

    with tempfile.TemporaryDirectory() as folder:
        save(folder, options.layers, options.hidden, options.dtype)
        cuda = torch.cuda.is_available()
        sizes = {"gpu_memory_utilization": 0.4} if cuda else {"kv_cache_memory_bytes": 2**28, "enforce_eager": True}
        shared = {
            "model": folder, "dtype": options.dtype, "max_model_len": options.tokens + 64, "max_num_seqs": options.batch,
            "block_size": 32, "seed": 0, "enable_prefix_caching": False, **sizes,
        }  # fmt: skip
        engines = {"stock": LLM(**shared)}
        plugin.register()
        _MODEL_ARCH_BY_HASH.clear()  # what the first engine found
        engines["plugin"] = LLM(**shared)
        names = {name: type(engine.llm_engine.model_executor.driver_worker.worker.model_runner.model).__name__
                 for name, engine in engines.items()}  # fmt: skip
        assert names["plugin"] == "SoftQwen2ForCausalLM" != names["stock"]
        prompts = [{"prompt_token_ids": [3 + i, 7, 9, 11]} for i in range(options.batch)]
        plain = {"max_tokens": options.tokens, "temperature": 1.0, "ignore_eos": True, "detokenize": False}
        settings = ThinkingSettings(thought="gumbel", thinking_top_k=10)
        soft = {
            "soft_thinking": True, "soft_thought": settings.thought, "soft_thinking_top_k": settings.thinking_top_k,
            "soft_seed": 0, "soft_end_of_thinking": "w2",
        }  # fmt: skip
        # The last two tokens are the forced end and an answer.
        soft["soft_max_thinking_length"] = options.tokens - 2
        rivals = {
            "stock": ("stock", SamplingParams(**plain)),
            "idle": ("plugin", SamplingParams(**plain)),
            "soft": ("plugin", SamplingParams(**plain, extra_args=soft)),
            "logprobs": ("plugin", SamplingParams(**plain, logprobs=10)),
        }
        # On a CPU everything is in this process, and others on the machine are not to count.
        clock = time.perf_counter if cuda else time.process_time
        seconds: dict[str, list[float]] = {name: [] for name in rivals}
        for round_ in range(options.rounds + 1):
            # Each goes first as often as last: what runs before leaves caches and garbage behind.
            for name, (engine, params) in list(rivals.items())[:: 1 if round_ % 2 else -1]:
                start = clock()
                out = engines[engine].generate(prompts, params, use_tqdm=False)
                if round_:
                    seconds[name].append(clock() - start)
                assert all(len(o.outputs[0].token_ids) == options.tokens for o in out)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        tokens = options.batch * options.tokens
        print(json.dumps({"classes": names, **{name: round(value, 3) for name, value in median.items()}}), flush=True)
        results = {
            "device": torch.cuda.get_device_name() if cuda else "cpu, Triton interpreted",
            "batch": options.batch,
            "tokens": tokens,
            "idle_vs_stock": median["stock"] / median["idle"],
            "idle_vs_stock_spread": [
                min(a / b for a, b in zip(seconds["stock"], seconds["idle"], strict=True)),
                max(a / b for a, b in zip(seconds["stock"], seconds["idle"], strict=True)),
            ],
            "idle_vs_stock_fastest": min(seconds["stock"]) / min(seconds["idle"]),
            "soft_vs_hard": median["idle"] / median["soft"],
            "record_us_per_token": record_microseconds(),
            "hard_logprobs_us_per_token": 1e6 * (median["logprobs"] - median["idle"]) / tokens,
        }
        for engine in engines.values():
            engine.llm_engine.engine_core.shutdown()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
