# SPDX-License-Identifier: Apache-2.0
"""
The source of each name in a row's tests: the program, or the row.

Only the names under test belong to the program. A test may compare with `math.isclose`, with a helper of the reference
solution or with a constant. If the program could define these names, it could define the comparison. A name that the tests or
the setup use is looked up in this order:

1. a function or class under test, in the program. It is an error if the program does not define it.
2. a name that the tests or the setup define or import.
3. a name that the reference solution defines or imports. The reference runs in the tests' process, apart from the program.
4. a built-in.
5. a module of the standard library.

For HumanEval the entry point is under test. MBPP names no entry point. There each function of the reference that the tests
call is under test, and each class of the reference that the tests or the setup use, because arguments are made of it.

In `same(f(1), 5)` a test calls `same` around the function under test to compare its result. `same` is not under test if it is
a class, or if it is a function and

- exactly one function is named by all tests, and it is inside the call; or
- there is no such function, and no comparison stands around the call. `near(f(1), 5) < 1` and `f(make(1)) < 1` look alike, so
  there the outer function counts as under test. Put such a helper into `test_setup_code`.
"""

import ast
import functools
import symtable
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class RowTests:
    """
    The tests of a row, as [`~trl_soft.evaluate.sandbox.run_program`] takes them.

    Args:
        tests (`str`), setup (`str`), reference (`str`): code. `reference` is empty if the tests need nothing from it.
        tested (`tuple` of `str`): the names under test. The function that most tests name comes first.
    """

    tests: str
    setup: str
    reference: str
    tested: tuple[str, ...]


@functools.lru_cache(maxsize=1024)
def humaneval_tests(head: str, tests: str, name: str, reference: str | None) -> RowTests:
    """The tests of a HumanEval row with the prompt `head`. Some tests call helpers of the prompt."""
    return _arranged(f"{tests}\n\ncheck({name})\n", head, reference or "", (name,))


@functools.lru_cache(maxsize=1024)
def mbpp_tests(tests: tuple[str, ...], setup: str, reference: str) -> RowTests:
    """Those of a row of MBPP."""
    return _arranged("\n".join(tests) + "\n", setup, reference, _under_test(tests, setup, reference))


def _arranged(tests: str, setup: str, reference: str, tested: tuple[str, ...]) -> RowTests:
    used = _names_used(tests) | _names_used(setup)
    own = _names_bound(tests) | _names_bound(setup) | set(tested)
    of_reference = _names_bound(reference)
    modules = (used & sys.stdlib_module_names) - own - of_reference
    imports = "".join(f"import {name}\n" for name in sorted(modules))
    return RowTests(tests, imports + setup, reference if used & (of_reference - own) else "", tested)


def _under_test(tests: tuple[str, ...], setup: str, reference: str) -> tuple[str, ...]:
    statements = _tree(reference).body
    functions = {node.name for node in statements if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    # A function may also be made by an assignment: `f = lambda x: x`, `f = partial(g, 1)`.
    functions |= {name for name in _names_bound(reference, imports=False) if _is_called(name, tests)}
    classes = {node.name for node in statements if isinstance(node, ast.ClassDef)}
    functions -= classes
    by_test = [_names_used(test) for test in tests]
    named = {name for names in by_test for name in names}
    in_all = {name for name in functions if all(name in names for names in by_test)}
    main = in_all.pop() if len(in_all) == 1 else None
    around = {name for test in tests for name in _around(_tree(test), functions, classes, main, compared=False)}
    under_test = (functions & named) | (classes & (named | _names_used(setup)))
    return tuple(
        sorted(under_test - around, key=lambda name: (name in classes, -sum(name in n for n in by_test), name))
    )


def _is_called(name: str, tests: Iterable[str]) -> bool:
    return any(name in _called(_tree(test)) for test in tests)


def _called(tree: ast.AST) -> set[str]:
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def _around(
    tree: ast.AST, functions: Collection[str], classes: Collection[str], main: str | None, compared: bool
) -> Iterator[str]:
    """The names that are called around a function under test to compare its result."""
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in {*functions, *classes}:
        outer = tree.func.id
        inner = {name for part in (*tree.args, *tree.keywords) for name in _called(part)} & set(functions) - {outer}
        if inner and (outer in classes or (main in inner if main is not None else not compared)):
            yield outer
    for part in ast.iter_child_nodes(tree):
        yield from _around(part, functions, classes, main, compared or _compares(tree, part))


def _compares(tree: ast.AST, part: ast.AST) -> bool:
    """Whether `part` is compared with anything but a truth value. (A helper returns truth values.)"""
    if not isinstance(tree, ast.Compare):
        return False
    others = [other for other in (tree.left, *tree.comparators) if other is not part]
    return not all(isinstance(other, ast.Constant) and isinstance(other.value, bool) for other in others)


def _tree(source: str) -> ast.Module:
    """A row's code. Empty if it is not a program; the sandbox then reports the error."""
    try:
        return ast.parse(source, "<row>")
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _table(source: str) -> symtable.SymbolTable:
    try:
        return symtable.symtable(source, "<row>", "exec")
    except (SyntaxError, ValueError):
        return symtable.symtable("", "<row>", "exec")


def _names_bound(source: str, imports: bool = True) -> set[str]:
    """The names that a program defines or assigns to at its top level, and with `imports` those that it imports."""
    symbols = _table(source).get_symbols()
    return {s.get_name() for s in symbols if (imports if s.is_imported() else s.is_assigned())}


def _names_used(source: str) -> set[str]:
    """The global names that a program reads."""

    def within(table: symtable.SymbolTable) -> Iterator[str]:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                yield symbol.get_name()
        for child in table.get_children():
            yield from within(child)

    return set(within(_table(source)))
