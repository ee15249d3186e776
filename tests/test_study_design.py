# SPDX-License-Identifier: Apache-2.0
"""The design of the study: each recipe trains, each inference can be drawn, and cells follow one another as registered."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig

from study import inference
from study.cells import Cell, Design, chosen_rate, pending
from study.results import Results
from trl_soft import SoftGRPOConfig, SoftRLOOConfig, ThinkingSettings
from trl_soft.evaluate import Decoding, get_preset
from trl_soft.scripts.arguments import SoftScriptArguments
from trl_soft.scripts.parser import SoftParser


DESIGN = Design()
CONFIGS = {"grpo": SoftGRPOConfig, "rloo": SoftRLOOConfig}


def tuned(hard: float, own: float) -> dict:
    """A result of a tuning run."""
    return {"scores": {"tune": {"hard 1": {"mean": hard}, "own": {"mean": own}}}}


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path / "results")


def finish_tuning(results: Results, method: str, scores: list[float]) -> None:
    for cell, value in zip(DESIGN.tuning_cells(method), scores, strict=True):
        results.write(cell.name, tuned(value, value))


@pytest.mark.parametrize(
    "method", [method for method in DESIGN.methods.values() if not method.waits], ids=lambda m: m.name
)
def test_a_method_trains_and_infers(method, tmp_path):
    """The recipe is accepted by its trainer's configuration, and so is every inference by the settings it changes."""
    cell = DESIGN.final_cells(method.name, 3e-4)[1]
    recipe = DESIGN.settings(cell, tmp_path / "model")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    parser = SoftParser((SoftScriptArguments, CONFIGS[method.trainer], ModelConfig))
    arguments, training, model = parser.parse_args_and_config(["--config", str(file)])
    assert (training.learning_rate, training.seed, arguments.dataset_name) == (
        3e-4,
        0,
        DESIGN["tasks"]["mod"]["train"],
    )
    assert model.model_name_or_path == "study/data/mod/reasoner"
    assert training.per_device_train_batch_size == 256 and training.num_generations == 8 and training.max_steps == 60
    saved = ThinkingSettings(**{field.name: getattr(training, field.name) for field in fields(ThinkingSettings)})
    decodings = inference.tested(DESIGN, cell, {"temperature": 0.8, "cut": 11}, outside=False)
    made = {d["name"]: Decoding.parse(d) for d in decodings}
    settings = {name: d.settings(get_preset("plain"), "question", saved) for name, d in made.items()}
    assert settings["own"] == saved and settings["cut"].max_thinking_length == 11
    assert settings["hard"].thought == settings["greedy"].thought == "hard"
    assert made["hard"].answer == {"temperature": 0.8, "top_k": 0, "top_p": 1.0} and made["hard"].num_samples == 64
    # The support of own inference is that of training.
    own = {"temperature": training.temperature, "top_k": training.top_k, "top_p": training.top_p}
    assert made["own"].answer == own == made["cut"].answer
    assert ("argmax" in made) == method.is_soft
    if method.is_soft:
        assert settings["argmax"] != saved and made["argmax"].answer == own


@pytest.mark.parametrize("method", DESIGN.soft(), ids=lambda m: m.name)
def test_controls_have_the_trainer_and_the_support(method):
    for name in method.controls:
        control = DESIGN.methods[name]
        assert not control.is_soft and control.trainer == method.trainer
        assert control.support == method.support or method.support == "five"
    assert method.support != "five" or set(method.controls) == {"hard", "hard-truncated"}
    if method.always:
        always = DESIGN.methods[method.always]
        ungated = {name: x for name, x in method.training.items() if "gate" not in name}
        assert (always.training, always.support, always.trainer) == (ungated, method.support, method.trainer)


def test_the_files_of_the_design_exist():
    for task in DESIGN["tasks"].values():
        files = [task["train"], task["tune"], task["test"], *(entry["problems"] for entry in task["outside"].values())]
        assert all((DESIGN.path.parent.parent / file).is_file() for file in files)
        assert (DESIGN.path.parent.parent / task["model"]).is_dir()
    assert DESIGN["tuning"]["seed"] not in DESIGN["seeds"]


def test_a_final_run_waits_for_the_learning_rate(results):
    names = [cell.name for cell in pending(DESIGN, results)]
    assert not any("final" in name for name in names)
    assert names[0] == "sum/hard/tune-lr0.0001-seed100" and not any(name.startswith("mod/hard/tune") for name in names)
    finish_tuning(results, "hard", [0.1, 0.3, 0.2])
    assert chosen_rate(DESIGN, "hard", results) == 3e-4
    final = [cell.name for cell in pending(DESIGN, results) if cell.phase == "final"]
    assert final[:3] == [
        "sum/hard/final-lr0.0003-seed0",
        "mod/hard/final-lr0.0003-seed0",
        "sum/hard/final-lr0.0003-seed1",
    ]
    assert len(final) == 10
    results.write(final[0], {})
    assert final[0] not in [cell.name for cell in pending(DESIGN, results)]


def test_of_equal_tuning_scores_the_smaller_rate(results):
    finish_tuning(results, "concrete", [0.2, 0.3, 0.3])
    assert chosen_rate(DESIGN, "concrete", results) == 3e-4
    assert chosen_rate(DESIGN, "gumbel", results) is None


def test_seeds_come_before_methods(results):
    """With a part of the study there are all methods on few seeds."""
    for method in ("hard", "concrete"):
        finish_tuning(results, method, [0.1, 0.3, 0.2])
    final = [cell for cell in pending(DESIGN, results) if cell.phase == "final"]
    assert [cell.seed for cell in final] == sorted(cell.seed for cell in final)


def test_what_the_tuning_problems_choose():
    tune = {f"hard {t:g}": {"mean": 0.5} for t in DESIGN["evaluation"]["temperatures"]}
    tune |= {"hard 0.8": {"mean": 0.7}, "hard 1.2": {"mean": 0.7}, "own": {"thinking_length": 25.9}}
    assert inference.choose(DESIGN, tune) == {"temperature": 0.8, "cut": 12}
    tune["own"] = {"thinking_length": 1.0}
    assert inference.choose(DESIGN, tune)["cut"] == 1


def test_a_name_that_stands_for_nothing_is_refused(tmp_path):
    content = yaml.safe_load(DESIGN.path.read_text("utf-8"))

    def refused(message: str, **changes) -> None:
        file = tmp_path / "design.yaml"
        file.write_text(yaml.safe_dump(content | changes))
        with pytest.raises(ValueError, match=message):
            Design(Path(file))

    hard = content["methods"]["hard"]
    refused(
        "`concrete.controls` is hrad",
        methods=content["methods"] | {"concrete": content["methods"]["concrete"] | {"controls": ["hrad"]}},
    )
    refused("hard method with the controls", methods=content["methods"] | {"hard": hard | {"controls": ["hard"]}})
    refused("nothing reads", methods=content["methods"] | {"hard": hard | {"contrls": ["hard"]}})
    refused("`tuning.task` is som", tuning=content["tuning"] | {"task": "som"})
    refused("has the keys", extra=1)


def test_a_method_waits_for_its_thought():
    method = DESIGN.methods["gate-neighbour"]
    assert not DESIGN.methods["hard"].waits
    unknown = type(method)("x", "grpo", "whole", {"thought": "unheard of"})
    assert unknown.waits
    assert type(method)("x", "grpo", "whole", {"thought": "gumbel", "thinking_gate": "unheard of"}).waits


def test_a_result_is_written_whole_and_found_again(results):
    cell = Cell("sum", "hard", "measure")
    results.write(cell.name, {"cell": vars(cell), "scores": {"test": {"own": {"right": [1, 2]}}}, "list": [1]})
    again = Results(results.folder)
    assert again.get(cell.name) == results.get(cell.name) and cell.name in again and len(again) == 1
    assert again.digest() == results.digest() != Results(results.folder / "none").digest()
    lines = results.path(cell.name).read_text("utf-8").splitlines()
    assert '    "test": {"own":{"right":[1,2]}}' in lines
