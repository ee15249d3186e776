# SPDX-License-Identifier: Apache-2.0
"""How a training step grows: with the length of completions, with K, with the group, and with the vocabulary.

    python benchmarks/scale.py [--lengths 256 512 1024 2048 4096 8192] [--repeats 1]

Loss, backward, clipping and AdamW of a real SoftGRPOTrainer, on one finished batch of one completion (a group of them in
`group`), its last 32 tokens an answer and the rest gumbel thoughts (K = 5) but where said; a rollout is timed by itself. A
random Llama of two layers (H = 128, float32, no checkpointing). Peak is what torch's operations hold above weights and
optimiser states (`measure.Held`); seconds are the processor's, of runs without it. Run it on one thread
(OMP_NUM_THREADS=1), or the threads' waiting counts. Prints one JSON object last:

    length          seconds, peak (bytes) and the same over those of half the length; `attention_share` is the computed
                    share of attention's products in the shorter step's, and `bound` 2 (1 + share): all linear but attention
    padded          the peak where a token of the prompt is padding, so that attention takes a mask: `mask` is a float for
                    each pair of tokens and layer, which sdpa keeps for the backward
    rows            seconds and peak as the batch and not the length doubles: no attention there, so 2 is linear
    slope           bytes a token, by kind of thought and vocabulary, a line through the peaks of the lengths, and `ratio`
                    of the largest vocabulary's slope to the smallest's: 1 is no V x length
    separable       how far the peaks of all lengths and vocabularies are from a sum f(length) + g(V), as a share of them
    candidates      seconds and peak at K = 1, 5, 20, 80
    vocabulary      seconds and peak at V = 8,000 to 128,000
    rollout         seconds and peak by length, 4 slots
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from ends import Never
from measure import Held
from memory import model_config, shape, tokenizer
from transformers import AutoModelForCausalLM

from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftTokens
from trl_soft.forward import soft_tokens_added
from trl_soft.rollout import ENGINES, EngineOptions, Key, Plan, StopRule, assemble
from trl_soft.thoughts import Gumbel, Hard


H, F, LAYERS, HEADS, PROMPT, ANSWER, K = 128, 384, 2, 2, 32, 32, 5
VOCABULARIES = (8_000, 32_000)


def net(vocabulary: int):
    torch.manual_seed(0)
    values = shape("llama", vocabulary, H, F, LAYERS, HEADS, HEADS, tied=True)
    return AutoModelForCausalLM.from_config(model_config(values | {"max_position_embeddings": 16_384}))


def attention_share(length: int, vocabulary: int) -> float:
    """Of all multiplications of a forward, those of scores and of their sums: 2 S^2 H a layer, halved by causality."""
    tokens = PROMPT + length
    layer = tokens * (4 * H * H + 3 * H * F)
    scores = tokens**2 * H
    head = (ANSWER * vocabulary + (length - ANSWER) * K) * H
    return LAYERS * scores / (LAYERS * (layer + scores) + head)


class Step:
    """A trainer with a batch of `rows` completions of one length, and one optimiser step behind it."""

    def __init__(
        self, length: int, vocabulary: int = VOCABULARIES[0], thought: str = "gumbel", k: int = K, rows: int = 1
    ):
        self.rows = rows
        self.folder = tempfile.TemporaryDirectory()
        settings: dict = {"thinking_top_k": k} if thought == "gumbel" else {}
        if thought != "hard":
            settings["max_thinking_length"] = length - ANSWER
        args = SoftGRPOConfig(
            self.folder.name, thought=thought, bf16=False, use_cpu=True, report_to="none", max_completion_length=length,
            gradient_checkpointing=False, per_device_train_batch_size=2 * rows, num_generations=2, max_steps=1, **settings,
        )  # fmt: skip
        dataset = Dataset.from_dict({"prompt": ["a"] * 4 * rows})
        self.trainer = SoftGRPOTrainer(
            net(vocabulary), lambda completion_ids, **_: [0.0] * len(completion_ids), args, dataset,
            processing_class=tokenizer(),
        )  # fmt: skip
        self.model = self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.create_optimizer()
        self.inputs = self._batch(length, vocabulary, thought, k)
        self.run()

    def _batch(self, length: int, vocabulary: int, thought: str, k: int) -> dict:
        B = self.rows
        thinking = torch.zeros(B, length, dtype=torch.bool)
        if thought != "hard":
            thinking[:, :-ANSWER] = True
        action = {"ids": torch.randint(3, vocabulary, (B, length, k), dtype=torch.int32)}
        if thought == "gaussian":
            action = {"embedding": torch.randn(B, length, H) * 0.02}
        elif thought == "gumbel":
            action |= {"perturbed": torch.randn(B, length, k), "kept": torch.ones(B, length, k, dtype=torch.bool)}
            action["closed"] = torch.zeros(B, length, dtype=torch.bool)
        else:
            action = {"ids": torch.zeros(B, length, dtype=torch.long)}
        record = SoftTokens(self.trainer._plans["train"].thought, thinking, action, torch.zeros(B, length))
        return {
            "prompt_ids": torch.randint(3, vocabulary, (B, PROMPT)),
            "prompt_mask": torch.ones(B, PROMPT, dtype=torch.long),
            "completion_ids": torch.randint(3, vocabulary, (B, length)),
            "completion_mask": torch.ones(B, length, dtype=torch.long),
            "advantages": torch.randn(B),
            "num_items_in_batch": torch.tensor(B * length),
        } | record.to_batch()

    def run(self) -> None:
        self.trainer._compute_loss(self.model, self.inputs).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()

    def peak(self) -> int:
        """Most bytes above what was there, weights, optimiser states and the batch."""
        with Held() as held:
            self.run()
        return held.most[""]

    def seconds(self, repeats: int) -> float:
        times = []
        for _ in range(repeats):
            start = time.process_time()
            self.run()
            times.append(time.process_time() - start)
        return statistics.median(times)

    def figures(self, repeats: int) -> dict[str, float]:
        found = {"seconds": self.seconds(repeats), "peak": self.peak()}
        self.folder.cleanup()
        return found


def slope(peaks: dict[int, int]) -> float:
    """Least squares, bytes a token."""
    x, y = list(peaks), list(peaks.values())
    return statistics.linear_regression(x, y).slope


def separable(peaks: dict[int, dict[int, int]]) -> float:
    """Largest |peak - f(length) - g(V)| over the peak, f and g the means of rows and columns."""
    rows = {v: statistics.mean(of.values()) for v, of in peaks.items()}
    lengths = list(next(iter(peaks.values())))
    columns = {length: statistics.mean(of[length] for of in peaks.values()) for length in lengths}
    mean = statistics.mean(rows.values())
    return max(
        abs(peaks[v][length] - rows[v] - columns[length] + mean) / peaks[v][length]
        for v in peaks
        for length in lengths
    )


@torch.no_grad()
def rollout(length: int, slots: int = 4) -> dict[str, float]:
    model = net(VOCABULARIES[0]).eval()
    prompts = [[3] * PROMPT] * slots
    plan = Plan(Gumbel(top_k=K), Hard(), StopRule(Never()), length, eos_token_ids=[], pad_token_id=0)  # type: ignore[arg-type]

    def run():
        key = Key(0, 0, torch.arange(slots))
        with soft_tokens_added(model):
            assemble(ENGINES["slots"](model, prompts, plan, key, EngineOptions(slots)), slots, plan)

    start = time.process_time()
    run()
    return {"seconds": time.process_time() - start}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    lengths, repeats, base = options.lengths, options.repeats, VOCABULARIES[0]
    results: dict = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    results["model"] = {
        "H": H,
        "F": F,
        "layers": LAYERS,
        "heads": HEADS,
        "V": base,
        "prompt": PROMPT,
        "answer": ANSWER,
    }

    def note(name: str, value) -> None:
        results[name] = value
        print(name, json.dumps(value), flush=True)

    steps: dict[int, dict] = {}
    for length in lengths:
        steps[length] = Step(length).figures(repeats)
        half = steps.get(length // 2)
        if half is not None:
            share = attention_share(length // 2, base)
            steps[length] |= {
                name: steps[length][key] / half[key]
                for name, key in (("time_ratio", "seconds"), ("peak_ratio", "peak"))
            }
            steps[length] |= {"attention_share": share, "bound": 2 * (1 + share)}
        print(length, json.dumps(steps[length]), flush=True)
    note("length", steps)
    padded = {}
    for length in lengths:
        step = Step(length)
        step.inputs["prompt_mask"][:, 0] = 0
        padded[length] = {"peak": step.peak(), "mask": 4 * LAYERS * (PROMPT + length) ** 2}
        padded[length]["without_mask"] = padded[length]["peak"] - padded[length]["mask"]
    note("padded", padded)
    note("rows", {rows: Step(512, rows=rows).figures(repeats) for rows in (1, 2, 4, 8)})

    by_kind: dict[str, dict] = {}
    for kind in ("gumbel", "gaussian", "hard"):
        # Tiles of logits fill up to some thousands of positions; a line is drawn where they are full.
        some = lengths if kind == "gumbel" else lengths[-2:]
        peaks = {v: {length: Step(length, v, kind).peak() for length in some} for v in VOCABULARIES}
        slopes = {v: slope(of) for v, of in peaks.items()}
        by_kind[kind] = {"peaks": peaks, "bytes_a_token": slopes, "ratio": slopes[VOCABULARIES[-1]] / slopes[base]}
        by_kind[kind]["separable_within"] = separable(peaks)
        print(kind, json.dumps(by_kind[kind]), flush=True)
    note("slope", by_kind)
    note("candidates", {k: Step(1024, k=k).figures(repeats) for k in (1, 5, 20, 80)})
    note("vocabulary", {v: Step(1024, v).figures(repeats) for v in (8_000, 32_000, 128_000)})
    note("rollout", {length: rollout(length) for length in lengths if length <= 1024})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
