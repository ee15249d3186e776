# SPDX-License-Identifier: Apache-2.0
"""The untrusted process: it runs the source, then answers the calls of the tests.

Nothing here is secret, and nothing here proves anything: the source can change all of it. Its answers are data for the
tests, and the tests give the verdict.
"""

import builtins
import json
import os
import sys
import types

from trl_soft.evaluate.sandbox.wire import Ended, decode, encode, receive, send


JOB, REQUESTS, REPLIES = 3, 4, 5
_MOST_STEPS = 1 << 20  # items of one iterator


def _serve(names, say, hear, make_data, make_value):
    objects: list = []

    def handle(value):
        objects.append(value)
        return len(objects) - 1

    def value_of(data):
        return make_value(data, lambda number: objects[number])

    def answer(kind, *arguments):
        if kind == "name":
            name = arguments[0]
            return names[name] if name in names else getattr(builtins, name)
        target, *rest = map(value_of, arguments)
        if kind == "call":
            return target(*rest[0], **rest[1])
        if kind == "attribute":
            return getattr(target, rest[0])
        if kind == "set":
            return setattr(target, rest[0], rest[1])
        if kind == "item":
            return target[rest[0]]
        if kind == "items":
            steps = []
            for item in target:
                steps.append(item)
                if len(steps) > _MOST_STEPS:
                    raise ValueError(f"an iterator has more than {_MOST_STEPS} items")
            return steps
        plain: dict = {"length": len, "truth": bool, "text": str}
        return plain[kind](target)

    while True:
        request = hear(REQUESTS)
        try:
            reply = {"value": make_data(answer(*request), handle)}
        except Exception as error:
            reply = {"error": [type(error).__name__, str(error)[:500]]}
        say(REPLIES, reply)


def _run_program():
    # The source cannot reach these names by patching modules. It can walk frames, but gains nothing by it.
    say, hear, leave, make_data, make_value = send, receive, os._exit, encode, decode
    with open(JOB, "rb") as file:
        source = json.load(file)["source"]
    module = types.ModuleType("solution")
    names = vars(module)
    sys.modules["solution"] = sys.modules["__main__"] = module
    sys.argv[:] = ["solution.py"]
    for name in ("exit", "quit"):  # `site` would have defined them, but it is left out
        setattr(builtins, name, sys.exit)
    exec(compile(source, "<solution>", "exec", dont_inherit=True), names)
    sys.stdout.flush(), sys.stderr.flush()
    say(REPLIES, {"names": [name for name in names if not name.startswith("__")]})
    try:
        _serve(names, say, hear, make_data, make_value)
    except Ended:
        leave(0)  # the tests have ended


if __name__ == "__main__":
    _run_program()
