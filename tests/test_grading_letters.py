# SPDX-License-Identifier: Apache-2.0
"""The letter and the exact grader, on answers as models write them."""

import pytest

from tests.benchmark_files import needs_data, rows
from trl_soft.evaluate.grading import GRADERS, grade_letter, letters
from trl_soft.evaluate.grading.verdict import ENDING, lowered


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
        # The form that a preset demands, and JSON around it.
        ('"answer": "C"', "C"),
        ('Not (A).\n"answer": "C"', "C"),
        ("```json\n{'answer': 'C. 5 m'}\n```", "C"),
        # Mathematics in a box is no letter.
        ("So \\boxed{E = mc^2}. Answer: D", "D"),
        ("\\boxed{A, B}", None),
        ("\\boxed{C_2}", None),
        ("Answer: E = mc^2", None),
        ("\\boxed{Option D}", "D"),
        ("\\boxed{d}", "D"),
        ("\\boxed{\\text{(C) } 5 \\text{ m}}", "C"),
        ("\\fbox{C. 5 m}", "C"),
        ("\\boxed C.", "C"),
        ("\\boxed{C", None),
        # Words between "answer" and the letter, marks around it, small letters.
        ("The correct choice is D.", "D"),
        ("answer: `D`", "D"),
        ("__Answer__: __D__", "D"),
        ("Therefore, the answer is:\n\n**D) 5 m**", "D"),
        ("## Answer\nD. 5 m", "D"),
        ("The correct answer is d.", "D"),
        ("The correct answer to this question is option (D)", "D"),
        ("The answer is I think D", "D"),
        ("the answer is $\\text{(D)}$", "D"),
        ("(D) is correct, I am sure.", "D"),
        ("If A is correct, x < 0. So D is the right choice", "D"),
        ("D. 5 m", "D"),
        ("A) is wrong, so I take (D)", "D"),
        # What names no option.
        ("the answer is a large one", None),
        ("The answer is not B.", None),
        ("Answer: A or B", None),
        ("The answer depends on whether B is", None),
        ("A. 4 m\nB. 5 m", None),
    ],
)
def test_letters_as_models_write_them(text, letter):
    for said in (text, f"Answer: A</think>{text}"):
        assert (grade_letter(said, "B").answer, grade_letter(said, "D").correct) == (letter, letter == "D")


def test_a_choice_is_judged_by_a_letter():
    for gold in (None, "", 2, "c", "AB"):
        with pytest.raises(ValueError, match="the letters of options are ABCDEFGHIJ"):
            grade_letter("Answer: C", gold)


@pytest.mark.parametrize(
    "text",
    [
        "Answer" + "\n" * 3900 + "x", "\\boxed{" * 570, "answer " * 570, "option " * 570 + "A is", "(" * 4000,
        "A or " * 800, "**A" * 1300, "*\n" * 2000,
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_the_steps_of_a_long_text(text, monkeypatch):
    """No rule looks at a token more than some thirty times, so the time is linear in the text; counted, not measured."""
    steps = 0

    class Counted(list):
        def __getitem__(self, place):
            nonlocal steps
            steps += 1
            return super().__getitem__(place)

    tokens = letters._tokens
    monkeypatch.setattr(letters, "_tokens", lambda text, start: Counted(tokens(text, start)))
    grade_letter(text, "B")
    assert steps < 40 * len(tokens(text)) + 100


WORDS = "and so it goes on " * 6_000  # 108,000 characters, without a letter of an option


@pytest.mark.parametrize(
    "text, letter",
    [
        # What is boxed or named counts wherever it stands.
        ("\\boxed{C} " + WORDS, "C"),
        (WORDS + "\\boxed{C} " + WORDS, "C"),
        (WORDS + "so \\boxed{C}. Its area is \\boxed{5}. " + WORDS, "C"),
        (WORDS + "The answer is C. " + WORDS, "C"),
        ("Answer: C\n" + WORDS, "C"),
        ("Answer: C\n" + " \n" * 50_000, "C"),
        ("\u0130" * 3_000 + "\nAnswer: C\n" + WORDS, "C"),
        # The rules keep their order.
        ("\\boxed{C} " + WORDS + "Answer: D", "C"),
        ("Answer: C. " + WORDS + "(D)", "C"),
        ("Answer: C. " + WORDS + "Answer: D", "D"),
        # All else counts in the last 4,000 characters.
        (WORDS + "(C) " + WORDS[:3_980], "C"),
        ("(C) " + WORDS, None),
        ("\nC\n" + WORDS, None),
        ("C is correct. " + WORDS, None),
        ("A. 5 m\n" + WORDS + "\nC. 5 m\n", "C"),
        # No word is cut to a letter, and no cut begins a line.
        ("x" * 10 + "A" + " is correct." + "." * (ENDING - 13), None),
        ("A" * 10 + ". 5 m" + "." * (ENDING - 6), None),
        (WORDS + "answer: " + " " * (ENDING // 2 - 9) + "Carbon " + WORDS, None),
    ],
    ids=lambda value: repr(value)[:16],
)
def test_the_letter_of_a_long_text(text, letter):
    assert grade_letter(text, "A").answer == letter


def test_small_letters_keep_their_places():
    assert [chr(code) for code in range(0x110000) if len(lowered(chr(code))) != 1] == []
    assert lowered("\u0130A") == "ia"


@needs_data
def test_letters_of_arc():
    for row in rows("arc_challenge_validation.jsonl.gz"):
        choices = row["question"]["choices"]
        gold = "ABCDE"[[choice["label"] for choice in choices].index(row["answerKey"])]
        others = [letter for letter in "ABCDE"[: len(choices)] if letter != gold]
        assert grade_letter(f"I think the answer is ({gold}).", gold).correct
        assert not any(grade_letter(f"I think the answer is ({other}).", gold).correct for other in others)


def test_exact():
    assert GRADERS["exact"]("1+1</think> 2\n", "2").correct and not GRADERS["exact"]("2.", "2").correct
    assert GRADERS["exact"]("2", 2).correct and not GRADERS["exact"]("3", 2.0).correct


@pytest.mark.parametrize("grader", ["exact", "math", "letters"])
def test_no_judge_compares_with_a_missing_gold(grader):
    for gold in (None, " ", float("nan")):
        with pytest.raises(ValueError, match="The gold answer is"):
            GRADERS[grader]("None", gold)
