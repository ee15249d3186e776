# SPDX-License-Identifier: Apache-2.0
"""What a package index shows: no link that leads nowhere, and one address for the links, the site and the citation."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parent.parent
SOURCE = "https://forge.example/owner/name"
index_page = runpy.run_path(str(ROOT / "setup.py"))["index_page"]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def test_links_and_pictures_get_the_address():
    text = "[a](docs/a.md#b) ![c](docs/c.svg) [d](https://x.example) [e](#f)\n```\n[g](h)\n```\n"
    shown = f"[a]({SOURCE}/blob/HEAD/docs/a.md#b) ![c]({SOURCE}/raw/HEAD/docs/c.svg) [d](https://x.example) [e](#f)\n"
    assert index_page(text, SOURCE + "/") == shown + "```\n[g](h)\n```\n"
    assert index_page(text, None) == "a  [d](https://x.example) [e](#f)\n```\n[g](h)\n```\n"


@pytest.mark.parametrize("source", [None, SOURCE])
def test_the_page_of_a_build_has_no_relative_link(source, tmp_path):
    """With an address in pyproject.toml, and without."""
    for name in ("setup.py", "README.md", "LICENSE", "pyproject.toml", "trl_soft/version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    text = re.sub(r"^\[project\.urls\]\n(?:\w.*\n)*", "", (ROOT / "pyproject.toml").read_text("utf-8"), flags=re.M)
    urls = f'\n[project.urls]\nSource = "{source}"\n' if source else ""
    (tmp_path / "pyproject.toml").write_text(text + urls)
    asked = [sys.executable, "-W", "ignore", "setup.py", "--quiet", "--long-description"]
    page = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    files = [link for link in links((ROOT / "README.md").read_text("utf-8")) if not re.match("https?:|#", link)]
    assert len(page) > 10_000 and len(files) > 10
    assert all(re.match("https?:|#", link) for link in links(page))
    assert page.count(f"]({SOURCE}/") == (len(files) if source else 0)


def test_the_address_stands_in_one_place():
    """pyproject.toml. The citation has the same one or none."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation.get("repository-code") == project().get("urls", {}).get("Source")
