# SPDX-License-Identifier: Apache-2.0
"""What a soft rollout costs on the CPU, against a hard one, `generate`, and the engine with its parts taken out.

    python benchmarks/rollout.py [--samples 48] [--slots 16] [--repeats 3]

A random model of 50M parameters (V = 32,000, float32), completions of log-normal lengths that are forced, so that all
rivals draw the same number of tokens. Prints one JSON object last, of ratios inside this run (medians of interleaved runs):

    soft_vs_hard_tokens_per_second   gumbel thoughts all the way, against hard tokens, both in slots
    engine_vs_generate               hard tokens in slots, against transformers' `generate` with as many rows in flight
    refill_vs_static                 refilled slots against slots that wait for the longest
    group_prefill_vs_plain           8 completions of prompts of 1,024 tokens, read once or eight times
    record_us_per_token              records of 64 completions (mean about 600 tokens, K = 10) from slots to the host
    full_vocabulary_mix_vs_topk      gaussian against gumbel thoughts, tokens a second
    growth                           tokens a second at 1, 2, 4 and 8 times the samples over those at 1
    memory_at_8x                     peak memory at 8 times the samples over that at 1
    noise_share_of_a_step            the keyed Gumbel noise of all slots over a soft step
"""

import argparse
import json
import random
import statistics
import time

import torch
from ends import Never
from measure import interleaved, peak
from transformers import Qwen2Config, Qwen2ForCausalLM, StoppingCriteria, StoppingCriteriaList

from trl_soft import KeyedNoise
from trl_soft.forward import soft_tokens_added
from trl_soft.rollout import ENGINES, EngineOptions, Key, Plan, StopRule
from trl_soft.rollout.interface import left_padded
from trl_soft.rollout.slots import Slots
from trl_soft.thoughts import Gaussian, Gumbel, Hard
from trl_soft.vocabulary.head_logits import DenseLogits


V, CAP = 32_000, 384


def model(seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=V, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def plan(thought, length: int) -> Plan:
    return Plan(thought, Hard(), StopRule(Never()), length, eos_token_ids=[], pad_token_id=0)


def log_normal(count: int, mean: float, sigma: float = 1.0) -> list[int]:
    draw = random.Random(0)
    mu = torch.tensor(mean).log().item() - sigma**2 / 2
    return [min(max(int(draw.lognormvariate(mu, sigma)), 1), CAP) for _ in range(count)]


def rollout(net, thought, prompts, lengths, **options) -> int:
    """Tokens drawn; every part is forgotten as it comes."""
    key = Key(0, 0, torch.arange(len(prompts)))
    made = plan(thought, max(lengths))
    parts = ENGINES["slots"](net, prompts, made, key, EngineOptions(lengths=lengths, **options))
    return sum(int(part.completion_mask.sum()) for _, part in parts)


class Lengths(StoppingCriteria):
    def __init__(self, width: int, lengths: list[int]):
        self.ends = width + torch.tensor(lengths)

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.size(1) >= self.ends


@torch.no_grad()
def generate(net, prompts, lengths, rows: int) -> None:
    for start in range(0, len(prompts), rows):
        ids, mask = left_padded(prompts[start : start + rows], 0, net.device)
        stop = StoppingCriteriaList([Lengths(ids.size(1), lengths[start : start + rows])])
        net.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=CAP, stopping_criteria=stop,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip


@torch.no_grad()
def record_microseconds(count: int = 64, mean: float = 600.0, length: int = 2048) -> float:
    """
    Taking the records of `count` completions out of slots, one by one as they finish, into memory of their own in the
    host: microseconds a token. The slots are filled with what a rollout would have written; no model runs.
    """
    made = plan(Gumbel(top_k=10), length)
    slots = Slots(count, made, Key(0, 0, torch.arange(count)), V, torch.device("cpu"))
    slots.admit(list(range(count)), list(range(count)), [[3]] * count, [length] * count)
    logits = DenseLogits(torch.randn(count, 100))
    slots.advance(count, logits, every_row=False)
    tokens = torch.tensor([min(x * length // CAP, length) for x in log_normal(count, mean * CAP / length)])
    slots.all.t.copy_(tokens)
    slots.all.completion_mask.copy_(torch.arange(length) < tokens.unsqueeze(-1))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        kept = [slots.result([slot]).to("cpu") for slot in range(count)]
        times.append(time.perf_counter() - start)
        del kept
    return 1e6 * statistics.median(times) / tokens.sum().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--mean", type=float, default=40.0, help="mean length of a completion")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    net, slots = model(), options.slots
    lengths = log_normal(8 * options.samples, options.mean)
    draw = random.Random(1)
    prompts = [[draw.randrange(3, V) for _ in range(draw.randrange(8, 48))] for _ in lengths]
    some = prompts[: options.samples], lengths[: options.samples]
    gumbel = Gumbel(top_k=10)
    results: dict = {"threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in net.parameters())}
    results |= {"slots": slots, "samples": options.samples, "tokens": sum(some[1])}

    with soft_tokens_added(net):
        long = [[draw.randrange(3, V) for _ in range(1024)]] * 8
        rivals = {
            "hard": lambda: rollout(net, Hard(), *some, slots=slots),
            "soft": lambda: rollout(net, gumbel, *some, slots=slots),
            "static": lambda: rollout(net, Hard(), *some, slots=slots, static=True),
            "full_mix": lambda: rollout(net, Gaussian(0.5, 0.01), *some, slots=slots),
            "generate": lambda: generate(net, *some, rows=slots),
            "group": lambda: rollout(net, gumbel, long, [16] * 8, slots=8),
            "plain": lambda: rollout(net, gumbel, long, [16] * 8, slots=8, share_prompts=False),
        }
        seconds = interleaved(rivals, options.repeats)
        print(json.dumps({name: round(value, 2) for name, value in seconds.items()}), flush=True)
        results |= {
            "soft_vs_hard_tokens_per_second": seconds["hard"] / seconds["soft"],
            "engine_vs_generate": seconds["generate"] / seconds["hard"],
            "refill_vs_static": seconds["static"] / seconds["hard"],
            "group_prefill_vs_plain": seconds["plain"] / seconds["group"],
            "full_vocabulary_mix_vs_topk": seconds["soft"] / seconds["full_mix"],
            "soft_tokens_per_second": sum(some[1]) / seconds["soft"],
        }
        results["record_us_per_token"] = record_microseconds()

        noise = KeyedNoise(0, 0, torch.arange(slots), torch.arange(slots))
        ids = torch.randint(0, V, (slots, 10))
        spent = []
        for _ in range(200):
            start = time.perf_counter()
            noise.gumbel(ids)
            spent.append(time.perf_counter() - start)
        step = seconds["soft"] / (sum(some[1]) / slots)
        results["noise_share_of_a_step"] = statistics.median(spent) / step

        def many(times: int, first: int) -> float:
            """Tokens a second of so many times the samples, the first of them `first` long."""
            count, start = times * options.samples, time.perf_counter()
            drawn = rollout(net, gumbel, prompts[:count], [first, *lengths[1:count]], slots=slots)
            return drawn / (time.perf_counter() - start)

        speeds = {times: many(times, lengths[0]) for times in (1, 2, 4, 8)}
        results["growth"] = {times: speed / speeds[1] for times, speed in speeds.items()}
        # With a longest sample that is the same, so that the slots are as long at every number of samples.
        results["memory_at_8x"] = peak(lambda: many(8, CAP)) / peak(lambda: many(1, CAP))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
