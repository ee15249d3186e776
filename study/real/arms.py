# SPDX-License-Identifier: Apache-2.0
"""The design of part B, as its YAML file says it, and its arms."""

import subprocess
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trl_soft import ThinkingSettings
from trl_soft.evaluate import Decoding

from ..tasks import ROOT


DESIGN = ROOT / "study/real/design.yaml"
_WHOLE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
TASK = "real"  # the task in the cell of a result, and the folder of its file


@dataclass(frozen=True)
class Arm:
    """
    One way to think and to answer.

    Args:
        name (`str`).
        samples (`int`): most samples of each problem.
        settings (`ThinkingSettings`): of the thought.
        sampling (`dict`): `temperature`, `top_k` and `top_p` of the answer.
        given (`dict`): the settings as the design gives them, those that all arms share among them.
    """

    name: str
    samples: int
    settings: ThinkingSettings
    sampling: dict[str, Any]
    given: dict[str, Any]


class RealDesign:
    """
    A design of part B.

    Args:
        path (`Path`): its YAML file.

    Attributes:
        content (`dict`): the whole file.
        arms (`dict[str, Arm]`): in the order of the file, the most important first.
    """

    def __init__(self, path: Path = DESIGN):
        self.path = Path(path)
        self.content: dict[str, Any] = yaml.safe_load(self.path.read_text("utf-8"))
        self.arms = {name: self._arm(name, dict(entry)) for name, entry in self["arms"].items()}
        questions = self["questions"]
        groups = [[questions["greedy"], questions["soft"]], *(questions[name] for name in _LISTS)]
        for name in (name for group in groups for name in group):
            if name not in self.arms:
                raise ValueError(f"`questions` names {name}, which is no arm. The design has {', '.join(self.arms)}.")

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    @property
    def most(self) -> int:
        """Samples of each problem after the last round."""
        return self["rounds"][-1]

    @property
    def problems(self) -> Path:
        """The file with the numbers of the rows."""
        return ROOT / self["problems"]

    def _arm(self, name: str, entry: dict[str, Any]) -> Arm:
        samples = entry.pop("samples", self.most)
        decoding = Decoding.parse({"name": name, **entry})
        given = {**self["thinking"], **decoding.thinking}
        sampling = {**_WHOLE, **decoding.answer}
        return Arm(name, samples, ThinkingSettings(**given), sampling, {**given, **sampling})

    def evaluated(self, trained: str) -> "RealDesign":
        """The design of the evaluation before and after training: greedy, hard tokens, and the arm's own thought."""
        method, other = self["training"]["arms"][trained], copy(self)
        sampling = {key: method["training"].get(key, value) for key, value in _WHOLE.items()}
        hard = {"thought": "hard", **sampling}
        thought = {key: value for key, value in method["training"].items() if key not in sampling}
        entries = {
            "greedy": {"samples": 1, "thought": "hard", "temperature": 0.0}, "hard": hard, "own": {**thought, **sampling},
        }  # fmt: skip
        other.content = {**self.content, "rounds": [self["training"]["samples"]]}
        other.arms = {name: other._arm(name, dict(entry)) for name, entry in entries.items()}
        return other

    def settings(self, arm: str) -> dict[str, Any]:
        """Everything that decides the samples of an arm, but for the model and the problems."""
        return {**self.arms[arm].given, "seed": self["seed"]}

    def registered(self) -> str | None:
        """The last commit that changed the questions, the design or the problems. `None` outside of a repository."""
        files = [str(self.path.resolve().parent / "README.md"), str(self.path.resolve()), str(self.problems)]
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", *files]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


_LISTS = ("discrete", "gumbel", "temperatures", "decorative")
