# SPDX-License-Identifier: Apache-2.0
"""The study on a small scale: two methods from training to the page, and the program that starts the cells."""

import gzip
import json
import sys
from itertools import chain
from pathlib import Path

import pytest
import yaml

from study import cell as worker
from study import report
from study.cells import Design, pending
from study.measure import measure
from study.results import Results
from study.run import Workers
from study.tasks import ROOT
from trl_soft.files import replace_text


@pytest.fixture
def small(tmp_path) -> Design:
    """Two updates, two methods, four problems, one seed, one task."""
    content = yaml.safe_load((ROOT / "study/design.yaml").read_text("utf-8"))
    task = content["tasks"]["sum"]
    for name in ("tune", "test"):
        task[name] = _first(tmp_path, ROOT / task[name])
    for entry in task["outside"].values():
        entry["problems"] = _first(tmp_path, ROOT / entry["problems"])
    content["tasks"] = {"sum": task}
    content["tuning"] |= {"learning_rates": [3e-4]}
    content["seeds"] = [0]
    content["training"] |= {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4}
    content["evaluation"] |= {"temperatures": [0.8, 1.0], "few": 2, "many": 4}
    content["measurement"] |= {"prompts": 2, "samples": 2}
    content["methods"] = {name: content["methods"][name] for name in ("hard-truncated", "concrete")}
    content["questions"] = {
        "kl": "hard-truncated", "top_p": [["concrete", "concrete"]], "densities": [["concrete", "concrete"]],
        "fuzzy": ["concrete"],
    }  # fmt: skip
    file = tmp_path / "design.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return Design(file)


def _first(folder: Path, path: Path) -> str:
    """The first four rows of a file, in another file."""
    file = folder / path.name
    file.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:4]))
    return str(file)


def test_two_methods_from_training_to_the_page(small, tmp_path, monkeypatch):
    """Each cell in this process, through the recipe, the trainer, the evaluation and the report."""
    monkeypatch.chdir(ROOT)
    results, ran = Results(tmp_path / "results"), []
    while cells := pending(small, results):
        ran.append(cells[0])
        results.write(cells[0].name, worker.run(small, cells[0], tmp_path / "outputs" / cells[0].name))
    assert [cell.phase for cell in ran] == ["tune", "tune", "measure", "measure", "final", "final"]
    assert small.done(results) == small.count() == len(ran)
    for method, kept in (("hard-truncated", False), ("concrete", True)):
        result = Results(results.folder).get(f"sum/{method}/final-lr0.0003-seed0")
        assert len(result["curve"]["reward"]) == 2 and result["curve"]["thinking/logp_difference/mean"][0] < 1e-3
        assert set(result["scores"]) == {"tune", "test", "long", "other"}
        assert set(result["scores"]["test"]) == {"greedy", "hard", "own", "cut", *(["argmax"] if kept else [])}
        for split, decodings in result["scores"].items():
            for name, entry in decodings.items():
                assert len(entry["right"]) == 4 and max(entry["right"]) <= entry["samples"], (split, name)
                assert entry["mean"] == pytest.approx(sum(entry["right"]) / (4 * entry["samples"]), abs=1e-4)
        assert result["scores"]["test"]["own"]["samples"] == 4 and set(result["scores"]["test"]["own"]["maj@k"]) == {
            "1",
            "2",
            "4",
        }
        assert result["scores"]["test"]["cut"]["thinking_length"] <= result["chosen"]["cut"]
        assert result["recipe"]["seed"] == 0 and "output_dir" not in result["recipe"]
        assert result["environment"]["threads"] and result["seconds"]["training_cpu"] > 0
        assert 0 < result["healthy_logp_difference"] < 0.1
    report.write(small, results, tmp_path / "docs/study.md", tmp_path / "docs/images")
    page = (tmp_path / "docs/study.md").read_text("utf-8")
    assert report.made_from(small, results) in page and "6 of 6 cells have a result" in page
    assert (tmp_path / "docs/images/study_reward.svg").exists() and "images/study_reward.svg" in page
    # One seed has no interval, so nothing has a verdict.
    assert "1 of 1" not in page and "beats" not in page.split("## Answers")[1].split("## What was run")[0]


def test_a_trained_policy_is_not_trained_again(small, tmp_path, monkeypatch):
    """A run that is killed in its evaluation continues there."""
    monkeypatch.chdir(ROOT)
    started = []
    monkeypatch.setitem(worker.TRAINERS, "grpo", started.append)
    folder = tmp_path / "cell"
    folder.mkdir()
    (folder / "model").mkdir()
    recipe = small.settings(small.tuning_cells("concrete")[0], folder / "model")
    first = worker.train(recipe, "grpo", folder)
    assert started == [["--config", str(folder / "recipe.yaml")]]
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == recipe
    assert worker.train(recipe, "grpo", folder) == first and len(started) == 1


def test_a_killed_training_begins_again(small, tmp_path, monkeypatch):
    """Nothing of the killed run stays, and no run counts as trained that was not."""
    folder = tmp_path / "cell"
    (folder / "model").mkdir(parents=True)
    (folder / "model/metrics.jsonl").write_text("{}\n")

    def killed(words):
        assert not (folder / "model").exists()
        raise KeyboardInterrupt

    monkeypatch.setitem(worker.TRAINERS, "grpo", killed)
    with pytest.raises(KeyboardInterrupt):
        worker.train({"output_dir": str(folder / "model")}, "grpo", folder)
    assert not (folder / "trained.json").exists()


def test_samples_of_a_finished_cell_are_packed(tmp_path):
    for split in ("tune", "test"):
        (tmp_path / split / "samples").mkdir(parents=True)
        (tmp_path / split / "samples/0.jsonl").write_text(f'{{"sample": "{split}"}}\n')
    worker.pack(tmp_path)
    assert not list(tmp_path.glob("*/samples/*.jsonl"))
    for split in ("tune", "test"):
        assert (
            gzip.decompress((tmp_path / split / "samples/0.jsonl.gz").read_bytes()).decode()
            == f'{{"sample": "{split}"}}\n'
        )


def test_one_process_a_cell(tmp_path):
    held = worker.lock(tmp_path / "cell")
    assert held is not None and worker.lock(tmp_path / "cell") is None
    held.close()
    assert worker.lock(tmp_path / "cell") is not None


def test_the_scores_of_certain_thoughts_are_zero(small):
    """With one candidate a Gumbel thought is certain: its score is 0, in both precisions."""
    recipe = small.settings(next(small.measure_cells()), Path("unused")) | {
        "thought": "gumbel", "thinking_top_k": 1, "thinking_top_p": 1.0, "model_name_or_path": str(ROOT / "examples/quickstart/reasoner"),
        "dataset_name": str(ROOT / "examples/quickstart/train.jsonl"),
    }  # fmt: skip
    found = measure(recipe, 2, 2, 0)
    assert found["zero_float32"] == found["zero_float64"] == 1.0 and found["mean"] == 0.0
    assert found["thoughts"] == pytest.approx(4 * found["thinking_length"])
    noisy = measure(recipe | {"thinking_top_k": 5}, 2, 2, 0)
    assert noisy["zero_float64"] < 0.5 and noisy["mean"] > 1 and noisy["quantiles"]["1.0"] >= noisy["quantiles"]["0.5"]
    assert noisy == measure(recipe | {"thinking_top_k": 5}, 2, 2, 0)


# The program that starts cells. Its cells are small programs here.

_NEVER = -1  # in place of an exit status
_FINISHES = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(parents=True, exist_ok=True); p.write_text(sys.argv[2])"


class Pretended(Workers):
    """Starts a program that writes a result at once, or fails."""

    def command(self, cell):
        self.begun = [*getattr(self, "begun", []), cell.name]
        result = {"cell": vars(cell), "curve": {"reward": [0.1, 0.5]}}
        if cell.phase == "measure":
            result |= {"scores_of_thoughts": {"mean": 1.0, "zero_float32": 0.5}}
        entry = {name: {"mean": 0.5} for name in ("hard 1", "hard", "own")}
        result |= {"scores": {"tune": entry, "test": entry}}
        status = self.statuses.get(cell.name)
        if status == _NEVER:
            return [sys.executable, "-S", "-c", "import signal; signal.pause()"]
        if status is not None:
            return [sys.executable, "-S", "-c", f"raise SystemExit({status})"]
        return [sys.executable, "-S", "-c", _FINISHES, str(self.results.path(cell.name)), json.dumps(result)]


def pretended(design, folder: Path, statuses: dict[str, int], **given) -> Pretended:
    workers = Pretended(design, Results(folder / "results"), folder / "outputs", 2, **given)
    workers.statuses, workers.look = statuses, 0.01
    return workers


def test_cells_run_until_none_is_left(small, tmp_path, capsys):
    workers = pretended(small, tmp_path, {})
    workers.run()
    assert small.done(workers.results) == small.count() == len(workers.begun) and not workers.failed
    assert (
        "[6/6] sum/concrete/final-lr0.0003-seed0: reward 0.10 to 0.50, hard 0.500, own 0.500"
        in capsys.readouterr().out
    )
    again = pretended(small, tmp_path, {})
    again.run()
    assert not hasattr(again, "begun")


def test_a_failure_does_not_stop_the_others(small, tmp_path, capsys):
    """A cell that fails is left out until the next start, as is one that another process works on."""
    failing, busy = "sum/concrete/tune-lr0.0003-seed100", "sum/hard-truncated/measure"
    workers = pretended(small, tmp_path, {failing: 1, busy: worker.BUSY})
    workers.run()
    assert workers.failed == [failing] and workers.begun.count(failing) == 1
    assert set(workers.results.found) == {
        "sum/hard-truncated/tune-lr0.0003-seed100", "sum/concrete/measure", "sum/hard-truncated/final-lr0.0003-seed0",
    }  # fmt: skip
    text = capsys.readouterr().out
    assert f"{failing}: failed (1), see" in text and f"{busy}: another process works on it" in text
    again = pretended(small, tmp_path, {})
    again.run()
    assert small.done(again.results) == small.count()


def test_an_interrupted_study_leaves_no_process(small, tmp_path):
    """Ctrl-C while one cell has finished and another never would."""
    workers = pretended(small, tmp_path, {"sum/concrete/tune-lr0.0003-seed100": _NEVER})
    started, start = [], workers._start

    def starting(cell):
        start(cell)
        started.append(list(workers.running)[-1])

    def interrupted(process):
        raise KeyboardInterrupt

    workers._start, workers._finish = starting, interrupted
    with pytest.raises(KeyboardInterrupt):
        workers.run()
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_only_some_cells(small, tmp_path):
    workers = pretended(small, tmp_path, {}, wants=lambda cell: cell.phase == "measure")
    workers.run()
    assert set(workers.begun) == {"sum/hard-truncated/measure", "sum/concrete/measure"}


def test_a_half_written_result_is_none(small, tmp_path):
    """A killed process leaves a temporary file at most, and that is no result."""
    results = Results(tmp_path / "results")
    cell = next(chain(small.measure_cells()))
    results.path(cell.name).parent.mkdir(parents=True)
    (results.path(cell.name).parent / f".{Path(cell.name).name}.json.abc").write_text('{"cell')
    assert not Results(results.folder).found
    replace_text(results.path(cell.name), "{}")
    assert cell.name in Results(results.folder)
