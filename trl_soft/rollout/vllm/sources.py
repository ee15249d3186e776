# SPDX-License-Identifier: Apache-2.0
"""Read the source of another library without importing it. Installed and downloaded versions give the same answers."""

import ast
import os
from collections.abc import Iterator


class Sources:
    """
    Args:
        root: the folder that holds the library's packages.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = root
        self._trees: dict[str, tuple[ast.Module, bool] | None] = {}

    def parameters(self, path: str) -> list[str] | None:
        """Parameters of a function or a method, `module:name` or `module:Class.name`. `None` if it does not exist."""
        function = self._function(path)
        if function is None:
            return None
        given = function.args
        names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        return [name for name in names if name != "self"]

    def members(self, path: str) -> list[str] | None:
        """Members of a class and its bases: fields, methods, properties, and attributes that its methods set on `self`."""
        found = self._definition(*path.split(":"))
        if found is None or not isinstance(found[1], ast.ClassDef):
            return None
        names: set[str] = set()
        for _, kind in self._lineage(found[0], found[1]):
            for node in kind.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
                elif isinstance(node, ast.Assign):
                    names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
                elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    names |= {node.name} | set(_set_on_self(node))
        return sorted(names)

    def names(self, module: str) -> list[str] | None:
        """Names that a module defines or imports."""
        read = self._read(module)
        if read is None:
            return None
        names: set[str] = set()
        for node in _statements(read[0]):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
        return sorted(names)

    def calls(self, path: str) -> list[str] | None:
        """Calls in a module, a class or a function, as they are written: `self.model_state.add_request`."""
        module, _, name = path.partition(":")
        node: ast.AST | None
        if not name:
            node = (self._read(module) or (None, False))[0]
        else:
            node = self._function(path) if "." in name else (self._definition(module, name) or (None, None))[1]
        if node is None:
            return None
        return sorted({ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)})

    def _read(self, module: str) -> tuple[ast.Module, bool] | None:
        """A module's tree, and whether it is a package."""
        if module not in self._trees:
            path = os.path.join(self.root, *module.split("."))
            self._trees[module] = None
            for file, package in ((path + ".py", False), (os.path.join(path, "__init__.py"), True)):
                if os.path.isfile(file):
                    with open(file, encoding="utf-8") as source:
                        self._trees[module] = ast.parse(source.read()), package
                    break
        return self._trees[module]

    def _definition(self, module: str, name: str) -> tuple[str, ast.stmt] | None:
        """The definition of a name, found through its imports: its module, and the class or function."""
        read = self._read(module)
        if read is None:
            return None
        tree, package = read
        for node in _statements(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
                return module, node
        for node in _statements(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if alias.name != "*" and (alias.asname or alias.name) != name:
                    continue
                found = self._definition(_origin(node, module, package), name if alias.name == "*" else alias.name)
                if found is not None or alias.name != "*":
                    return found
        return None

    def _lineage(self, module: str, kind: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class and its bases, as far as their source is here."""
        yield module, kind
        for base in kind.bases:
            name = ast.unparse(base).split("[")[0]
            found = self._definition(module, name)
            if found is not None and isinstance(found[1], ast.ClassDef):
                yield from self._lineage(found[0], found[1])

    def _function(self, path: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        module, _, name = path.partition(":")
        owner, _, method = name.partition(".")
        found = self._definition(module, owner)
        if found is None:
            return None
        if not method:
            return found[1] if isinstance(found[1], (ast.FunctionDef, ast.AsyncFunctionDef)) else None
        if not isinstance(found[1], ast.ClassDef):
            return None
        for _, kind in self._lineage(found[0], found[1]):
            for node in kind.body:
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == method:
                    return node
        return None


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Statements of a module, also under `if` and `try`, but not inside a class or a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            yield from _statements(node)


def _origin(node: ast.ImportFrom, module: str, package: bool) -> str:
    """The module that `from ... import` names, in `module`."""
    if not node.level:
        return node.module or ""
    parts = module.split(".") if package else module.split(".")[:-1]
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _set_on_self(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self.register_buffer" and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)
