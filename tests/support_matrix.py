# SPDX-License-Identifier: Apache-2.0
"""The table of what is tested, `docs/support.md`, read from the parametrisations of the tests.

    python -m tests.support_matrix           write the tables between the page's markers
    python -m tests.support_matrix --check   fail where they differ

A combination is in the tables only if a test is parametrised with it. The test files are parsed, not imported: lists that
stand in them are evaluated, whatever else they name stays a placeholder. `tests/test_docs.py` compares the names of the
tests with those that pytest has collected.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.distributed.cases import CASES, WORLDS, cases_of


ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/support.md"
BEGIN, END = "<!-- begin: python -m tests.support_matrix -->\n", "<!-- end -->\n"

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo", "rloo")
DEFAULT_LOSS = "dapo"  # TRL's
ENGINES = ("slots", "simple", "vLLM")
VARIANTS = ("gumbel_density", "noise_placement", "multiplex_ratio")
DEFAULTS = ("gumbel", "embedding", "step")
NONE = "-"


@dataclass(frozen=True)
class Tested:
    """
    One combination that a test runs.

    Args:
        test (`str`): pytest's name of the test, without parameters.
        thought (`str`): the kind, with its variant.
        engine (`str`): what rolled out.
        loss (`str`): what was minimised; `-` where nothing is trained.
        world (`str`): how many processes there are and what joins them.
        weights (`str`): `full` or `LoRA`; `-` where nothing is trained.
        gate (`str`): which steps are soft. Gates have tables of their own.
    """

    test: str
    thought: str
    engine: str = "slots"
    loss: str = NONE
    world: str = "one process"
    weights: str = NONE
    gate: str = "always"


class _Placeholder:
    """What a test file names and does not state as a literal."""

    def __call__(self, *args, **kwargs):
        return self

    def __getattr__(self, name):
        return self


class _Names(dict):
    def __missing__(self, name):
        return _Placeholder()


class TestFile:
    """The constants and the parametrisations of a test file."""

    __test__ = False

    def __init__(self, path: str, **names: Any):
        self.path = path
        self.tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        self.names = _Names(names)
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    self.names[node.targets[0].id] = self._value(node.value)
                except Exception:  # not a literal, so no list of cases
                    continue

    def _value(self, node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), self.path, "eval"), {"__builtins__": {"sorted": sorted}}, self.names)

    def marks(self, function: str) -> dict[str, ast.expr]:
        """
        The expression behind each parameter of a test; empty for a test without parameters.

        Raises:
            LookupError: if there is no such test.
        """
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == function and function.startswith("test_"):
                calls = [mark for mark in node.decorator_list if isinstance(mark, ast.Call)]
                marks = [mark for mark in calls if ast.unparse(mark.func) == "pytest.mark.parametrize"]
                return {ast.literal_eval(mark.args[0]): mark.args[1] for mark in marks}
        raise LookupError(
            f"{self.path} has no test {function}. Correct the name in tests/support_matrix.py, then run `make support`."
        )

    def parameters(self, function: str) -> dict[str, list]:
        """The values of each parameter of a test."""
        return {name: self._value(node) for name, node in self.marks(function).items()}

    def test(self, function: str) -> str:
        return f"{self.path}::{function}"


def thought_of(settings: dict) -> str:
    """The kind and its variant, as the tables name them."""
    kind = settings.get("thought", "gumbel")
    variants = [
        settings[name] for name in VARIANTS if settings.get(name, DEFAULTS[VARIANTS.index(name)]) not in DEFAULTS
    ]
    return " ".join([kind, *variants])


def _losses() -> Iterator[Tested]:
    file = TestFile("tests/test_algorithms.py")
    name = "test_every_loss_takes_two_steps"
    for settings in file.parameters(name)["thought"]:
        for loss in file.names["LOSSES"]:  # which the test loops over
            yield Tested(file.test(name), thought_of(settings), loss=loss, weights="full")
    name = "test_rloo_trains_with_every_thought"
    for settings in file.parameters(name)["thought"]:
        yield Tested(file.test(name), thought_of(settings), loss="rloo", weights="full")


def _weights() -> Iterator[Tested]:
    file = TestFile("tests/test_trainer.py")
    name = "test_off_policy_steps_move_the_policy"
    parameters = file.parameters(name)
    for settings in parameters["settings"]:
        for extra in parameters["extra"]:
            weights = "LoRA" if "peft_config" in extra else "full"
            yield Tested(file.test(name), thought_of(settings), loss=DEFAULT_LOSS, weights=weights)
    name = "test_hard_is_grpo"
    for settings in file.parameters(name)["settings"]:
        weights = "LoRA" if "peft_config" in settings else "full"
        yield Tested(file.test(name), "hard", loss=DEFAULT_LOSS, weights=weights)
    file = TestFile("tests/test_families.py")
    name = "test_drawn_is_rescored_and_trains"
    parameters = file.parameters(name)
    for thought in parameters["thought"]:
        for adapter in parameters["adapter"]:
            weights = "LoRA" if adapter else "full"
            for engine in sorted(set(file.names["ENGINE"].values())):
                yield Tested(file.test(name), thought, engine, DEFAULT_LOSS, weights=weights)


def _engines() -> Iterator[Tested]:
    tiny = TestFile("tests/tiny.py").names["THOUGHTS"]
    file = TestFile("tests/test_engine.py")
    name = "test_engines_draw_what_the_oracle_draws"
    assert set(file.marks(name)) == {"settings"}  # tiny.THOUGHTS
    for settings in tiny:
        for engine in ("slots", "simple"):
            yield Tested(file.test(name), thought_of(settings), engine)
    file = TestFile("tests/vllm/test_served.py")
    name = "test_both_engines_think_the_same"  # all kinds in one queue
    assert not file.marks(name)
    for settings in tiny:
        yield Tested(file.test(name), thought_of(settings), "vLLM")
    file = TestFile("tests/vllm/test_colocate.py")
    name = "test_colocated_steps_are_in_process_steps"
    for settings in file.parameters(name)["changes"]:
        yield Tested(file.test(name), thought_of(settings), "vLLM", DEFAULT_LOSS, weights="full")
    name = "test_colocated_rloo"
    assert not file.marks(name)
    yield Tested(file.test(name), "gumbel", "vLLM", "rloo", weights="full")


def _processes() -> Iterator[Tested]:
    def case_of(test: str, world: str, case: dict) -> Tested:
        loss = "rloo" if case.get("trainer") == "rloo" else case.get("loss_type", "grpo")
        weights = "LoRA" if case.get("lora") else "full"
        return Tested(test, thought_of(case), loss=loss, world=world, weights=weights)

    file = TestFile("tests/test_processes.py")
    name = "test_two_processes_equal_one"
    for world in file.parameters(name)["name"]:
        for case in file.names["CASES"]:
            yield case_of(file.test(name), world, CASES[case])
    file = TestFile("tests/distributed/test_worlds.py")
    names = "test_two_processes_equal_one", "test_bf16_rounds_and_no_more"
    for name in names:
        assert set(file.marks(name)) == {"name, case"}  # the pairs of WORLDS and cases_of
    for world in WORLDS:
        for name, case in cases_of(world).items():
            yield case_of(file.test(names["bf16" in name]), world, case)


def _gates() -> Iterator[Tested]:
    tiny = TestFile("tests/tiny.py").names["THOUGHTS"]
    file = TestFile("tests/test_gates.py")
    name = "test_engines_decide_what_the_oracle_decides"
    for gate in file.parameters(name)["gate"]:
        for engine in ("slots", "simple"):  # its arrangements
            yield Tested(file.test(name), "gumbel", engine, gate=gate)
    name = "test_a_gate_is_around_every_thought"
    assert set(file.marks(name)) == {"thought"}  # the soft ones of tiny.THOUGHTS
    for settings in tiny:
        for engine in ("slots", "simple"):
            if settings["thought"] != "hard":
                yield Tested(file.test(name), thought_of(settings), engine, gate="random")
    name = "test_the_update_scores_what_was_drawn"
    parameters = file.parameters(name)
    for settings in parameters["thought"]:
        for gate in parameters["gate"]:
            yield Tested(file.test(name), thought_of(settings or {}), loss=DEFAULT_LOSS, weights="full", gate=gate)
    name = "test_rloo_trains_gated_thoughts"
    assert not file.marks(name)
    yield Tested(file.test(name), "gaussian", loss="rloo", weights="full", gate="first")
    file = TestFile("tests/vllm/test_served.py")
    for settings in file.names["GATED"]:
        test = file.test("test_both_engines_think_the_same")
        yield Tested(test, thought_of(settings), "vLLM", gate=settings["thinking_gate"])


SOURCES = (_losses, _weights, _engines, _processes, _gates)


def combinations() -> list[Tested]:
    """All of them, each once, in the order of the sources."""
    return list(dict.fromkeys(found for source in SOURCES for found in source()))


def target_of(test: str) -> str:
    """What runs a test."""
    folder = test.split("/")[1]
    return {"distributed": "make test-distributed", "vllm": "make test-vllm"}.get(folder, "make test")


def tables() -> str:
    """The tables, in Markdown. A cell has the letters of the tests."""
    found_all = combinations()
    tests = list(dict.fromkeys(found.test for found in found_all))
    every = [found for found in found_all if found.gate == "always"]
    gated = [found for found in found_all if found.gate != "always"]
    letter = {test: chr(ord("a") + number) for number, test in enumerate(tests)}

    def table(row: str, column: str, columns, chosen: list[Tested], rows=None) -> list[str]:
        rows = rows or list(dict.fromkeys(getattr(found, row) for found in chosen))
        lines = [f"| {row} | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
        for one in rows:
            cells = []
            for other in columns:
                who = {letter[f.test] for f in chosen if getattr(f, row) == one and getattr(f, column) == other}
                cells.append(" ".join(sorted(who)) or NONE)
            lines.append(f"| `{one}` | {' | '.join(cells)} |")
        return lines

    trained = [found for found in every if found.loss != NONE]
    alone = [found for found in trained if found.world == "one process" and found.engine != "vLLM"]
    several = [found for found in trained if found.world != "one process"]
    in_vllm = [found for found in trained if found.engine == "vLLM"]
    thoughts = list(dict.fromkeys(f.thought for f in every if f.engine == "simple"))
    thoughts += [kind for kind in dict.fromkeys(f.thought for f in every) if kind not in thoughts]
    dense = [kind for kind in thoughts if any(found.thought == kind for found in trained)]
    lora = [found for found in several if found.weights == "LoRA"]
    parts = [
        ("Thought and loss, one process", table("thought", "loss", LOSSES, alone, dense)),
        ("Thought and engine, rollouts", table("thought", "engine", ENGINES, every, thoughts)),
        ("Thought and loss, rollouts in vLLM", table("thought", "loss", (DEFAULT_LOSS, "rloo"), in_vllm)),
        ("Thought and weights, one process", table("thought", "weights", ("full", "LoRA"), alone, dense)),
        ("Thought and two processes", table("thought", "world", WORLDS, several, dense)),
        ("Loss and two processes", table("loss", "world", WORLDS, several, list(LOSSES))),
        ("LoRA and two processes", table("thought", "world", WORLDS, lora)),
        ("Gate and engine, rollouts", table("gate", "engine", ENGINES, gated)),
        ("Gate and loss, one process", table("gate", "loss", (DEFAULT_LOSS, "rloo"), gated)),
        ("Thought and gate", table("thought", "gate", list(dict.fromkeys(found.gate for found in gated)), gated)),
    ]
    text = "".join(f"### {head}\n\n" + "\n".join(lines) + "\n\n" for head, lines in parts)
    legend = [f"| {letter[test]} | `{test}` | `{target_of(test)}` |" for test in tests]
    head = ["| letter | test | run by |", "| --- | --- | --- |"]
    families = TestFile("tests/test_families.py").names["FAMILIES"]
    text += (
        f"### Model families\n\n`{tests[4]}` trains random models of {len(families)} families, in full and with LoRA: "
    )
    return text + ", ".join(families) + ".\n\n### The tests\n\n" + "\n".join(head + legend) + "\n"


def page_with(text: str) -> str:
    """The page, with these tables between its markers."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{text}{END}{after}"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser("tests.support_matrix", description="Write the table of what is tested.")
    parser.add_argument("--check", action="store_true", help="fail where the page differs, and write nothing")
    options = parser.parse_args(argv)
    page = page_with(tables())
    if options.check:
        if page != PAGE.read_text(encoding="utf-8"):
            print(f"error: {PAGE} differs from the tests. Run `python -m tests.support_matrix`.", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
