# SPDX-License-Identifier: Apache-2.0
"""Make the quickstart's tiny reasoner from nothing: a character tokenizer and a Qwen2 model of 243k parameters.

The model learns from the sloppy student of `task.py` until it knows the single operations by heart and copies the
student's bad habit of merging them. The script ends with the model's accuracy on `test.jsonl`, which it never trains on.

    python examples/quickstart/pretrain.py --output_dir examples/quickstart/reasoner

`--operators` and `--modulus` make the reasoner of another task of the same family.

On one machine the same arguments give the same `model.safetensors`, bit for bit (sha256 of repeated runs compared). No
second kind of processor was tried. A processor that rounds differently makes other weights. Then only the accuracies can
agree, within the precision of 200 questions (one standard error of the greedy accuracy is 0.035).
"""

import argparse
import json
import random
from pathlib import Path

import torch
from task import HERE, OPERATIONS, Task
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import trange
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    get_cosine_schedule_with_warmup,
)


SPECIAL_TOKENS = ["<pad>", "<eos>", "<|user|>", "<|assistant|>"]
THINK_TOKENS = ["<think>", "</think>"]
CHARACTERS = "0123456789+-=;"  # further operators of a task come after them

# The generation prompt opens the thought, so a completion is `thought</think>answer<eos>`.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"
)

BATCH_SIZE = 64
LEARNING_RATE = 2e-3
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.1
WARMUP_STEPS = 50
LONGEST_COMPLETION = 64  # in tokens; a thought with no merged step takes at most 42


def make_tokenizer(task: Task) -> PreTrainedTokenizerFast:
    """One token a character, and no unknown token: text outside the task's alphabet is an error."""
    characters = CHARACTERS + "".join(sign for sign in task.operators if sign not in CHARACTERS)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *THINK_TOKENS, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()  # joins without blanks
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    # As in Qwen3 these are not special, so that `skip_special_tokens=True` leaves the end of the thought in the text.
    backend.add_tokens([AddedToken(token, special=False) for token in THINK_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A float32 Qwen2 with random weights from torch's global generator, which is the one transformers draws from."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def make_prompt(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """`<|user|>question<|assistant|><think>`."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def make_batch(
    tokenizer: PreTrainedTokenizerFast, task: Task, rng: random.Random, held_out: set[str]
) -> dict[str, torch.Tensor]:
    """Fresh demonstrations as `input_ids`, `attention_mask`, `labels`, each (B, L); only completions have labels."""
    prompts, completions = [], []
    while len(prompts) < BATCH_SIZE:
        question = task.make_question(rng)
        if question not in held_out:
            thought, answer = task.demonstrate(question, rng)
            prompts.append(make_prompt(tokenizer, question))
            completions.append(f"{thought}</think>{answer}<eos>")
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    for row, completion in zip(labels, tokenizer(completions)["input_ids"], strict=True):
        row[: -len(completion)] = -100  # padding is on the left: the completion is the end of the row
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    steps: int,
    seed: int,
    held_out: set[str],
) -> None:
    """Supervised training on the student's demonstrations, a fresh batch a step."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    scheduler = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    model.train()
    progress = trange(steps, desc="pretrain")
    for _ in progress:
        loss = model(**make_batch(tokenizer, task, rng, held_out)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def count_correct(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict], **generate_kwargs):
    """How many of the samples drawn for each row end in its answer: (rows,)."""
    model.eval()
    prompts = [make_prompt(tokenizer, row["question"]) for row in rows]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=LONGEST_COMPLETION, **generate_kwargs)
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    samples = len(texts) // len(rows)
    correct = [text.rpartition("</think>")[2] == rows[i // samples]["answer"] for i, text in enumerate(texts)]
    return torch.tensor(correct).view(len(rows), samples).sum(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the quickstart's tiny reasoner from nothing.")
    parser.add_argument("--output_dir", type=Path, default=HERE / "reasoner", help="where to save model and tokenizer")
    parser.add_argument("--operators", default=Task.operators, help=f"of the task, some of {' '.join(OPERATIONS)}")
    parser.add_argument("--modulus", type=int, help="of the task's running values; unset: they are sums up to 19")
    parser.add_argument(
        "--held_out",
        type=Path,
        nargs="+",
        default=[HERE / "test.jsonl"],
        help="files of questions that are never trained on; the accuracy is that on the first",
    )
    parser.add_argument("--steps", type=int, default=1200, help="supervised steps of 64 demonstrations")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights, the demonstrations and the samples")
    args = parser.parse_args()

    task = Task(operators=args.operators, modulus=args.modulus)
    test, *others = ([json.loads(line) for line in path.read_text().splitlines()] for path in args.held_out)
    held_out = {row["question"] for rows in (test, *others) for row in rows}
    # One thread: sums are then taken in the same order on any number of cores.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(task)
    model = make_model(tokenizer)
    train(model, tokenizer, task, args.steps, args.seed, held_out)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)

    greedy = count_correct(model, tokenizer, test, do_sample=False)
    sampled = count_correct(model, tokenizer, test, do_sample=True, temperature=1.0, top_k=0, num_return_sequences=16)
    print(f"greedy {(greedy > 0).float().mean():.3f}")
    print(
        f"sampled at temperature 1: pass@1 {sampled.float().mean() / 16:.3f}, pass@16 {(sampled > 0).float().mean():.3f}"
    )


if __name__ == "__main__":
    main()
