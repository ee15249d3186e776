# SPDX-License-Identifier: Apache-2.0
"""What comes with the package besides its code: recipes, the quickstart's files, and the pages of the documentation."""

import os
from pathlib import Path


_PACKAGE = Path(__file__).parent


def folder_of(name: str) -> Path:
    """
    `recipes`, `docs` or `examples/quickstart`: inside the package where a wheel was installed, beside it in a checkout.

    Raises:
        FileNotFoundError: if it is in neither place.
    """
    places = [_PACKAGE / "_files" / name, _PACKAGE.parent / name]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"{places[0]} and {places[1]} do not exist, so this installation has no {name}. Install trl_soft again from a wheel "
        "or a checkout."
    )


def page(name: str) -> str:
    """Where a page of the documentation is, from the working folder if it is below it. Its name alone without such a file."""
    try:
        path = folder_of("docs") / name
    except FileNotFoundError:
        return f"docs/{name}"
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
