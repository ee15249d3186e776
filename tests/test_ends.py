# SPDX-License-Identifier: Apache-2.0
"""Where a thought ends: inside a token, outside the vocabulary, in the prompt already; and the text that is judged."""

import functools
import json
import os
import tarfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests import standins, tiny
from tests.test_vllm_parts import assert_same, params, read
from trl_soft import SoftRLOOConfig, SoftRLOOTrainer, ThinkingSettings, soft_generate
from trl_soft.page.filled_page import answer_at
from trl_soft.rewards import exact_answer_reward, soft_tokens_reward
from trl_soft.rollout import Key
from trl_soft.rollout.completion_text import answer_start, completion_texts
from trl_soft.rollout.interface import forced_row
from trl_soft.rollout.make_plan import make_plan
from trl_soft.rollout.matcher import EndMatcher
from trl_soft.rollout.slots import Slots
from trl_soft.rollout.stop import EndOfThinking, overlap
from trl_soft.rollout.vllm.layout import layout_of
from trl_soft.rollout.vllm.pool import Pool
from trl_soft.rollout.vllm.request import plan_of, spec_of
from trl_soft.rollout.vllm.served_table import ServedLogits, Table
from trl_soft.thoughts import Hard
from trl_soft.training import soft_tokens_mixin as trainer_module


FINAL, THINK = "The final answer is: ", "</think>"
ENGINES = ["slots", "simple"]
RLOO = {"trainer_class": SoftRLOOTrainer, "config_class": SoftRLOOConfig, "beta": 0.0}
TRAINERS = pytest.mark.parametrize("classes", [{}, RLOO], ids=["grpo", "rloo"])
# Ends of thoughts as models write them, with what follows.
ANSWERS = [
    *(f"6 * 12 = 72.{gap}{FINAL}{answer}" for gap in (" ", "\n", "", "\n\n")
      for answer in ("\\boxed{72}.", "72", " 72", "\\( 72 \\)", "$72$", "\n\\boxed{72}", "\u2248 72", "The final answer is: 72")),
    *(f"6 * 12 = 72.{gap}{THINK}{answer}" for gap in (" ", "\n", "", "\n\n")
      for answer in ("", " 72", "\n72", "\n\n72", "\n\n\n72", ">\n72", "\n\n\\boxed{72}", "\u00e9", "</think>\n")),
    "no end: </thin> The final answer is 72, is: </ think>",
    "\u7b54\u6848: 72 \U0001f600 <</think>\u7b54\u6848",
]  # fmt: skip


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes, and merges as the tokenizers of Llama 3 and Qwen have them: ` \\\\` is a token, and so is `>\\n\\n`."""
    space, line = "\u0120", "\u010a"
    merges = [(space, "\\"), (line, line), (">", line), (">", line + line), ("i", "s"), (space, "is"), ("<", "/"),
              (space + "\\", "("), (":", space), ("\u00c3", "\u00a9")]  # fmt: skip
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(standins._SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", padding_side="left")


def real_tokenizers() -> list[str]:
    """Folders and archives of real tokenizers, where there are any."""
    folder = Path(os.environ.get("TRL_SOFT_TOKENIZERS", standins.SHARED / "models" / "tokenizers"))
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [str(path) for path in found if path.suffix == ".gz" or (path / "tokenizer.json").is_file()]


def load(path: str, folder: Path):
    if not path.endswith(".gz"):
        return AutoTokenizer.from_pretrained(path)
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return AutoTokenizer.from_pretrained(next(file.parent for file in folder.rglob("tokenizer.json")))


def assert_found_where_the_text_has_it(tokenizer, end: EndOfThinking, prefill: str = "\\boxed{") -> int:
    """In every prefix of every answer, by decoding and by the table; how many of the matches end inside a token."""
    # Of a large vocabulary the table takes seconds, so only one end has it there.
    made = not end.is_token and (len(tokenizer) < 1000 or end.text == FINAL)
    table, inside = EndMatcher(end, len(tokenizer), prefill) if made else None, 0
    for answer in ANSWERS:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        prefixes = [ids[: n + 1] for n in range(len(ids))]
        texts = tokenizer.batch_decode(prefixes, clean_up_tokenization_spaces=False)
        first = next((n for n, text in enumerate(texts) if end.text in text), None)
        upto = len(ids) if first is None else first + 1
        expected = [None] * upto
        if first is not None:
            expected[-1] = texts[first].partition(end.text)[2]
            inside += expected[-1] != ""
        assert end.rests(prefixes[:upto]) == expected
        if table is not None:
            assert table.find(ids) == (None if first is None else len(expected[-1]))
    return inside


@pytest.mark.parametrize("text", [FINAL, THINK, "The final answer is:"])
def test_an_end_inside_a_token_is_found(text):
    tokenizer = byte_level()
    inside = assert_found_where_the_text_has_it(tokenizer, EndOfThinking(tokenizer, text))
    assert inside > 5 or text == "The final answer is:"


@pytest.mark.parametrize(
    "path", real_tokenizers() or [None], ids=lambda path: path and Path(path).name.split(".tar")[0]
)
@pytest.mark.parametrize("text", [FINAL, THINK])
def test_an_end_is_found_with_real_tokenizers(path, text, tmp_path):
    if path is None:
        pytest.skip("needs real tokenizers (TRL_SOFT_TOKENIZERS)")
    tokenizer = load(path, tmp_path)
    assert_found_where_the_text_has_it(tokenizer, EndOfThinking(tokenizer, text))


@functools.cache
def of_bytes(text: str) -> tuple[PreTrainedTokenizerFast, EndOfThinking, EndMatcher]:
    """A text that is not ASCII, and its table."""
    tokenizer = byte_level()
    end = EndOfThinking(tokenizer, text)
    return tokenizer, end, EndMatcher(end, len(tokenizer))


@given(st.data())
def test_an_end_in_parts_of_characters_is_found(data):
    """By bytes, wherever tokens cut characters, behind and before bytes that are no characters."""
    tokenizer, end, table = of_bytes(data.draw(st.sampled_from(["\u00e9", "\u7b54\u6848:", ":\u00e9"])))
    near = st.sampled_from(
        sorted({*end.ids, *tokenizer.convert_tokens_to_ids(["\u00c3", "\u00c3\u00a9", ":", "\u00e7"])})
    )
    shadow = data.draw(st.lists(st.integers(0, len(tokenizer) - 1) | near | near, min_size=1, max_size=12))
    rests = end.rests([shadow[: n + 1] for n in range(len(shadow))])
    first = next((rest for rest in rests if rest is not None), None)
    assert table.find(shadow) == (None if first is None else len(first))


def test_a_text_of_characters_whose_parts_are_not_known_is_refused(monkeypatch):
    """A vocabulary that does not say which bytes its tokens write; ASCII can be no part of a character."""
    tokenizer = byte_level()
    monkeypatch.setattr(tokenizer, "convert_ids_to_tokens", lambda token: "?")
    with pytest.raises(ValueError, match=r"is neither ASCII nor an added token.*unknown part.*engine `simple`"):
        EndMatcher(EndOfThinking(tokenizer, "\u00e9"), len(tokenizer))
    EndMatcher(EndOfThinking(tokenizer, "1;"), len(tokenizer))


def test_a_rest_that_is_a_part_of_the_prefill():
    assert [overlap(rest, "\\boxed{") for rest in ("", "\n\n", "\\", " \\", "\\(", "\\boxed{5", "x\\box")] == [
        0, 0, 1, 1, 0, 7, 4,
    ]  # fmt: skip
    assert overlap("\\", "") == 0 and forced_row("\n", "\n\n") == 2 and forced_row(" ", "\n") == 0


# Engines: a world whose tokens hold the end in every way.

END = "1;"
MANY = ["1;a", "1;1;", ";a", ";ab", ";b", "a1", "+1;-", ";abc", ";\u00e9"]


def wide() -> tuple:
    """The tiny world, with tokens of several characters that its tokenizer never writes by itself and a model draws."""
    vocabulary = {token: i for i, token in enumerate([*tiny.TOKENS, *MANY])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    core.add_tokens(["<think>", "</think>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )
    return tokenizer, tiny.model(vocab_size=len(vocabulary))


PROMPTS = [f"{a}+{b}=" for a in range(8) for b in range(4)]
PREFILLS = [None, ["ab+", "c"], ["", "c"], ["+", "c"]]


def completed(engine: str, prefill, **changes):
    tokenizer, net = wide()
    settings = ThinkingSettings(
        end_of_thinking=END, answer_prefill=prefill, max_thinking_length=12, thinking_top_k=20, thinking_top_p=1.0,
        **changes,
    )  # fmt: skip
    return tokenizer, soft_generate(
        net, tokenizer, PROMPTS, settings, num_generations=2, max_completion_length=24, engine=engine, progress=False
    )


@pytest.mark.parametrize("prefill", PREFILLS, ids=str)
def test_a_thought_closes_with_the_token_that_completes_the_text(prefill, oracle):
    tokenizer, out = completed(oracle, prefill)
    for engine in ENGINES:
        _, ours = completed(engine, prefill)
        assert ours.completion_ids == out.completion_ids
        assert torch.equal(ours.record.forced_mask, out.record.forced_mask)
        assert ours.thinking_lengths == out.thinking_lengths and ours.thinking_surplus == out.thinking_surplus
    surpluses = set()
    rows = zip(out.completion_ids, out.thinking_lengths, out.thinking_cut, out.thinking_surplus, strict=True)
    for ids, n, cut, surplus in rows:
        thought = tokenizer.decode(ids[:n])
        assert END not in tokenizer.decode(ids[: n - 1])
        if cut or ids[n - 1] == 1:
            assert surplus == 0 and (ids[n - 1] == 1 or END not in thought)
            continue
        answer = tokenizer.decode(ids)[len(thought) - surplus :]
        assert tokenizer.decode(ids).partition(END)[2] == answer
        surpluses.add(surplus)
        rest, begin = thought.partition(END)[2], (prefill or [""])[0]
        assert len(rest) == surplus
        # The text goes on with the prefill, of which the rest may have written some.
        written = overlap(rest, begin)
        assert answer.startswith(rest[: len(rest) - written] + begin) or rest.startswith(begin)
    assert surpluses >= {1, 2, 3}


@pytest.mark.parametrize("prefill", PREFILLS, ids=str)
def test_a_served_request_closes_as_a_slot_does(prefill):
    tokenizer, net = wide()
    size, count, steps = net.config.vocab_size, 24, 20
    fields = {"thinking_top_k": 20, "thinking_top_p": 1.0, "max_thinking_length": 9, "end_of_thinking": END}
    fields |= {"thought": "gumbel", "answer_prefill": prefill}
    made = make_plan(
        ThinkingSettings(**fields), tokenizer, Hard(), vocab_size=size, max_completion_length=24, eos_token_ids=[1]
    )
    extra = {"soft_thinking": 1, "soft_settings": json.dumps(fields)}
    spec, _ = spec_of(params(extra_args=extra), "r", tokenizer, None, vocab_size=size, max_length=24, prompt=[4, 5])
    served = plan_of(spec["rules"], vocab_size=size, max_length=24, tokenizer=lambda: tokenizer)
    assert served.forced == made.forced and served.prefill == made.prefill and not spec["closed"]

    def logits(rows: list[int], at: list[int]) -> ServedLogits:
        drawn = [torch.randn(size, generator=torch.Generator().manual_seed(1000 * i + t)) for i, t in zip(rows, at)]
        return ServedLogits(3 * torch.stack(drawn), Table(lambda: torch.zeros(size, 4), 0, size), torch.float32)

    slots = Slots(count, made, Key(3, 0, torch.arange(count)), size, torch.device("cpu"))
    slots.admit(list(range(count)), list(range(count)), [[4, 5]] * count, [steps] * count)
    for t in range(steps):
        slots.advance(count, logits(range(count), [t] * count), every_row=False)
    pool = Pool(count, 24, 256, size, "cpu")
    number = pool.add("plan", served, layout_of(served.thought, size, 4, torch.float32))
    pool.admit(range(count), [number] * count, [(3, 0, i) for i in range(count)], [2] * count, [steps] * count)
    for t in range(steps):
        pool.step(number, np.arange(count), torch.arange(count), logits(range(count), [t] * count))
    ours, theirs = read(pool, list(range(count)), served), slots.result(list(range(count)))
    assert_same(ours, theirs)
    assert len(set(theirs.thinking_surplus.tolist())) > 2


# Prompts that have closed their thought


def template(name: str) -> str:
    return files("trl").joinpath("chat_templates", name).read_text(encoding="utf-8")


def chat(name: str, **changes):
    """A stand-in for a reasoning model's tokenizer with a chat template as the model ships it, and a tiny model of its size."""
    tokenizer = standins.tokenizer(name)
    if changes:
        tokenizer.chat_template = template(changes["template"])
    return tokenizer, tiny.model(vocab_size=len(tokenizer), max_position_embeddings=512)


MESSAGES = [{"role": "user", "content": "What is 6 * 12? Do not write </think>"}]
EARLIER = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
    *MESSAGES,
]


@pytest.mark.parametrize(
    ("name", "options", "messages", "closed"),
    [
        ("DeepSeek-R1-Distill-Qwen-1.5B", {}, MESSAGES, False),  # ends in <think>\n
        ("DeepSeek-R1-Distill-Qwen-1.5B", {}, EARLIER, False),
        ("Qwen3-0.6B", {}, MESSAGES, False),  # ends in <|im_start|>assistant\n
        ("Qwen3-0.6B", {}, EARLIER, False),
        ("Qwen3-0.6B", {"enable_thinking": False}, MESSAGES, True),  # ends in <think>\n\n</think>\n\n
        ("Qwen3-0.6B", {"enable_thinking": False}, EARLIER, True),
        ("Qwen3-0.6B", {}, [*MESSAGES, {"role": "assistant", "content": "<think>\nx\n</think>\n\n72"}], False),
    ],
)
def test_what_a_template_has_closed_is_answered(name, options, messages, closed):
    tokenizer, net = chat(name)
    for engine in ENGINES:
        out = soft_generate(
            net, tokenizer, [messages], ThinkingSettings(max_thinking_length=4), num_generations=3, engine=engine,
            max_completion_length=8, chat_template_kwargs=options, progress=False,
        )  # fmt: skip
        assert [n == 0 for n in out.thinking_lengths] == [closed] * 3
        assert (
            out.record.thinking_mask.any().item() != closed
            and out.record.action
            and not (closed and any(out.thinking_cut))
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("settings", tiny.THOUGHTS, ids=tiny.name)
def test_a_closed_prompt_begins_with_the_answer(engine, settings):
    """Alone and beside one that thinks: no thought, the same answer, and the first prefill as after a thought that ended."""
    settings = ThinkingSettings(**settings, max_thinking_length=4, answer_prefill=["=a", "=b"])
    prompts = ["1+2=<think>;</think>", "1+2=<think>;</think>;", "</think>1+2="]
    options = {"max_completion_length": 12, "engine": engine, "progress": False}
    together = soft_generate(tiny.model(), tiny.tokenizer(), prompts, settings, **options)
    assert together.thinking_lengths[0] == 0 and all(together.thinking_lengths[1:])
    alone = soft_generate(tiny.model(), tiny.tokenizer(), prompts[:1], settings, **options)
    assert alone.completion_ids == together.completion_ids[:1] and alone.texts[0].startswith("=a")
    assert alone.record.action.keys() == together.record.action.keys()
    one = soft_generate(tiny.model(), tiny.tokenizer(), prompts, settings, slots=1, **options)
    assert one.completion_ids == together.completion_ids


def test_a_served_prompt_that_is_closed_begins_with_the_answer():
    extra = {"soft_thought": "gumbel", "soft_seed": 3}
    ids = tiny.tokenizer()(["1=</think>", "1</think>="])["input_ids"]
    size = len(tiny.TOKENS)
    specs = [
        spec_of(
            params(extra_args=dict(extra)), "r", tiny.tokenizer(), None, vocab_size=size, max_length=24, prompt=row
        )[0]
        for row in ids
    ]
    assert [spec["closed"] for spec in specs] == [True, False]
    made = plan_of(specs[0]["rules"], vocab_size=size, max_length=24)
    pool = Pool(2, 24, 256, size, "cpu")
    number = pool.add("plan", made, layout_of(made.thought, size, 4, torch.float32))
    pool.admit([0, 1], [number] * 2, [(3, 0, 0), (3, 0, 1)], [3, 3], [4, 4], [spec["closed"] for spec in specs])
    z = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    z[:, 1:4] = -1e9  # neither ends
    logits = ServedLogits(z, Table(lambda: torch.zeros(size, 4), 0, size), torch.float32)
    for _ in range(4):
        pool.step(number, np.arange(2), torch.arange(2), logits)
    assert read(pool, [0, 1], made).record.thinking_mask.sum(-1).tolist() == [0, 4]


@pytest.mark.parametrize(
    ("kind", "classes"),
    [("gumbel", {}), ("gaussian", {}), ("multiplex", {}), ("hard", {}), ("gumbel", RLOO)],
    ids=["gumbel", "gaussian", "multiplex", "hard", "rloo"],
)
def test_a_trainer_answers_closed_prompts(tmp_path, kind, classes, monkeypatch):
    """Of the first update all prompts are closed, of the second some, of the third none: each trains, and it is said."""
    said = []
    monkeypatch.setattr(trainer_module.logger, "warning_once", said.append)
    rows = Dataset.from_dict({"prompt": ["1+2=</think>", "3+44=</think>", "5-6=", "7=</think>", "5-6=", "3="]})
    trainer = tiny.trainer(tmp_path, thought=kind, train_dataset=rows, shuffle_dataset=False, **classes)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "thinking/mean_length" in row]
    lengths = [row["thinking/mean_length"] for row in logs]
    assert len(lengths) == 3 and lengths[0] == 0 < lengths[1] < lengths[2]
    assert max(row["answer/logp_difference/max"] for row in logs) < 1e-4
    assert all("closes their thought" in text for text in said) and bool(said) == (kind != "hard")


# Tokens that the model does not have


def test_tokens_outside_the_model_are_refused():
    tokenizer, net = tiny.tokenizer(), tiny.model()
    tokenizer.add_tokens(["<end>"])
    options = {"max_completion_length": 16, "progress": False}
    for engine in ENGINES:
        for settings in (
            {"end_of_thinking": "<end>"},
            {"answer_prefill": ["<end>=", "="]},
            {"answer_prefill": ["", "<end>"]},
        ):
            with pytest.raises(
                ValueError, match=f"`{next(iter(settings))}` holds token 26 .'<end>'.*26 tokens.*resize"
            ):
                soft_generate(net, tokenizer, ["1="], ThinkingSettings(**settings), engine=engine, **options)
        with pytest.raises(ValueError, match=r"A prompt holds token 26 .'<end>'"):
            soft_generate(net, tokenizer, ["1=<end>"], ThinkingSettings(), engine=engine, **options)


@TRAINERS
def test_a_trainer_refuses_tokens_outside_the_model(tmp_path, classes, monkeypatch):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<end>"])
    for settings in ({"end_of_thinking": "<end>"}, {"answer_prefill": ["=", "<end>"]}):
        with pytest.raises(ValueError, match="holds token 26"):
            tiny.trainer(tmp_path, processing_class=tokenizer, **classes, **settings)
    rows = Dataset.from_dict({"prompt": ["1=<end>"] * 8})
    trainer = tiny.trainer(tmp_path, processing_class=tokenizer, train_dataset=rows, **classes)
    monkeypatch.setattr(trainer, "_soft_generate", None)  # nothing is generated
    with pytest.raises(ValueError, match=r"A prompt holds token 26 .'<end>'"):
        trainer.train()
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    with pytest.raises(ValueError, match=r"The padding holds token 27 .'<fill>'"):
        tiny.trainer(tmp_path, processing_class=tokenizer, **classes)


# Conversations


def test_conversations_are_prompts():
    tokenizer, net = chat("Qwen3-0.6B")
    settings = ThinkingSettings(max_thinking_length=4)
    options = {"max_completion_length": 8, "progress": False}
    goes_on = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    ours = soft_generate(net, tokenizer, [MESSAGES, goes_on], settings, **options)
    texts = [
        tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True),
        tokenizer.apply_chat_template(goes_on, tokenize=False, continue_final_message=True),
    ]
    assert ours.completion_ids == soft_generate(net, tokenizer, texts, settings, **options).completion_ids
    with pytest.raises(TypeError, match=r"one conversation.*\[messages\]"):
        soft_generate(net, tokenizer, MESSAGES, settings, **options)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        soft_generate(net, tokenizer, [MESSAGES], settings, **options)


# The text that is judged


def ended(special: bool, conversational: bool = False):
    """A tokenizer whose end of thinking is special or not, with or without a chat template."""
    tokenizer = tiny.tokenizer()
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    if conversational:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
        )
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
def test_the_text_of_a_completion(special):
    tokenizer = ended(special)
    made = make_plan(ThinkingSettings(), tokenizer, Hard(), vocab_size=26, max_completion_length=8, eos_token_ids=[1])
    ids = tokenizer("1+2</think>3")["input_ids"]
    (text,) = completion_texts(tokenizer, [[*ids, 1, 0]], made)
    assert text == "1+2</think>3" and exact_answer_reward([text], ["3"]) == [1.0]
    assert text[answer_start(tokenizer, ids, 4, 0, made) :] == "3"
    out = soft_generate(tiny.model(), tokenizer, ["1+2="] * 16, ThinkingSettings(max_thinking_length=4),
                        max_completion_length=12, progress=False)  # fmt: skip
    assert all(THINK in text and "<eos>" not in text for text, ids in zip(out.texts, out.completion_ids) if 3 in ids)


@pytest.mark.parametrize(("special", "conversational"), [(True, True), (True, False), (False, False)])
@TRAINERS
def test_training_and_evaluation_judge_the_same_text(tmp_path, special, conversational, classes):
    """A reward sees what an evaluation of the same completions grades: `</think>` is in it, whatever the tokenizer calls it."""
    tokenizer, seen = ended(special, conversational), []

    def reward(completions, completion_ids, **kwargs):
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        made = trainer._plans["train"]
        seen.extend(zip(texts, completion_texts(tokenizer, completion_ids, made), completion_ids, strict=True))
        return [float(THINK in text) for text in texts]

    prompts = [[{"role": "user", "content": text}] if conversational else text for text in ("1+2=", "3+44=")]
    trainer = tiny.trainer(
        tmp_path, max_steps=1, train_dataset=Dataset.from_dict({"prompt": prompts * 4}), processing_class=tokenizer,
        reward_funcs=reward, **classes,
    )  # fmt: skip
    trainer.train()
    assert all(ours == theirs for ours, theirs, _ in seen)
    assert any(3 in ids for *_, ids in seen) and all((THINK in text) == (3 in ids) for text, _, ids in seen)


def test_the_answer_begins_inside_the_token_that_closed_the_thought():
    """With the paper's prefill: the token ` \\` closes, and `boxed{` is forced; judge, reward and page read one text."""
    tokenizer = byte_level()
    settings = ThinkingSettings(
        end_of_thinking=FINAL, answer_prefill=["\\boxed{", f"{FINAL}\\boxed{{"], max_thinking_length=64
    )
    made = make_plan(
        settings, tokenizer, Hard(), vocab_size=len(tokenizer), max_completion_length=128, eos_token_ids=[]
    )
    thought = tokenizer(f"6 * 12 = 72. {FINAL}\\")["input_ids"]
    (rest,) = made.stop.end.rests([thought])
    assert rest == "\\"
    forced = made.forced[forced_row(rest, made.prefill)]
    ids = [*thought, *forced, *tokenizer("72}.")["input_ids"]]
    (text,) = completion_texts(tokenizer, [ids], made)
    start = answer_start(tokenizer, ids, len(thought), len(rest), made)
    assert text == f"6 * 12 = 72. {FINAL}\\boxed{{72}}." and text[start:] == "\\boxed{72}."
    assert soft_tokens_reward([text], ["72"]) == [100.0]
    assert answer_at({"answer_at": start}, text, None, len(thought), {}) == start
