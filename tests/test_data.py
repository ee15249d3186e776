# SPDX-License-Identifier: Apache-2.0
"""Questions from files of every kind, prompts with and without a chat, rewards, and real GSM8K where it is at hand."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests import tiny
from trl_soft.contamination import fingerprint, overlap
from trl_soft.data import drop_long_prompts, load_rows, to_prompts
from trl_soft.evaluate import answer_text, load_problems
from trl_soft.evaluate.grading import grade_math
from trl_soft.golds import gold_text, without_thousands
from trl_soft.rewards import exact_answer_reward, math_reward, soft_grpo_reward, soft_tokens_reward


ROOT = Path(__file__).parent.parent
ROWS = [{"question": f"{i}+{i}=", "answer": f"so\n#### {1000 + i:,}"} for i in range(5)]
# Real data and a real pretrained model, where a developer has them.
SHARED = Path(os.environ.get("TRL_SOFT_SHARED", ROOT.parent / "shared"))


def write(path: Path) -> str:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if path.suffix == ".parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif path.name.endswith(".json.gz"):
        path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"])
def test_every_kind_of_file(tmp_path, name):
    assert load_rows(write(tmp_path / name)).to_list() == ROWS


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_rows(str(tmp_path / "missing.jsonl"))
    (tmp_path / "a.csvx").write_text("x")
    with pytest.raises(ValueError, match="Rename or convert"):
        load_rows(str(tmp_path / "a.csvx"))


def test_prompts_are_text_or_a_chat():
    tokenizer, rows = tiny.tokenizer(), Dataset.from_list(ROWS)
    text = to_prompts(rows, tokenizer, prompt_template="a{question}b", answer_marker="####")
    assert text[2] == {"prompt": "a2+2=b", "answer": "1002"}
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert to_prompts(rows, tokenizer)[2]["prompt"] == [{"role": "user", "content": "2+2="}]


def test_columns_and_marks_that_are_not_there():
    tokenizer, rows = tiny.tokenizer(), Dataset.from_list(ROWS)
    with pytest.raises(ValueError, match=r"`question_column` is 'q'.*\['question', 'answer'\]"):
        to_prompts(rows, tokenizer, question_column="q")
    with pytest.raises(ValueError, match="is not in the answer"):
        to_prompts(rows, tokenizer, answer_marker="@@")
    with pytest.raises(ValueError, match="holds no"):
        to_prompts(rows, tokenizer, prompt_template="solve:")
    with pytest.raises(ValueError, match="is empty"):
        to_prompts(rows.select([]), tokenizer)


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        (" 5 ", "5"), (5, "5"), (5.0, "5"), (0.5, "0.5"), (1e-07, "0.0000001"), (-2.5e20, "-250000000000000000000"),
        (1e23, "1" + 23 * "0"), (-0.0, "0"),
        (True, "True"), (np.int64(5), "5"), (np.float32(0.5), "0.5"), (torch.tensor(5), "5"), (["5"], "5"),
        (np.array([5]), "5"), ([[5]], "5"), ("None", "None"),
        (None, None), ("", None), (" \n", None), (float("nan"), None), (np.float64("nan"), None), ([], None), ([None], None),
    ],
)  # fmt: skip
def test_gold_answers_of_every_kind(gold, text):
    assert gold_text(gold) == text
    rewards = [exact_answer_reward, math_reward, soft_tokens_reward, soft_grpo_reward]
    best = [1.0, 1.0, 100.0, 1.0]
    completion = (
        f"</think>{text}",
        rf"\boxed{{{text}}}",
        rf"The final answer is: \boxed{{{text}}}",
        rf"\boxed{{{text}}}",
    )
    got = [reward([said], [gold])[0] for reward, said in zip(rewards, completion, strict=True)]
    assert got == ([None] * 4 if text is None else best)


@pytest.mark.parametrize(
    ("gold", "what"), [([1, 2], "list of 2"), (np.array([1, 2]), "list of 2"), ({"a": 1}, "mapping"), (np.inf, "inf")]
)
def test_gold_answers_that_are_not_one(gold, what):
    with pytest.raises(ValueError, match=rf"A reward cannot compare with a gold answer: .*{what}"):
        math_reward(["1"], [gold])


def test_a_data_set_without_an_answer_column_is_said():
    for reward in (exact_answer_reward, math_reward, soft_tokens_reward, soft_grpo_reward):
        with pytest.raises(ValueError, match="no column `answer`"):
            reward(["1"], solution=["1"])


def test_messages_of_every_kind():
    parts = [{"type": "text", "text": "</think>"}, {"type": "text", "text": "5"}]
    for content, verdict in (("</think>5", 1.0), (parts, 1.0), (None, 0.0)):
        assert exact_answer_reward([[{"role": "assistant", "content": content}]], ["5"]) == [verdict]


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"question": ["q", "q"], "answer": ["1", None]}, "Row 1 .* answer is missing"),
        ({"question": ["q", "q"], "answer": [1.0, float("nan")]}, "Row 1 .* answer is missing"),
        ({"question": ["q", "q"], "answer": ["1", " "]}, "Row 1 .* answer is missing"),
        ({"question": ["q"], "answer": [["1", "2"]]}, "Row 0 .* list of 2"),
        ({"question": ["q"], "answer": [{"value": "1"}]}, "Row 0 .* mapping"),
        ({"question": ["q", None], "answer": ["1", "1"]}, "Row 1 .* question is missing"),
        ({"question": [[{"role": "user", "content": "q"}]], "answer": ["1"]}, "Row 0 .* question is a list"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(columns, error):
    with pytest.raises(ValueError, match=error):
        to_prompts(Dataset.from_dict(columns), tiny.tokenizer())


def test_rows_with_nothing_behind_the_mark_are_named():
    rows = Dataset.from_dict({"question": ["q", "q"], "answer": ["a #### 1", "b ####"]})
    with pytest.raises(ValueError, match=r"Row 1 .* answer is missing"):
        to_prompts(rows, tiny.tokenizer(), answer_marker="####")


def test_an_answer_is_what_follows_the_last_mark():
    rows = Dataset.from_dict({"question": ["q"], "answer": ["not #### 1, but\n#### 2"]})
    assert to_prompts(rows, tiny.tokenizer(), answer_marker="####")[0]["answer"] == "2"


def test_answers_may_be_numbers():
    rows = Dataset.from_dict({"question": ["q"], "answer": [5.0]})
    assert to_prompts(rows, tiny.tokenizer())[0]["answer"] == "5"


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("1,080", "1080"), ("-1,234,567.5", "-1234567.5"), ("$1,080 a year", "$1080 a year"), ("(3, 4)", "(3, 4)"),
        ("(3,400)", "(3,400)"), ("[1,000)", "[1,000)"), ("3, 4", "3, 4"), ("3,4", "3,4"), ("1,2,300", "1,2,300"),
        ("12,0000", "12,0000"), ("1,080, or so", "1080, or so"),
    ],
)  # fmt: skip
def test_thousands_commas(answer, plain):
    assert without_thousands(answer) == plain
    rows = Dataset.from_dict({"question": ["q"], "answer": [f"w #### {answer}"]})
    assert to_prompts(rows, tiny.tokenizer(), answer_marker="####")[0]["answer"] == plain


def test_long_prompts_are_dropped_with_a_count():
    tokenizer = tiny.tokenizer()
    prompts = Dataset.from_dict({"prompt": ["1", "1+1", "1+1+1"], "answer": ["a", "b", "c"]})
    kept, dropped = drop_long_prompts(prompts, tokenizer, 3)
    assert (kept["answer"], dropped) == (["a", "b"], 1)
    with pytest.raises(ValueError, match="All 3 prompts are longer than 0"):
        drop_long_prompts(prompts, tokenizer, 0)


def test_exact_reward():
    completions = ["1+1=2</think>2", "</think> 2 ", "2", [{"role": "assistant", "content": "x</think>3"}]]
    assert exact_answer_reward(completions, ["2"] * 4) == [1.0, 1.0, 1.0, 0.0]


def test_math_reward():
    completions = [r"So \boxed{1,080}.", "The answer is 1080.", r"\boxed{\frac{1}{2}}", "no idea", r"\boxed{0.5}"]
    assert math_reward(completions, ["1080", "1080", r"\frac{1}{2}", "7", "1/2"]) == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert math_reward(["1"], [""]) == [None]


def test_a_gold_answer_is_read_as_mathematics():
    """Read as plain text, these are 2, 6 and nothing."""
    right = [r"\boxed{2x-2}", r"\boxed{(-6,6)}", r"\boxed{[0,3)}"]
    assert math_reward(right, ["2x-2", "(-6, 6)", "[0,3)"]) == [1.0] * 3
    assert math_reward([r"\boxed{2}", r"\boxed{6}", r"\boxed{3}"], ["2x-2", "(-6, 6)", "[0,3)"]) == [0.0] * 3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\frac12", "1/2"), ("0.5", r"\dfrac{1}{2}"), (".5", "0.5"), ("k = 3", "3"), (r"90^\circ", "90"),
        (r"5\text{ cm}", "5"), (r"\sqrt3", r"\sqrt{3}"), (r"10\%", "10"), (r"\$5", "5"), (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\left(1, 2\right)", "(1,2)"), ("x \\in\n[2,3]", r"x\in[2,3]"), (r"{.5}", "{0.5}"),
    ],
)  # fmt: skip
def test_spellings_that_soft_grpo_pays_for(a, b):
    assert soft_grpo_reward([rf"so \boxed{{{a}}}", rf"\boxed{{7}} \boxed{{{b}}}"], [b, a]) == [1.0, 1.0]


def test_what_soft_grpo_does_not_pay_for():
    """The last box counts, as a string; mathematics' judge is kinder."""
    completions = [r"\boxed{0.25}", "The answer is 4.", r"\boxed{4} \boxed{5}", r"\boxed{4", r"\boxed{x=y=1}"]
    assert soft_grpo_reward(completions, [r"\frac14", "4", "4", "4", "1"]) == [0.0] * 5
    assert math_reward(completions[:2], [r"\frac14", "4"]) == [1.0, 1.0]


def test_soft_tokens_reward():
    final = "The final answer is: "
    completions = [
        rf"a thought. {final}\boxed{{42}}.",  # right
        [{"role": "assistant", "content": rf"{final}\boxed{{\frac{{84}}{{2}}}}"}],  # right
        rf"{final}\boxed{{41}} User: and",  # wrong
        rf"\boxed{{42}} and so on. {final}\boxed{{42",  # the answer's cap left it open
        r"a thought that ended the text: \boxed{42}",
        "nothing",
        rf"{final}\boxed{{}}",
        rf"{final}\boxed{{41}} cut {final}\boxed{{42}}",  # what is forced after a cut thought comes last
        rf"{final}\boxed{{42}} {final}\boxed{{4",  # the answer went on to another question
    ]
    assert soft_tokens_reward(completions, ["42"] * 9) == [100.0, 100.0, 10.0, 0.0, 100.0, 0.0, 0.0, 100.0, 100.0]
    assert soft_tokens_reward([r"\boxed{1}"], [""]) == [None]


FINAL = "The final answer is: "


@pytest.mark.parametrize(
    ("thought", "answer_phase", "box"),
    [
        (r"So \boxed{42}. ", rf"{FINAL}\boxed{{41}}.", "41"),  # own right, forced wrong
        (rf"{FINAL}\boxed{{41}}. So ", rf"{FINAL}\boxed{{42}}.", "42"),  # own wrong, forced right
        (FINAL, rf"\boxed{{42}} {FINAL}\boxed{{1}}", "42"),  # the thought ended itself, the answer went on
        (FINAL, r"\boxed{\frac{84}{2}} \boxed{1", r"\frac{84}{2}"),
        (rf"{FINAL}\boxed{{42}}. ", rf"{FINAL}\boxed{{4", None),  # left open by the cap
        (rf"{FINAL}\boxed{{42}}.", "", None),  # the sequence ended before anything was forced
        (FINAL, r"\boxed{}", None),
        (rf"{FINAL}\boxed{{42}}.", None, "42"),  # nothing is forced in this run
        (r"\boxed{41} no: \boxed{42}", None, "42"),
        (rf"\boxed{{42}} {FINAL}\boxed{{41", None, None),
        (r"So \boxed{42}.", "", None),
    ],
)
def test_reward_and_evaluation_read_the_same_box(thought, answer_phase, box):
    text = thought + (answer_phase or "")
    reward = 0.0 if box is None else 100.0 if grade_math(rf"\boxed{{{box}}}", "42").correct else 10.0
    assert soft_tokens_reward([text], ["42"], answer_phase=[answer_phase]) == [reward]
    read = answer_text(text, "soft_tokens", "math", answer_phase)
    assert read == ("" if box is None else rf"\boxed{{{box}}}")
    assert grade_math(read, "42").correct is (reward == 100.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is $x^2$?", "what is  x^{2}"), (r"\(x\) is \[y\]", "$x$ is $$y$$"), (r"\left( \dfrac12 \right)", r"(\frac{1}{2})"),
        ("$9$-kilometer-long walk", "9 kilometer long walk"), ("1{,}000 cats", "1000 cats"), ("1,000 cats", "1000 cats"),
        ("x \u2212 1", "x-1"), ("Janet's ducks.", "Janet\u2019s ducks"), ("a word -- another", "a word another"),
        ("A, B, and C", "A,B and C"), ("$a, b \\le 1$", "$a,$ $b \\leq 1$"), ("$x^{10}$", "x^10"), ("${(1+i x)}^2$", "(1+ix)^{2}"),
        ("find $k^{}_{}$.", "find $k$"), (r"\overline{r_1}", r"\overline{r}_1"), (r"\frac1{72}", r"\frac{1}{72}"), ("**What** is ____?", "What is \\_\\_\\_?"), ("$\\quad$ Let $a$", "Let $a$"),
    ],
)  # fmt: skip
def test_copies_in_other_marks_are_found(a, b):
    assert fingerprint(a) == fingerprint(b)
    assert overlap(["Other", a], [b, "Else"]) == {0: [1]}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("roots of z^4-z^2+1", "roots of z^4+z^2+1"), ("x < 5", "x > 5"), ("x \u2264 5", "x \u2265 5"), ("1.5 m", "15 m"),
        ("is .5", "is 5"), ("1/2", "12"), (r"\frac{1}{23}", r"\frac{12}{3}"), ("numbers 1 2 3", "numbers 12 3"), ("x^2", "x2"),
        ("(1,2)", "(12)"), ("(1,-2)", "(1-2)"), ("ratio 3:2", "ratio 32"), (r"\log_2 8", r"\log 28"), ("5!", "5"),
        ("f'(x)", "f(x)"), ("-3", "3"), (r"\sin(-60)", r"\sin(60)"), ("2(x+1)", "2x+1"), ("[0,1)", "(0,1]"), ("5%", "5"),
        ("2*3", "23"), ("|x|", "x"), ("$a-b$", "$ab$"), ("roots of -ab", "roots of ab"),
    ],
)  # fmt: skip
def test_near_misses_are_no_copies(a, b):
    assert overlap([a], [b]) == {}


def test_questions_without_a_letter_or_digit_are_nobodys_copies():
    assert overlap(["?!", "+", ""], ["", "!", "+"]) == {}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data sets (TRL_SOFT_SHARED)")
@pytest.mark.parametrize(
    ("training", "held_out", "copies"),
    [
        ("gsm8k_train", "gsm8k", []),
        ("math_train", "math500", []),
        ("math12k", "math500", []),
        ("deepscaler", "math500", [f"test/intermediate_algebra/{n}.json" for n in (1411, 1791, 1930)]),
        ("deepscaler_train_math.json.gz", "math500", []),
        (
            "deepscaler_train_aime.json.gz",
            "math500",
            [f"test/intermediate_algebra/{n}.json" for n in (1365, 1411, 1849, 2146, 582, 90)],
        ),
        ("math_train", "olympiadbench", ["2791", "2890", "2895"]),
        ("deepscaler", "aime24", []),
        ("math_train", "aime25", []),
    ],
)
def test_known_contamination(training, held_out, copies):
    """Every pair was read: copies that differ in their marks alone, and no near miss, such as z^4-z^2+1 for z^4+z^2+1."""
    data = str(SHARED / "data")
    if training.endswith(".gz"):
        questions = load_rows(f"{data}/{training}")["problem"]
    else:
        questions = [problem.question for problem in load_problems(training, data)]
    asked = load_problems(held_out, data)
    found = overlap(questions, [problem.question for problem in asked])
    names = [str(asked[n].meta.get("unique_id", asked[n].meta.get("id"))) for n in found]
    assert sorted(names) == sorted(copies)


def test_a_cap_on_prompts():
    tokenizer = tiny.tokenizer()
    prompts = Dataset.from_dict({"prompt": ["1", "1+1", "1+1+1"], "answer": ["a", "b", "c"]})
    kept, dropped = drop_long_prompts(prompts, tokenizer, 100, 1)
    assert (kept["answer"], dropped) == (["a"], 2)
    assert drop_long_prompts(prompts, tokenizer, 3, 100)[1] == 1
    with pytest.raises(ValueError, match="longer than 0 tokens, `max_prompt_length`"):
        drop_long_prompts(prompts, tokenizer, 100, 0)


def test_a_raw_prompt_is_text():
    tokenizer, rows = tiny.tokenizer(), Dataset.from_list(ROWS)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert to_prompts(rows, tokenizer, prompt_template="Q {question} A", raw=True)[2]["prompt"] == "Q 2+2= A"


def test_code_in_a_dataset_does_not_run(tmp_path):
    """A folder with a loading script, as older datasets had them: the script is not run."""
    folder, marker = tmp_path / "evil", tmp_path / "marker"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    with pytest.raises(Exception, match=r"script|supported|No .*files|data files"):
        load_rows(str(folder))
    assert not marker.exists()
