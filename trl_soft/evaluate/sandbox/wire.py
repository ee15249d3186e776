# SPDX-License-Identifier: Apache-2.0
"""Values as data, between the program and its tests. Both processes import this file.

Only plain values of the standard library cross as data. The other side builds each value again, of the exact built-in type,
so that a test never calls a method of the program. Every other object stays in its process and crosses as a handle: a
number that its owner looks up.
"""

import builtins
import json
import os
from decimal import Decimal
from fractions import Fraction
from typing import Any


_MOST_BYTES = 1 << 28  # of one message


class Ended(BaseException):
    """The other side closed its end. No `except Exception` of a test catches it."""


def encode(value, handle):
    """A value in the types of JSON. `handle(value)` returns the number of an object that cannot cross."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"int": hex(int.__index__(value))}
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if isinstance(value, complex):
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, list):
        return [encode(item, handle) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[encode(k, handle), encode(v, handle)] for k, v in dict.items(value)]}
    kind: Any
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, handle) for item in kind.__iter__(value)]}
    for kind in (bytes, bytearray):
        if isinstance(value, kind):
            return {kind.__name__: kind.hex(value)}
    if type(value) is range:
        return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
    if type(value) is Decimal:
        return {"Decimal": str(value)}
    if type(value) is Fraction:
        return {"Fraction": [hex(value.numerator), hex(value.denominator)]}
    if isinstance(value, type):
        name = value.__name__
        if vars(builtins).get(name) is value:
            return {"type": name}
    return {"handle": handle(value)}


def decode(data, handle):
    """The value of `encode`, built again. `handle(number)` returns the handle of an object that did not cross."""
    if data is None or isinstance(data, (bool, str)):
        return data
    if isinstance(data, list):
        return [decode(item, handle) for item in data]
    ((name, content),) = data.items()
    if name == "dict":
        return {decode(k, handle): decode(v, handle) for k, v in content}
    kind: Any
    for kind in (tuple, set, frozenset):
        if name == kind.__name__:
            return kind(decode(item, handle) for item in content)
    makers = {
        "int": lambda: int(content, 16),
        "float": lambda: float.fromhex(content),
        "complex": lambda: complex(*map(float.fromhex, content)),
        "bytes": lambda: bytes.fromhex(content),
        "bytearray": lambda: bytearray.fromhex(content),
        "range": lambda: range(*(int(part, 16) for part in content)),
        "Decimal": lambda: Decimal(content),
        "Fraction": lambda: Fraction(*(int(part, 16) for part in content)),
        "type": lambda: _built_in_type(content),
        "handle": lambda: handle(int(content)),
    }
    return makers[name]()


def _built_in_type(name):
    kind = getattr(builtins, name)
    if not isinstance(kind, type):
        raise TypeError(f"{name} is no built-in type")
    return kind


def send(fd, message):
    """Write a message: its length in 8 bytes, then JSON."""
    text = json.dumps(message).encode()  # ASCII: a lone surrogate is an escape
    data = memoryview(len(text).to_bytes(8, "big") + text)
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BrokenPipeError:
            raise Ended from None


def receive(fd):
    """Read a message. Raises `Ended` if there is none."""
    return json.loads(_read(fd, min(int.from_bytes(_read(fd, 8), "big"), _MOST_BYTES)))


def _read(fd, count):
    data = bytearray()
    while len(data) < count:
        part = os.read(fd, min(count - len(data), 1 << 20))
        if not part:
            raise Ended
        data += part
    return bytes(data)
