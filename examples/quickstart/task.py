# SPDX-License-Identifier: Apache-2.0
"""The quickstart's task: sums of single digits, and a sloppy student who shows how (not) to work them out.

A question is a sum of 4 to 6 digits with + and -, for example `7-1+9-8+5=`. Its running values and its answer lie
between 0 and 19. So there are few single operations, and a tiny model can learn them by heart.

The student writes one operation in each step, `7-1=6;6+9=15;15-8=7;7+5=12`. Now and then it takes two at once, as in
`7-1+9=13`, and is then usually wrong. A model trained on such demonstrations knows every single operation and is
undecided only about the strategy. Reinforcement learning has to find "one operation at a time".

The class `Task` has the tasks of this family: other operators, more digits, larger numbers, or values modulo a number. The
quickstart's is `Task()`. `study/` has another.

    python examples/quickstart/task.py     # rewrites train.jsonl and test.jsonl beside this file, byte for byte
"""

import json
import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


HERE = Path(__file__).resolve().parent
SEED = 0
TRAIN_ROWS = 2000
TEST_ROWS = 200

MERGE_PROBABILITY = 0.5  # that a step takes two operations, where two are left
ERROR_PROBABILITY = 0.8  # that the result of such a merged step is wrong
ERRORS = (-3, -2, -1, 1, 2, 3)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Task:
    """
    Chains of operations on small numbers. They are worked out from left to right: `*` does not go first.

    Args:
        operators (`str`): some of `-`, `+` and `*`, each of them one of `OPERATIONS`.
        modulus (`int`, *optional*): running values are taken modulo this number. `None`: they stay between 0 and `largest`.
        largest (`int`): of the running values and of the student's wrong results, without a modulus.
        lengths (`tuple[int, int]`): fewest and most numbers in a question.
        first (`tuple[int, int]`): the smallest and the largest first number of a question. The others are from 1 to 9.
    """

    operators: str = "-+"
    modulus: int | None = None
    largest: int = 19
    lengths: tuple[int, int] = (4, 6)
    first: tuple[int, int] = (1, 9)

    def apply(self, value: int, term: str) -> int:
        """The running value after a term such as `+9`."""
        value = OPERATIONS[term[0]](value, int(term[1:]))
        return value if self.modulus is None else value % self.modulus

    def allows(self, value: int) -> bool:
        """Whether a question may have this running value."""
        return self.modulus is not None or 0 <= value <= self.largest

    def terms(self) -> list[str]:
        """Every term, from `-9` over `-1` and `+1` to `+9`. The order decides what a seed draws."""
        up, down = range(1, 10), range(9, 0, -1)
        return [f"{sign}{number}" for sign in self.operators for number in (down if sign == "-" else up)]

    def make_question(self, rng: random.Random) -> str:
        """Draw a question such as `7-1+9-8+5=`."""
        value = rng.randint(*self.first)
        question = str(value)
        for _ in range(rng.randint(self.lengths[0] - 1, self.lengths[1] - 1)):
            term = rng.choice([term for term in self.terms() if self.allows(self.apply(value, term))])
            value = self.apply(value, term)
            question += term
        return question + "="

    def make_questions(
        self, rng: random.Random, count: int, keep: Callable[[str], bool] = lambda question: True
    ) -> list[str]:
        """Draw `count` distinct questions that `keep` accepts, in the order drawn."""
        questions: dict[
            str, None
        ] = {}  # a dict keeps its order; a set of strings does not, from one process to the next
        while len(questions) < count:
            question = self.make_question(rng)
            if keep(question):
                questions[question] = None
        return list(questions)

    def solve(self, question: str) -> int:
        """The true answer."""
        first, *terms = split_terms(question)
        value = int(first)
        for term in terms:
            value = self.apply(value, term)
        return value

    def demonstrate(self, question: str, rng: random.Random) -> tuple[str, str]:
        """The sloppy student's thought and answer, which is its last running value, right or wrong."""
        first, *terms = split_terms(question)
        value = int(first)
        steps = []
        while terms:
            merged = len(terms) > 1 and rng.random() < MERGE_PROBABILITY
            taken, terms = terms[: 1 + merged], terms[1 + merged :]
            step = f"{value}{''.join(taken)}"
            for term in taken:
                value = self.apply(value, term)
            if merged and rng.random() < ERROR_PROBABILITY:
                value = rng.choice(self.wrong_values(value))
            steps.append(f"{step}={value}")
        return ";".join(steps), str(value)

    def wrong_values(self, value: int) -> list[int]:
        """What the student takes for `value` when it is wrong."""
        if self.modulus is not None:
            return [(value + error) % self.modulus for error in ERRORS]
        return [value + error for error in ERRORS if self.allows(value + error)]


def split_terms(question: str) -> list[str]:
    """`7-1+9=` to `["7", "-1", "+9"]`."""
    return re.findall(r"[-+*]?\d+", question)


def write_rows(path: Path, questions: list[str], task: Task) -> None:
    """Write one `{"question": ..., "answer": ...}` a line."""
    rows = [json.dumps({"question": question, "answer": str(task.solve(question))}) + "\n" for question in questions]
    path.write_bytes("".join(rows).encode())


def main() -> None:
    # One draw of distinct questions, cut in two: no question is in both files, and none is twice in one.
    task = Task()
    questions = task.make_questions(random.Random(SEED), TEST_ROWS + TRAIN_ROWS)
    write_rows(HERE / "test.jsonl", questions[:TEST_ROWS], task)
    write_rows(HERE / "train.jsonl", questions[TEST_ROWS:], task)


if __name__ == "__main__":
    main()
