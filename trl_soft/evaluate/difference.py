# SPDX-License-Identifier: Apache-2.0
"""The setting in which two manifests differ."""

from typing import Any


class _NotRecorded:
    def __repr__(self) -> str:
        return "not recorded"


NOT_RECORDED = _NotRecorded()


def difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """
    The first setting in which two manifests differ: its name, such as `decodings.gumbel.thinking.thinking_top_k`, and its two
    values; `None` if they are equal. What only one of them has is `NOT_RECORDED` in the other.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*now, *before)):
            found = difference(
                before.get(key, NOT_RECORDED), now.get(key, NOT_RECORDED), f"{name}.{key}" if name else key
            )
            if found is not None:
                return found
        return None
    if _named(before) and _named(now):
        names = [[entry["name"] for entry in entries] for entries in (before, now)]
        if names[0] != names[1]:
            return name, names[0], names[1]
        old, new = (dict(zip(names[0], entries, strict=True)) for entries in (before, now))
        return difference(old, new, name)
    return None if before == now else (name, before, now)


def _named(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) and "name" in entry for entry in entries)
