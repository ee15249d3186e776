# SPDX-License-Identifier: Apache-2.0
"""Where the recipes and the pages are, in a checkout and where a wheel was installed."""

from pathlib import Path

import pytest

from trl_soft import shipped
from trl_soft.scripts import doctor


ROOT = Path(__file__).parent.parent


def test_a_page_is_named_from_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert shipped.page("metrics.md") == "docs/metrics.md"
    monkeypatch.chdir(tmp_path)
    assert shipped.page("metrics.md") == str(ROOT / "docs" / "metrics.md")


def test_what_a_wheel_carries_comes_first_and_a_missing_folder_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "trl_soft")
    assert shipped.page("metrics.md") == "docs/metrics.md"
    with pytest.raises(FileNotFoundError, match="this installation has no docs"):
        shipped.folder_of("docs")
    for place in ("docs", "trl_soft/_files/docs"):
        (tmp_path / place).mkdir(parents=True)
        assert shipped.folder_of("docs") == tmp_path / place


def test_the_doctor_names_pages_that_are_there(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "failures", lambda names: {})  # imports take seconds
    doctor.main([])
    named = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines() if line.endswith(".md")]
    assert len(named) == 2 and all(Path(name).is_file() for name in named)
