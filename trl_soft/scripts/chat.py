# SPDX-License-Identifier: Apache-2.0
"""`trl-soft chat`: type a question, see the thought with its candidate tokens and weights, then the answer, as they are drawn."""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer

from .. import saved_settings
from ..command_line import DTYPES, CommandParser, model_at
from ..files import printable
from ..rollout.generate import SoftCompletions, prompt_ids, soft_generate
from ..rollout.streaming import SoftStep, SoftStreamer, WholeCharacters
from ..settings import ThinkingSettings


LENGTH = 1024


def load(path: str, dtype: str, device: str | None):
    """
    Model and tokenizer, on the device.

    Raises:
        OSError: if there is no such model. The message is one sentence.
    """
    with model_at(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"`--device` is {device}, which cannot be used here: {reason}. Leave it out.") from error


def settings_of(model, thought: str | None) -> ThinkingSettings:
    """The settings that the model was trained with, or another kind of thought with its defaults."""
    stored = saved_settings.of_model(model)
    if stored is None:
        return ThinkingSettings(thought=thought or "hard")
    return ThinkingSettings.of_stored(stored, "The model", **({} if thought is None else {"thought": thought}))


class Printer(SoftStreamer):
    """
    Prints a completion while it is drawn: one line for each step of the thought, then the answer.

    Args:
        tokenizer, console.
        candidates (`int`, *optional*): most candidate tokens to show of a step. `None`: the thought is not shown.

    Attributes:
        answer (`str`): the answer so far.
    """

    def __init__(self, tokenizer, console: Console, candidates: int | None):
        self.tokenizer, self.console, self.candidates = tokenizer, console, candidates
        self.answer = ""
        self._text = WholeCharacters(tokenizer, skip_special_tokens=True)
        self._steps, self._printed = 0, 0

    def put(self, value: torch.Tensor) -> None:
        """The prompt, which is not shown."""

    def put_step(self, step: SoftStep) -> None:
        text = self._text.put(step.token_id)
        if not step.thinking:
            self._write(text)
            return
        self._steps += 1
        if self.candidates is not None:
            self.console.print(self._line(step), soft_wrap=True)
        self._write(text[len(text) - step.surplus :] if step.surplus else "")

    def end(self) -> None:
        self._write(self._text.end())
        self.console.print(Text("" if self._printed else "(no answer)"))

    def stop(self) -> None:
        """Take the place of `end` in a completion that was stopped."""
        self.console.print(Text(f"{' ' if self._printed else ''}(stopped)", style="yellow"))

    def _line(self, step: SoftStep) -> Text:
        """
        A step's number, its token, and what that was made of: the heaviest candidates with their weights, or the probability of a
        token that was drawn. A step keeps no more of a hard draw: a rollout reads the other tokens and forgets them.
        """
        line = Text(f"{self._steps:4d}  ", style="dim")
        line.append(f"{self._shown(step.token_id):14}", style="bold cyan")
        if step.record.thinking_mask.any() and not step.record.thought.is_token:
            ids, weights = step.record.candidates(0)[0], step.record.weights(0)[0]
            order = weights.argsort(descending=True)[: self.candidates]
            pairs = [(int(ids[i]), float(weights[i])) for i in order if weights[i] > 0.0005]
        elif not step.record.forced_mask.any():
            pairs = [(step.token_id, math.exp(float(step.record.log_probs)))]
        else:
            pairs = []
        line.append("  ".join(f"{self._shown(token)} {share:.3f}" for token, share in pairs), style="dim")
        return line

    def _shown(self, token: int) -> str:
        """A token's text on one line, blanks included."""
        return printable(repr(self.tokenizer.decode([token]))[1:-1])

    def _write(self, text: str) -> None:
        """Print more of the answer. Blanks before it and after it are left out, so a blank waits for what follows."""
        self.answer = (self.answer + text).lstrip()
        whole = len(self.answer.rstrip())
        if whole > self._printed:
            more = self.answer[self._printed : whole]
            self.console.print(Text("\n".join(map(printable, more.split("\n")))), end="", soft_wrap=True)
            self._printed = whole


def room(model, prompt: int) -> int:
    """The longest completion of a prompt of so many tokens: `LENGTH`, or what its context leaves."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return LENGTH if context is None else max(min(LENGTH, context - prompt), 1)


def answer(
    model, tokenizer, messages: list[dict], settings: ThinkingSettings, options, seed: int, printer: Printer
) -> SoftCompletions:
    """One completion of a conversation, printed while it is drawn."""
    prompt: list[dict] | str = messages if tokenizer.chat_template else messages[-1]["content"]
    length = options.max_completion_length
    if length is None:
        length = room(model, len(prompt_ids(tokenizer, [prompt], None)[0]))
    return soft_generate(
        model, tokenizer, [prompt], settings,
        max_completion_length=length, temperature=options.temperature, top_p=options.top_p, top_k=options.top_k,
        seed=seed, streamer=printer,
    )  # fmt: skip


def converse(
    model, tokenizer, settings: ThinkingSettings, options, console: Console, questions: Iterator[str], typed: bool
) -> int:
    """
    Answer questions until there is none. Returns how many there were.

    Args:
        typed (`bool`): whether a person types the questions. Then an interrupt ends an answer, and not the conversation.
    """
    messages: list[dict] = []
    turn = -1
    for turn, question in enumerate(questions):
        asked = [*(messages if options.history else []), {"role": "user", "content": question}]
        printer = Printer(tokenizer, console, None if options.no_thought else options.candidates)
        try:
            out = answer(model, tokenizer, asked, settings, options, options.seed + turn, printer)
        except KeyboardInterrupt:
            printer.stop()
            if not typed:
                raise
        else:
            if out.thinking_cut[0]:
                console.print(Text(f"The thought was cut at {out.thinking_lengths[0]} tokens.", style="yellow"))
        # A stopped answer stays in the conversation as far as it was read. A question without an answer leaves it.
        if printer.answer:
            messages = [*asked, {"role": "assistant", "content": printer.answer.rstrip()}]
    return turn + 1


def _typed(console: Console) -> Iterator[str]:
    """Questions from the terminal, or the lines of standard input."""
    mark = "[bold green]> [/]" if sys.stdin.isatty() else ""
    while True:
        try:
            question = console.input(mark).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question:
            yield question


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        example="trl-soft chat outputs/quickstart/gumbel '3+2-3+9+2='",
        prog="trl-soft chat",
        description="Ask a question, see the thought and the answer as they are drawn. Without a question the command reads one from "
        "each line, typed or piped. Ctrl-C stops an answer. At the prompt it ends the conversation, as Ctrl-D does.",
    )
    parser.add_argument("model", help="path or hub id")
    parser.add_argument(
        "question",
        nargs="*",
        default=[],
        help="questions; without one, they are typed, or read from standard input line by line",
    )
    parser.add_argument("--thought", help="a kind of thought instead of the trained one; hard: ordinary tokens")
    parser.add_argument(
        "--candidates",
        type=int,
        default=5,
        help="candidate tokens to show of each soft step (default: 5). A hard step shows the drawn token's probability alone, because "
        "the other tokens are not kept; `trl-soft evaluate --candidates` and `trl-soft inspect` show them.",
    )
    parser.add_argument("--no_thought", action="store_true", help="show answers alone")
    parser.add_argument(
        "--history", action="store_true", help="keep earlier questions and answers in the conversation"
    )
    parser.add_argument(
        "--max_completion_length",
        type=int,
        help=f"cap of thought and answer together (default: {LENGTH}, or the room in the model's context)",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of the answer (default: 1.0)")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto", choices=DTYPES)
    parser.add_argument("--device", help="device (default: CUDA if there is one)")
    options = parser.parse_intermixed_args(argv)
    model, tokenizer = load(options.model, options.dtype, options.device)
    console = Console(highlight=False)
    settings = settings_of(model, options.thought)
    questions = iter(options.question) if options.question else _typed(console)
    typed = not options.question and sys.stdin.isatty()
    if not converse(model, tokenizer, settings, options, console, questions, typed) and not typed:
        raise ValueError(
            "No question was given, and standard input has none. Give one after the model, pipe one in each line, or start the "
            "command in a terminal and type."
        )
