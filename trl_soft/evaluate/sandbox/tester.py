# SPDX-License-Identifier: Apache-2.0
"""The trusted process: it runs the tests, and asks the program for its results.

A result reaches a test as data that this process made. An object that is not data is a `Handle`: a test can call it, read
it and pass it back. A handle equals only itself, whatever the program says. The program has no way into this process: it
holds neither end of the pipe of the verdict.
"""

import builtins
import json
import os
import sys
import traceback

from trl_soft.evaluate.sandbox.wire import Ended, decode, encode, receive, send


JOB, REPLIES, REQUESTS, VERDICT = 3, 4, 5, 6
_MOST_SAID = 300  # characters: JSON writes one in 12 bytes at most, and the supervisor reads 4096 bytes


class ProgramError(Exception):
    """Stands for an exception of the program that is not built in, or that would end a loop of the tests."""


def _ask(kind, *arguments):
    send(REQUESTS, [kind, *(encode(argument, _number) for argument in arguments)])
    reply = receive(REPLIES)
    if "error" in reply:
        name, text = reply["error"]
        known = vars(builtins).get(str(name))
        # A `StopIteration` would end a `map` of the tests as if the `map` had no more items.
        ends_a_loop = name in ("StopIteration", "StopAsyncIteration")
        if isinstance(known, type) and issubclass(known, Exception) and not ends_a_loop:
            raise known(str(text))
        raise ProgramError(f"{name}: {text}")
    return decode(reply["value"], Handle)


def _number(value):
    if type(value) is not Handle:
        raise TypeError(f"a {type(value).__name__} of the tests cannot be handed to the program: it is no plain data")
    return object.__getattribute__(value, "_number")


class Handle:
    """An object of the program that is not data."""

    __slots__ = ("_number",)

    def __init__(self, number):
        object.__setattr__(self, "_number", number)

    def __call__(self, *args, **kwargs):
        return _ask("call", self, args, kwargs)

    def __getattr__(self, name):
        return _ask("attribute", self, name)

    def __setattr__(self, name, value):
        _ask("set", self, name, value)

    def __getitem__(self, key):
        return _ask("item", self, key)

    def __iter__(self):
        return iter(_ask("items", self))

    def __len__(self):
        return int(_ask("length", self))

    def __bool__(self):
        return _ask("truth", self) is True

    def __str__(self):
        return str(_ask("text", self))


def _names_in(code):
    """Every global name that compiled tests use."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            names |= _names_in(constant)
    return names


def _run_tests(job):
    """Run reference, setup and tests. Only the names in `tested` belong to the program."""
    defined = {name for name in receive(REPLIES)["names"] if isinstance(name, str)}
    reference, setup, tests = (
        compile(job[name], f"<{name}>", "exec", dont_inherit=True) for name in ("reference", "setup", "tests")
    )
    trusted = {"__name__": "reference"}
    exec(reference, trusted)  # in its own namespace, so that its functions call each other and not the program's
    names = {"__name__": "tests"}
    for code in (setup, tests):
        for name in sorted(_names_in(code)):
            if name in job["tested"]:
                if name not in defined:
                    raise NameError(f"name {name!r} is not defined")
                names[name] = _ask("name", name)
            elif name in trusted and not name.startswith("__"):
                names.setdefault(name, trusted[name])
        exec(code, names)


def _said(error, tests):
    """An error as one line, with the test that raised it."""
    lines = tests.splitlines()
    at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tests>"]
    line = lines[at[-1] - 1].strip() if at and at[-1] and at[-1] <= len(lines) else ""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return f"{text} at `{line}`" if line else text


def _judge():
    with open(JOB, "rb") as file:
        job = json.load(file)
    try:
        _run_tests(job)
        verdict = {"passed": True}
    except Ended:
        verdict = {"ended": True}
    except BaseException as error:
        verdict = {"failed": _said(error, job["tests"])[:_MOST_SAID].encode("utf-8", "replace").decode()}
    os.write(VERDICT, json.dumps(verdict).encode())


if __name__ == "__main__":
    sys.setrecursionlimit(5000)
    _judge()
