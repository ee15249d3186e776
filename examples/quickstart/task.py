# SPDX-License-Identifier: Apache-2.0
"""The quickstart's task: sums of single digits, and a sloppy student who shows how (not) to work them out.

A question is a sum of 4 to 6 digits with + and -, for example `7-1+9-8+5=`. Its running values and its answer lie
between 0 and 19. So there are few single operations, and a tiny model can learn them by heart.

The student writes one operation in each step, `7-1=6;6+9=15;15-8=7;7+5=12`. Now and then it takes two at once, as in
`7-1+9=13`, and is then usually wrong. A model trained on such demonstrations knows every single operation and is
undecided only about the strategy. Reinforcement learning has to find "one operation at a time".

    python examples/quickstart/task.py     # rewrites train.jsonl and test.jsonl beside this file, byte for byte
"""

import json
import random
import re
from pathlib import Path


HERE = Path(__file__).resolve().parent
SEED = 0
TRAIN_ROWS = 2000
TEST_ROWS = 200

LARGEST = 19  # of the true running values and of the student's wrong results
MERGE_PROBABILITY = 0.5  # that a step takes two operations, where two are left
ERROR_PROBABILITY = 0.8  # that the result of such a merged step is wrong
ERRORS = (-3, -2, -1, 1, 2, 3)


def make_question(rng: random.Random) -> str:
    """Draw a question such as `7-1+9-8+5=`, with 4 to 6 digits from 1 to 9."""
    value = rng.randint(1, 9)
    question = str(value)
    for _ in range(rng.randint(3, 5)):
        term = rng.choice([t for t in range(-9, 10) if t and 0 <= value + t <= LARGEST])
        value += term
        question += f"{term:+d}"
    return question + "="


def make_questions(rng: random.Random, count: int) -> list[str]:
    """Draw `count` distinct questions, in the order drawn."""
    questions = {}  # a dict keeps its order; a set of strings does not, from one process to the next
    while len(questions) < count:
        questions[make_question(rng)] = None
    return list(questions)


def split_terms(question: str) -> list[str]:
    """`7-1+9=` to `["7", "-1", "+9"]`."""
    return re.findall(r"[+-]?\d", question)


def solve(question: str) -> int:
    """The true answer."""
    return sum(int(term) for term in split_terms(question))


def demonstrate(question: str, rng: random.Random) -> tuple[str, str]:
    """The sloppy student's thought and answer, which is its last running value, right or wrong."""
    first, *terms = split_terms(question)
    value = int(first)
    steps = []
    while terms:
        merged = len(terms) > 1 and rng.random() < MERGE_PROBABILITY
        taken, terms = terms[: 1 + merged], terms[1 + merged :]
        step = f"{value}{''.join(taken)}"
        value += sum(int(term) for term in taken)
        if merged and rng.random() < ERROR_PROBABILITY:
            value = rng.choice([v for e in ERRORS if 0 <= (v := value + e) <= LARGEST])
        steps.append(f"{step}={value}")
    return ";".join(steps), str(value)


def write_rows(path: Path, questions: list[str]) -> None:
    """Write one `{"question": ..., "answer": ...}` a line."""
    rows = [json.dumps({"question": question, "answer": str(solve(question))}) + "\n" for question in questions]
    path.write_bytes("".join(rows).encode())


def main() -> None:
    # One draw of distinct questions, cut in two: no question is in both files, and none is twice in one.
    questions = make_questions(random.Random(SEED), TEST_ROWS + TRAIN_ROWS)
    write_rows(HERE / "test.jsonl", questions[:TEST_ROWS])
    write_rows(HERE / "train.jsonl", questions[TEST_ROWS:])


if __name__ == "__main__":
    main()
