# SPDX-License-Identifier: Apache-2.0
"""The page of the study: each question reads the figure that is registered, and its words follow from synthetic results."""

import re

import pytest

from study import index_rows, report, tables
from study.cells import Cell, Design
from study.questions import Answer, answers, equal_truncation
from study.results import Results
from study.runs import Runs, learned, problem_scores, score


DESIGN = Design()
PROBLEMS = 12
SPLITS = {"tune": 16, "test": 64, "long": 16, "other": 16}


def entry(right: int, samples: int) -> dict:
    """`right` of `samples` at every problem."""
    return {
        "samples": samples, "mean": right / samples, "right": [right] * PROBLEMS, "maj@k": {str(samples): right / samples},
        "length": 25.0, "thinking_length": 22.0, "correct_length": 25.0, "entropy": 0.1, "clipped": 0.0, "thinking_cut": 0.0,
        "tokens": 1000, "seconds": 1.0,
    }  # fmt: skip


def made(cell: Cell, shares: dict[str, float], updates: int = 20, **changes) -> dict:
    """
    A result. `shares` are those of decodings, by name or by split and name (`long own`). Seed s has s samples in 64 more, so that
    seeds have a spread, and a difference of methods has none.
    """
    scores: dict[str, dict] = {}
    for split, samples in SPLITS.items():
        names = ("hard 1", "own") if split == "tune" else ("hard", "own", "greedy", "argmax", "cut")
        for name in names if split in ("tune", "test") else ("hard", "own"):
            share = shares.get(f"{split} {name}", shares.get(name, 0.5))
            n = 64 if name in ("hard", "own") and split == "test" else 1 if name == "greedy" else samples
            scores.setdefault(split, {})[name] = entry(
                min(max(round(share * n) + (cell.seed or 0) * n // 64, 0), n), n
            )
    reward = [0.3] * (updates - 2) + [0.9] * (62 - updates)  # the mean of 0.3, 0.9 and 0.9 is 0.7
    curve = {"reward": reward, "num_tokens": [1.0, 4e5], "thinking/logp_difference/mean": [1e-6]} | changes.pop(
        "curve", {}
    )
    return {
        "cell": vars(cell), "recipe": _recipe(cell), "scores": scores, "curve": curve,
        "seconds": {"training_cpu": 80.0, "evaluation_cpu": 60.0}, "healthy_logp_difference": 1e-3,
        "environment": {"processor": "P", "commit": "abc", "registered": "def", "versions": {}},
    } | changes  # fmt: skip


def _recipe(cell: Cell) -> dict:
    recipe = DESIGN.settings(cell, report.ROOT)
    return {name: value for name, value in recipe.items() if name != "output_dir"}


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path / "results")


def add(results: Results, method: str, shares: dict[str, float] | None = None, seeds: int = 5, **changes) -> None:
    """Tuning and final runs of a method."""
    for cell in DESIGN.tuning_cells(method):
        results.found[cell.name] = made(cell, {})
    for cell in DESIGN.final_cells(method, 1e-4):
        if cell.seed < seeds:
            results.found[cell.name] = made(cell, shares or {}, **changes)


def words(answer: Answer, method: str, inference: str) -> set[str]:
    """The words for a method, on all tasks."""
    return set(answer.words(method, inference).values())


def test_the_figures_of_a_run(results):
    add(results, "hard", {"test own": 0.5, "test hard": 1.0}, updates=11)
    result = results.found["sum/hard/final-lr0.0001-seed2"]
    assert score("test", "own")(result) == pytest.approx(34 / 64) and score("test", "hard")(result) == 1.0
    assert problem_scores(result, "test", "own", 64).tolist() == [1.0] * PROBLEMS
    assert score("test", "own", 2)(result) == pytest.approx(1 - 30 * 29 / (64 * 63))  # not both of two are wrong
    assert learned(result) == 11
    runs = Runs(DESIGN, results)
    assert sorted(runs.of("mod", "hard")) == [0, 1, 2, 3, 4] and runs.rates["hard"] == 1e-4
    assert runs.mean("sum", "hard", score("test", "own")).mean == pytest.approx(34 / 64)


def test_differences_are_taken_seed_by_seed(results):
    """Seeds differ by more than the methods, and the difference has no spread."""
    add(results, "hard-truncated", {"own": 0.5})
    add(results, "concrete", {"own": 0.53125})
    found = Runs(DESIGN, results).difference("sum", "concrete", "hard-truncated", score("test", "own"), 22)
    assert found.mean == pytest.approx(2 / 64) and found.strict_high - found.strict_low == pytest.approx(0, abs=1e-12)
    with_one_less = Runs(DESIGN, results)
    results.found.pop("sum/concrete/final-lr0.0001-seed3")
    assert with_one_less.difference("sum", "concrete", "hard-truncated", score("test", "own"), 22).seeds == 4


def test_equal_truncation(results):
    add(results, "hard", {"hard": 0.5, "own": 0.7})
    add(results, "hard-truncated", {"hard": 0.6, "own": 0.6})
    add(results, "concrete", {"hard": 0.7, "own": 0.55})
    add(results, "concrete-five", {"hard": 0.55, "own": 0.65})  # between its two controls
    add(results, "gumbel-five", {"hard": 0.8, "own": 0.3})  # above both, below both
    answer = equal_truncation(Runs(DESIGN, results))
    for method, hard, own in (
        ("concrete", "beats", "loses"), ("gumbel-five", "beats", "loses"), ("gaussian", "not run", "not run"),
        ("concrete-five", "no difference shown", "no difference shown"),
    ):  # fmt: skip
        assert words(answer, method, "hard") == {hard} and words(answer, method, "own") == {own}, method
    assert answer.size == len(DESIGN.soft()) and not answer.is_whole and answer.is_run
    assert answer.everywhere("beats", "hard") == ["gumbel-five", "concrete"]


def test_a_missing_seed_of_a_control_is_not_run(results):
    add(results, "hard-truncated", {"hard": 0.6}, seeds=4)
    add(results, "concrete", {"hard": 0.9})
    assert words(equal_truncation(Runs(DESIGN, results)), "concrete", "hard") == {"not run"}


def test_one_task_is_not_the_study(results):
    add(results, "hard-truncated")
    add(results, "concrete", {"hard": 0.9})
    for seed in range(5):
        cell = Cell("mod", "concrete", "final", 1e-4, seed)
        results.found[cell.name] = made(cell, {"hard": 0.2})
    answer = equal_truncation(Runs(DESIGN, results))
    assert answer.words("concrete", "hard") == {"sum": "beats", "mod": "loses"}
    assert not answer.everywhere("beats", "hard") and not answer.everywhere("loses", "hard")


def test_the_other_questions(results):
    add(results, "hard-kl", {"hard": -1.0, "own": -1.0})  # no sample is right, and pass@64 is 0
    add(results, "hard-truncated", {"long own": 0.5, "other hard": 0.25})
    add(
        results,
        "concrete",
        {"hard": 0.5, "own": 0.75, "argmax": 0.25, "cut": 0.75, "long own": 0.75, "other hard": 0.0},
        updates=20,
    )
    add(results, "softgrpo", {"argmax": 0.5}, updates=30)
    add(results, "concrete-five", updates=35)
    add(results, "gate-first", {"own": 0.625}, updates=40)
    found = answers(Runs(DESIGN, results))
    for question, method, inference, word in (
        ("Q2", "concrete", "hard less own", "own"),
        ("Q3", "concrete", "updates", "faster"),
        ("Q4", "concrete", "updates", "faster"),  # than `softgrpo`
        ("Q4", "gumbel", "updates", "not run"),
        ("Q6", "concrete", "hard", "beats"),
        ("Q7", "gate-first", "own", "loses"),
        ("Q7", "gate-first", "updates", "slower"),
        ("Q8", "concrete", "argmax", "matters"),
        ("Q8", "concrete", "cut", "decorative"),
        ("Q9 long", "concrete", "own", "beats"),
        ("Q9 other", "concrete", "hard", "loses"),
    ):
        assert words(found[question], method, inference) == {word}, question


def test_a_page_without_results_says_so(results, tmp_path):
    report.write(DESIGN, results, tmp_path / "study.md", tmp_path / "images")
    page = (tmp_path / "study.md").read_text("utf-8")
    told = page.split("## Answers")[1].split("## What was run")[0]
    assert len(re.findall("^- ", told, re.M)) == 5 == told.count("not run.") and not re.search(r"\d+ of \d+", told)
    assert f"0 of {DESIGN.count()} cells have a result" in page
    for title in re.findall(r"^## (Q\d.*)$", page, re.M):
        assert "Not run." in page.split(f"## {title}")[1].split("\n## ")[0]
    assert not (tmp_path / "images").exists()


def test_a_page_tells_what_was_run_what_failed_and_what_was_not(results, tmp_path):
    add(results, "hard-truncated", {"hard": 0.5})
    add(
        results,
        "concrete",
        {"hard": 0.75},
        curve={"thinking/logp_difference/mean": [1e-6, 0.5], "nonfinite/skipped": [0.0, 1.0]},
    )
    measure = Cell("sum", "fuzzy", "measure")
    quantiles = {"0.5": 0.0, "0.9": 0.0, "0.99": 3.0, "1.0": 1e7}
    measured = {
        "thoughts": 6000,
        "zero_float32": 0.987,
        "zero_float64": 0.98,
        "mean": 1e4,
        "quantiles": quantiles,
        "reward": 0.2,
    }
    environment = made(measure, {})["environment"]
    results.found[measure.name] = {"cell": vars(measure), "scores_of_thoughts": measured, "environment": environment}
    results.found["sum/concrete/final-lr0.0001-seed1"]["recipe"]["epsilon"] = 0.3
    report.write(DESIGN, results, tmp_path / "study.md", tmp_path / "images")
    page = (tmp_path / "study.md").read_text("utf-8")
    soft = len(DESIGN.soft())
    assert f"in hard inference 1 of {soft} soft methods (`concrete`) beat their hard control on every task" in page
    assert "The gradient of fuzzy is exactly 0 on 98.7 % of thoughts on `sum`." in page
    assert re.search(
        r"\| `concrete` \| `hard-truncated` \| \+25\.0 \(\+25\.0 to \+25\.0\) \| \S+ to \S+ \| beats \| \+0\.0", page
    )
    assert (
        "- `concrete`: the mean log-probability difference of an update is up to 0.5, and healthy is at most 0.001."
        in page
    )
    assert "- `concrete`: the share of skipped updates of an update is up to 1" in page
    assert "`sum/concrete/final-lr0.0001-seed1` was run with other settings" in page
    assert "- `gumbel`: 0 of 5 seeds on `sum`, 0 of 5 seeds on `mod`." in page
    for name in ("forest", "reward", "pass_at_k"):
        assert f"(images/study_{name}.svg)" in page
        again = (tmp_path / f"images/study_{name}.svg").read_bytes()
        assert len(again) < 300_000
    assert page.count("|\n| ---") > 8


def test_tables_read_as_numbers():
    assert tables.number(None) == "not run" and tables.ends(None) == "not run"
    assert tables.ends((-0.01234, 0.02)) == "-1.2 to +2.0"
    text = tables.run_only(["method", "a"], [["`x`", "not run"], ["`y`", "1.0 (0.9 to 1.1)"], ["`z`", "-"]])
    assert text.splitlines()[2:] == ["| `y` | 1.0 (0.9 to 1.1) |", "", "Not run: `x`, `z`."]
    assert tables.run_only(["method", "a"], [["`x`", "not run"]]) == "Not run."


def test_the_page_is_made_from_the_results():
    """`make study-report` writes it anew."""
    assert report.made_from(DESIGN, Results()) in report.PAGE.read_text("utf-8")


def test_the_pages_are_those_of_the_committed_results(tmp_path):
    """docs/study.md and the rows in the index of the recipes. If this fails: `make study-report`."""
    results = Results()
    assert report.made_from(DESIGN, results) in report.PAGE.read_text("utf-8")
    index = tmp_path / "README.md"
    index.write_text(index_rows.INDEX.read_text("utf-8"), encoding="utf-8")
    index_rows.write(Runs(DESIGN, results), index)
    assert index.read_text("utf-8") == index_rows.INDEX.read_text("utf-8")
    index.write_text("# An index without marks", encoding="utf-8")
    with pytest.raises(ValueError, match="once each"):
        index_rows.write(Runs(DESIGN, results), index)


def test_rows_of_the_index(results):
    add(results, "concrete", {"hard": 0.75, "own": 0.5})
    told = index_rows.rows(Runs(DESIGN, results))
    assert (
        "Trained on `sum`" in told and "| `concrete` | 5 | 78.1 / 100.0 | 53.1 / 100.0 |" in told
    )  # seed s has s more of 64
    assert "`hard-truncated`" not in told
    results.found.clear()
    assert index_rows.rows(Runs(DESIGN, results)) == "Not run."
