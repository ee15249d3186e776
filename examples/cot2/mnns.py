# SPDX-License-Identifier: Apache-2.0
"""CoT2's task and the model that its reinforcement learning begins with (arXiv 2505.23648): data, tokenizer and a tiny GPT-2.

The task is the minimum non-negative sum. Of the 2^4 sums +-d1 +-d2 +-d3 +-d4 of four digits from 1 to 9, the answer is the
smallest that is not negative: `D5 D3 D2 D4` has the answer `S0`, from 5 - 3 + 2 - 4. Before it the model thinks three steps.

The model learns continuous thoughts by supervision (CSFT). At step t the target is q_t, the distribution of the partial sums
of t digits over all 2^t signs, and the input of the next step is the mixture of the target's embeddings:

    loss = sum_t KL(q_t || p_t) - log p(answer),   next input = sum_v q_t(v) e_v

    python examples/cot2/mnns.py --output_dir outputs/cot2/mnns

The settings are those of the released code, alperengozeten/CoT2: data/generate_data.py, train/continuous_train.py and
scripts/grpo_evaluation.sh. Here `</think>` stands between the thought and the answer, where there it has no mark.
"""

import argparse
import itertools
import json
import random
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tqdm import trange
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


LENGTH = 4  # digits of a question
DIGITS = range(1, 10)
LARGEST = 36  # of a sum
TRAIN_SHARE = 0.8
WIDTH = 32
BATCH_SIZE = 16
EPOCHS = 500
LEARNING_RATE = 1e-4


def signed_sums(digits: tuple[int, ...]) -> list[int]:
    """The sums of the digits under all signs, 2^n of them."""
    return [
        sum(s * d for s, d in zip(signs, digits, strict=True))
        for signs in itertools.product((1, -1), repeat=len(digits))
    ]


def solve(digits: tuple[int, ...]) -> int:
    """The smallest sum that is not negative."""
    return min(total for total in signed_sums(digits) if total >= 0)


def split(seed: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Questions to train on and to test on. The orders of the same digits are all in one of them."""
    groups = defaultdict(list)
    for digits in itertools.product(DIGITS, repeat=LENGTH):
        groups[tuple(sorted(digits))].append(digits)
    keys = list(groups)
    random.Random(seed).shuffle(keys)
    cut = int(TRAIN_SHARE * len(keys))
    return [d for key in keys[:cut] for d in groups[key]], [d for key in keys[cut:] for d in groups[key]]


def write_rows(path: Path, questions: list[tuple[int, ...]]) -> None:
    """Write one `{"question": "D5 D3 D2 D4", "answer": "S0"}` a line."""
    rows = [{"question": " ".join(f"D{d}" for d in digits), "answer": f"S{solve(digits)}"} for digits in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word. A text begins with `<bos>`, and there is no chat template."""
    words = ["<pad>", "<bos>", "<eos>", "</think>"]
    words += [f"D{digit}" for digit in range(10)] + [f"S{total}" for total in range(-LARGEST, LARGEST + 1)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    backend.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    backend.add_tokens([AddedToken("</think>", special=False)])  # it stays in the text, where rewards look for it
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 of one layer and one head with random weights."""
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=WIDTH, n_layer=1, n_head=1, dtype="float32", **ends
    )
    model = GPT2LMHeadModel(config)
    model.generation_config = GenerationConfig(**ends)
    return model


def targets(digits: tuple[int, ...], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """q_t of the steps that think, (3, V)."""
    q = torch.zeros(LENGTH - 1, len(tokenizer))
    for step in range(LENGTH - 1):
        sums = signed_sums(digits[: step + 1])
        for total in sums:
            q[step, tokenizer.convert_tokens_to_ids(f"S{total}")] += 1 / len(sums)
    return q


def loss_of(model: GPT2LMHeadModel, prompts, q, answers, close: int) -> torch.Tensor:
    """The loss of `prompts` (B, 5), `q` (B, 3, V) and `answers` (B,): KL at the steps that think, cross-entropy at the answer."""
    table = model.get_input_embeddings()
    closing = table(torch.full_like(answers, close)).unsqueeze(1)
    inputs = torch.cat([table(prompts), q @ table.weight, closing], dim=1)
    log_p = model(inputs_embeds=inputs).logits.log_softmax(-1)
    steps = log_p[:, prompts.size(1) - 1 : prompts.size(1) - 1 + q.size(1)]
    kl = torch.nn.functional.kl_div(steps, q, reduction="none").sum(-1).sum(-1)
    return (kl - log_p[:, -1].gather(-1, answers.unsqueeze(-1)).squeeze(-1)).mean()


def train(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, questions, epochs: int, seed: int) -> None:
    """Supervised training on all questions, in another order in each epoch."""
    texts = [" ".join(f"D{d}" for d in digits) for digits in questions]
    prompts = tokenizer(texts, return_tensors="pt")["input_ids"]
    q = torch.stack([targets(digits, tokenizer) for digits in questions])
    answers = torch.tensor(tokenizer.convert_tokens_to_ids([f"S{solve(digits)}" for digits in questions]))
    close = tokenizer.convert_tokens_to_ids("</think>")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    progress = trange(epochs, desc="CSFT")
    for _ in progress:
        for rows in torch.randperm(len(questions), generator=generator).split(BATCH_SIZE):
            loss = loss_of(model, prompts[rows], q[rows], answers[rows], close)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make CoT2's data and the model that its reinforcement learning begins with."
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/cot2/mnns"), help="where to save data and model"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of supervised training")
    parser.add_argument("--seed", type=int, default=42, help="seed of the split, the weights and the order")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    training, test = split(args.seed)
    write_rows(args.output_dir / "train.jsonl", training)
    write_rows(args.output_dir / "test.jsonl", test)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, training, args.epochs, args.seed)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"{len(training)} questions to train on, {len(test)} to test on, and the model: {args.output_dir}")


if __name__ == "__main__":
    main()
