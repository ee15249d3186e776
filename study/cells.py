# SPDX-License-Identifier: Apache-2.0
"""A design, as its YAML file says it, and its cells: each training run that it asks for, with its settings and its place on disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trl_soft.gates import GATES
from trl_soft.thoughts import THOUGHTS

from . import rules
from .results import Results
from .tasks import ROOT


DESIGN = ROOT / "study/design.yaml"
PHASES = ("measure", "tune", "final")
_METHOD = {"trainer", "support", "training", "controls", "argmax", "always"}
_KEYS = {
    "device", "tasks", "tuning", "seeds", "training", "evaluation", "measurement", "supports", "argmax", "methods", "questions",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """
    One run of the study.

    Args:
        task, method (`str`): names in the design.
        phase (`str`):
            `measure`: the scores of the untrained policy's thoughts. `tune`: a run that helps to choose the learning rate.
            `final`: a run that answers the questions.
        learning_rate (`float`, *optional*), seed (`int`, *optional*): of a run that trains.
    """

    task: str
    method: str
    phase: str
    learning_rate: float | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """`sum/gumbel/final-lr0.0003-seed0`: the path of its result, without the ending."""
        run = "" if self.phase == "measure" else f"-lr{self.learning_rate:g}-seed{self.seed}"
        return f"{self.task}/{self.method}/{self.phase}{run}"


@dataclass(frozen=True)
class Method:
    """An entry of `methods`; design.yaml says what each field is."""

    name: str
    trainer: str
    support: str
    training: dict[str, Any]
    controls: tuple[str, ...] = ()
    argmax: str | None = None
    always: str | None = None

    @property
    def is_soft(self) -> bool:
        """Whether a step of its thoughts can be other than a token. A hard method is a control."""
        return self.training["thought"] != "hard"

    @property
    def waits(self) -> bool:
        """Whether this version has no such thought or no such gate yet."""
        return self.training["thought"] not in THOUGHTS or self.training.get("thinking_gate", "always") not in GATES


class Design:
    """
    A design.

    Args:
        path (`Path`): its YAML file.

    Attributes:
        content (`dict`): the whole file.
        methods (`dict[str, Method]`): in the order of the file.
    """

    def __init__(self, path: Path = DESIGN):
        self.path = Path(path)
        self.content: dict[str, Any] = yaml.safe_load(self.path.read_text("utf-8"))
        _same(set(self.content), _KEYS, f"{path}")
        self.methods = {name: self._method(name, entry) for name, entry in self.content["methods"].items()}
        self._check()

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def _method(self, name: str, entry: dict[str, Any]) -> Method:
        unknown = set(entry) - _METHOD
        if unknown:
            raise ValueError(f"The method {name} has the keys {sorted(unknown)}, which nothing reads. Remove them.")
        return Method(name=name, **{**entry, "controls": tuple(entry.get("controls", ()))})

    def _check(self) -> None:
        """Raise a `ValueError` for a name that stands for nothing."""
        named: list[tuple[str, str, Any]] = [("tuning.task", self["tuning"]["task"], self["tasks"])]
        for method in self.methods.values():
            named += [(f"{method.name}.support", method.support, self["supports"])]
            named += [(f"{method.name}.controls", name, self.methods) for name in method.controls]
            named += [(f"{method.name}.argmax", name, self["argmax"]) for name in [method.argmax] if name]
            named += [(f"{method.name}.always", name, self.methods) for name in [method.always] if name]
            if method.is_soft != bool(method.controls):
                raise ValueError(
                    f"{method.name} is a {'soft' if method.is_soft else 'hard'} method with the controls {list(method.controls)}. "
                    "A soft method has at least one, and a hard method is a control itself."
                )
        questions = self["questions"]
        groups = [[questions["kl"]], questions["fuzzy"], *questions["top_p"], *questions["densities"]]
        named += [("questions", name, self.methods) for group in groups for name in group]
        for where, name, known in named:
            if name not in known:
                raise ValueError(f"`{where}` is {name}, which is not in the design. It has {', '.join(known)}.")

    def soft(self) -> list[Method]:
        """The soft methods."""
        return [method for method in self.methods.values() if method.is_soft]

    def settings(self, cell: Cell, output_dir: Path) -> dict[str, Any]:
        """The recipe of a run: what `trl-soft train` reads."""
        task, method = self["tasks"][cell.task], self.methods[cell.method]
        run = {} if cell.phase == "measure" else {"learning_rate": cell.learning_rate, "seed": cell.seed}
        return {
            "model_name_or_path": task["model"],
            "dataset_name": task["train"],
            **self["training"],
            **self["supports"][method.support],
            **method.training,
            **run,
            "output_dir": str(output_dir),
        }

    def answer(self, method: Method) -> dict[str, Any]:
        """How a method samples its answers in training: the sampling of its own inference."""
        given = {**self["training"], **self["supports"][method.support], **method.training}
        return {"temperature": given["temperature"], "top_k": given.get("top_k", 0), "top_p": given.get("top_p", 1.0)}

    def measure_cells(self) -> Iterator[Cell]:
        """One for each task and method."""
        for task in self["tasks"]:
            for name, method in self.methods.items():
                if not method.waits:
                    yield Cell(task, name, "measure")

    def tuning_cells(self, method: str) -> list[Cell]:
        """The runs that choose the learning rate of a method."""
        tuning = self["tuning"]
        return [Cell(tuning["task"], method, "tune", rate, tuning["seed"]) for rate in tuning["learning_rates"]]

    def final_cells(self, method: str, learning_rate: float) -> list[Cell]:
        """The runs that answer the questions."""
        return [Cell(task, method, "final", learning_rate, seed) for seed in self["seeds"] for task in self["tasks"]]

    def count(self) -> int:
        """How many cells the whole study has."""
        methods = sum(not method.waits for method in self.methods.values())
        tasks, tuning = len(self["tasks"]), len(self["tuning"]["learning_rates"])
        return methods * (tasks + tuning + tasks * len(self["seeds"]))

    def done(self, results: Results) -> int:
        """How many of the results are of this design's tasks."""
        return sum(name.partition("/")[0] in self["tasks"] for name in results.found)


def chosen_rate(design: Design, method: str, results: Results) -> float | None:
    """The learning rate that the tuning runs choose. `None` until all of them are there."""
    scores = {}
    for cell in design.tuning_cells(method):
        result = results.get(cell.name)
        if result is None:
            return None
        tune = result["scores"]["tune"]
        scores[cell.learning_rate] = rules.tuning_score(tune["hard 1"]["mean"], tune["own"]["mean"])
    return rules.choose_best(scores)


def pending(design: Design, results: Results) -> list[Cell]:
    """
    The cells without a result that can run: a final run waits for the learning rate of its method. Seeds come first: with a part of
    the study there are all methods on few seeds, not few methods on all seeds.
    """
    methods = [name for name, method in design.methods.items() if not method.waits]
    wanted = [cell for name in methods for cell in design.tuning_cells(name)]
    wanted += list(design.measure_cells())
    final = []
    for order, name in enumerate(methods):
        rate = chosen_rate(design, name, results)
        if rate is not None:
            final += [(cell.seed, order, place, cell) for place, cell in enumerate(design.final_cells(name, rate))]
    wanted += [cell for *_, cell in sorted(final, key=lambda entry: entry[:3])]
    return [cell for cell in wanted if cell.name not in results]


def _same(have: set[str], want: set[str], where: str) -> None:
    if have != want:
        raise ValueError(f"{where} has the keys {sorted(have)}, but a design has {sorted(want)}.")
