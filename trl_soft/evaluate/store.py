# SPDX-License-Identifier: Apache-2.0
"""A run on disk: a manifest, and files of samples that are only appended to.

Samples are computed and written in chunks. A chunk is a `begin` line, its samples, and a `seal` line, written together. A
chunk without its seal, because the process died, counts as missing and is computed again. The content of a chunk does not
depend on the process or on the time, so a resumed run ends with the same samples as an uninterrupted one.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import parse_json, read_object, replace_text
from .difference import difference
from .shapes import is_count, is_number


Chunk = tuple[str, str, int]  # benchmark, decoding, number


class Store:
    """
    The folder of a run.

    Args:
        folder (`path`).
        rank (`int`): number of this process. It writes `samples/<rank>.jsonl` and reads the files of all processes.
    """

    def __init__(self, folder: str | os.PathLike, rank: int = 0):
        self.folder, self.rank = Path(folder), rank

    @property
    def path(self) -> Path:
        """The file that this process writes."""
        return self.folder / "samples" / f"{self.rank}.jsonl"

    def open(self, manifest: dict[str, Any], settled: tuple[str, ...]) -> None:
        """
        Begin a run, or continue one. Call `lock` first: if two runs begin together, only one of them gets the folder.

        Args:
            manifest: the settings of the run, and the machine and versions that compute it.
            settled: the keys of the manifest that must equal those of the run that is continued.

        Raises:
            ValueError: if the folder holds another run, or a manifest that cannot be read. Nothing is written then.
        """
        file = self.folder / "manifest.json"
        if file.exists():
            before = read_object(file, "nothing says what its samples are of")
            current = json.loads(json.dumps(manifest))
            old, new = ({key: side[key] for key in settled if key in side} for side in (before, current))
            found = difference(old, new)
            if found is not None:
                name, *values = found
                raise ValueError(
                    f"{self.folder} holds a run whose `{name}` is {_short(values[0])}, and now it is {_short(values[1])}: the samples of two runs "
                    "would be mixed. Set the same value, or another output folder."
                )
            resumed = before.get("resumed")
            resumed = resumed if isinstance(resumed, list) else []
            manifest = {**before, "resumed": [*resumed, manifest["environment"]]}
        elif any((self.folder / "samples").glob("*.jsonl")):
            raise ValueError(
                f"{self.folder}/samples holds samples, but there is no manifest that describes them. Put the manifest beside "
                "them, or set another output folder."
            )
        self._make_folder()
        replace_text(file, json.dumps(manifest, indent=2) + "\n")

    def lock(self) -> None:
        """Let no other process write this file until this process ends, in whatever way it ends."""
        import fcntl

        self._make_folder()
        for path in (self.path, self.path.with_suffix(".lock")):
            _refuse_folder(path)
        self._lock = open(self.path.with_suffix(".lock"), "w")  # held for as long as the store lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(
                f"Another process is writing {self.path}. Wait for it, stop it, or set another output folder."
            ) from error

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f"{self.path.parent} has to be a folder, but it is a file ({error}). Move the file away, or set another output "
                "folder."
            ) from error

    def append(self, chunk: Chunk, samples: list[dict], **measured) -> None:
        """Write a whole chunk and flush it to the disk."""
        lines = [{"begin": chunk}, *samples, {"seal": chunk, "samples": len(samples), **measured}]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        torn = self.path.exists() and not _ends_a_line(self.path)
        # A text that was cut can end with half of a surrogate pair. It has no UTF-8, but JSON's escape keeps it.
        with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(("\n" if torn else "") + text)
            file.flush()
            os.fsync(file.fileno())

    def chunks(self) -> Iterator[tuple[Chunk, list[dict], dict]]:
        """Every sealed chunk of every process, once: its name, its samples and the content of its seal."""
        return ((chunk, samples, seal) for _, chunk, samples, seal in self.chunks_of_files())

    def chunks_of_files(self) -> Iterator[tuple[Path, Chunk, list[dict], dict]]:
        """
        Every sealed chunk of every process, once: its file, its name, its samples and the content of its seal.

        A chunk with a damaged line (a damaged seal too) counts as missing.

        Raises:
            ValueError: if a folder has the name of a file of samples.
        """
        seen: set[Chunk] = set()
        for path in sorted((self.folder / "samples").glob("*.jsonl")):
            _refuse_folder(path)
            current: list[dict] | None = None
            with open(path, encoding="utf-8", errors="replace") as file:
                for text in file:
                    line = _parsed(text)
                    if line is None:
                        current = None  # torn: the rest of its chunk was never written
                    elif "begin" in line:
                        current = []
                    elif "seal" in line:
                        chunk = _sealed(line)
                        if current is not None and chunk and len(current) == line["samples"] and chunk not in seen:
                            seen.add(chunk)
                            yield path, chunk, current, line
                        current = None
                    elif current is not None:
                        current.append(line)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run. A reader finds the whole file or none."""
        replace_text(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:160]} and {len(text) - 160} characters more"


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, but a run keeps a file there. Move it away, or set another output folder."
        )


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _parsed(text: str) -> dict | None:
    try:
        line = parse_json(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _sealed(line: dict) -> Chunk | None:
    """The chunk of a seal. `None` if the seal does not name it, or if no run writes such a seal."""
    name, spent = line["seal"], [line.get(key) for key in ("samples", "tokens", "seconds")]
    if not (isinstance(name, list) and [type(part) for part in name] == [str, str, int]):
        return None
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and 0 <= x < float("inf") for x in spent):
        return None
    sums = line.get("entropy_by_position", {"sums": [], "counts": []})
    if not (isinstance(sums, dict) and sums.keys() == {"sums", "counts"} and _as_long(sums["sums"], sums["counts"])):
        return None
    return name[0], name[1], name[2]


def _as_long(sums: Any, counts: Any) -> bool:
    """Whether these are entropies and numbers of completions, with one of each for every position."""
    if not (isinstance(sums, list) and isinstance(counts, list) and len(sums) == len(counts)):
        return False
    return all(is_number(x) and math.isfinite(x) for x in sums) and all(map(is_count, counts))
