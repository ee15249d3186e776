# SPDX-License-Identifier: Apache-2.0
"""deepspeed and wandb are dependencies, but a machine that cannot install them trains without them."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from tests import tiny
from tests.test_house import TREES, name_of
from trl_soft.training.before_trl import quiet_deepspeed


ROOT = Path(__file__).parent.parent
HIDDEN = ("deepspeed", "wandb")
# A fresh interpreter in which the packages are not to be found, neither by an import nor among the distributions.
WITHOUT = f"""
import importlib.metadata, importlib.util, sys
from importlib.machinery import PathFinder

HIDDEN = {HIDDEN!r}
found, distribution = PathFinder.find_spec, importlib.metadata.distribution

@staticmethod
def find(name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else found(name, path, target)

def read(name):
    if name in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)

PathFinder.find_spec = find
importlib.metadata.distribution = read
assert all(importlib.util.find_spec(name) is None for name in HIDDEN)
"""
TRAIN = """
import importlib, pkgutil

import trl_soft
from tests import tiny

for module in pkgutil.walk_packages(trl_soft.__path__, "trl_soft."):
    if not module.name.startswith(("trl_soft._files", "trl_soft.rollout.vllm", "trl_soft.kernels")) and "__main__" not in module.name:
        importlib.import_module(module.name)
trainer = tiny.trainer(sys.argv[1], thought="gumbel", max_steps=1, report_to="all")
trainer.train()
assert trainer.state.global_step == 1 and not any(name in sys.modules for name in HIDDEN)
for changes in ({"report_to": "wandb"}, {"deepspeed": "zero.json"}):
    try:
        tiny.trainer(sys.argv[1], **changes)
    except ValueError as error:
        print(error)
"""


def test_without_them_everything_imports_and_trains_and_a_sentence_says_where_they_are_needed(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT + TRAIN, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    wandb, deepspeed = run.stdout.splitlines()[-2:]
    assert wandb.startswith(
        "`report_to` is wandb, but the package wandb is not installed. Run `pip install wandb`, or"
    )
    assert deepspeed.startswith("`deepspeed` is set, but the package deepspeed is not installed. Run `pip install")


BROKEN = """
import pathlib, sys

folder = pathlib.Path(sys.argv[1])
for name in ("deepspeed", "wandb"):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"raise RuntimeError('no {name} on a Sunday')")
sys.path.insert(0, str(folder))

from tests import tiny

trainer = tiny.trainer(sys.argv[1], thought="gumbel", max_steps=1, report_to="all")
trainer.train()
assert trainer.state.global_step == 1
for changes in ({"report_to": "wandb"}, {"deepspeed": "zero.json"}):
    try:
        tiny.trainer(sys.argv[1], **changes)
    except ValueError as error:
        print(error)
"""


def test_with_them_broken_a_run_trains_and_a_sentence_says_where_they_are_needed(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", BROKEN, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    for name, setting, line in zip(
        ("wandb", "deepspeed"),
        ("`report_to` is wandb", "`deepspeed` is set"),
        run.stdout.splitlines()[-2:],
        strict=True,
    ):
        why = f"(RuntimeError: no {name} on a Sunday)"
        assert line.startswith(
            f"{setting}, but the import of the package {name}, which is installed, fails {why}. Run `pip"
        )
        assert (
            run.stderr.count(f"The import of {name} fails {why}, so this run works as if {name} were not installed.")
            == 1
        )


def test_deepspeed_by_the_launcher_is_refused_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("trl_soft.training.broken_packages.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    with pytest.raises(
        ValueError, match="`accelerate launch` was told to use DeepSpeed, but the package deepspeed is not"
    ):
        tiny.config(tmp_path)


@pytest.mark.parametrize(
    "device, launched, chosen", [(None, "false", "cpu"), (None, "true", None), ("cuda", "false", None)]
)
def test_deepspeed_looks_for_a_device_only_where_it_is_used_or_there_is_one(
    tmp_path, monkeypatch, device, launched, chosen
):
    # Set and taken back: what the test leaves in the environment is removed at its end.
    monkeypatch.setenv("DS_ACCELERATOR", "")
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", launched)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: device)
    quiet_deepspeed(SimpleNamespace(deepspeed=None))
    assert os.environ.get("DS_ACCELERATOR") == chosen


def test_no_module_imports_them_before_it_uses_them():
    """Outside functions."""
    for path, tree in TREES.items():
        outside = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in outside:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.partition(".")[0] for name in names} & set(HIDDEN), name_of(path)


def test_the_line_that_installs_the_rest_names_all_other_dependencies():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("$ pip install -c constraints.txt accelerate"))
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert set(line.split()[5:]) | set(HIDDEN) == {Requirement(text).name for text in stated}
