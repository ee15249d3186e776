# SPDX-License-Identifier: Apache-2.0
"""
For the site: pages and files of the repository that lie outside `docs/`. They are read where they lie.

A link in a page is relative to the page's place in the repository, so it works on a forge. The site has what is in
`docs/` at its root and everything else below its own folder. This module turns the one into the other.
"""

import os
import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.structure.files import File


PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "recipes/README.md", "study/README.md", "study/real/README.md", "tests/README.md")
# [text](target#anchor), where the target is a relative path. An address with a scheme is none.
_LINK = re.compile(r"\[([^\]\[]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def _root(config) -> Path:
    return Path(config.config_file_path).parent


def _place(src_uri: str) -> str:
    """Where a page of the site lies in the repository."""
    return src_uri if src_uri in PAGES else f"docs/{src_uri}"


def _target(src_uri: str, link: str) -> str:
    """What a link of a page names, in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(_place(src_uri)), link))


def on_config(config):
    """Link to the repository, if `pyproject.toml` has its address."""
    project = tomllib.loads((_root(config) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = project.get("urls", {}).get("Source")
    return config


def on_files(files, config):
    """Add the pages, and each file that a page links to."""
    root = _root(config)
    for page in PAGES:
        files.append(File.generated(config, page, abs_src_path=str(root / page)))
    for page in list(files.documentation_pages()):
        for _, link, _ in _LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            target = _target(page.src_uri, link)
            outside = not target.startswith(("docs/", "../")) and target not in PAGES
            if outside and (root / target).is_file() and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point each link at the site. The name of a folder stays text."""
    here = posixpath.dirname(page.file.src_uri)

    def pointed(found: re.Match) -> str:
        text, link, anchor = found.groups()
        target = _target(page.file.src_uri, link)
        if os.path.isdir(_root(config) / target):
            return text
        return f"[{text}]({posixpath.relpath(target.removeprefix('docs/'), here or '.')}{anchor or ''})"

    return _LINK.sub(pointed, markdown)
