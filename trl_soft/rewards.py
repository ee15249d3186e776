# SPDX-License-Identifier: Apache-2.0
"""Rewards that `trl.rewards` does not have: answers as plain text, with or without a chat."""

from math_verify import parse, verify


def _texts(completions: list) -> list[str]:
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]


def exact_answer_reward(completions: list, answer: list[str], **kwargs) -> list[float]:
    """1.0 where the text after the last `</think>` is the answer to the letter, blanks at the ends aside."""
    return [float(text.rpartition("</think>")[2].strip() == gold) for text, gold in zip(_texts(completions), answer)]


def math_reward(completions: list, answer: list[str], **kwargs) -> list[float | None]:
    """
    1.0 where math-verify finds the completion's answer equal to the gold answer.

    Unlike [`~trl.rewards.accuracy_reward`] it takes plain-text completions and answers that are not in LaTeX, as small
    and base models write them. `None`, which leaves the sample out, where the gold answer itself cannot be parsed.
    """
    rewards: list[float | None] = []
    for text, gold in zip(_texts(completions), answer, strict=True):
        expected = parse(gold if "$" in gold or "\\" not in gold else f"${gold}$")
        rewards.append(float(verify(expected, parse(text))) if expected else None)
    return rewards


REWARDS = {"exact": exact_answer_reward, "math": math_reward}
