# SPDX-License-Identifier: Apache-2.0
"""Two decodings beside each other: the paired test on the samples of runs, and runs that cannot be compared."""

import json
from pathlib import Path

import pytest

from trl_soft.evaluate.compare import compare, main
from trl_soft.evaluate.store import Store


def run(folder: Path, decodings: dict[str, list[list[bool]]], digest="x") -> Path:
    """A run on the benchmark `b` with these verdicts, a list for each problem."""
    for number, (decoding, verdicts) in enumerate(decodings.items()):
        lines = [
            {"problem": p, "sample": s, "correct": verdict, "vote": None, "length": 1, "thinking_length": 0,
             "clipped": False, "thinking_cut": False, "entropy": None}
            for p, row in enumerate(verdicts) for s, verdict in enumerate(row)
        ]  # fmt: skip
        store = Store(folder)
        store.path.parent.mkdir(parents=True, exist_ok=True)
        store.append(("b", decoding, number), lines, tokens=1, seconds=1.0)
    manifest = {"problems": {"b": {"count": len(verdicts), "sha256": digest}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


HARD = [[True, False], [False, False], [False, False], [True, True]]
SOFT = [[True, True], [True, False], [True, True], [True, True]]


def test_a_difference_is_tested_problem_by_problem(tmp_path):
    """Differences 1/2, 1/2, 1 and 0: of the 8 sign vectors of the three, two have a sum as far from 0."""
    folder = run(tmp_path / "run", {"hard": HARD, "soft": SOFT})
    (row,) = compare((folder, "hard"), (folder, "soft")).values()
    assert (row["problems"], row["first"], row["second"], row["difference"]) == (4, 3 / 8, 7 / 8, 1 / 2)
    assert row["p_value"] == 2 / 8 and row["low"] <= 0.5 <= row["high"]
    other = run(tmp_path / "other", {"soft": SOFT[:4]})
    assert compare((folder, "hard"), (other, "soft"))["b"] == row


def test_the_command_line(tmp_path, capsys):
    folder = run(tmp_path / "run", {"hard": HARD, "soft": SOFT})
    main([str(folder), "hard", "soft"])
    main([str(folder), "hard", str(folder), "soft"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith("b: 4 problems, 37.5 % and 87.5 %, difference +50.0 [")
    with pytest.raises(SystemExit):
        main([str(folder), "hard"])
    with pytest.raises(SystemExit):
        main([str(folder), "hard", "gumbel"])
    assert "no samples of the decoding 'gumbel'. It has ['hard', 'soft']" in capsys.readouterr().err


def test_other_problems_are_not_compared(tmp_path):
    folder = run(tmp_path / "run", {"hard": HARD})
    for name, verdicts, digest in (("rows", SOFT, "y"), ("unfinished", SOFT[:3], "x")):
        other = run(tmp_path / name, {"soft": verdicts}, digest)
        (other / "manifest.json").write_text(json.dumps({"problems": {"b": {"count": 4, "sha256": digest}}}))
        with pytest.raises(ValueError, match="different problems on b"):
            compare((folder, "hard"), (other, "soft"))
