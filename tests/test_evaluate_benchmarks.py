# SPDX-License-Identifier: Apache-2.0
"""Every benchmark's rows and golds, from files and from the hub."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from tests.benchmark_files import DATA, needs_data
from tests.hub_rows import CHOICES, HUB_ROWS, stand_in
from trl_soft.evaluate.benchmarks import BENCHMARKS, KINDS
from trl_soft.evaluate.grading import GRADERS, last_boxed
from trl_soft.evaluate.problems import Problem, load_problems


@pytest.fixture
def hub(monkeypatch):
    return stand_in(monkeypatch)


def write(path: Path, rows: list[dict]) -> str:
    text = (
        json.dumps(rows, ensure_ascii=False)
        if ".json" in path.suffixes
        else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def write_choices(folder: Path, rows=CHOICES) -> str:
    with open(folder / "gpqa_diamond.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return str(folder)


# Rows, and golds by number, each worked out or read in the source by hand.
COUNTS_AND_GOLDS = {
    "gsm8k": (1319, {0: "18", 146: "2125", 201: "114200"}),
    "math500": (500, {0: r"\left( 3, \frac{\pi}{2} \right)", 499: r"106^\circ"}),
    "aime24": (30, {0: "204", 7: "25", 15: "73", 29: "902"}),
    "aime25": (30, {0: "70", 2: "16", 19: "336"}),
    "humaneval": (164, {}),
    "mbpp": (500, {}),
    "mbpp_sanitized": (257, {}),
    "olympiadbench": (675, {}),
    "gsm8k_train": (7473, {0: "72"}),
    # 252 boxes after a blank, 888 and 1011 without braces, 5341 and 5343 nothing.
    "math_train": (7500, {0: "0", 252: "17", 888: "2", 1011: "9", 5341: "0", 5343: "0"}),
    "math12k": (12000, {0: "0", 7500: "2"}),
    # 912 is row 1716 of the hub: 3 * 675 = 45**2 and 5 * 675 = 15**3.
    "deepscaler": (20787, {0: r"-\frac{2}{3}", 912: "675"}),
}


@needs_data
@pytest.mark.parametrize("name", COUNTS_AND_GOLDS)
def test_every_row_of_every_file_has_a_question_and_a_gold(name):
    count, golds = COUNTS_AND_GOLDS[name]
    problems = load_problems(name, DATA)
    assert [p.number for p in problems] == list(range(count))
    assert all(p.question.strip() and p.gold for p in problems)
    assert {n: problems[n].gold for n in golds} == golds
    assert load_problems(name, DATA, limit=3) == problems[:3]


@needs_data
def test_every_benchmark_with_a_file_is_counted():
    present = {n for n, b in BENCHMARKS.items() if all((DATA / file).is_file() for file in b.files)}
    assert present == set(COUNTS_AND_GOLDS) and set(BENCHMARKS) - present == {"amc23", "gpqa_diamond"}


@needs_data
def test_boxes_of_math500_are_its_answers():
    """The reader of MATH's solutions against the answers that Lightman et al. took from the same solutions."""
    rows = [json.loads(line) for line in gzip.open(DATA / "math500.jsonl.gz", "rt", encoding="utf-8")]
    assert [last_boxed(row["solution"]) for row in rows] == [row["answer"] for row in rows]


@needs_data
def test_math12k_leaves_math500_out():
    held_out = {p.question for p in load_problems("math500", DATA)}
    assert not held_out & {p.question for p in load_problems("math12k", DATA)}
    everything = load_problems("math_train", DATA) + load_problems(
        str(DATA / "math_test.jsonl.gz"), None, None, "problem", "solution"
    )
    assert len(held_out & {p.question for p in everything}) == 500


@needs_data
def test_golds_with_fields():
    olympiad = {p.meta["id"]: p.gold for p in load_problems("olympiadbench", DATA)}
    assert olympiad[2592] == {
        "answer": "4.2", "answer_type": "Numerical", "is_multiple_answer": False, "unit": "%", "error": "1e-1",
    }  # fmt: skip
    assert olympiad[1709]["answer"] == "1,3,5" and olympiad[1709]["is_multiple_answer"] is True
    assert sum(gold["is_multiple_answer"] for gold in olympiad.values()) == 94
    first = load_problems("humaneval", DATA, limit=1)[0]
    assert first.question.startswith(
        "from typing import List\n\n\ndef has_close_elements("
    ) and first.question.endswith('"""\n')
    assert first.gold["entry_point"] == "has_close_elements" and "def check(candidate)" in first.gold["test"]
    assert {p.gold["task_id"] for p in load_problems("mbpp", DATA)} == set(range(11, 511))
    tests = {p.gold["task_id"]: p.gold for p in load_problems("mbpp", DATA, split="all")}
    assert len(tests) == 974 and tests[367]["test_setup_code"].startswith("root = Node(1)")
    assert tests[11]["test_list"][0] == 'assert remove_Occ("hello","l") == "heo"'
    sanitized = load_problems("mbpp_sanitized", DATA, split="all")
    assert len(sanitized) == 427 and sanitized[0].gold["test_imports"] == []
    assert ["import math"] in [p.gold["test_imports"] for p in sanitized]


@needs_data
def test_source_files_load_by_path_and_name_what_they_lacked():
    problems = load_problems("deepscaler_train_math.json.gz", DATA, question_column="problem")
    assert len(problems) == 7474
    assert [(p.number, p.gold) for p in problems if "corrected" in p.meta] == [
        (886, "2"),
        (1009, "9"),
        (5328, "0"),
        (5330, "0"),
    ]
    assert len(load_problems("deepscaler_train_aime.json.gz", DATA, question_column="problem")) == 975
    corrected = [p for p in load_problems("deepscaler", DATA) if "corrected" in p.meta]
    assert [(p.meta["index"], p.meta["corrected"]) for p in corrected] == [(1716, "182")]


@pytest.mark.parametrize("flag, several", [(True, True), ("True", True), (False, False), ("False", False)])
def test_a_flag_may_be_text(tmp_path, flag, several):
    write(tmp_path / "olympiadbench_math_en.jsonl", [{**HUB_ROWS["olympiadbench"], "is_multiple_answer": flag}])
    assert load_problems("olympiadbench", tmp_path)[0].gold["is_multiple_answer"] is several


def test_options_are_shuffled_by_seed_and_number(tmp_path):
    folder = write_choices(tmp_path)
    problems = load_problems("gpqa_diamond", folder)
    for n, problem in enumerate(problems):
        assert problem.meta["options"]["ABCD".index(problem.gold)] == str(n + 1)
        assert f"\n{problem.gold}. {n + 1}" in problem.question and "Explanation" not in problem.meta
        assert sorted(map(int, problem.meta["options"])) == [n + 1, n + 2, n + 3, n + 4]
    assert {p.gold for p in problems} == set("ABCD")
    assert load_problems("gpqa_diamond", folder, limit=7) == problems[:7]
    other = [p.gold for p in load_problems("gpqa_diamond", folder, seed=1)]
    assert other != [p.gold for p in problems]
    # Locks the order: a run that is resumed, on any machine, shows the same letters.
    assert "".join(p.gold for p in problems[:12]) == "AABCBCAABDBA"


def test_options_that_are_no_choice(tmp_path):
    with pytest.raises(ValueError, match=r"Row 1 of gpqa_diamond has its right answer '2' among the wrong"):
        load_problems("gpqa_diamond", write_choices(tmp_path, [CHOICES[0], {**CHOICES[1], "Incorrect Answer 2": "2"}]))
    with pytest.raises(ValueError, match=r"Row 0 .*nothing in \['Incorrect Answer 3'\]"):
        load_problems("gpqa_diamond", write_choices(tmp_path, [{**CHOICES[0], "Incorrect Answer 3": ""}]))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_hub_is_asked_for_what_the_papers_use(hub, name):
    problem = load_problems(name)[0]
    b = BENCHMARKS[name]
    assert hub[0] == (b.hub_id, b.config, b.split) and len(hub) == (2 if b.exclude else 1)
    golds = {"gsm8k": "1080", "aime24": "73", "aime25": "336", "amc23": "27", "math_train": r"\frac{1}{2}"}
    if name in golds:
        assert problem.gold == golds[name]
    assert (problem.meta["benchmark"], problem.meta["grader"], problem.meta["kind"]) == (name, b.grader, b.kind)
    assert b.grader in GRADERS and b.kind in KINDS


def test_other_hub_ids_and_splits(hub):
    assert load_problems("someone/some.set", split="validation")[0].gold == "1"
    load_problems("someone/some.set")
    load_problems("mbpp", split="all")
    assert hub == [
        ("someone/some.set", None, "validation"),
        ("someone/some.set", None, "test"),
        ("google-research-datasets/mbpp", "full", "prompt+test+validation+train"),
    ]


def test_problems_of_math500_are_left_out_wherever_they_come_from(tmp_path):
    rows = [{"problem": f"{n}?", "solution": rf"\boxed{{{n}}}", "answer": str(n)} for n in range(6)]
    write(tmp_path / "math_train.jsonl.gz", rows[:3])
    write(tmp_path / "math_test.jsonl", rows[3:])
    write(tmp_path / "math500.json", [rows[1], rows[4]])
    assert [p.gold for p in load_problems("math12k", tmp_path)] == ["0", "2", "3", "5"]
    assert [p.number for p in load_problems("math12k", tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("file", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.parquet"])
def test_any_file_with_a_question_and_an_answer(tmp_path, file):
    rows = [{"q": "1+1?", "a": "2", "level": "easy"}, {"q": "line\u2028end", "a": "3", "level": "hard"}]
    path = tmp_path / file
    if path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        write(path, rows)
    problems = load_problems(file, tmp_path, question_column="q", answer_column="a")
    assert [(p.question, p.gold, p.meta["level"]) for p in problems] == [
        ("1+1?", "2", "easy"),
        ("line\u2028end", "3", "hard"),
    ]
    assert load_problems(str(path), question_column="q", answer_column="a") == [
        Problem(p.number, p.question, p.gold, {**p.meta, "benchmark": str(path)}) for p in problems
    ]


def test_names_columns_and_splits_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"is not a benchmark, a file or a hub id.*Did you mean 'math500'\?.*gsm8k"):
        load_problems("math50")
    with pytest.raises(FileNotFoundError, match=r"nope\.jsonl does not exist"):
        load_problems("nope.jsonl", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"aime24 has no file .*leave `data_dir` unset .*HuggingFaceH4/aime_2024"
    ):
        load_problems("aime24", tmp_path)
    path = write(tmp_path / "a.jsonl", [{"q": "1?", "a": "1"}])
    with pytest.raises(ValueError, match=r"Row 0 .*no column 'question', only \['q', 'a'\]\. Set `question_column`"):
        load_problems(path)
    with pytest.raises(ValueError, match=r"no column 'answer'.*Set `answer_column`"):
        load_problems(path, question_column="q")
    with pytest.raises(ValueError, match="a local file is one split"):
        load_problems(path, split="train")
    with pytest.raises(ValueError, match=r"`limit` is 0"):
        load_problems(path, limit=0)
    write(tmp_path / "mbpp.jsonl", [HUB_ROWS["mbpp"]])
    with pytest.raises(ValueError, match=r"MBPP does not have.*prompt, test"):
        load_problems("mbpp", tmp_path, split="dev")
    with pytest.raises(ValueError, match="no problems in split 'train'"):
        load_problems("mbpp", tmp_path, split="train")


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("gsm8k", {"answer": "1080"}, "holds no `#### `"),
        ("gsm8k", {"answer": "#### a lot"}, "'a lot', which is no integer"),
        ("aime24", {"answer": None}, "'', which is no integer"),
        ("math_train", {"solution": r"\boxed{1"}, "no complete"),
        ("math_train", {"solution": r"\boxed{}"}, "has no answer"),
        ("math500", {"answer": " "}, "has no answer"),
        ("math500", {"problem": ""}, "has no question"),
        ("olympiadbench", {"final_answer": ["1", "2"]}, "a list of one text"),
        ("mbpp", {"test_list": []}, "no program could be wrong"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, name, change, message):
    write(tmp_path / BENCHMARKS[name].files[0], [HUB_ROWS[name], {**HUB_ROWS[name], **change}])
    assert load_problems(name, tmp_path, limit=1)
    with pytest.raises(ValueError, match=f"Row 1 of {name} .*{message}"):
        load_problems(name, tmp_path)


def test_files_that_are_broken(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "1?", "answer": "1"}\n\n{"question"\n')
    with pytest.raises(ValueError, match=r"no JSON at line 3"):
        load_problems(str(tmp_path / "a.jsonl"))
    (tmp_path / "b.json").write_text('{"question": "1?"}')
    with pytest.raises(ValueError, match="does not hold objects"):
        load_problems(str(tmp_path / "b.json"))
    (tmp_path / "c.txt").write_text("1")
    with pytest.raises(ValueError, match="its format is unknown"):
        load_problems(str(tmp_path / "c.txt"))
    write(tmp_path / "HumanEval.jsonl", [{k: v for k, v in HUB_ROWS["humaneval"].items() if k != "test"}])
    with pytest.raises(ValueError, match="Row 0 of humaneval has no column 'test'"):
        load_problems("humaneval", tmp_path)
