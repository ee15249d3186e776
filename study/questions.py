# SPDX-License-Identifier: Apache-2.0
"""The nine questions: each is a list of comparisons, with the words of their verdicts. README.md registers them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from . import rules
from .cells import Method
from .rules import BEATS, LOSES, NO_DIFFERENCE, NOT_RUN, Estimate
from .runs import Figure, Runs, learned, score


INFERENCES = ("hard", "own")


@dataclass(frozen=True)
class Comparison:
    """
    One difference of a question.

    Args:
        task, method, other (`str`): method less other.
        inference (`str`): `hard`, `own`, or what else the figure is of.
        difference (`Estimate`, *optional*): over seeds.
        problems (`tuple[float, float]`, *optional*): the interval over problems.
        word (`str`): the verdict.
    """

    task: str
    method: str
    other: str
    inference: str
    difference: Estimate | None
    word: str
    problems: tuple[float, float] | None = None


@dataclass(frozen=True)
class Answer:
    """
    The comparisons of a question.

    Args:
        comparisons (`list[Comparison]`).
        size (`int`): number of comparisons in one task and one kind of inference, as registered: Bonferroni's.
    """

    size: int
    comparisons: list[Comparison] = field(default_factory=list)

    def words(self, method: str, inference: str) -> dict[str, str]:
        """
        The word for a method on each task. With two controls: `beats` if it beats both, `loses` if it loses to both, `not run` if a
        comparison is missing.
        """
        found: dict[str, list[str]] = {}
        for comparison in self.comparisons:
            if (comparison.method, comparison.inference) == (method, inference):
                found.setdefault(comparison.task, []).append(comparison.word)
        return {task: _joined(words) for task, words in found.items()}

    def everywhere(self, word: str, inference: str) -> list[str]:
        """The methods with this word on every task."""
        methods = dict.fromkeys(comparison.method for comparison in self.comparisons)
        return [
            method for method in methods if (words := self.words(method, inference)) and set(words.values()) == {word}
        ]

    @property
    def is_run(self) -> bool:
        """Whether there is any verdict."""
        return any(comparison.word != NOT_RUN for comparison in self.comparisons)

    @property
    def is_whole(self) -> bool:
        """Whether no verdict is missing."""
        return bool(self.comparisons) and all(comparison.word != NOT_RUN for comparison in self.comparisons)


def _joined(words: Sequence[str]) -> str:
    if NOT_RUN in words:
        return NOT_RUN
    return words[0] if len(set(words)) == 1 else NO_DIFFERENCE


def _scores(
    runs: Runs, pairs: list[tuple[str, str]], size: int, split: str, k: int = 1, further: Figure | None = None
) -> list[Comparison]:
    """pass@k of each pair (mean@n for k = 1), in both kinds of inference, on every task."""
    found = []
    for task in runs.design["tasks"]:
        for method, other in pairs:
            for inference in INFERENCES:
                difference = runs.difference(task, method, other, score(split, inference, k), size)
                problems = runs.over_problems(task, method, other, split, inference, k)
                word = rules.verdict(difference, runs.seeds)
                found.append(Comparison(task, method, other, inference, difference, word, problems))
    return found


def _controls(methods: list[Method]) -> list[tuple[str, str]]:
    return [(method.name, control) for method in methods for control in method.controls]


def equal_truncation(runs: Runs, split: str = "test") -> Answer:
    """Q1, and Q9 on a split outside of the training distribution."""
    soft = runs.design.soft()
    return Answer(len(soft), _scores(runs, _controls(soft), len(soft), split))


def soft_then_hard(runs: Runs) -> Answer:
    """Q2: hard inference less own inference of the same run."""
    soft, found = runs.design.soft(), []
    for task in runs.design["tasks"]:
        for method in soft:
            difference = runs.difference(
                task, method.name, method.name, score("test", "hard"), len(soft), score("test", "own")
            )
            problems = runs.over_problems(task, method.name, method.name, "test", "hard", 1, "own")
            word = rules.verdict(difference, runs.seeds, ("hard", "own"))
            found.append(Comparison(task, method.name, method.name, "hard less own", difference, word, problems))
    return Answer(len(soft), found)


def _speeds(runs: Runs, pairs: list[tuple[str, str]], size: int) -> list[Comparison]:
    """Updates until learned. Fewer is faster."""
    found = []
    for task in runs.design["tasks"]:
        for method, other in pairs:
            difference = runs.difference(task, method, other, learned, size)
            word = rules.verdict(difference, runs.seeds, ("slower", "faster"))
            found.append(Comparison(task, method, other, "updates", difference, word))
    return found


def top_p(runs: Runs) -> Answer:
    """Q3: updates until learned with top-p, less without."""
    pairs = [(with_it, without) for without, with_it in runs.design["questions"]["top_p"]]
    return Answer(len(pairs), _speeds(runs, pairs, len(pairs)))


def densities(runs: Runs) -> Answer:
    """Q4: updates until learned of each pair of densities of one support."""
    groups = runs.design["questions"]["densities"]
    size = len(list(combinations(groups[0], 2)))
    return Answer(size, _speeds(runs, [pair for group in groups for pair in combinations(group, 2)], size))


def pass_kept(runs: Runs) -> Answer:
    """Q6: pass@64 less that of hard training with KL."""
    soft, many = runs.design.soft(), runs.design["evaluation"]["many"]
    pairs = [(method.name, runs.design["questions"]["kl"]) for method in soft]
    return Answer(len(soft), _scores(runs, pairs, len(soft), "test", many))


def gates(runs: Runs) -> Answer:
    """Q7: the gated method less the ungated one."""
    pairs = [(method.name, method.always) for method in runs.design.methods.values() if method.always is not None]
    return Answer(len(pairs), _scores(runs, pairs, len(pairs), "test") + _speeds(runs, pairs, len(pairs)))


def softness(runs: Runs) -> Answer:
    """Q8: own inference less the arg-max of each thought, and less a thought that is cut."""
    soft, found = runs.design.soft(), []
    for task in runs.design["tasks"]:
        for method in soft:
            for other in ("argmax", "cut"):
                difference = runs.difference(
                    task, method.name, method.name, score("test", "own"), len(soft), score("test", other)
                )
                problems = runs.over_problems(task, method.name, method.name, "test", "own", 1, other)
                word = rules.softness(difference, runs.seeds)
                found.append(Comparison(task, method.name, method.name, other, difference, word, problems))
    return Answer(len(soft), found)


def gap(runs: Runs, method: str, task: str, inference: str) -> Estimate | None:
    """pass@64 less mean@64 of a method, less that of hard training with KL (Q6)."""
    many = runs.design["evaluation"]["many"]
    wide, narrow = score("test", inference, many), score("test", inference)
    size = len(runs.design.soft())
    return runs.difference(
        task, method, runs.design["questions"]["kl"], lambda result: wide(result) - narrow(result), size
    )


def answers(runs: Runs) -> dict[str, Answer]:
    """All questions that have comparisons. Q5 has figures only."""
    outside = {f"Q9 {split}": equal_truncation(runs, split) for split in _outside(runs)}
    return {
        "Q1": equal_truncation(runs), "Q2": soft_then_hard(runs), "Q3": top_p(runs), "Q4": densities(runs),
        "Q6": pass_kept(runs), "Q7": gates(runs), "Q8": softness(runs), **outside,
    }  # fmt: skip


def _outside(runs: Runs) -> list[str]:
    """The splits outside of the training distribution that every task has."""
    first, *others = (task["outside"] for task in runs.design["tasks"].values())
    return [split for split in first if all(split in other for other in others)]


__all__ = ["BEATS", "LOSES", "Answer", "Comparison", "answers", "gap"]
