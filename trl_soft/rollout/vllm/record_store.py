# SPDX-License-Identifier: Apache-2.0
"""Records that wait for a client: bounded by bytes. The oldest are dropped first, each in constant time."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any


# Memory of a record beside its bytes and its name: objects of Python and torch, entries of dicts (measured: 1.1 kB).
_BESIDE = 1280


class Kept:
    """
    Args:
        room (`int`): most bytes of all records together. A record that is larger alone is not kept.

    Attributes:
        held (`int`): bytes of all records.
    """

    def __init__(self, room: int):
        self.room, self.held = room, 0
        self._of: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._children: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._of

    @staticmethod
    def _size(key: tuple[str, int], record) -> int:
        return record.bytes() + len(key[0].encode("utf-8", "surrogatepass")) + _BESIDE

    def put(self, key: tuple[str, int], record) -> None:
        """Keep the record of completion `key[1]` of request `key[0]`. It replaces a record with the same key."""
        self.pop(key)
        self._of[key] = record
        self._children.setdefault(key[0], set()).add(key[1])
        self.held += self._size(key, record)
        while self.held > self.room:
            self.pop(next(iter(self._of)))

    def pop(self, key: tuple[str, int]):
        """Remove and return a record, or `None`."""
        record = self._of.pop(key, None)
        if record is not None:
            self.held -= self._size(key, record)
            children = self._children[key[0]]
            children.discard(key[1])
            if not children:
                del self._children[key[0]]
        return record

    def take(self, names: Iterable[str]) -> dict[tuple[str, int], Any]:
        """Remove and return all records of some requests."""
        keys = [(name, child) for name in names for child in sorted(self._children.get(name, ()))]
        return {key: self.pop(key) for key in keys}
