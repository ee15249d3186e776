# SPDX-License-Identifier: Apache-2.0
"""The Python program in a completion: in fenced blocks, between tags, or among prose."""

import ast
import builtins
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .parsing import LONGEST_PROGRAM, error_line, parses, statements


# A fence may be indented, and may follow the mark of a list item or a quotation.
_FENCE = re.compile(r"(?P<indent>(?:[ \t]|[-*+>][ \t]|\d{1,3}[.)][ \t])*+)(?P<marks>`{3,}+|~{3,}+)(?P<info>[^`]*+)")
# An opening fence that follows prose in the same line names its language.
_FENCE_BEHIND_PROSE = re.compile(
    r"[^`]*[^`\s][ \t]*(?P<marks>`{3})[ \t]*(?P<info>(?:python3?|py)[ \t]*)", re.IGNORECASE
)
_MARKS = ("```", "~~~")
_TAG = re.compile(r"\[PYTHON\](.*?)(?:\[/PYTHON\]|\Z)", re.DOTALL | re.IGNORECASE)
_LANGUAGES = frozenset(("", "py", "py3", "python", "python2", "python3", "ipython"))
_CODE_LINE = re.compile(
    r"from[ \t]+[\w.]+[ \t]+import\b|import[ \t]+[\w.]+|(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|class[ \t]+\w+[ \t]*[:(]|@\w|"
    r"\w++[ \t]*+=[^=]"
)
_PLAIN_CUTS = 10  # number of cuts at the line of an error before the cuts grow


def extract_code(
    text: str, name: str | None = None, *, needed: Iterable[str] = (), given: Collection[str] = ()
) -> str | None:
    """
    The program in the fenced blocks of a text, or `None` if it has no block.

    The program is the last Python block that defines `name`. The imports, functions, classes and values that this block uses
    and does not define come before it, from the other blocks. If no block defines `name`, the program is all Python blocks
    together.

    A block is fenced by backticks or tildes, indented or not, or by `[PYTHON]` and `[/PYTHON]`. If the text ends inside a
    block, the block counts up to there. A text may also begin inside a block, after a forced fence.

    Args:
        name (`str`, *optional*): a function or class.
        needed (iterable of `str`): other names that the program has to define.
        given (collection of `str`): names that are defined elsewhere, so no block has to define them.
    """
    tagged = _TAG.findall(text) if "[python]" in text.lower() else []
    if tagged:
        blocks = [block for part in tagged for block in _fenced_or_all(part, name)]
    else:
        blocks = _blocks(text, name)
    if not blocks:
        return None
    flush = [_flush(block) for block in blocks]
    naming = [place for place, block in enumerate(flush) if name is not None and defines(block, name)]
    if not naming:
        programs = [block for block, plain in zip(blocks, flush, strict=True) if parses(plain)]
        return "\n".join(programs or blocks)
    chosen = naming[-1]
    main = longest_program("", flush[chosen])[0]
    others = [block for place, block in enumerate(flush) if place != chosen]
    return "\n".join([*_supplied(main, others, {*needed, *_names_used(statements(main))}, given), flush[chosen]])


def unfenced_program(text: str, name: str | None) -> str:
    """A text without fences, from the beginning of its program on. All of the text if no program begins in it."""
    lines = text.split("\n")
    starts = [place for place, line in enumerate(lines) if _CODE_LINE.match(line)]
    if not starts or (name is not None and not defines(text, name)):
        return text  # no program, or a body that continues the prompt
    for start in [0, *_likely(lines, starts, name)]:
        program = "\n".join(lines[start:])
        readable, lines_read = longest_program("", program)
        if lines_read and (name is None or defines(readable, name)):
            return program
    return text


def _likely(lines: Sequence[str], starts: Sequence[int], name: str | None) -> list[int]:
    """Places where a program may begin after prose, in order. At most eleven, so that not every line is parsed."""
    code = set(starts)
    fresh = [start for start in starts if start - 1 not in code]
    naming = [start for start in starts if name is not None and defines(lines[start], name)]
    return sorted({*fresh[:5], *fresh[-5:], *naming[-1:]})


# --------------------------------------------------------------------------------------------------------------- fences


@dataclass(frozen=True)
class _Fence:
    """A line that is a fence: its place, the blanks before it (list marks as blanks), its marks and the text after them."""

    line: int
    indent: str
    marks: str
    info: str
    behind_prose: bool = False

    @property
    def language(self) -> str:
        words = self.info.strip().strip("{}").split()
        return words[0].lstrip(".").lower() if words else ""

    def closes(self, opening: "_Fence") -> bool:
        return not self.info.strip() and self.marks[0] == opening.marks[0] and len(self.marks) >= len(opening.marks)

    def opens_anew(self, opening: "_Fence") -> bool:
        """Whether it opens a block while `opening` is open. It then names a language, which a closing fence never does."""
        if self.behind_prose:
            return False  # a line inside the open block, for example in a docstring
        return bool(self.info.strip()) and self.marks[0] == opening.marks[0] and len(self.marks) >= len(opening.marks)


def _fenced_or_all(text: str, name: str | None) -> list[str]:
    return _blocks(text, name) or [text.strip("\n")]


def _blocks(text: str, name: str | None) -> list[str]:
    """The Python blocks of a text, read from outside a block, or from inside one if that makes more sense."""
    if not any(marks in text for marks in _MARKS):
        return []
    lines = text.split("\n")
    fences = [fence for place, line in enumerate(lines) if (fence := _fence_in(place, line.rstrip())) is not None]
    outside = _read(lines, fences)
    if not fences or fences[0].info.strip() or not any(line.strip() for line in lines[: fences[0].line]):
        return outside
    inside = ["\n".join(lines[: fences[0].line]), *_read(lines, fences[1:])]
    if name is not None and any(defines(_flush(block), name) for block in outside):
        return outside
    if name is not None and any(defines(_flush(block), name) for block in inside):
        return inside
    begins_inside = parses(_flush(inside[0])) and not any(parses(_flush(block)) for block in outside)
    return inside if begins_inside else outside


def _fence_in(place: int, line: str) -> _Fence | None:
    if not any(marks in line for marks in _MARKS):
        return None
    if match := _FENCE.fullmatch(line):
        return _Fence(place, re.sub(r"\S", " ", match["indent"]), match["marks"], match["info"])
    if match := _FENCE_BEHIND_PROSE.fullmatch(line):
        return _Fence(place, "", match["marks"], match["info"], behind_prose=True)
    return None


def _read(lines: Sequence[str], fences: Sequence[_Fence]) -> list[str]:
    """The Python blocks between fences. The first fence opens a block."""
    blocks: list[str] = []
    opening: _Fence | None = None
    for fence in fences:
        if opening is None:
            opening = fence
        elif fence.opens_anew(opening):
            # An opening fence without a language was a stray closing fence: the text after it is prose.
            if opening.info.strip():
                _take(blocks, lines, opening, fence.line)
            opening = fence
        elif fence.closes(opening):
            _take(blocks, lines, opening, fence.line)
            opening = None
    if opening is not None:
        _take(blocks, lines, opening, len(lines))
    return blocks


def _take(blocks: list[str], lines: Sequence[str], opening: _Fence, end: int) -> None:
    if opening.language in _LANGUAGES:
        blocks.append("\n".join(_outdented(line, opening.indent) for line in lines[opening.line + 1 : end]))


def _outdented(line: str, indent: str) -> str:
    """A line without the blanks of its fence, as far as the line has them."""
    if line.startswith(indent):
        return line[len(indent) :]
    return line[min(len(line) - len(line.lstrip(" ")), len(indent)) :]


# ------------------------------------------------------------------------------------------------------------- programs


def _flush(block: str) -> str:
    """A block without the indentation that all of it has. Every other block stays as it is, with its strings."""
    first = next((line for line in block.split("\n") if line.strip()), "")
    return textwrap.dedent(block) if first[:1].isspace() else block


def defines(source: str, name: str) -> bool:
    """Whether a function, a class or a value of this name is defined at the beginning of a line."""
    return name in source and (
        re.search(
            rf"(?m)^(?:async[ \t]+def|def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*=(?!=)", source
        )
        is not None
    )


def _lines_within(text: str, size: int) -> list[str]:
    """The first lines of a text, as many as fit into `size` characters."""
    return text.split("\n") if len(text) <= size else text[: max(size, 0)].split("\n")[:-1]


def longest_program(head: str, body: str) -> tuple[str, int]:
    """
    The longest program that `head` and the first lines of `body` make, and how many lines of `body` it has.

    Base models write on after the answer, so `body` may be longer than the program. If no number of lines makes a program,
    the result is `head + body` and 0. Lines after the first `LONGEST_PROGRAM` characters are not read. An error in a line
    stays whatever follows that line, so the text is cut before the line and parsed again.
    """
    lines = _lines_within(body, LONGEST_PROGRAM - len(head))
    count, above, cuts = len(lines), head.count("\n"), 0
    while count > 0:
        source = head + "\n".join(lines[:count])
        line = error_line(source)
        if line is None:
            return source, count
        cuts += 1
        step = 1 if cuts <= _PLAIN_CUTS else 1 << min(2 * (cuts - _PLAIN_CUTS), 30)
        count = min(count - step, line - 1 - above if line else count)
    return head + body, 0


def names_defined(source: str) -> set[str]:
    """The names that a program defines at its top level: functions, classes and names that it assigns to."""
    return {name for node in statements(source) for name in _names_bound(node) if not isinstance(node, _IMPORTS)}


_IMPORTS = (ast.Import, ast.ImportFrom)
_SUPPLIES = (*_IMPORTS, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def _names_bound(node: ast.stmt) -> set[str]:
    if isinstance(node, _IMPORTS):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return set()


def _names_used(nodes: Iterable[ast.stmt]) -> set[str]:
    return {
        part.id
        for node in nodes
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)
    }


def _supplied(main: str, others: Sequence[str], uses: Collection[str], defined: Collection[str]) -> list[str]:
    """The statements of other blocks that define what `main` uses and does not define, in their order."""
    known = {name for node in statements(main) for name in _names_bound(node)} | {*defined, *dir(builtins)}
    open_names = set(uses) - known
    sources = [longest_program("", block)[0] for block in others]
    lines = [source.split("\n") for source in sources]
    definitions = [
        (place, node)
        for place, source in enumerate(sources)
        for node in statements(source)
        if isinstance(node, _SUPPLIES)
    ]
    by_lines: dict[tuple[int, int, int], list[ast.stmt]] = {}  # statements on the same lines
    for place, node in definitions:
        by_lines.setdefault((place, *_lines_of(node)), []).append(node)
    stars = [order for order, (_, node) in enumerate(definitions) if "*" in _names_bound(node)]
    # The last definition of a name counts.
    last = {name: order for order, (_, node) in enumerate(definitions) for name in _names_bound(node)}
    texts: dict[tuple[int, int, int], str] = {}  # by place, first and last line; statements on one line come together
    while open_names:
        name = open_names.pop()
        known.add(name)
        order = last.get(name, -1)
        orders = [order] if order >= 0 else []
        while stars and stars[-1] > order:  # a later star import may replace the definition
            orders.append(stars.pop())
        for place, node in (definitions[number] for number in orders):
            bound, span = _names_bound(node), (place, *_lines_of(node))
            known |= bound
            open_names -= bound
            if span not in texts:
                texts[span] = "\n".join(lines[place][span[1] - 1 : span[2]])
                open_names |= _names_used(by_lines[span]) - known
    return [texts[span] for span in sorted(texts)]


def _lines_of(node: ast.stmt) -> tuple[int, int]:
    """The first line of a statement, with its decorators, and the last."""
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    return first, node.end_lineno or first
