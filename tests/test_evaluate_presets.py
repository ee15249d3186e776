# SPDX-License-Identifier: Apache-2.0
"""Every preset's prompts, caps and answers, on every benchmark."""

from dataclasses import fields

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.hub_rows import stand_in
from trl_soft import ThinkingSettings
from trl_soft.evaluate.benchmarks import BENCHMARKS, KINDS
from trl_soft.evaluate.grading import GRADERS, programs
from trl_soft.evaluate.presets import PRESETS, answer_text, build_prompt, get_preset, question_text
from trl_soft.evaluate.problems import Problem, load_problems
from trl_soft.evaluate.sandbox import Result


CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


@pytest.fixture
def hub(monkeypatch):
    return stand_in(monkeypatch)


def with_chat() -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", [*BENCHMARKS, "someone/some.set"])
def test_every_preset_asks_every_benchmark(hub, name, preset):
    problem = load_problems(name)[0]
    text = build_prompt(problem, preset, tiny.tokenizer())
    chat = build_prompt(problem, preset, with_chat())
    assert problem.question in text and "{question}" not in text and "{tests}" not in text
    assert chat == (text if preset == "soft_tokens" else f"<user>{text}<assistant>")
    for test in problem.gold["test_list"] if problem.meta["kind"] == "mbpp" else []:
        assert test in text


def test_the_papers_words(hub):
    tokenizer = tiny.tokenizer()
    math, mbpp, choice = (load_problems(name)[0] for name in ("math500", "mbpp", "gpqa_diamond"))
    assert build_prompt(math, "soft_grpo", tokenizer) == (
        r"x? Let's think step by step and output the final answer within \boxed{}."
    )
    assert build_prompt(math, "soft_tokens", tokenizer) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
        "first shows the complete reasoning process step by step, then provides the final answer in \\boxed{}. The "
        "assistant must always follow the format: 'User: [question] Assistant: [detailed reasoning] The final answer is: "
        "\\boxed{[answer]}.' User: x? Assistant:"
    )
    assert build_prompt(mbpp, "soft_grpo", tokenizer).endswith(
        "Task:\nWrite f.\n\nTest Cases:\n```python\nassert f\nassert f == 1\nassert f > 0\n```"
    )
    assert build_prompt(math, "swireasoning", tokenizer) == (
        "x?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert build_prompt(math, "selar", tokenizer) == (
        "x?\nPlease reason step by step, and make sure put your final answer within \\boxed{}."
    )
    assert '"answer": "C".\n\nWhat is 0 + 1?\n\nA. ' in build_prompt(choice, "soft_grpo", tokenizer)


def test_a_question_with_braces_is_left_alone():
    problem = Problem(0, "{tests} {question} \\frac{1}{2} \\1", "1", {"kind": "math"})
    assert question_text(problem, "plain").startswith("{tests} {question} \\frac{1}{2} \\1\n")


def test_the_beginning_of_sequence_is_not_doubled():
    core = Tokenizer(models.WordLevel({"<s>": 0, "<u>": 1, "x?": 2}, unk_token="<u>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<u>")
    tokenizer.chat_template = "<s>{{ messages[0]['content'] }}"
    problem = Problem(0, "x?", "1", {"kind": "question"})
    assert build_prompt(problem, "plain", tokenizer) == "x?"
    assert (
        tokenizer("x?")["input_ids"] == tokenizer.apply_chat_template([{"role": "user", "content": "x?"}])["input_ids"]
    )
    core.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<u>")
    tokenizer.chat_template = "<s>{{ messages[0]['content'] }}"
    assert build_prompt(problem, "plain", tokenizer) == "<s>x?"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_presets_are_settings_the_engine_takes(preset):
    assert set(preset.formats) == set(KINDS)
    for kind in KINDS:
        settings = preset.thinking_settings(kind)
        assert set(settings) <= {f.name for f in fields(ThinkingSettings)}
        ThinkingSettings(**settings)
        length = preset.completion_length(kind, tiny.tokenizer())
        assert length > (preset.max_thinking_length or 0)
    assert set(preset.sampling) == {"temperature", "top_p", "top_k"}


def test_caps_of_the_papers():
    class Words:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": text.split()}

    assert PRESETS["soft_tokens"].completion_length("math", Words()) == 512 + 5 + 32  # "The final answer is: \boxed{"
    assert PRESETS["soft_grpo"].completion_length("math", Words()) == 32768
    assert PRESETS["soft_tokens"].thinking_settings("math")["answer_prefill"] == [
        "\\boxed{",
        "The final answer is: \\boxed{",
    ]


@pytest.mark.parametrize(
    "preset, completion, answer",
    [
        ("soft_grpo", r"\boxed{1}</think>\boxed{2}", r"\boxed{1}</think>\boxed{2}"),
        ("plain", r"\boxed{1}</think>\boxed{2}", r"\boxed{2}"),
        ("plain", r"no thought: \boxed{2}", r"no thought: \boxed{2}"),
        ("plain", r"a</think>b</think>\boxed{2}", r"b</think>\boxed{2}"),
        ("soft_tokens", r"so. The final answer is: \boxed{\frac{1}{2}}. User: \boxed{3}", r"\boxed{\frac{1}{2}}"),
        ("soft_tokens", r"\boxed{7}, The final answer is: \boxed{\{1, 2", ""),
        ("soft_tokens", r"The final answer is: \boxed{1} so: The final answer is: \boxed{2} User:", r"\boxed{2}"),
        ("soft_tokens", "nothing", ""),
    ],
)
def test_where_the_answer_is_read(preset, completion, answer):
    assert answer_text(completion, preset, "math") == answer


CODE = "def f():\n    return 1"
GOLDS = {
    "math": ("72", "7"),
    "question": ("72", "7"),
    "choice": ("C", "B"),
    "humaneval": (CODE, "def f():\n    return 2"),
    "mbpp": (CODE, "def f():\n    return 2"),
}
ROWS_OF_CODE = {
    "humaneval": {"prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    assert f() == 1\n"},
    "mbpp": {"code": CODE, "test_list": ["assert f() == 1"]},
}


def demanded(instruction: str, answer: str) -> str:
    """An answer in the form that a preset's instruction names."""
    if '"answer": "C"' in instruction:
        return f'"answer": "{answer}"'
    if "code block" in instruction:
        return f"```python\n{answer}\n```"
    return rf"\boxed{{{answer}}}" if "\\boxed{" in instruction else answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_form_that_a_preset_demands_is_read_as_the_answer(preset, kind, monkeypatch):
    def run_program(source, *, setup, tests, tested, **limits):
        names: dict = {}
        try:
            exec(f"{source}\n{tests}", names)
        except AssertionError:
            return Result(False, "failed", "", "", "none")
        return Result(True, "passed", "", "", "none")

    monkeypatch.setattr(programs, "run_program", run_program)
    prompt = PRESETS[preset].formats[kind]
    grader = {"choice": "letters", "humaneval": "code_humaneval", "mbpp": "code_mbpp"}.get(kind, "math")
    thought = "I think B is 5, \\boxed{x = 1}. " if kind == "choice" else "I think. "
    for answer in GOLDS[kind]:
        said = demanded(prompt.user, answer)
        gold = ROWS_OF_CODE.get(kind, GOLDS[kind][0])
        texts = {(f"{thought}{PRESETS[preset].end_of_thinking}\n{said}\n", None)}
        for forced in prompt.answer_prefill or ():
            # What is forced begins the form, and the model writes the rest of it.
            phase = (
                forced
                + said[len(said) - len(said.removeprefix(forced.removeprefix("The final answer is: ").strip("\n"))) :]
            )
            texts |= {(thought + phase, phase), (thought + prompt.answer_after + said, said)}
        for text, phase in texts:
            verdict = GRADERS[grader](answer_text(text, preset, kind, phase), gold)
            assert verdict.correct is (answer == GOLDS[kind][0]), (text, phase, verdict)
            assert verdict.answer is not None


def test_a_preset_that_is_not_there():
    with pytest.raises(ValueError, match=r"`preset` is 'softgrpo'.*soft_grpo, soft_tokens, plain, swireasoning"):
        get_preset("softgrpo")
