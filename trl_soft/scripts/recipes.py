# SPDX-License-Identifier: Apache-2.0
"""`trl-soft recipes`: the YAML files that come with the package."""

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..command_line import CommandParser
from ..shipped import folder_of


# Paths in a recipe are relative to the folder in which a run starts, so a copy keeps them.
_QUICKSTART = "examples/quickstart"


def names() -> dict[str, Path]:
    """The recipes by name, which is the path below `recipes/` without the ending."""
    root = folder_of("recipes")
    files = sorted(
        path for path in root.rglob("*.yaml") if path.relative_to(root).parts[0] not in ("accelerate", "papers")
    )
    return {str(path.relative_to(root).with_suffix("")): path for path in files}


def find(name: str) -> Path:
    known = names()
    key = name.removeprefix("recipes/").removesuffix(".yaml")
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"There is no recipe {name!r}. The nearest is {nearest!r}; `trl-soft recipes` lists all.")
    return known[key]


def title(path: Path) -> str:
    """The first sentence of a recipe, which says what it is. The command follows it, indented."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("#   ") or line.strip() == "#":
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def copy(name: str, target: Path) -> list[Path]:
    """
    Copy a recipe into `target`, with the model and data that it takes from the package, under the paths that it names.

    Raises:
        FileExistsError: if a file is there already.
    """
    source = find(name)
    root = folder_of("recipes")
    files = {target / "recipes" / source.relative_to(root): source}
    values = yaml.safe_load(source.read_text(encoding="utf-8"))
    if any(isinstance(value, str) and value.startswith(_QUICKSTART) for value in values.values()):
        assets = folder_of(_QUICKSTART)
        found = [
            path
            for path in sorted(assets.rglob("*"))
            if path.is_file() and path.suffix in (".json", ".jsonl", ".jinja", ".safetensors")
        ]
        files |= {target / _QUICKSTART / path.relative_to(assets): path for path in found}
    taken = [place for place, path in files.items() if place.exists() and place.read_bytes() != path.read_bytes()]
    if taken:
        raise FileExistsError(
            f"{taken[0]} exists already with another content. Move it away, or copy into another folder."
        )
    for place, path in files.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return list(files)


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        example="trl-soft recipes show quickstart/gumbel",
        prog="trl-soft recipes",
        description="List the recipes, show one, or copy one.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="all recipes (the default)")
    actions.add_parser("show", help="print one", example="trl-soft recipes show quickstart/gumbel").add_argument(
        "name"
    )
    copying = actions.add_parser(
        "copy",
        help="copy one, with the files that it needs, into a folder",
        example="trl-soft recipes copy quickstart/gumbel",
    )
    copying.add_argument("name")
    copying.add_argument("-o", "--output", type=Path, default=Path("."), help="folder (default: this one)")
    options = parser.parse_args(argv)
    if options.action == "show":
        print(find(options.name).read_text(encoding="utf-8"), end="")
    elif options.action == "copy":
        written = copy(options.name, options.output)
        print("\n".join(f"Wrote {path}" for path in written))
    else:
        width = max(map(len, names()))
        print("\n".join(f"{name:{width}}  {title(path)}" for name, path in names().items()))
