# SPDX-License-Identifier: Apache-2.0
"""The picture of one completion: well-formed, as high as its weights, and safe against the text of tokens."""

from xml.etree import ElementTree

import pytest

from tests.test_evaluate_inspect import HOSTILE, run_of, sample, step
from trl_soft.evaluate.report.thought_picture import main, thought_picture


SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_cut_by_weights_and_answers_are_dashed(tmp_path):
    line = sample("gumbel", ["a", "</think>", "2"])
    line["thoughts"][1] = step("</think>", candidates=[["</think>", 1.0]])
    picture = ElementTree.parse(thought_picture(run_of(tmp_path / "run", [line]), tmp_path / "p.svg")).getroot()
    bars = picture.findall(f"{SVG}rect")
    assert [bar.get("class") for bar in bars] == ["first part", "other part", "first part", "answer"]
    heights = [float(bar.get("height")) + 1 for bar in bars[:3]]  # a gap of one pixel is left
    assert heights == [72.0, 24.0, 96.0]
    assert [t.text for t in picture.findall(f"{SVG}text") if t.get("class") == "shadow"] == ["a", "</think>", "2"]
    assert "prefers-color-scheme: dark" in picture.find(f"{SVG}style").text


def test_the_right_completion_that_is_mixed_most_is_drawn(tmp_path):
    lines = [sample("gumbel", ["plain", "2"], number=0), sample("gumbel", ["mixed", "2"], number=1)]
    lines += [sample("gumbel", ["wrong", "2"], number=2, correct=False), sample("hard", ["hard", "2"])]
    for s in lines[3]["thoughts"]:
        s["drawn"] = True
    lines[0]["thoughts"][0] = step("plain", candidates=[["plain", 0.99], ["b", 0.01]])
    lines[2]["thoughts"][0] = step("wrong", candidates=[["wrong", 0.5], ["b", 0.5]])
    run = run_of(tmp_path / "run", lines)
    assert "mixed" in thought_picture(run, tmp_path / "p.svg").read_text()
    main([str(run), "-o", str(tmp_path / "q.svg"), "--decoding", "gumbel", "--problem", "0", "--sample", "2"])
    assert "wrong" in (tmp_path / "q.svg").read_text()


def test_text_of_tokens_stays_text(tmp_path):
    line = sample("gumbel", [HOSTILE, "2"], prompt=HOSTILE)
    line["thoughts"][0]["candidates"] = [[HOSTILE, 1.0]]
    picture = ElementTree.parse(thought_picture(run_of(tmp_path / "run", [line]), tmp_path / "p.svg")).getroot()
    assert {node.tag.removeprefix(SVG) for node in picture.iter()} == {"svg", "title", "style", "text", "rect"}


def test_nothing_to_draw_is_an_error(tmp_path, capsys):
    run = run_of(tmp_path / "run", [sample("hard", None, "text")])
    with pytest.raises(ValueError, match=r"1 completions of decoding any.*none with recorded soft thoughts"):
        thought_picture(run, tmp_path / "p.svg")
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "-o", str(tmp_path / "p.svg")])
    assert "--candidates 8" in capsys.readouterr().err and not (tmp_path / "p.svg").exists()
