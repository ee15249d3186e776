# SPDX-License-Identifier: Apache-2.0
"""A paper's table beside what has been run: seeds, gaps, what is no whole run, and nothing counted twice."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from trl_soft.evaluate.report.papers import read_papers
from trl_soft.evaluate.report.replication import main, read_ours, tables, with_averages
from trl_soft.evaluate.report.results import DASH


ROOT = Path(__file__).parent.parent
PAPER = [
    {
        "source": "P, Table 1",
        "name": "run",
        "decoding": "soft",
        "values": {"gsm8k": {"mean@2": 71.4, "first@2": {"value": 80.0, "std": 1.5}}, "math500": {"mean@2": 38.0}},
    },
    {"source": "P, Table 1", "name": "other", "decoding": "soft", "values": {"gsm8k": {"mean@2": 1.0}}},
    {"source": "P, Table 2", "name": "run", "decoding": "ood", "values": {"mmlu": {"greedy": 60.85, "nll": 1.61}}},
    {
        "source": "P, Table 3",
        "name": "run",
        "decoding": "soft",
        "over": ["gsm8k", "math500"],
        "average": {"length": 1200},
        "values": {},
    },
    {
        "source": "P, Table 4",
        "name": "run",
        "decoding": "soft",
        "average": {"mean@2": 54.68},
        "values": {"gsm8k": {"mean@2": 71.42}, "aime24": {"mean@2": 38.0}},
    },
    {"source": "P, Figure", "name": "run", "decoding": "training", "values": {"deepscaler": {"reward@20": 50.0}}},
]


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def outputs(tmp_path):
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(PAPER, sort_keys=False))
    for seed, mean in ((0, 0.70), (1, 0.74)):
        folder = tmp_path / f"outputs/evaluation/paper/run/seed{seed}"
        write(folder / "manifest.json", {"name": "run", "model": f"m{seed}", "limit": None})
        score = {
            "mean@n": {"value": mean},
            "samples": 2,
            "first_k": {"2": {"value": mean}},
            "pass@k": {"2": {"value": 0.9}},
        }
        score |= {"length": {"mean": 1000.0 + seed}, "correct_length": {"mean": 900.0}}
        other = {"mean@n": {"value": 0.3}, "samples": 4, "length": {"mean": 2000.0}, "correct_length": None}
        write(folder / "metrics.json", {"gsm8k": {"soft": score}, "math500": {"soft": other}})
        write(
            folder / "ood.json",
            {
                "model": f"m{seed}",
                "tasks": {"mmlu": {"acc": {"value": 0.9}, "greedy": {"value": 0.61}, "nll": {"value": 1.5}}},
            },
        )
        rewards = [{"step": s, "reward": 0.0 if s < 5 else 0.25} for s in range(25)] + [{"step": 25, "loss": 0.0}]
        write(tmp_path / f"outputs/paper/run/seed{seed}/trainer_state.json", {"log_history": rewards})
    return tmp_path


def test_theirs_and_ours(outputs):
    found, notes = read_ours(outputs / "outputs", "paper")
    text = tables(read_papers(outputs / "paper.yaml"), found)
    assert not notes and found["run", "soft", "gsm8k", "pass@2"] == [90.0, 90.0]
    assert "| run | soft | theirs | 71.4 / 80.0 ± 1.5 | 38.0 |" in text
    assert "|  |  | ours, 2 seeds | 72.0 ± 2.8 / 72.0 ± 2.8 | not run |" in text
    assert f"| other | soft | theirs | 1.0 / {DASH} | {DASH} |\n|  |  | ours | not run | not run |" in text
    assert "| run | ood | theirs | 60.85 / 1.61 |\n|  |  | ours, 2 seeds | 61.00 ± 0.00 / 1.50 ± 0.00 |" in text
    assert "| run | training | theirs | 50.0 |\n|  |  | ours, 2 seeds | 25.0 ± 0.0 |" in text


def test_averages_are_of_runs_that_have_every_set_of_the_table(outputs):
    entries = read_papers(outputs / "paper.yaml")
    found = with_averages(entries, read_ours(outputs / "outputs", "paper")[0])
    text = tables(entries, found)
    assert found["run", "soft", "average", "length"] == [1500.0, 1500.5]
    assert ("run", "soft", "average", "mean@2") not in found  # aime24 was not run
    assert "| run | soft | theirs | 1200 |\n|  |  | ours, 2 seeds | 1500 ± 0 |" in text
    # A cell keeps the decimals that the paper prints.
    assert "| run | soft | theirs | 71.42 | 38.0 | 54.68 |" in text


def test_what_is_no_whole_run_is_left_out_and_named(outputs):
    root = outputs / "outputs/evaluation/paper/run"
    write(root / "seed0/manifest.json", {"name": "run", "model": "m0", "limit": 10})
    (root / "seed1/metrics.json").unlink()
    write(outputs / "outputs/paper/run/seed0/trainer_state.json", {"log_history": [{"step": 1, "reward": 1.0}]})
    found, notes = read_ours(outputs / "outputs", "paper")
    assert ("run", "soft", "gsm8k", "mean@2") not in found and found["run", "training", "deepscaler", "reward@20"] == [
        25.0
    ]
    assert len(notes) == 3 and "seed0 is a run over the first 10 problems" in notes[0]
    assert "has not ended" in notes[1] and "1 rewards, fewer than the 20" in notes[2]


def test_a_run_is_not_counted_twice(outputs):
    folder = outputs / "outputs/evaluation/paper/run"
    write(folder / "copy/manifest.json", {"name": "run", "model": "m0", "limit": None})
    write(folder / "copy/metrics.json", json.loads((folder / "seed0/metrics.json").read_text()))
    with pytest.raises(ValueError, match="a second time"):
        read_ours(outputs / "outputs", "paper")


def test_other_numbers_of_samples_are_another_cell(outputs):
    """A mean of 8 samples does not stand in the column of 2."""
    file = outputs / "outputs/evaluation/paper/run/seed0/metrics.json"
    scores = json.loads(file.read_text())
    scores["gsm8k"]["soft"]["samples"] = 8
    write(file, scores)
    found, _ = read_ours(outputs / "outputs", "paper")
    assert found["run", "soft", "gsm8k", "mean@8"] == [70.0] and found["run", "soft", "gsm8k", "mean@2"] == [74.0]


def test_the_command_line(outputs, capsys):
    arguments = [str(outputs / "paper.yaml"), "--outputs", str(outputs / "outputs"), "-o", str(outputs / "tables")]
    main(arguments)
    assert "# paper: 6 of 10 cells run" in capsys.readouterr().out
    assert "theirs" in (outputs / "tables/paper.md").read_text()
    cells = json.loads((outputs / "tables/paper.json").read_text())
    assert {"cell": ["run", "soft", "gsm8k", "mean@2"], "seeds": [70.0, 74.0]} in cells
    with pytest.raises(SystemExit):
        main([str(outputs / "missing.yaml")])
    (outputs / "bad.yaml").write_text("- {name: x}")
    with pytest.raises(ValueError, match="without \\['source', 'decoding', 'values'\\]"):
        read_papers(outputs / "bad.yaml")


@pytest.mark.parametrize("paper", ["soft_grpo", "soft_tokens"])
def test_with_nothing_run(paper, tmp_path, capsys, monkeypatch):
    words = ["paper_table", str(ROOT / f"recipes/papers/{paper}.yaml"), "--outputs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_module("trl_soft.evaluate.paper_table", run_name="__main__")
    text = capsys.readouterr().out
    assert "0 of " in text
    ours = [line for line in text.splitlines() if line.startswith("|  |  | ours |")]
    assert len(ours) > 25 and all("not run" in line for line in ours)


def test_out_of_domain_scores_of_some_questions_are_left_out(outputs):
    file = outputs / "outputs/evaluation/paper/run/seed0/ood.json"
    write(file, json.loads(file.read_text()) | {"limit": 12})
    found, notes = read_ours(outputs / "outputs", "paper")
    assert found["run", "ood", "mmlu", "greedy"] == [61.0] and "first 12 questions of each task" in notes[0]
