# SPDX-License-Identifier: Apache-2.0
"""A completion while it grows: each step as it is drawn, in whole characters, in Python and in `trl-soft chat`."""

import io
from argparse import Namespace

import pytest
import torch
from rich.console import Console
from transformers import TextStreamer

from tests import tiny
from tests.test_ends import byte_level
from tests.test_engine import C, plan
from trl_soft import SoftStep, SoftStreamer, SoftTokens, ThinkingSettings, soft_generate
from trl_soft.forward import soft_tokens_added
from trl_soft.rollout import ENGINES, EngineOptions, Key
from trl_soft.rollout.slots import Slots
from trl_soft.rollout.streaming import WholeCharacters
from trl_soft.scripts import chat


SETTINGS = ThinkingSettings(thought="gumbel", max_thinking_length=6)
OPTIONS = Namespace(
    history=False, no_thought=False, candidates=2, seed=0, max_completion_length=C, temperature=1.0, top_p=1.0, top_k=0
)


class Steps(SoftStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.prompts, self.steps, self.ends = [], [], 0

    def put(self, value):
        self.prompts.append(value)

    def put_step(self, step):
        self.steps.append(step)

    def end(self):
        self.ends += 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("end", ["</think>", "3"], ids=["token", "text"])
@pytest.mark.parametrize("thought", ["hard", "gumbel", "gaussian"])
def test_a_streamer_gets_what_is_returned(engine, end, thought):
    net, tokenizer = tiny.model(), tiny.tokenizer()
    settings = ThinkingSettings(thought=thought, max_thinking_length=6, end_of_thinking=end, answer_prefill=["=", "+"])
    answered = False
    for seed in range(4):
        streamer, options = Steps(), {"max_completion_length": C, "engine": engine, "seed": seed, "progress": False}
        out = soft_generate(net, tokenizer, ["1+2="], settings, streamer=streamer, **options)
        prompts, steps, length = (
            [value.tolist() for value in streamer.prompts],
            streamer.steps,
            out.thinking_lengths[0],
        )
        assert prompts == [[tokenizer("1+2=")["input_ids"]]] and streamer.ends == 1
        assert [step.token_id for step in steps] == out.completion_ids[0]
        assert [step.thinking for step in steps] == [t < length for t in range(len(steps))]
        assert [step.entropy for step in steps] == out.entropies[0]
        for name, value in out.records[0].action.items():
            assert torch.equal(torch.cat([step.record.action[name] for step in steps], 1), value)
        for name in ("thinking_mask", "forced_mask", "log_probs"):
            streamed = torch.cat([getattr(step.record, name) for step in steps], 1)
            assert torch.equal(streamed, getattr(out.records[0], name))
        silent = soft_generate(net, tokenizer, ["1+2="], settings, **options)
        assert silent.completion_ids == out.completion_ids and silent.log_probs == out.log_probs
        answered |= len(steps) > length
    assert answered


def test_a_step_is_seen_before_the_next_is_drawn(monkeypatch):
    streamer, drawn = Steps(), []
    draw = Slots.advance

    def advance(self, *args, **kwargs):
        drawn.append(len(streamer.steps))
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(Slots, "advance", advance)
    soft_generate(
        tiny.model(), tiny.tokenizer(), ["1+2="], SETTINGS, max_completion_length=C, streamer=streamer, progress=False
    )
    assert drawn == list(range(len(streamer.steps)))


def test_a_text_streamer_of_transformers(capsys):
    tokenizer = tiny.tokenizer()
    out = soft_generate(
        tiny.model(), tokenizer, ["1+2="], SETTINGS, max_completion_length=C, streamer=TextStreamer(tokenizer)
    )
    shown = capsys.readouterr()
    assert shown.out == "1+2=" + tokenizer.decode(out.completion_ids[0]) + "\n"
    assert shown.err == ""  # no bar


def test_several_completions_are_refused():
    with pytest.raises(ValueError, match="but 2 were asked for"):
        soft_generate(tiny.model(), tiny.tokenizer(), ["1+2="], SETTINGS, num_generations=2, streamer=Steps())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_watch_sees_every_column_once(engine):
    """Of several prompts, in slots that are filled again, and with completions that went back to the queue."""
    net, tokenizer = tiny.model(), tiny.tokenizer()
    prompts = [tokenizer(prompt)["input_ids"] for prompt in ("1+2=", "3+44=", "5-6=", "7777-8=")]
    seen: dict[int, list] = {}
    per_token = 2 * 2 * 2 * 8 * 4  # two layers, keys and values, two heads of 8, float32
    options = EngineOptions(
        slots=2, cache_gb=40 * per_token / 1e9, watch=lambda number, gained: seen.setdefault(number, []).append(gained)
    )
    with soft_tokens_added(net):
        made, key = plan(net, {"thought": "gumbel"}), Key(3, 0, torch.arange(4))
        for numbers, part in ENGINES[engine](net, prompts, made, key, options):
            for row, number in enumerate(numbers):
                length = int(part.completion_mask[row].sum())
                for ours, theirs in zip(
                    zip(*(gained.tensors() for gained in seen[number]), strict=True), part.tensors(), strict=True
                ):
                    whole = ours[-1] if ours[0].dim() == 1 else torch.cat(ours, 1)[:, :length]
                    assert torch.equal(whole[0], theirs[row] if theirs.dim() == 1 else theirs[row, :length])
                    assert ours[0].dim() == 1 or sum(value.size(1) for value in ours) == length


# Text


@pytest.mark.parametrize(
    "text", ["72 \u00e9\u00e9", "\u7b54\u6848: \U0001f600!", "a\n\nb  c", "\U0001f468\u200d\U0001f469"]
)
def test_half_characters_wait(text):
    tokenizer = byte_level()
    written = WholeCharacters(tokenizer)
    parts = [written.put(token) for token in tokenizer(text)["input_ids"]]
    assert "".join(parts) == text and written.end() == ""
    assert not any("\ufffd" in part for part in parts)


def test_half_a_character_at_the_end_is_shown():
    tokenizer = byte_level()
    written = WholeCharacters(tokenizer)
    parts = [written.put(token) for token in tokenizer("a\u7b54")["input_ids"][:-1]]
    assert parts == ["a", "", ""] and written.end() == "\ufffd"


def test_a_blank_that_a_text_would_not_begin_with():
    """SentencePiece leaves out the blank before the first word. Tokens that are not written change nothing."""

    class Tokenizer:
        def decode(self, ids, **kwargs):
            return "".join(["", " a", " b"][i] for i in ids).removeprefix(" ")

    written = WholeCharacters(Tokenizer())
    assert [written.put(token) for token in (1, 0, 2, 0, 0, 2)] == ["a", "", " b", "", "", " b"]


# Chat


def console(**options) -> Console:
    return Console(file=io.StringIO(), highlight=False, width=40, **options)


def step(token_id: int, thinking: bool, surplus: int = 0) -> SoftStep:
    record = SoftTokens(None, torch.tensor([[False]]), {}, torch.zeros(1, 1))
    return SoftStep(token_id, thinking, record, 0.0, surplus)


def test_the_answer_begins_inside_the_token_that_ends_the_thought():
    tokenizer, shown = byte_level(), console()
    printer = chat.Printer(tokenizer, shown, None)
    for number, (token, thinking, surplus) in enumerate(
        [*((i, True, 0) for i in tokenizer("so:")["input_ids"]), (tokenizer(">\n\n")["input_ids"][0], True, 2)]
        + [(i, False, 0) for i in tokenizer("7  \u00e9 \n")["input_ids"]]
    ):
        printer.put_step(step(token, thinking, surplus))
        assert number or shown.file.getvalue() == ""
    printer.end()
    assert shown.file.getvalue() == "7  \u00e9\n" and printer.answer == "7  \u00e9 \n"


def test_an_answer_without_text_says_so():
    shown = console()
    printer = chat.Printer(byte_level(), shown, None)
    printer.put_step(step(byte_level()(" ")["input_ids"][0], False))
    printer.end()
    assert shown.file.getvalue() == "(no answer)\n"


def test_an_interrupt_stops_the_answer_and_not_the_chat(monkeypatch):
    net, tokenizer, shown = tiny.model().eval(), tiny.tokenizer(), console()
    before = {name: getattr(net, name) for name in ("training", "forward")}
    put, left = chat.Printer.put_step, [4]

    def put_step(self, step):
        put(self, step)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat.Printer, "put_step", put_step)
    chat.converse(net, tokenizer, SETTINGS, OPTIONS, shown, iter(["1+2=", "3+4="]), typed=True)
    lines = shown.file.getvalue().splitlines()
    stopped = lines.index("(stopped)")
    assert stopped == 4 and [int(line[:4]) for line in lines[:4]] == [1, 2, 3, 4]
    assert lines[stopped + 1].split()[0] == "1" and len(lines) > stopped + 4
    assert {name: getattr(net, name) for name in before} == before and not hasattr(net, "soft_tokens")
    left[0] = 4
    with pytest.raises(KeyboardInterrupt):
        chat.converse(net, tokenizer, SETTINGS, OPTIONS, shown, iter(["1+2=", "3+4="]), typed=False)


def test_a_conversation_keeps_what_was_read(monkeypatch):
    """A stopped answer as far as it was shown; a question that was stopped in its thought not at all."""
    asked = []
    texts = {"a": ("1 ", None), "b": ("2", KeyboardInterrupt), "c": ("", KeyboardInterrupt), "d": ("4", None)}

    def answer(model, tokenizer, messages, settings, options, seed, printer):
        asked.append([message["content"] for message in messages])
        printer.answer, error = texts[messages[-1]["content"]]
        if error:
            raise error
        return Namespace(thinking_cut=[False])

    monkeypatch.setattr(chat, "answer", answer)
    options = Namespace(**{**vars(OPTIONS), "history": True})
    chat.converse(None, tiny.tokenizer(), SETTINGS, options, console(), iter("abcd"), typed=True)
    assert asked == [["a"], ["a", "1", "b"], ["a", "1", "b", "2", "c"], ["a", "1", "b", "2", "d"]]


def test_questions_come_from_a_pipe(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1+2=\n\n3+4=\n"))
    shown = console()
    assert list(chat._typed(shown)) == ["1+2=", "3+4="]
    assert shown.file.getvalue() == ""  # no prompt where nobody types
