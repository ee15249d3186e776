# SPDX-License-Identifier: Apache-2.0
"""The order of the package: imports go one way, names are unique, and modules and functions are short enough to read.

What does not keep a rule yet is listed below. Remove an entry when it keeps the rule; add none.
"""

import ast
import importlib
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trl_soft"
MODULE_LINES, FUNCTION_LINES = 400, 60

LONG_MODULES: set[str] = set()
# The two of `kernels` are Triton kernels: each is one pass over registers, which functions would have to hand on one by one.
LONG_FUNCTIONS = {
    "trl_soft.kernels.decisions:decide_rows",
    "trl_soft.kernels.softmax_tiles:_fold",
}
SAME_MODULES: set[str] = set()
SAME_CLASSES: set[str] = set()
# `inspect` is the name of a command.
SHADOWS = {"code", "inspect"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name_of(path): path for path in TREES}


def imports(path: Path, tree: ast.Module) -> set[str]:
    """
    The names of the modules that a module imports, also within functions and under `if TYPE_CHECKING`.

    For `from package import name` it has both `package` and `package.name`.
    """
    name = name_of(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    targets: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            targets |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return targets


def graph() -> dict[str, set[str]]:
    """Which modules of the package each module imports."""
    arrows = {}
    for name, path in MODULES.items():
        targets = {target for target in imports(path, TREES[path]) if target in MODULES}
        # `from package import module` needs the module, not the names of the package's `__init__`.
        packages = {target for target in targets if any(other.startswith(f"{target}.") for other in targets)}
        arrows[name] = targets - packages - {name}
    return arrows


def circles(arrows: dict[str, set[str]]) -> set[str]:
    """The modules that reach themselves."""

    def reached(start: str) -> set[str]:
        seen, pending = set(), [start]
        while pending:
            new = arrows.get(pending.pop(), set()) - seen
            seen |= new
            pending += new
        return seen

    return {name for name in arrows if name in reached(name)}


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {"b", "c"}


def test_imports_are_read():
    text = "import trl_soft.files\nfrom . import stop\nfrom ..noise import x\ndef f():\n    from .. import y\n"
    assert imports(PACKAGE / "rollout" / "interface.py", ast.parse(text)) == {
        "trl_soft.files", "trl_soft.rollout", "trl_soft.rollout.stop", "trl_soft.noise", "trl_soft.noise.x",
        "trl_soft", "trl_soft.y",
    }  # fmt: skip


def test_no_module_imports_itself_through_others():
    """Not even by imports within functions, which hide a circle."""
    assert not circles(graph())


def test_nothing_needs_the_scripts_or_the_tests():
    """Neither by an import nor by a path."""
    needy = set()
    for name, path in MODULES.items():
        roots = {target.split(".")[0] for target in imports(path, TREES[path])}
        texts = {node.value for node in ast.walk(TREES[path]) if isinstance(node, ast.Constant)}
        if "examples" in texts or roots & {"examples", "tests", "benchmarks"}:
            needy.add(name)
    assert not needy


def test_nothing_imports_a_name_of_the_root():
    """The root loads its names lazily, for users. The package imports a name from its module."""
    modules = {f"trl_soft.{path.stem}" for path in PACKAGE.iterdir()}
    for name, path in MODULES.items():
        names = {
            target
            for target in imports(path, TREES[path])
            if target.startswith("trl_soft.") and target.count(".") == 1
        }
        assert name == "trl_soft" or names <= modules, name


def test_modules_and_functions_are_short():
    modules = {name for name, path in MODULES.items() if len(path.read_text("utf-8").splitlines()) > MODULE_LINES}
    functions = {
        f"{name}:{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    }
    assert modules <= LONG_MODULES
    assert functions <= LONG_FUNCTIONS


def test_no_two_modules_or_classes_have_one_name():
    names = [name.rpartition(".")[2] for name in MODULES if not name.endswith("__main__")]
    assert {name for name, count in Counter(names).items() if count > 1} <= SAME_MODULES
    classes: dict[str, set[str]] = defaultdict(set)
    for name, path in MODULES.items():
        for node in TREES[path].body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].add(name)
    assert {name for name, modules in classes.items() if len(modules) > 1} <= SAME_CLASSES


def test_no_module_has_a_name_of_the_standard_library():
    names = {name.rpartition(".")[2] for name in MODULES}
    assert names & (sys.stdlib_module_names - {"__main__"}) <= SHADOWS


@pytest.mark.parametrize("name", ["config", "trainer", "memory"])
def test_a_module_that_moved_says_where(name):
    with pytest.raises(ModuleNotFoundError, match=rf"trl_soft\.{name} is trl_soft\.(\S+)\. Import that") as missing:
        importlib.import_module(f"trl_soft.{name}")
    importlib.import_module(f"trl_soft.{re.search('is trl_soft.(.+?)[.] Import', str(missing.value))[1]}")
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        importlib.import_module("trl_soft.nothing")
