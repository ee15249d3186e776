# SPDX-License-Identifier: Apache-2.0
"""The letter and the exact grader, on answers as models write them."""

import pytest

from tests.benchmark_files import needs_data, rows
from trl_soft.evaluate.grading import GRADERS, grade_letter, shuffled_options


@pytest.mark.parametrize(
    "text, letter",
    [
        ("The correct answer is (C).", "C"),
        ("ANSWER: B", "B"),
        ("**Answer:** D", "D"),
        ("\\boxed{\\text{A}}", "A"),
        ("\\boxed{(B)}", "B"),
        ("Answer: A</think>Answer: B", "B"),
        ("answer is A. No: the answer is B", "B"),
        ("C", "C"),
        ("(A) is wrong, so I take (D) here", "D"),
        ("Answer: A large one", "A"),
        ("A good question", None),
        ("The answer is Boron", None),
    ],
)
def test_letters(text, letter):
    assert (grade_letter(text, "B").answer, grade_letter(text, "B").correct) == (letter, letter == "B")


def test_options_are_shuffled_by_seed():
    options = ["red", "green", "blue", "black"]
    orders = set()
    for seed in range(200):
        text, letter = shuffled_options(options, 2, seed)
        assert f"({letter}) blue" in text.split("\n") and sorted(line[4:] for line in text.split("\n")) == sorted(
            options
        )
        assert shuffled_options(options, 2, seed) == (text, letter)
        orders.add(text)
    assert len(orders) == 24  # all of them: 24 missed one of 200 draws with probability 24 * (23/24)**200 = 0.5 %
    # Fixed, so that a run of another day asks the same.
    assert shuffled_options(options, 2, "0:id") == SHUFFLED
    with pytest.raises(ValueError, match="must be one of them"):
        shuffled_options(options, 4, 0)


SHUFFLED = ("(A) red\n(B) black\n(C) green\n(D) blue", "D")


@needs_data
def test_letters_of_arc():
    for row in rows("arc_challenge_validation.jsonl.gz"):
        choices = row["question"]["choices"]
        correct = [choice["label"] for choice in choices].index(row["answerKey"])
        _, gold = shuffled_options([choice["text"] for choice in choices], correct, row["id"])
        others = [letter for letter in "ABCDE"[: len(choices)] if letter != gold]
        assert grade_letter(f"I think the answer is ({gold}).", gold).correct
        assert not any(grade_letter(f"I think the answer is ({other}).", gold).correct for other in others)


def test_exact():
    assert GRADERS["exact"]("1+1</think> 2\n", "2").correct and not GRADERS["exact"]("2.", "2").correct
