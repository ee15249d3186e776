# SPDX-License-Identifier: Apache-2.0
"""
The README as a package index shows it. `pyproject.toml` has everything else.

The links of README.md are relative, so that they work in a checkout, on a forge and on the site. An index page has no files
beside it. Set the address in pyproject.toml, and the links lead there:

    [project.urls]
    Source = "https://FORGE/OWNER/NAME"

Without an address a link is left as its text, and a picture is left out.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup


# [text](target#anchor) or ![text](target), where the target is a relative path. An address with a scheme is none.
_LINK = re.compile(r"(!?)\[([^\]\[]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def index_page(readme: str, source: str | None) -> str:
    """The README with the address of each file. `HEAD` is the main branch by GitHub's and GitLab's own name for it."""

    def pointed(found: re.Match) -> str:
        picture, text, target, anchor = found.groups()
        if source is None:
            return "" if picture else text
        return f"{picture}[{text}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/HEAD/{target}{anchor or ''})"

    parts = _CODE.split(readme)
    return "".join(part if part.startswith("```") else _LINK.sub(pointed, part) for part in parts)


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = index_page(Path("README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Source"))
    setup(long_description=page, long_description_content_type="text/markdown")
