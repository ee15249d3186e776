# SPDX-License-Identifier: Apache-2.0
"""Which box is read, by the judge of the evaluation and by the rewards alike."""

import pytest

from trl_soft.evaluate.grading import last_boxed
from trl_soft.evaluate.grading.boxes import LONGEST_BOX, box_of, openings
from trl_soft.rewards import math_reward, soft_grpo_reward, soft_tokens_reward


@pytest.mark.parametrize(
    "text, content",
    [
        (r"\boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"$\boxed 2$.", "2"),
        (r"$\boxed {17}.$", "17"),
        (r"\boxed5", "5"),
        (r"\boxed 12.5 cm", "12.5"),
        (r"\boxed\pi", r"\pi"),
        (r"\fbox{3}", "3"),
        (r"\boxedfoo{3}", None),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{4, 5\}}", r"\{4, 5\}"),
        (r"\boxed{[0, 1) \cup \{2\}} }", r"[0, 1) \cup \{2\}"),
        (r"} \boxed{3} {", "3"),
        (r"\boxed{}", ""),
        (r"\boxed", None),
        (r"\boxed{1", None),
        (r"\boxed{7} no: \boxed{9", None),
        (r"\boxed{7 and \boxed{9}", "9"),
        ("1", None),
        (r"\\boxed{1}", None),  # a line break of LaTeX and a word
        (r"\boxed{1} \\\boxed{2}", "2"),
        (r"\boxed \boxed{5}", "5"),
        (r"\boxed{1} \boxed", "1"),
        (r"\boxed{1} a box", "1"),
        ("\\boxed{1}" + "\\boxed}x" * 2000, "1"),
        ("\\boxed{1}" + "word " * 20_000, "1"),  # however far behind it the text goes on
        ("\\boxed{" + "1" * (LONGEST_BOX - 8) + "}", "1" * (LONGEST_BOX - 8)),
        ("\\boxed{0} \\boxed{" + "1" * (LONGEST_BOX - 7) + "}", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    "text, content",
    [
        (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1,2"),
        (r"\boxed{1}, \boxed{2} and \boxed{3}.", "1,2,3"),
        (r"\boxed{1} \text{ and } \boxed{2}", "1,2"),
        (r"\boxed{1}. No: \boxed{2}", "2"),
        (r"\boxed{\boxed{1}, \boxed{2}}", "1,2"),
        (r"\boxed{1}" + " " * 300 + r"\boxed{2}", "2"),
    ],
)
def test_several_boxes(text, content):
    assert last_boxed(text, several=True) == content


def test_boxes_are_where_they_stand():
    text = r"a \boxed{b \boxed{c}} \fbox 5 \boxed{d"
    boxes = [box_of(text, opening) for opening in reversed(list(openings(text)))]
    found = [(text[box.start : box.end], box.content and text[box.content]) for box in boxes]
    assert found == [
        (r"\boxed{b \boxed{c}}", r"b \boxed{c}"),
        (r"\boxed{c}", "c"),
        (r"\fbox 5", "5"),
        (r"\boxed{d", None),
    ]


@pytest.mark.parametrize(
    "text, right", [(r"\boxed{7} no: \boxed{9", 0), (r"\boxed{9} no: \boxed{7}", 1), (r"\boxed7", 1)]
)
def test_all_rewards_read_the_same_box(text, right):
    assert math_reward([text], ["7"]) == soft_grpo_reward([text], ["7"]) == [right]
    assert soft_tokens_reward([text], ["7"]) == [100.0 * right]
