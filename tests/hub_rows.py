# SPDX-License-Identifier: Apache-2.0
"""One row of each benchmark, with the hub's fields, and a stand-in for the hub that serves them."""

from datasets import Dataset

from trl_soft.evaluate.benchmarks import BENCHMARKS


# No question of GPQA may lie here, so these are made up.
CHOICES = [
    {
        "Question": f"What is {n} + 1?",
        "Correct Answer": f"{n + 1}",
        **{f"Incorrect Answer {i}": f"{n + 1 + i}" for i in (1, 2, 3)},
        "Subdomain": "Counting",
        "Explanation": "one more",
    }
    for n in range(40)
]
# One row of each benchmark, with the hub's fields.
HUB_ROWS = {
    "gsm8k": {"question": "1000+80?", "answer": "so <<1000+80=1080>>1,080\n#### 1,080"},
    "math500": {"problem": "x?", "solution": "", "answer": r"\frac{1}{2}", "level": 1, "unique_id": "test/a/1.json"},
    "aime24": {"id": 1, "problem": "x?", "answer": "073"},
    "aime25": {"problem": "x?", "answer": r"336^\circ"},
    "amc23": {"id": 0, "question": "x?", "answer": "27.0"},
    "olympiadbench": {
        "id": 1, "question": "x?", "final_answer": ["$1$,$2$"], "is_multiple_answer": True, "unit": None,
        "answer_type": "Numerical", "error": None,
    },
    "gpqa_diamond": CHOICES[0],
    "humaneval": {
        "task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass",
        "canonical_solution": "    return 1\n",
    },
    "mbpp": {
        "task_id": 11, "text": "Write f.", "code": "f = 1", "test_list": ["assert f", "assert f == 1", "assert f > 0"],
        "test_setup_code": "", "challenge_test_list": [],
    },
    "mbpp_sanitized": {
        "task_id": 11, "prompt": "Write f.", "code": "f = 1", "test_list": ["assert f"], "source_file": "a",
        "test_imports": ["import math"],
    },
    "math_train": {"problem": "x?", "level": "Level 1", "type": "Algebra", "solution": r"so $\boxed{\frac{1}{2}}$."},
    "deepscaler": {"problem": "x?", "solution": "", "answer": "3"},
}  # fmt: skip
HUB_ROWS["gsm8k_train"], HUB_ROWS["math12k"] = HUB_ROWS["gsm8k"], {**HUB_ROWS["math_train"], "problem": "y?"}


def stand_in(monkeypatch) -> list[tuple]:
    """Stands for the hub: one row of each benchmark; what was asked for, in order."""
    asked = []

    def load_dataset(hub_id, config=None, *, split):
        asked.append((hub_id, config, split))
        known = {n: b for n, b in BENCHMARKS.items() if (b.hub_id, b.config) == (hub_id, config)}
        names = [n for n, b in known.items() if b.split == split or b.kind == "mbpp"]
        return Dataset.from_list([HUB_ROWS[names[0]] if names else {"question": "x?", "answer": "1"}])

    monkeypatch.setattr("trl_soft.data.load_dataset", load_dataset)
    return asked
