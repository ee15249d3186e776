# SPDX-License-Identifier: Apache-2.0
"""The exact versions that the tests ran with, beside the ranges of pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parent.parent
FILES = ("constraints.txt", "constraints-vllm.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def versions(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_two_files_agree_or_the_second_says_why_not():
    one, other = map(versions, FILES)
    differ = {name for name in one.keys() & other.keys() if one[name] != other[name]}
    head = re.findall(r"^#   ([^:]+):", (ROOT / FILES[1]).read_text(encoding="utf-8"), re.MULTILINE)
    assert {canonicalize_name(name) for names in head for name in names.split(", ")} == differ


@pytest.mark.parametrize("file", FILES)
def test_the_versions_are_in_the_ranges_of_the_project(file):
    found = versions(file)
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    stated = [Requirement(text) for text in (*PROJECT["dependencies"], *extras)]
    pinned = [(r, found[canonicalize_name(r.name)]) for r in stated if canonicalize_name(r.name) in found]
    assert len(pinned) > 5
    assert not [(str(r), version) for r, version in pinned if version not in r.specifier]


def test_all_that_the_project_asks_for_has_an_exact_version():
    """But for vLLM, whose file is its own."""
    names = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    for group, texts in PROJECT["optional-dependencies"].items():
        names |= set() if group == "vllm" else {canonicalize_name(Requirement(text).name) for text in texts}
    assert names - {"trl-soft"} <= versions(FILES[0]).keys()
