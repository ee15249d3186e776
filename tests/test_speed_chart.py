# SPDX-License-Identifier: Apache-2.0
"""The speed chart of the README shows the figures of the pages that measured them."""

from pathlib import Path

import pytest
import yaml

from tests import tiny


ROOT = Path(__file__).parent.parent
PANELS = yaml.safe_load((ROOT / "benchmarks/speed.yaml").read_text("utf-8"))


@pytest.fixture
def chart():
    return tiny.benchmark("speed_chart")


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_bar_stands_in_its_page(panel):
    lines = (ROOT / panel["page"]).read_text("utf-8").splitlines()
    for bar in panel["bars"]:
        rows = [line for line in lines if line.startswith(f"| {bar['row']} |")]
        assert any(f"{bar['tokens']:,}" in row.replace(", ", " ").split() for row in rows), rows


def test_the_chart_has_a_bar_for_each_figure(chart, tmp_path):
    pytest.importorskip("matplotlib")
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    chart.main(["-o", str(first)])
    chart.main(["-o", str(second)])
    assert first.read_bytes() == second.read_bytes() and first.read_bytes().startswith(b"\x89PNG")
    assert (ROOT / "docs/images/speed.png").read_bytes().startswith(b"\x89PNG")
    assert "docs/images/speed.png" in (ROOT / "README.md").read_text("utf-8")
