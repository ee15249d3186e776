# SPDX-License-Identifier: Apache-2.0
"""The problems of part B: 200 test questions of GSM8K and 100 of MATH-500, by the numbers of their rows.

    python -m study.real.problems --data DIR    # rewrites problems.json, byte for byte

The rule: `random.Random("real NAME").sample(range(rows), count)`, in increasing order. The questions are read from the data sets,
on the hub or in a folder. problems.json also has a digest of the questions, so that other rows are not taken for these.
"""

import argparse
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from trl_soft.contamination import fingerprint
from trl_soft.evaluate import Problem, load_problems

from ..tasks import ROOT


FILE = ROOT / "study/real/problems.json"
COUNTS = {"gsm8k": (1319, 200), "math500": (500, 100)}  # rows of the data set, and how many are chosen


def numbers_of(name: str) -> list[int]:
    """The numbers that the rule chooses."""
    rows, count = COUNTS[name]
    return sorted(random.Random(f"real {name}").sample(range(rows), count))


def digest(questions: list[str]) -> str:
    """Of questions in their order. How a data set writes blanks and formulas does not change it."""
    text = json.dumps([fingerprint(question) for question in questions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def registered_problems(path: Path, data_dir: str | None, limit: int | None = None) -> dict[str, list[Problem]]:
    """
    The problems of each benchmark.

    Args:
        path (`Path`): a file like problems.json.
        data_dir (`str`, *optional*): see [`~trl_soft.evaluate.load_problems`].
        limit (`int`, *optional*): only the first problems of each benchmark, for a try.

    Raises:
        ValueError: if the rows are not those that are registered.
    """
    found = {}
    for name, entry in json.loads(path.read_text("utf-8")).items():
        rows = {problem.number: problem for problem in load_problems(name, data_dir)}
        missing = [number for number in entry["numbers"] if number not in rows]
        chosen = [rows[number] for number in entry["numbers"] if number in rows]
        if missing or digest([problem.question for problem in chosen]) != entry["sha256"]:
            raise ValueError(
                f"The rows {entry['numbers'][:3]} and so on of {name} in {data_dir or 'the hub'} are not the questions that {path} "
                "registers. Give the original data set, in its order."
            )
        found[name] = chosen[:limit]
    return found


def describe(data_dir: str | None) -> dict[str, Any]:
    """The content of problems.json."""
    content = {}
    for name in COUNTS:
        rows, numbers = load_problems(name, data_dir), numbers_of(name)
        if len(rows) != COUNTS[name][0]:
            raise ValueError(f"{name} has {len(rows)} rows here, but {COUNTS[name][0]} rows in the original.")
        content[name] = {"sha256": digest([rows[number].question for number in numbers]), "numbers": numbers}
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the numbers of the problems of part B.")
    parser.add_argument("--data", help="folder with the files of the benchmarks; unset: the hub")
    content = describe(parser.parse_args().data)
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in content.items()]
    FILE.write_text("{" + ",\n ".join(lines) + "}\n", "utf-8")


if __name__ == "__main__":
    main()
