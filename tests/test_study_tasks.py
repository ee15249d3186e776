# SPDX-License-Identifier: Apache-2.0
"""The problems of the study: the same bytes from the same seed, right answers, and no question in two splits."""

import json
import sys

import pytest
from transformers import AutoTokenizer

from study import tasks


CASES = [(task, split) for task in tasks.FORMS for split in tasks.SPLITS]
QUICKSTART = tasks.QUICKSTART


def rows(task: str, split: str) -> list[dict]:
    return [json.loads(line) for line in tasks.path_of(task, split).read_text("utf-8").splitlines()]


@pytest.fixture
def pretrain(monkeypatch):
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import pretrain

    yield pretrain
    for name in ("task", "pretrain"):
        sys.modules.pop(name, None)


def test_the_problems_are_rewritten_byte_for_byte(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "DATA", tmp_path)
    tasks.write_problems()
    for task, forms in tasks.FORMS.items():
        for split in forms:
            shipped = tasks.ROOT / f"study/data/{task}/{split}.jsonl"
            assert (tmp_path / task / f"{split}.jsonl").read_bytes() == shipped.read_bytes(), (task, split)


@pytest.mark.parametrize(("task", "split"), CASES)
def test_the_answers_are_right(task, split):
    """Worked out by Python: from left to right, and the modulus once at the end."""
    found = rows(task, split)
    assert len(found) == tasks.COUNTS[split]
    for row in found:
        value, *terms = tasks.quickstart.split_terms(row["question"])
        assert row["question"] == value + "".join(terms) + "="
        for term in terms:
            value = eval(f"({value}){term}")
        assert str(int(value) % 10 if task == "mod" else int(value)) == row["answer"]
        assert split != "long" or 7 <= len(terms) + 1 <= 8
        assert split == "long" or 4 <= len(terms) + 1 <= 6
        assert ("*" in row["question"]) == ((task, split) == ("mod", "other"))
        assert (len(row["question"].split("+")[0].split("-")[0]) == 2) == ((task, split) == ("sum", "other"))


def test_no_question_is_in_two_splits():
    for task in tasks.FORMS:
        questions = [row["question"] for split in tasks.SPLITS for row in rows(task, split)]
        assert len(questions) == len(set(questions)) == sum(tasks.COUNTS.values())


@pytest.mark.parametrize("task", ["sum", "mod"])
def test_the_tokenizer_writes_every_problem(task, pretrain, tmp_path):
    """And it is the one that the script makes, byte for byte."""
    folder = QUICKSTART / "reasoner" if task == "sum" else tasks.DATA / "mod/reasoner"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for split in tasks.SPLITS:
        for row in rows(task, split):
            assert tokenizer.decode(tokenizer(row["question"])["input_ids"]) == row["question"]
    made = pretrain.make_tokenizer(pretrain.Task() if task == "sum" else pretrain.Task("-+*", modulus=10))
    made.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_student_of_values_modulo_ten(pretrain):
    """Every single operation is right, a merged one is wrong four times in five, and values stay below ten."""
    import random

    task, rng = pretrain.Task("-+*", modulus=10), random.Random(0)
    merged, right = 0, 0
    for _ in range(300):
        question = task.make_question(rng)
        thought, answer = task.demonstrate(question, rng)
        for step in thought.split(";"):
            left, value = step.split("=")
            first, *terms = tasks.quickstart.split_terms(left)
            true = int(first)
            for term in terms:
                true = eval(f"({true}){term}") % 10
            assert 0 <= int(value) < 10 and (len(terms) == 2 or true == int(value))
            merged += len(terms) == 2
            right += len(terms) == 2 and true == int(value)
        assert answer == thought.rpartition("=")[2]
    assert merged > 250 and 0.1 < right / merged < 0.3  # 0.2, and the standard error is below 0.025
