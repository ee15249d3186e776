# SPDX-License-Identifier: Apache-2.0
"""The two tasks of the small study, `sum` and `mod`, and their problems.

`sum` is the quickstart's: its reasoner, its training rows and its test problems. `mod` is of the same family, but its makers'
settings were not chosen on it: running values modulo 10. Its reasoner knows +, - and *. It is trained on + and - only, so that
* is another operator that the policy can work out.

    python -m study.tasks               # rewrites the problems in study/data, byte for byte
    python -m study.tasks --reasoner    # makes the reasoner of `mod`: about two minutes on one core

Each task has these splits, and no question is in two of them:

    train     what the policy is trained on, 2000 rows
    tune      100 problems that choose: the learning rate, the temperature, the length of a thought that is cut
    test      200 problems that are scored
    long      100 problems of 7 to 8 numbers, where training has 4 to 6
    other     100 problems of another form. `sum`: the first number has two digits. `mod`: with a *
"""

import argparse
import importlib.util
import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType


ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "examples/quickstart"
DATA = ROOT / "study/data"
SEED = 1  # 0 is the quickstart's
TRAIN, TUNE, TEST, OUTSIDE = 2000, 100, 200, 100
SPLITS = ("train", "tune", "test", "long", "other")


def _quickstart() -> ModuleType:
    """The quickstart's task.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("quickstart_task", QUICKSTART / "task.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


quickstart = _quickstart()
Task = quickstart.Task
# What the reasoner of `mod` learns from its student.
MOD = Task(operators="-+*", modulus=10)
# The task of each split that this file makes.
FORMS: dict[str, dict[str, Task]] = {
    "sum": {"tune": Task(), "long": Task(lengths=(7, 8)), "other": Task(first=(10, 19))},
    "mod": {
        "test": Task(modulus=10),
        "tune": Task(modulus=10),
        "train": Task(modulus=10),
        "long": Task(modulus=10, lengths=(7, 8)),
        "other": MOD,
    },
}
COUNTS = {"train": TRAIN, "tune": TUNE, "test": TEST, "long": OUTSIDE, "other": OUTSIDE}


def path_of(task: str, split: str) -> Path:
    """The file of a split."""
    made = split in FORMS[task]
    return DATA / task / f"{split}.jsonl" if made else QUICKSTART / f"{split}.jsonl"


def questions_in(path: Path) -> list[str]:
    """The questions of a file."""
    return [json.loads(line)["question"] for line in path.read_text("utf-8").splitlines()]


def make_questions(name: str) -> dict[str, list[str]]:
    """The questions of each split that this file makes, for one task."""
    taken = {q for split in SPLITS if split not in FORMS[name] for q in questions_in(path_of(name, split))}
    found = {}
    for split, task in FORMS[name].items():
        keep = partial(_is_fresh, taken=frozenset(taken), another="*" in task.operators)
        found[split] = task.make_questions(random.Random(f"{SEED} {name} {split}"), COUNTS[split], keep)
        taken |= set(found[split])
    return found


def _is_fresh(question: str, taken: frozenset[str], another: bool) -> bool:
    """Whether no split has the question, and whether it has the other operator if its split is about it."""
    return question not in taken and (not another or "*" in question)


def write_problems() -> None:
    """Write the files of problems that this file makes."""
    for name, forms in FORMS.items():
        (DATA / name).mkdir(parents=True, exist_ok=True)
        for split, questions in make_questions(name).items():
            quickstart.write_rows(path_of(name, split), questions, forms[split])


def make_reasoner(folder: Path = DATA / "mod/reasoner") -> None:
    """Train the reasoner of `mod` from nothing, by the quickstart's script and with its steps and seed."""
    held_out = [str(path_of("mod", split)) for split in ("test", "tune", "long", "other")]
    # With an equals sign: `--operators -+*` would be read as two flags.
    command = [sys.executable, str(QUICKSTART / "pretrain.py"), f"--operators={MOD.operators}"]
    command += ["--modulus", str(MOD.modulus), "--output_dir", str(folder), "--held_out", *held_out]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the problems of the study's tasks, or the reasoner of `mod`.")
    parser.add_argument("--reasoner", action="store_true", help="make the reasoner of `mod` instead")
    if parser.parse_args().reasoner:
        make_reasoner()
    else:
        write_problems()


if __name__ == "__main__":
    main()
