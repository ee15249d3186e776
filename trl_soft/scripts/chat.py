# SPDX-License-Identifier: Apache-2.0
"""`trl-soft chat`: type a question, see the thought with its candidate tokens and weights, then the answer."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer

from .. import saved_settings
from ..command_line import model_at
from ..files import printable
from ..rollout.generate import SoftCompletions, soft_generate
from ..settings import ThinkingSettings


def load(path: str, dtype: str, device: str | None):
    """
    Model and tokenizer, on the device.

    Raises:
        OSError: if there is no such model. The message is one sentence.
    """
    with model_at(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def settings_of(model, thought: str | None) -> ThinkingSettings:
    """The settings that the model was trained with, or another kind of thought with its defaults."""
    stored = saved_settings.of_model(model)
    if stored is None:
        return ThinkingSettings(thought=thought or "hard")
    return ThinkingSettings.of_stored(stored, "The model", **({} if thought is None else {"thought": thought}))


def thought_lines(out: SoftCompletions, tokenizer, most: int) -> Iterator[Text]:
    """One line for each step of the thought: its shadow token, and its heaviest candidate tokens with their weights."""
    record, ids = out.records[0], out.completion_ids[0]
    for step in range(out.thinking_lengths[0]):
        line = Text(f"{step + 1:4d}  ", style="dim")
        line.append(f"{_shown(tokenizer, ids[step]):14}", style="bold cyan")
        action = {name: value[0, step : step + 1] for name, value in record.action.items()}
        weights = record.thought.weights(action) if record.thinking_mask[0, step] else None
        if weights is not None and "ids" in action:
            order = weights[0].argsort(descending=True)[:most]
            pairs = [(int(action["ids"][0, i]), float(weights[0, i])) for i in order if weights[0, i] > 0.0005]
            line.append("  ".join(f"{_shown(tokenizer, token)} {weight:.3f}" for token, weight in pairs), style="dim")
        yield line


def _shown(tokenizer, token: int) -> str:
    """A token's text on one line, blanks included."""
    return printable(repr(tokenizer.decode([token]))[1:-1])


def answer(model, tokenizer, messages: list[dict], settings: ThinkingSettings, options, seed: int) -> SoftCompletions:
    """One completion of a conversation."""
    prompt: list[dict] | str = messages if tokenizer.chat_template else messages[-1]["content"]
    return soft_generate(
        model, tokenizer, [prompt], settings,
        max_completion_length=options.max_completion_length, temperature=options.temperature, top_p=options.top_p, top_k=options.top_k,
        seed=seed, progress=False,
    )  # fmt: skip


def converse(
    model, tokenizer, settings: ThinkingSettings, options, console: Console, questions: Iterator[str]
) -> None:
    """Answer questions until there is none."""
    messages: list[dict] = []
    for turn, question in enumerate(questions):
        messages = (
            [*messages, {"role": "user", "content": question}]
            if options.history
            else [{"role": "user", "content": question}]
        )
        out = answer(model, tokenizer, messages, settings, options, options.seed + turn)
        if not options.no_thought:
            for line in thought_lines(out, tokenizer, options.candidates):
                console.print(line)
        thought = out.thinking_lengths[0]
        text = tokenizer.decode(out.completion_ids[0][thought:], skip_special_tokens=True)
        lines = "\n".join(map(printable, text.strip().splitlines()))
        console.print(Text(lines or "(no answer)"))
        if out.thinking_cut[0]:
            console.print(Text(f"The thought was cut at {thought} tokens.", style="yellow"))
        messages = [*messages, {"role": "assistant", "content": text}]


def _typed(console: Console) -> Iterator[str]:
    while True:
        try:
            question = console.input("[bold green]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question:
            yield question


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("trl-soft chat", description="Type a question, see the thought and the answer.")
    parser.add_argument("model", help="path or hub id")
    parser.add_argument("question", nargs="*", help="questions; without one, they are typed")
    parser.add_argument("--thought", help="a kind of thought instead of the trained one; hard: ordinary tokens")
    parser.add_argument("--candidates", type=int, default=5, help="candidate tokens to show of each step (default: 5)")
    parser.add_argument("--no_thought", action="store_true", help="show answers alone")
    parser.add_argument(
        "--history", action="store_true", help="keep earlier questions and answers in the conversation"
    )
    parser.add_argument("--max_completion_length", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of the answer (default: 1.0)")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", help="device (default: CUDA if there is one)")
    options = parser.parse_args(argv)
    model, tokenizer = load(options.model, options.dtype, options.device)
    console = Console(highlight=False)
    settings = settings_of(model, options.thought)
    converse(
        model, tokenizer, settings, options, console, iter(options.question) if options.question else _typed(console)
    )
