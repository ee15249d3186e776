# SPDX-License-Identifier: Apache-2.0
"""Which vLLM the plugin stands on: every hook in every supported release, by the table of `make check-vllm-window`."""

import ast
import json
import tomllib
from pathlib import Path

import pytest

from tests.vllm import window
from trl_soft.rollout.vllm import compat
from trl_soft.rollout.vllm.sources import Sources


ROOT = Path(__file__).parent.parent
TABLE = json.loads(window.TABLE.read_text())


def minor(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")[:2]))


def test_every_release_of_the_window_was_read():
    assert tuple(TABLE["releases"]) == window.RELEASES
    major, first = compat.FIRST
    assert {minor(release) for release in window.RELEASES} == {(major, i) for i in range(first, compat.BEFORE[1])}
    with open(ROOT / "pyproject.toml", "rb") as file:
        (bounds,) = tomllib.load(file)["project"]["optional-dependencies"]["vllm"]
    low, high = (".".join(map(str, bound)) for bound in (compat.FIRST, compat.BEFORE))
    assert bounds == f"vllm>={low},<{high}"


@pytest.mark.parametrize("release", window.RELEASES)
def test_a_release_has_every_hook(release):
    found = window.of_release(TABLE, release)
    assert {kind: set(hooks) for kind, hooks in found.items()} == {kind: set(h) for kind, h in compat.HOOKS.items()}
    assert compat.moved(found) == []


def test_nothing_of_vllm_is_used_that_is_no_hook():
    """Each name that the package imports from vLLM is among the hooks."""
    known = {path.split(".__")[0] for kind in compat.HOOKS.values() for path in kind}
    known |= {f"{module}:{name}" for module, names in compat.HOOKS["names"].items() for name in names}
    known |= {path.rsplit(".", 1)[0] for path in known if "." in path.partition(":")[2]}
    imported = set()
    for file in (ROOT / "trl_soft" / "rollout" / "vllm").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "vllm":
                imported |= {f"{node.module}:{alias.name}" for alias in node.names}
    assert len(imported) > 8 and imported <= known


SOURCE = {
    "lib/__init__.py": "from .inner import *\nfrom .inner.deep import function as renamed\nLIMIT = 3\n",
    "lib/inner/__init__.py": "from lib.inner.deep import Child\n",
    "lib/inner/deep.py": """
from typing import NamedTuple
try:
    import json
except ImportError:
    json = None
class Base:
    shared: int
    def __init__(self, size, *, depth=1):
        self.size = size
        self.register_buffer("scale", depth)
class Child(Base, Unknown):
    name: str = "x"
    @property
    def wide(self): return 1
    def method(self, one, two=2): self.helper.call(one)
class Row(NamedTuple):
    first: int
def function(a, /, b, *, c): Child.method(a)
""",
}


@pytest.fixture
def sources(tmp_path):
    for name, text in SOURCE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Sources(tmp_path)


def test_what_a_source_says(sources):
    """Through imports, packages, stars and bases."""
    assert sources.parameters("lib:renamed") == ["a", "b", "c"]
    assert sources.parameters("lib:Child.__init__") == ["size", "depth"]
    assert sources.parameters("lib.inner:Child.method") == ["one", "two"]
    assert sources.members("lib:Child") == ["__init__", "method", "name", "scale", "shared", "size", "wide"]
    assert sources.members("lib.inner.deep:Row") == ["first"]
    assert sources.names("lib.inner.deep") == ["Base", "Child", "NamedTuple", "Row", "function", "json"]
    assert sources.calls("lib.inner.deep:Child") == ["self.helper.call", "self.register_buffer"][:1]
    assert sources.calls("lib.inner.deep:function") == ["Child.method"]
    assert sources.calls("lib.inner.deep") == ["Child.method", "self.helper.call", "self.register_buffer"]
    for path in ("lib:gone", "lib:Child.gone", "gone:x", "lib.inner:function.x"):
        assert sources.parameters(path) is None
    assert sources.members("lib:gone") is sources.names("gone") is sources.calls("lib:gone") is None


def test_versions_outside_the_window(monkeypatch):
    for version in ((0, 23), (0, 32), (1, 0)):
        monkeypatch.setattr(compat, "vllm_version", lambda version=version: version)
        with pytest.raises(
            compat.ContractError, match=r"soft thinking was made for 0\.24 up to, not including, 0\.32"
        ):
            compat.check()


def test_a_hook_that_moved_is_named(monkeypatch, sources):
    monkeypatch.setattr(compat, "vllm_version", lambda: (0, 31))
    monkeypatch.setattr(compat, "installed", lambda: sources)
    hooks = {
        "parameters": {"lib:Child.method": ("one",), "lib:renamed": ("text",), "lib:gone": ()},
        "members": {"lib:Child": ("size", "weight")},
        "names": {"no_such_module": ("y",)},
        "calls": {"lib:Child": ("self.helper.other",)},
    }
    monkeypatch.setattr(compat, "HOOKS", hooks)
    with pytest.raises(compat.ContractError) as error:
        compat.check()
    for wrong in (
        "lib:renamed (no text)",
        "lib:gone (not there)",
        "lib:Child (no weight)",
        "no_such_module (not there)",
        "lib:Child (no self.helper.other)",
    ):
        assert wrong in str(error.value)
    assert "lib:Child.method" not in str(error.value)
