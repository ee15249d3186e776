# SPDX-License-Identifier: Apache-2.0
"""What a rollout in the trainer costs, by the weights it runs on. Needs a CUDA device; `--tiny` runs it anywhere, to see it run.

    python benchmarks/gpu_trainer.py [--slots 256] [--tokens 256] [--repeats 3] [--tiny]

A `SoftGRPOTrainer` with `bf16: true` on a random model of the shape of Qwen2.5-0.5B; completions of gumbel thoughts (K = 5) and
tokens that do not end before their cap. Three trainers take turns:

    masters        float32 weights, `rollout_dtype: training`: autocast casts them at every token
    copy           float32 weights, `rollout_dtype: bfloat16`: cast once a rollout
    bf16_weights   the model in bfloat16, without a copy: what an engine can do

Prints one JSON object last: tokens a second of each; `copy_vs_masters` and `copy_vs_bf16_weights`, ratios of those; `copy_seconds`,
what making the copy takes, and its `copy_share_of_rollout`; `correction_seconds`, the forward that TRL's correction needs
for the same batch, and the ratio of a rollout on the masters to one on the copy with the correction, `copy_and_correction_vs_masters`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time

import torch
from datasets import Dataset
from memory import tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_soft import SoftGRPOConfig, SoftGRPOTrainer
from trl_soft.rollout.weights import weights_in
from trl_soft.training.in_flight import Phase


KINDS = ("masters", "copy", "bf16_weights")
QWEN = {
    "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def build(kind: str, options, folder: str) -> SoftGRPOTrainer:
    """A trainer that is ready to roll out, as `train()` would have it."""
    torch.manual_seed(0)
    device = "cpu" if options.tiny else "cuda"
    config = Qwen2Config(tie_word_embeddings=True, max_position_embeddings=32_768, **(TINY if options.tiny else QWEN))
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
        if kind == "bf16_weights":
            model = model.to(torch.bfloat16)
    with torch.no_grad():
        # What could end a thought or a completion is as unlikely as a token can be made.
        model.get_output_embeddings().weight[:3] = 0
    args = SoftGRPOConfig(
        folder,
        thought="gumbel",
        bf16=True,
        use_cpu=options.tiny,
        rollout_dtype="bfloat16" if kind == "copy" else "training",
        max_completion_length=options.tokens,
        max_thinking_length=options.tokens * 7 // 8,
        per_device_train_batch_size=options.slots,
        num_generations=8,
        gradient_checkpointing=False,
        report_to="none",
    )
    rows = Dataset.from_dict({"prompt": ["aaaa"] * options.slots})
    trainer = SoftGRPOTrainer(
        model, lambda completion_ids, **kwargs: [0.0] * len(completion_ids), args, rows, processing_class=tokenizer()
    )
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
    return trainer


def timed(function) -> tuple[float, object]:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = function()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def rollout(trainer, options) -> tuple[float, float]:
    """Tokens a second of one rollout, and its seconds."""
    prompts = [[3] * 128 for _ in range(options.slots)]
    with trainer._flying(Phase.ROLLOUT):
        seconds, (ids, _) = timed(lambda: trainer._generate_single_turn(prompts, None, {}, 8))
    return sum(map(len, ids)) / seconds, seconds


def copying(trainer) -> float:
    def copy():
        with weights_in(trainer.model, torch.bfloat16):
            pass

    return statistics.median(timed(copy)[0] for _ in range(5))


@torch.no_grad()
def correction(trainer, options) -> float:
    """One forward without gradients over the batch, 32 rows at a time, scored as tokens: thoughts cost less."""
    length = 128 + options.tokens
    ids = torch.randint(3, trainer._vocab_size, (options.slots, length), device=trainer.accelerator.device)
    model, labels = trainer.model_wrapped, ids.clone()
    labels[:, :128] = -100

    def score():
        for start in range(0, options.slots, 32):
            part = slice(start, start + 32)
            model(input_ids=ids[part], labels=labels[part], fused_lm_head=True, use_cache=False)

    score()
    return timed(score)[0]


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: its figures say nothing")
    options = parser.parse_args(argv)
    options.slots = options.slots or (8 if options.tiny else 256)
    options.tokens = options.tokens or (16 if options.tiny else 256)
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("This benchmark measures a CUDA device and there is none. `--tiny` runs it on the CPU.")
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: build(kind, options, f"{folder}/{kind}") for kind in KINDS}
        speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(options.repeats + 1):
            for kind, trainer in trainers.items():
                speed, took = rollout(trainer, options)
                if turn:  # the first compiles and allocates
                    speeds[kind].append(speed)
                    seconds[kind].append(took)
        scored = correction(trainers["masters"], options)
        copied = copying(trainers["copy"])
    speed = {kind: statistics.median(values) for kind, values in speeds.items()}
    took = {kind: statistics.median(values) for kind, values in seconds.items()}
    results = {
        "device": "cpu" if options.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "slots": options.slots,
        "tokens_per_second": speed,
        "copy_vs_masters": speed["copy"] / speed["masters"],
        "copy_vs_bf16_weights": speed["copy"] / speed["bf16_weights"],
        "copy_seconds": copied,
        "copy_share_of_rollout": copied / took["copy"],
        "correction_seconds": scored,
        "copy_and_correction_vs_masters": took["masters"] / (took["copy"] + scored),
    }
    print(json.dumps(results))
    return results


if __name__ == "__main__":
    main()
