# SPDX-License-Identifier: Apache-2.0
"""What scoring and feeding thoughts cost in the update, against the naive way and against TRL's own head.

    python benchmarks/update.py [--vocabulary 32000 152000] [--repeats 3]

Prints one JSON object last. All figures are ratios inside this run, float32, forward and backward:

    scoring_time_vs_naive, scoring_peak_vs_naive   log p of K candidates over the whole vocabulary, and its entropy,
                                                   against log_softmax of N x V logits and a gather
    scoring_time_vs_trl_k1                         the same against TRL's fused head, which scores one candidate
    gumbel_at_ids_vs_trl_k1                        log p renormalised on the K candidates, against the same head
    soft_input_vs_onehot                           a mixture of K rows, against a weighted one-hot times the table
    step_time_vs_hard, step_peak_vs_hard           loss and backward of a gumbel batch against plain GRPOTrainer's
"""

import argparse
import json
import tempfile

import torch
from datasets import Dataset
from measure import interleaved, peak
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import ChunkedLogProbFunction

from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftTokens
from trl_soft.thoughts import Gumbel
from trl_soft.vocabulary.embedding_table import Lookup
from trl_soft.vocabulary.head_logits import HeadLogits, entropy_of


N, H, K = 2048, 512, 10
TRL_TILE = 32768


def scoring(vocabulary: int, repeats: int) -> dict[str, float]:
    """K log-probabilities a position, and one mixture of K rows a position."""
    torch.manual_seed(0)
    head, embedding = nn.Linear(H, vocabulary, bias=False), nn.Embedding(vocabulary, H)
    hidden = torch.randn(N, H, requires_grad=True)
    ids = torch.randint(0, vocabulary, (N, K))
    weights = torch.softmax(torch.randn(N, K), -1)
    grad = torch.randn(N, K)
    lazy, lookup = HeadLogits(hidden, head, embedding), Lookup(embedding)

    def backward(loss):
        loss.backward()
        hidden.grad = head.weight.grad = embedding.weight.grad = None

    def naive():
        log_p = torch.log_softmax(hidden @ head.weight.T, -1)
        backward((log_p.gather(-1, ids) * grad).sum() + entropy_of(log_p).sum())

    def ours():
        log_p, entropy = lazy.log_prob(ids, 1.0)
        backward((log_p * grad).sum() + entropy.sum())

    def trl_one():
        log_p, entropy, *_ = ChunkedLogProbFunction.apply(
            hidden, head.weight, None, ids[:, 0], 1.0, TRL_TILE, None, 1.0, ("log_probs", "entropy")
        )
        backward((log_p * grad[:, 0]).sum() + entropy.sum())

    def at_ids():
        log_p = torch.log_softmax(lazy.at(ids), -1)
        backward((log_p * grad).sum() + entropy_of(log_p).sum())

    def mixed():
        backward(lookup.mix(weights, ids).square().sum())

    def one_hot():
        dense = torch.zeros(N, vocabulary).scatter_(-1, ids, weights)
        backward((dense @ embedding.weight).square().sum())

    functions = {f.__name__: f for f in (naive, ours, trl_one, at_ids, mixed, one_hot)}
    seconds = interleaved(functions, repeats)
    return {
        "scoring_time_vs_naive": seconds["ours"] / seconds["naive"],
        "scoring_peak_vs_naive": peak(ours) / peak(naive),
        "scoring_time_vs_trl_k1": seconds["ours"] / seconds["trl_one"],
        "gumbel_at_ids_vs_trl_k1": seconds["at_ids"] / seconds["trl_one"],
        "soft_input_vs_onehot": seconds["mixed"] / seconds["one_hot"],
    }


class _Tokenizer:
    """Just enough vocabulary for a trainer that is handed finished batches."""

    def __new__(cls, vocabulary: int):
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        words = {"<pad>": 0, "<eos>": 1, "</think>": 2, "a": 3}
        core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")


def whole_step(vocabulary: int, repeats: int) -> dict[str, float]:
    """Loss and backward of one batch: 8 completions of 256 tokens, 192 of them thoughts."""
    B, P, C, thoughts = 8, 32, 256, 192
    torch.manual_seed(0)
    batch = {
        "prompt_ids": torch.randint(3, vocabulary, (B, P)),
        "prompt_mask": torch.ones(B, P, dtype=torch.long),
        "completion_ids": torch.randint(3, vocabulary, (B, C)),
        "completion_mask": torch.ones(B, C, dtype=torch.long),
        "advantages": torch.randn(B),
        "num_items_in_batch": torch.tensor(B * C),
    }
    thinking = torch.zeros(B, C, dtype=torch.bool)
    thinking[:, :thoughts] = True
    perturbed = torch.randn(B, C, K)
    action = {"ids": torch.randint(3, vocabulary, (B, C, K)), "perturbed": perturbed}
    action |= {"kept": torch.ones_like(perturbed, dtype=torch.bool), "closed": torch.zeros_like(thinking)}
    record = SoftTokens(Gumbel(top_k=K), thinking, action, torch.zeros(B, C))
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = Qwen2Config(vocab_size=vocabulary, num_hidden_layers=4, **shape)
    rows = Dataset.from_dict({"prompt": ["a"] * 8})
    options = {"bf16": False, "use_cpu": True, "report_to": "none", "max_completion_length": C}
    options |= {"gradient_checkpointing": False, "per_device_train_batch_size": 8, "num_generations": 8}
    steps = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, trainer_class, settings in (
            ("hard", GRPOTrainer, GRPOConfig(folder, **options)),
            ("soft", SoftGRPOTrainer, SoftGRPOConfig(folder, thought="gumbel", thinking_top_k=K, **options)),
        ):
            torch.manual_seed(0)
            model = Qwen2ForCausalLM(config)
            trainer = trainer_class(
                model,
                lambda completions, **k: [0.0] * len(completions),
                settings,
                rows,
                processing_class=_Tokenizer(0),
            )
            trainer.current_gradient_accumulation_steps = 1
            model.train()
            inputs = batch | record.to_batch() if name == "soft" else batch

            def step(trainer=trainer, model=model, inputs=inputs):
                trainer._compute_loss(model, inputs).backward()
                model.zero_grad()

            steps[name] = step
        seconds = interleaved(steps, repeats)
        return {
            "step_time_vs_hard": seconds["soft"] / seconds["hard"],
            "step_peak_vs_hard": peak(steps["soft"]) / peak(steps["hard"]),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 152_000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results: dict = {"threads": torch.get_num_threads(), "N": N, "H": H, "K": K}
    for vocabulary in options.vocabulary:
        results[f"V={vocabulary}"] = scoring(vocabulary, options.repeats)
        print(json.dumps(results[f"V={vocabulary}"]))
    results[f"step at V={options.vocabulary[-1]}"] = whole_step(options.vocabulary[-1], options.repeats)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
