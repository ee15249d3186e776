# SPDX-License-Identifier: Apache-2.0
"""
The number of steps that a judge takes for a text: what is held instead of the clock.

A step is a line of the judge's Python, a character that a string method or a slice reads, a character that is parsed as a
program, or one test of one character by a regular expression. The regular expressions run in the backtracking matcher
below, which reads their parsed form and matches as `re` does, and counts. What depends on the characters around a place alone
is found once: the matcher keeps the outcome of each attempt, its steps among it, by the characters that the attempt read.

Not counted are the methods of a text that was joined from pieces; the lines that made and read the pieces are.
"""

import ast
import functools
import re
import re._compiler as sre_compiler
import re._constants as sre  # the parsed form of a pattern has no public name
import re._parser as sre_parser
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


_STACK, _DEEPEST = 512 << 20, 200_000  # bytes, calls


class Steps:
    """A counter."""

    def __init__(self) -> None:
        self.count = 0


STEPS = Steps()


class CountedText(str):
    """A text whose methods count the characters that they read; what is cut from it counts as well."""

    @functools.cached_property
    def plain(self) -> str:
        """The same text, whose methods do not count."""
        return str(self)

    def __getitem__(self, key: Any) -> "CountedText":
        found = str.__getitem__(self, key)
        STEPS.count += len(found)
        return CountedText(found)


def _counted(name: str) -> Callable:
    method = getattr(str, name)

    def call(self: CountedText, *arguments: Any, **options: Any) -> Any:
        STEPS.count += len(self)
        found = method(self, *arguments, **options)
        if isinstance(found, str):
            return CountedText(found)
        return type(found)(map(CountedText, found)) if isinstance(found, (list, tuple)) else found

    return call


for _name in (
    "strip lstrip rstrip split rsplit splitlines partition rpartition replace translate lower upper casefold index "
    "count removeprefix removesuffix __contains__"
).split():
    setattr(CountedText, _name, _counted(_name))


def _find(self: CountedText, wanted: str, start: int = 0, end: int | None = None) -> int:
    found = str.find(self, wanted, start, end)
    STEPS.count += max((len(self) if end is None else end) if found < 0 else found + len(wanted), start) - start
    return found


def _rfind(self: CountedText, wanted: str, start: int = 0, end: int | None = None) -> int:
    found = str.rfind(self, wanted, start, end)
    STEPS.count += max((len(self) if end is None else end) - max(found, start), 0)
    return found


CountedText.find, CountedText.rfind = _find, _rfind  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------------ regular expressions


def _plain(text: str) -> str:
    return text.plain if isinstance(text, CountedText) else text


class Match:
    """As `re.Match`, as far as judges use it."""

    def __init__(self, pattern: "Pattern", text: str, spans: dict[int, tuple[int, int]]) -> None:
        self.re, self.string, self._spans, self._plain = pattern, text, spans, _plain(text)

    def _index(self, group: int | str) -> int:
        return self.re.groupindex[group] if isinstance(group, str) else group

    def span(self, group: int | str = 0) -> tuple[int, int]:
        return self._spans.get(self._index(group), (-1, -1))

    def start(self, group: int | str = 0) -> int:
        return self.span(group)[0]

    def end(self, group: int | str = 0) -> int:
        return self.span(group)[1]

    def __getitem__(self, group: int | str) -> CountedText | None:
        span = self._spans.get(group if type(group) is int else self._index(group))
        return None if span is None else CountedText(self._plain[span[0] : span[1]])

    def group(self, *wanted: int | str) -> Any:
        found = [self[group] for group in wanted or (0,)]
        return found[0] if len(found) == 1 else tuple(found)

    def groups(self) -> tuple:
        return tuple(self[index] for index in range(1, self.re.groups + 1))

    @property
    def lastindex(self) -> int | None:
        spans = self._spans
        return max(filter(None, spans), key=lambda index: (spans[index][1], -index)) if len(spans) > 1 else None

    @property
    def lastgroup(self) -> str | None:
        return self.re.names.get(self.lastindex)


_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
}
_NOT_CATEGORIES = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}


_BEHIND, _AHEAD = 2, 12  # characters around a place by which the outcome of an attempt there is kept


class Pattern:
    """As `re.Pattern`, by backtracking as `re` does it, and counting."""

    def __init__(self, pattern: re.Pattern) -> None:
        self._tree = sre_parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
        self._tests: dict[tuple[int, int], Callable[[str], bool] | None] = {}  # of one character, by item and flags
        self._runs: dict[tuple[int, int], re.Pattern] = {}  # of such characters, by item and flags
        self.pattern, self.flags, self.groups, self.groupindex = (
            pattern.pattern,
            pattern.flags,
            pattern.groups,
            dict(pattern.groupindex),
        )
        self.names = {index: name for name, index in self.groupindex.items()}
        self._items = list(self._tree)
        self._outcomes: dict[tuple, tuple[int, dict | None]] = {}  # steps and spans, which count from the place
        self._low, self._high = 0, 0  # the places that an attempt read, the end of the text among them

    def _at(self, text: str, start: int, whole: bool = False) -> dict | None:
        """The spans of the match that begins at a place, or `None`; `text` has no methods that count."""
        key = (min(start, _BEHIND), whole, text[max(start - _BEHIND, 0) : start + _AHEAD])
        outcome = self._outcomes.get(key)
        if outcome is None:
            before, self._low, self._high = STEPS.count, start, start - 1
            spans = self._attempt(text, start, whole)
            relative = spans and {group: (a - start, b - start) for group, (a, b) in spans.items()}
            if self._low >= start - _BEHIND and self._high < start + _AHEAD:
                self._outcomes[key] = STEPS.count - before, relative
            return spans
        steps, relative = outcome
        STEPS.count += steps
        return relative and {group: (a + start, b + start) for group, (a, b) in relative.items()}

    def _attempt(self, text: str, start: int, whole: bool) -> dict | None:
        for end, groups in self._sequence(self._items, 0, text, start, {}, self.flags):
            if whole and end > self._high:
                self._high = end
            if not whole or end == len(text):
                return {0: (start, end), **groups}
        return None

    def _matches(self, text: str, position: int, end: int | None) -> Iterator[Match]:
        plain, given = _plain(text), text
        if end is not None and end < len(plain):
            plain = plain[:end]
        while position <= len(plain):
            trace = sys.gettrace()
            sys.settrace(None)  # the matcher counts for itself, and each of its calls would be traced
            try:
                while (spans := self._at(plain, position)) is None and position < len(plain):
                    position += 1
            finally:
                sys.settrace(trace)
            if spans is None:
                return
            yield Match(self, given, spans)
            position = max(spans[0][1], position + (spans[0][1] == spans[0][0]))

    def _once(self, text: str, position: int, end: int | None, whole: bool) -> Match | None:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            plain = _plain(text) if end is None or end >= len(text) else _plain(text)[:end]
            spans = self._at(plain, position, whole)
        finally:
            sys.settrace(trace)
        return None if spans is None else Match(self, text, spans)

    def match(self, text: str, position: int = 0, end: int | None = None) -> Match | None:
        return self._once(text, position, end, whole=False)

    def fullmatch(self, text: str) -> Match | None:
        return self._once(text, 0, None, whole=True)

    def finditer(self, text: str, position: int = 0, end: int | None = None) -> Iterator[Match]:
        return self._matches(text, position, end)

    def search(self, text: str, position: int = 0, end: int | None = None) -> Match | None:
        return next(self._matches(text, position, end), None)

    def findall(self, text: str) -> list:
        if not self.groups:
            return [found[0] for found in self.finditer(text)]
        cleaned = ([group or CountedText("") for group in found.groups()] for found in self.finditer(text))
        return [groups[0] if self.groups == 1 else tuple(groups) for groups in cleaned]

    def sub(self, new: Any, text: str, count: int = 0) -> CountedText:
        pieces, position = [], 0
        for found in self.finditer(text):
            made = new(found) if callable(new) else _filled(new, found)
            pieces += [_plain(text)[position : found.start()], made]
            position = found.end()
        return CountedText("".join([*pieces, _plain(text)[position:]]))

    def split(self, text: str) -> list[CountedText]:
        pieces, position = [], 0
        for found in self.finditer(text):
            pieces.append(CountedText(_plain(text)[position : found.start()]))
            position = found.end()
        return [*pieces, CountedText(_plain(text)[position:])]

    # Each generator below gives, in the order in which `re` tries them, where a match can end and its groups.

    def _sequence(self, items: list, index: int, text: str, at: int, groups: dict, flags: int) -> Iterator:
        # A run of single characters needs no generator each.
        while index < len(items) and (test := self._single(items[index], flags)) is not None:
            STEPS.count += 1
            if at > self._high:
                self._high = at
            if at >= len(text) or not test(text[at]):
                return
            at, index = at + 1, index + 1
        if index == len(items):
            yield at, groups
            return
        for end, found in self._item(items[index], text, at, groups, flags):
            yield from self._sequence(items, index + 1, text, end, found, flags)

    def _item(self, item: tuple, text: str, at: int, groups: dict, flags: int) -> Iterator:
        kind, value = item
        if kind is sre.SUBPATTERN:
            number, add, remove, inner = value
            if remove:
                raise NotImplementedError(f"flags taken away in {self.pattern!r}")
            for end, found in self._sequence(list(inner), 0, text, at, groups, flags | add):
                yield end, (found if number is None else {**found, number: (at, end)})
        elif kind is sre.BRANCH:
            for branch in value[1]:
                yield from self._sequence(list(branch), 0, text, at, groups, flags)
        elif kind is sre.AT:
            STEPS.count += 1
            self._low, self._high = min(self._low, at - 1), max(self._high, at + 1)
            if self._holds(value, text, at, flags):
                yield at, groups
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            direction, inner = value
            start = at if direction > 0 else at - inner.getwidth()[0]
            self._low = min(self._low, start)
            ends = self._sequence(list(inner), 0, text, start, groups, flags) if start >= 0 else iter(())
            found = next((pair for pair in ends if direction > 0 or pair[0] == at), None)
            if (found is not None) == (kind is sre.ASSERT):
                yield at, groups if found is None else found[1]
        elif kind is sre.ATOMIC_GROUP:
            found = next(self._sequence(list(value), 0, text, at, groups, flags), None)
            if found is not None:
                yield found
        elif kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            yield from self._repeat(kind, *value, text, at, groups, flags)
        else:
            raise NotImplementedError(f"{kind} in {self.pattern!r}")

    def _repeat(
        self, kind: Any, least: int, most: Any, inner: Any, text: str, at: int, groups: dict, flags: int
    ) -> Iterator:
        most = len(text) + 1 if most is sre.MAXREPEAT else int(most)
        body = list(inner)
        test = self._single(body[0], flags) if len(body) == 1 else None
        if test is not None and kind is sre.MIN_REPEAT:
            yield from self._few(test, least, most, text, at, groups)
            return
        if test is not None:
            run = self._run(body[0], flags).match(text, at, min(len(text), at + most))
            assert run is not None
            end = run.end()
            STEPS.count += end - at + (end < len(text) and end - at < most)
            if end > self._high:
                self._high = end
            ends = range(end, at + least - 1, -1)
            for place in ends[:1] if kind is sre.POSSESSIVE_REPEAT else ends:
                STEPS.count += 1
                yield place, groups
            return
        if kind is sre.POSSESSIVE_REPEAT:
            done, found = 0, (at, groups)
            while done < most:
                following = next(self._sequence(body, 0, text, found[0], found[1], flags), None)
                if following is None or following[0] == found[0]:
                    break
                done, found = done + 1, following
            if done >= least:
                yield found
            return
        yield from self._group_repeat(kind, least, most, body, text, at, groups, flags, 0)

    def _few(self, test: Callable, least: int, most: int, text: str, at: int, groups: dict) -> Iterator:
        for end in range(at, min(at + most, len(text)) + 1):
            STEPS.count += 1
            if end - at >= least:
                yield end, groups
            if end > self._high:
                self._high = end
            if end < len(text) and not test(text[end]):
                return

    def _group_repeat(self, kind, least, most, body, text, at, groups, flags, done) -> Iterator:
        if kind is sre.MIN_REPEAT and done >= least:
            yield at, groups
        if done < most:
            for end, found in self._sequence(body, 0, text, at, groups, flags):
                if end > at or done < least:
                    yield from self._group_repeat(kind, least, most, body, text, end, found, flags, done + 1)
        if kind is not sre.MIN_REPEAT and done >= least:
            yield at, groups

    def _single(self, item: tuple, flags: int) -> Callable[[str], bool] | None:
        """The test of one character that an item is, or `None`."""
        if (id(item), flags) not in self._tests:
            test = self._test(item, flags)
            self._tests[id(item), flags] = test and functools.lru_cache(maxsize=256)(test)
        return self._tests[id(item), flags]

    def _run(self, item: tuple, flags: int) -> re.Pattern:
        """As many as there are of the characters that an item is, by `re` itself."""
        if (id(item), flags) not in self._runs:
            one = sre_parser.SubPattern(self._tree.state, [item])
            many = [(sre.POSSESSIVE_REPEAT, (0, sre.MAXREPEAT, one))]
            self._runs[id(item), flags] = sre_compiler.compile(sre_parser.SubPattern(self._tree.state, many), flags)
        return self._runs[id(item), flags]

    def _test(self, item: tuple, flags: int) -> Callable[[str], bool] | None:
        kind, value = item
        fold = (lambda c: c.lower()) if flags & re.IGNORECASE else (lambda c: c)
        if kind is sre.LITERAL:
            return lambda c: fold(c) == fold(chr(value))
        if kind is sre.NOT_LITERAL:
            return lambda c: fold(c) != fold(chr(value))
        if kind is sre.ANY:
            return (lambda c: True) if flags & re.DOTALL else (lambda c: c != "\n")
        if kind is sre.IN:
            return lambda c: self._in(value, c) or (bool(flags & re.IGNORECASE) and self._in(value, c.swapcase()))
        return None

    def _in(self, members: list, character: str) -> bool:
        negated = members[0][0] is sre.NEGATE
        for kind, value in members[negated:]:
            if (
                (kind is sre.LITERAL and ord(character) == value)
                or (kind is sre.RANGE and value[0] <= ord(character) <= value[1])
                or (kind is sre.CATEGORY and _is_of(value, character))
            ):
                return not negated
        return negated

    def _holds(self, place: Any, text: str, at: int, flags: int) -> bool:
        if place in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
            return at == 0 or (place is sre.AT_BEGINNING and bool(flags & re.MULTILINE) and text[at - 1] == "\n")
        if place is sre.AT_END:
            return at == len(text) or text[at:] == "\n" or (bool(flags & re.MULTILINE) and text[at] == "\n")
        if place is sre.AT_END_STRING:
            return at == len(text)
        word = [0 <= i < len(text) and _is_of(sre.CATEGORY_WORD, text[i]) for i in (at - 1, at)]
        return (word[0] != word[1]) == (place is sre.AT_BOUNDARY)


def _filled(template: str, found: Match) -> str:
    return re.sub(r"\\g<(\d)>|\\(\d)", lambda mark: found[int(mark[1] or mark[2])] or "", template)


def _is_of(category: Any, character: str) -> bool:
    if category in _NOT_CATEGORIES:
        return not _CATEGORIES[_NOT_CATEGORIES[category]](character)
    return _CATEGORIES[category](character)


# ------------------------------------------------------------------------------------------------------------ counting


_counting = functools.lru_cache(maxsize=256)(lambda pattern, flags: Pattern(re.compile(pattern, flags)))


class _CountedRe:
    """In the place of `re` in a module: its functions compile to counting patterns."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(re, name)
        if name not in ("match", "fullmatch", "search", "finditer", "findall", "sub", "split"):
            return (lambda pattern, flags=0: _counting(str(pattern), flags)) if name == "compile" else function

        def call(pattern: str, *arguments: Any, flags: int = 0, **options: Any) -> Any:
            given = 2 if name == "sub" else 1  # the replacement and the text; `re` takes flags behind them
            if len(arguments) > given and name not in ("sub", "split"):
                flags = arguments[given]
            return getattr(_counting(str(pattern), flags), name)(*arguments[:given], **options)

        return call


class _CountedAst:
    """In the place of `ast` in a module: what is parsed counts by its characters."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(ast, name)
        if name != "parse":
            return function

        def parse(source: str, *arguments: Any, **options: Any) -> Any:
            STEPS.count += len(source)
            return function(str(source), *arguments, **options)

        return parse


def counted(modules: list[ModuleType], monkeypatch: Any) -> None:
    """Let the patterns and parsers of modules count, until `monkeypatch` is undone."""
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, re.Pattern):
                monkeypatch.setattr(module, name, Pattern(value))
            elif value is re:
                monkeypatch.setattr(module, name, _CountedRe())
            elif value is ast:
                monkeypatch.setattr(module, name, _CountedAst())
            elif isinstance(value, (tuple, list)) and value and all(isinstance(part, re.Pattern) for part in value):
                monkeypatch.setattr(module, name, type(value)(map(Pattern, value)))


def steps_of(function: Callable[[str], Any], text: str, modules: list[ModuleType]) -> int:
    """How many steps a judge takes for a text, once its modules count."""
    files = {module.__file__ for module in modules}

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        STEPS.count += 1
        return trace

    def run() -> None:
        sys.settrace(trace)
        try:
            function(CountedText(text))
        except BaseException as error:
            errors.append(error)
        finally:
            sys.settrace(None)

    errors: list[BaseException] = []
    STEPS.count = 0
    limit, size = sys.getrecursionlimit(), threading.stack_size(_STACK)
    sys.setrecursionlimit(_DEEPEST)
    try:
        thread = threading.Thread(target=run)  # for its stack: a backtracking matcher recurses
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(size)
    if errors:
        raise errors[0]
    return STEPS.count
