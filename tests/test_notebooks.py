# SPDX-License-Identifier: Apache-2.0
"""The notebooks run: here with few updates and problems, in `make test-notebooks` as they are, from the wheel alone."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/notebooks"
# By notebook, what takes the place of its cell of parameters.
SMALL = {
    "train_and_look": {"UPDATES": 2, "PROBLEMS": 4},
    "own_thought": {"UPDATES": 1},
    "evaluate_and_compare": {"PROBLEMS": 4, "SAMPLES": 2},
}
# The batches of updates, which are of the size that learns.
SHORTER = {
    "per_device_train_batch_size=64": "per_device_train_batch_size=8",
    "SoftGRPOConfig(**arguments)": "SoftGRPOConfig(**arguments | {'per_device_train_batch_size': 8})",
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def parameters(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    (cell,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    return cell


def execute(book: nbformat.NotebookNode, folder: Path, **environment: str) -> str:
    """Run a notebook in a kernel of its own, in an empty folder. Returns what its cells printed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", **environment}.items():
            patch.setenv(name, value)
        NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_cleared_and_code_is_plain(name):
    """Outputs would be figures without a run behind them. Without magics a cell is Python that ruff and this test can read."""
    book = read(name)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            compile(cell.source, name, "exec")
    stated = set(re.findall(r"^([A-Z]+) =", parameters(book).source, re.M))
    assert set(SMALL[name]) <= stated and "FOLDER" in stated


def test_the_kind_of_the_notebook_is_that_of_the_page():
    page = (ROOT / "docs/own_thought.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```\n", page, re.DOTALL)[1]
    assert code[code.index("import torch") :].strip() in [cell.source for cell in read("own_thought").cells]


def small(name: str) -> nbformat.NotebookNode:
    """A notebook with few updates and problems."""
    book = read(name)
    parameters(book).source += "".join(f"\n{key} = {value}" for key, value in SMALL[name].items())
    for cell in book.cells:
        for old, new in SHORTER.items():
            cell.source = cell.source.replace(old, new)
    return book


@pytest.mark.parametrize("name", ["train_and_look", "evaluate_and_compare"])
def test_it_runs(name, tmp_path, monkeypatch):
    """The cells one after the other in this process: a kernel takes ten seconds to import what is here already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("IPython.display.display", lambda *shown: None)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names: dict = {}
    for cell in small(name).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), names)
    names["plt"].close("all")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]  # nothing is written elsewhere


def test_a_kind_is_written_in_a_kernel_of_its_own(tmp_path):
    """It must be registered before the configs are imported."""
    printed = execute(small("own_thought"), tmp_path, PYTHONPATH=str(ROOT))
    assert "Found: The score of a subset thought has the mean" in printed and "logp difference at most" in printed


@pytest.mark.skipif(os.environ.get("TRL_SOFT_FULL") != "1", reason="minutes: `make test-notebooks` runs them in full")
@pytest.mark.parametrize("name", SMALL)
def test_it_runs_in_full_from_the_wheel_alone(name, tmp_path):
    wheel = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ROOT,
    ]
    subprocess.run(wheel, check=True)
    (archive,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(archive).extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    book = read(name)
    book.cells.append(nbformat.v4.new_code_cell("import trl_soft\nprint('from', trl_soft.__file__)"))
    printed = execute(book, tmp_path / "empty", PYTHONPATH=str(tmp_path / "installed"))
    assert f"from {tmp_path / 'installed'}" in printed
    if name == "train_and_look":
        rewards = [float(reward) for reward in re.findall(r"^after .*'soft': ([\d.]+)", printed, re.M)]
        assert rewards and rewards[0] > 0.9
    if name == "own_thought":
        lengths = re.search(r"length ([\d.]+) -> ([\d.]+) tokens", printed)
        assert float(lengths[1]) > float(lengths[2])
