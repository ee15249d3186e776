# SPDX-License-Identifier: Apache-2.0
"""What the vLLM plugin costs: loaded and idle against stock, soft against plain requests, and records on their way out.

    make bench-vllm          (the file is not called vllm.py, or `import vllm` would find it)
    make bench-vllm-gpu PYTHON=...      on a GPU, with the Python of an environment that has vLLM for it

One process, two engines on the same random model: one built before the plugin was registered, one after. Prints one JSON
object last, of medians over interleaved rounds (wall time on a GPU, processor time on a CPU):

    idle_vs_stock         hard tokens a second with the plugin loaded, over those without it. A round is timed until its requests
                          have left the engine, which they do in the step after their last
    gumbel_vs_plain, hard_vs_plain, mixed_vs_plain
                          tokens a second of thoughts all the way over those of plain requests, both with the plugin; `mixed` is a
                          batch of gumbel, hard and plain requests; `settings` is gumbel, each request with a cap of its own
    spread                the least and the largest of each ratio, round by round
    ms_a_step             of each
    of_a_step             host: milliseconds in our sampler and in our feeding; device (on a GPU): milliseconds of all
                          kernels, of how many, and the longest, as torch's profiler has them; over 32 steps, the prompts' among them
    record_us_per_token   processor time of 64 records of 600 tokens, K = 10, from slots to one bulk each in the host's memory
    hard_logprobs_us_per_token   what vLLM's own way out costs on the host, for comparison: `logprobs=10`, over none (a CPU)

On a GPU the model has the shape of Qwen2.5-0.5B, 256 requests of 256 tokens, bfloat16, CUDA graphs and asynchronous scheduling;
meant to take less than four minutes. On a CPU, Model Runner V2 runs its Triton kernels in an interpreter, which takes most of each step:
the ratios say that the plugin adds nothing of that order, and no more.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import contextmanager

import torch
from ends import Never
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_soft.rollout import Plan, StopRule
from trl_soft.rollout.vllm.layout import layout_of
from trl_soft.rollout.vllm.pool import Pool
from trl_soft.rollout.vllm.records import bulks
from trl_soft.thoughts import Gumbel, Hard


V = 1024
PROFILED = 32  # steps, the one that reads the prompts among them


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


def save(folder: str, shape: dict, dtype: str) -> None:
    """A random model, and a tokenizer that knows where a thought ends."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = Qwen2Config(
        **shape, tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=1, pad_token_id=0,
        dtype=getattr(torch, dtype),
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    torch.cuda.empty_cache()
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    core.add_tokens(["w2"])
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w1", pad_token="w0").save_pretrained(folder)


def rivals_of(batch: int, tokens: int) -> dict[str, tuple[str, list]]:
    """What is compared: an engine, and the parameters of each request."""
    from vllm import SamplingParams

    plain = {"max_tokens": tokens, "temperature": 1.0, "ignore_eos": True, "detokenize": False}

    def soft(sample: int, thought: str = "gumbel", cap: int = tokens - 2, **more) -> SamplingParams:
        """Thoughts all the way: by default the last two tokens are the forced end and an answer."""
        extra = {
            "soft_thinking": True, "soft_thought": thought, "soft_seed": 0, "soft_sample": sample,
            "soft_end_of_thinking": "w2", "soft_max_thinking_length": cap, **more,
        }  # fmt: skip
        return SamplingParams(**plain, extra_args=extra)

    each = range(batch)
    gumbel = [soft(i, soft_thinking_top_k=10) for i in each]
    hard = [soft(i, "hard") for i in each]
    hards = [SamplingParams(**plain)] * batch
    rivals = {
        "stock": ("stock", hards),
        "plain": ("plugin", hards),
        "gumbel": ("plugin", gumbel),
        "hard": ("plugin", hard),
        "settings": ("plugin", [soft(i, cap=tokens - 2 - i % 8, soft_thinking_top_k=10) for i in each]),
        "mixed": ("plugin", [(gumbel, hard, hards)[i % 3][i] for i in each]),
    }
    if not torch.cuda.is_available():
        rivals["logprobs"] = ("plugin", [SamplingParams(**plain, logprobs=10)] * batch)
    return rivals


@contextmanager
def host_time():
    """Seconds of the host's in our sampler and in our feeding, by name."""
    from trl_soft.rollout.vllm.model_state import SoftModelState
    from trl_soft.rollout.vllm.sampler import SoftSampler

    seconds = {"sample": 0.0, "feed": 0.0}
    places = ((SoftSampler, "__call__", "sample"), (SoftModelState, "prepare_inputs", "feed"))
    before = [getattr(owner, method) for owner, method, _ in places]

    def timed(call, name):
        def wrapped(*args, **kwargs):
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - start

        return wrapped

    for (owner, method, name), call in zip(places, before, strict=True):
        setattr(owner, method, timed(call, name))
    try:
        yield seconds
    finally:
        for (owner, method, _), call in zip(places, before, strict=True):
            setattr(owner, method, call)


def of_a_step(generate, steps: int) -> dict:
    """What one more round spends where, a step."""
    with host_time() as seconds:
        generate()
    found: dict = {"host_ms": {name: round(1e3 * value / steps, 3) for name, value in seconds.items()}}
    if torch.cuda.is_available():
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            generate()
        rows = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)
        found["device_ms"] = round(sum(row.self_device_time_total for row in rows) / 1e3 / steps, 3)
        found["kernels"] = round(sum(row.count for row in rows if row.self_device_time_total) / steps)
        found["longest"] = {row.key[:60]: round(row.self_device_time_total / 1e3 / steps, 3) for row in rows[:8]}
    return found


def _spread(base: list[float], other: list[float]) -> list[float]:
    ratios = [a / b for a, b in zip(base, other, strict=True)]
    return [min(ratios), max(ratios)]


def main():
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256 if cuda else 8)
    parser.add_argument("--tokens", type=int, default=256 if cuda else 12)
    parser.add_argument("--layers", type=int, default=24 if cuda else 2)
    parser.add_argument("--hidden", type=int, default=896 if cuda else 128)
    parser.add_argument("--vocabulary", type=int, default=151_936 if cuda else V)
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--rounds", type=int, default=3 if cuda else 14)
    options = parser.parse_args()

    os.environ["VLLM_PLUGINS"] = "none"  # registered below, after the stock engine
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader.utils import _MODEL_ARCH_BY_HASH

    from trl_soft.rollout.vllm import plugin

    shape = {
        "vocab_size": options.vocabulary, "hidden_size": options.hidden, "num_hidden_layers": options.layers,
        "intermediate_size": (11 * options.hidden // 2) // 64 * 64 if cuda else 2 * options.hidden,
        "num_attention_heads": options.hidden // 64, "num_key_value_heads": 2 if cuda else options.hidden // 64,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        save(folder, shape, options.dtype)
        if cuda:
            sizes = {
                "gpu_memory_utilization": 0.3,
                "compilation_config": {"cudagraph_capture_sizes": [1, options.batch]},
            }
        else:
            sizes = {"kv_cache_memory_bytes": 2**28, "enforce_eager": True, "block_size": 32}
        shared = {
            "model": folder, "dtype": options.dtype, "max_model_len": options.tokens + 64, "max_num_seqs": options.batch,
            "seed": 0, "enable_prefix_caching": False, "disable_log_stats": True, **sizes,
        }  # fmt: skip
        engines = {"stock": LLM(**shared)}
        plugin.register()
        _MODEL_ARCH_BY_HASH.clear()  # what the first engine found
        engines["plugin"] = LLM(**shared)
        names = {name: type(engine.llm_engine.model_executor.driver_worker.worker.model_runner.model).__name__
                 for name, engine in engines.items()}  # fmt: skip
        assert names["plugin"] == "SoftQwen2ForCausalLM" != names["stock"]
        prompts = [{"prompt_token_ids": [3 + i, 7, 9, 11]} for i in range(options.batch)]
        rivals = rivals_of(options.batch, options.tokens)
        # On a CPU everything is in this process, and others on the machine are not to count.
        clock = time.perf_counter if cuda else time.process_time
        seconds: dict[str, list[float]] = {name: [] for name in rivals}
        last = SamplingParams(max_tokens=1, detokenize=False)
        for round_ in range(options.rounds + 1):
            # Each goes first as often as last: what runs before leaves caches and garbage behind.
            for name, (engine, params) in list(rivals.items())[:: 1 if round_ % 2 else -1]:
                start = clock()
                out = engines[engine].generate(prompts, params, use_tqdm=False)
                engines[engine].generate(prompts[:1], last, use_tqdm=False)
                if round_:
                    seconds[name].append(clock() - start)
                assert all(len(o.outputs[0].token_ids) == options.tokens for o in out)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        tokens = options.batch * options.tokens
        print(json.dumps({"classes": names, **{name: round(value, 3) for name, value in median.items()}}), flush=True)
        softs = ("gumbel", "hard", "settings", "mixed")
        ratios = {"idle_vs_stock": ("stock", "plain"), **{f"{name}_vs_plain": ("plain", name) for name in softs}}
        results = {
            "device": torch.cuda.get_device_name() if cuda else "cpu, Triton interpreted",
            "batch": options.batch,
            "tokens": tokens,
            **{name: median[base] / median[other] for name, (base, other) in ratios.items()},
            "spread": {name: _spread(seconds[base], seconds[other]) for name, (base, other) in ratios.items()},
            "tokens_per_second": {name: round(tokens / value) for name, value in median.items()},
            "ms_a_step": {name: round(1e3 * value / options.tokens, 3) for name, value in median.items()},
            "record_us_per_token": record_microseconds(),
        }
        if "logprobs" in median:
            results["hard_logprobs_us_per_token"] = 1e6 * (median["logprobs"] - median["plain"]) / tokens
        print(json.dumps(results), flush=True)
        # A profile of many steps takes minutes to sum up.
        steps = min(options.tokens, PROFILED)
        short = rivals_of(options.batch, steps)
        results["of_a_step"] = {
            name: of_a_step(lambda name=name: engines["plugin"].generate(prompts, short[name][1], use_tqdm=False), steps)
            for name in ("plain", *softs)
        }  # fmt: skip
        for engine in engines.values():
            engine.llm_engine.engine_core.shutdown()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
