# SPDX-License-Identifier: Apache-2.0
"""A kind of thought is one file: the one of docs/own_thought.md runs as it stands there, and nobody else names a kind."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest

from trl_soft import ThinkingSettings
from trl_soft.ranges import RANGES, Range
from trl_soft.thoughts import THOUGHTS, Gumbel, Option, Thought, registry


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own_thought.md").read_text("utf-8")
# What names kinds on purpose: the papers' presets and grid, and the default of `thought`.
NAMED = {"evaluate/presets.py", "evaluate/decoding.py", "settings.py"}
# Options that are not of one kind: a share of what is measured over the table, and what is 0 in greedy evaluation.
SHARED = {"noise_scale", "noise_rms"}


def test_a_thought_of_your_own_is_trained_and_evaluated(tmp_path):
    code = re.findall(r"```python\n(.*?)```\n", PAGE, re.DOTALL)
    assert len(code) == 2 and sum(bool(line.strip()) for text in code for line in text.splitlines()) <= 60
    for name, text in zip(("subset.py", "train.py"), code, strict=True):
        (tmp_path / name).write_text(text)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line for line in run.stdout.splitlines() if line.startswith("{'") and "logp_difference/max" in line]
    drawn = [value for line in lines if len(found := ast.literal_eval(line)) == 1 for value in found.values()]
    # Two updates and an evaluation; rounding of float32.
    assert len(drawn) == 3 and all(0 <= value < 1e-4 for value in drawn)


def test_a_kind_is_named_in_its_file_alone():
    """A new kind touches its file, and the line of `thoughts/__init__.py` that imports it."""
    names = {*THOUGHTS, *registry.options()} - {"hard", "soft"} - SHARED
    assert {"gumbel", "noise_placement", "multiplex_ratio"} <= names
    naming = set()
    for path in (ROOT / "trl_soft").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} & set(
            registry.options()
        ) - SHARED
        if (texts & names or attributes) and path.parent.name not in ("thoughts", "kernels"):
            naming.add(path.relative_to(ROOT / "trl_soft").as_posix())
    assert naming == NAMED
    lines = (ROOT / "trl_soft" / "thoughts" / "__init__.py").read_text("utf-8").splitlines()
    assert all(sum(kind.__name__ in line for line in lines) == 1 for kind in THOUGHTS.values())


def kind(name: str, **options: Option) -> type[Thought]:
    return type("Mine", (Thought,), {"name": name, "options": options})


@pytest.mark.parametrize(
    "mine, sentence",
    [
        (kind("gumbel"), "already a kind of thought named 'gumbel'"),
        (kind("mine", mine_width=Option(int, 1, "")), "Import the file of your thought before the configs"),
        (
            kind("mine", soft_width=Option(int, 1, "")),
            "differs from the option of the same name that other kinds read",
        ),
        (kind("mine", temperature=Option(float, 1.0, "")), "`temperature` .* is taken"),
        (kind("mine", thinking_top_k=Option(int, 1, "")), "`thinking_top_k` .* is taken"),
    ],
)
def test_what_a_kind_may_not_bring(mine, sentence):
    kinds, ranges = dict(THOUGHTS), dict(RANGES)
    with pytest.raises(ValueError, match=sentence):
        registry.register(mine)
    assert (kinds, ranges) == (THOUGHTS, RANGES)


def test_a_kind_without_options_of_its_own_may_come_late():
    try:
        mine = registry.register(kind("mine", noise_scale=Gumbel.options["noise_scale"]))
        assert ThinkingSettings(thought="mine", noise_scale=0.5).kinds() == [mine]
        with pytest.raises(ValueError, match="`gumbel_density` is 'concrete' with `thought: mine`"):
            ThinkingSettings(thought="mine", gumbel_density="concrete")
        with pytest.raises(ValueError, match="a mine thought is a draw and has no noise to leave out"):
            ThinkingSettings(thought="mine", eval_greedy=True)
    finally:
        THOUGHTS.pop("mine", None)


def test_installed_packages_bring_their_kinds(monkeypatch):
    loaded = []
    entries = {"trl_soft.thoughts": [SimpleNamespace(load=lambda: loaded.append(1))]}
    monkeypatch.setattr(registry, "entry_points", lambda group: entries[group])
    registry.load_installed()
    assert loaded == [1]


def test_options_are_fields_of_the_settings():
    for name, option in registry.options().items():
        of = ThinkingSettings.__dataclass_fields__[name]
        declared = get_type_hints(ThinkingSettings)[name]  # a parser of flags changes the type that the field holds
        assert (declared, of.default, of.metadata["help"]) == (option.type, option.default, option.help)
        assert isinstance(option.range, Range) == (name in RANGES) and f"{name} (" in ThinkingSettings.__doc__
        assert all(kind.name in ThinkingSettings.__doc__ for kind in THOUGHTS.values())
