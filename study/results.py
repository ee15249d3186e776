# SPDX-License-Identifier: Apache-2.0
"""The results on disk: one JSON file a cell, written whole or not at all."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from trl_soft.files import replace_text

from .tasks import ROOT


RESULTS = ROOT / "study/results"


class Results:
    """
    The results in a folder, by the name of their cell.

    Args:
        folder (`Path`): it need not exist.
    """

    def __init__(self, folder: Path = RESULTS):
        self.folder = Path(folder)
        self.found: dict[str, dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the files that were not there before."""
        for path in sorted(self.folder.glob("*/*/*.json")):
            name = str(path.relative_to(self.folder).with_suffix(""))
            if name not in self.found:
                self.found[name] = json.loads(path.read_text("utf-8"))

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def __len__(self) -> int:
        return len(self.found)

    def get(self, name: str) -> dict[str, Any] | None:
        return self.found.get(name)

    def path(self, name: str) -> Path:
        """The file of a cell."""
        return self.folder / f"{name}.json"

    def write(self, name: str, result: dict[str, Any]) -> None:
        """Write a result: one line for each key of its first two levels, so that a change can be read in a diff."""
        path = self.path(name)
        os.makedirs(path.parent, exist_ok=True)
        replace_text(path, _lines(result) + "\n")
        self.found[name] = result

    def digest(self) -> str:
        """Of all results: a page that holds it was made from them."""
        text = json.dumps(self.found, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lines(value: Any, depth: int = 0) -> str:
    if depth == 2 or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    indent = "  " * (depth + 1)
    entries = [f"{indent}{json.dumps(key)}: {_lines(entry, depth + 1)}" for key, entry in value.items()]
    return "{\n" + ",\n".join(entries) + "\n" + "  " * depth + "}"
