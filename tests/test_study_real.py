# SPDX-License-Identifier: Apache-2.0
"""Part B of the study on a small scale: drawing in rounds within a budget, resuming, grading, the questions and the page."""

import ast
import json
import re
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import yaml
from trl import ModelConfig

from study import report
from study.cells import Design
from study.real import grade, page, run, training
from study.real.arms import RealDesign
from study.real.draw import Budget, Drawing, schedule
from study.real.parts import Drawn, Parts, Round
from study.real.problems import COUNTS, digest, numbers_of
from study.real.questions import CONFIRMED, OVERTURNED, QUESTIONS, models
from study.real.verdicts import grade_texts
from study.results import Results
from study.rules import DECORATIVE, MATTERS, NOT_RUN, UNDECIDED
from study.tasks import ROOT
from trl_soft import SoftGRPOConfig, SoftRLOOConfig, ThinkingSettings
from trl_soft.evaluate import Decoding, Evaluation, evaluate, load_problems
from trl_soft.evaluate.run_metrics import read_samples
from trl_soft.evaluate.store import Store
from trl_soft.runs.sigterm import SigtermMixin
from trl_soft.scripts import grpo
from trl_soft.scripts.arguments import SoftScriptArguments
from trl_soft.scripts.parser import SoftParser


REASONER = ROOT / "examples/quickstart/reasoner"
QUESTIONS_FILE = ROOT / "examples/quickstart/test.jsonl"
ARMS = {
    "hard": {"thought": "hard", "temperature": 1.0},
    "gumbel": {"thought": "gumbel", "thinking_temperature": 1.0, "temperature": 1.0},
}
DESIGN = RealDesign()


@pytest.fixture
def small(tmp_path) -> Path:
    """A design of two arms, four samples and three problems of the quickstart, in two rounds."""
    questions = [problem.question for problem in load_problems(str(QUESTIONS_FILE))]
    numbers = [2, 5, 11]
    problems = {str(QUESTIONS_FILE): {"sha256": digest([questions[n] for n in numbers]), "numbers": numbers}}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    content = yaml.safe_load((ROOT / "study/real/design.yaml").read_text("utf-8"))
    content |= {
        "model": str(REASONER), "problems": str(tmp_path / "problems.json"), "rounds": [2, 4], "prompt": "{question}", "grader": "exact",
        "thinking": {"end_of_thinking": "</think>"}, "max_completion_length": 48, "arms": ARMS,
        "training": {
            "samples": 2,
            "common": content["training"]["common"] | {
                "dataset_name": str(ROOT / "examples/quickstart/train.jsonl"), "reward_funcs": ["exact"], "max_steps": 3, "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1, "steps_per_generation": 1, "num_generations": 4, "learning_rate": 1e-3,
            },
            **{key: content["training"][key] for key in ("grpo", "rloo")},
            "arms": {"concrete": {"trainer": "grpo", "training": ARMS["gumbel"] | {"gumbel_density": "concrete", "top_k": 5}}},
        },
        "questions": {
            "greedy": "hard", "soft": "hard", "matched": "gumbel", "discrete": ["hard"], "gumbel": ["gumbel"],
            "temperatures": ["hard"], "decorative": ["gumbel", "gumbel"],
        },
    }  # fmt: skip
    file = tmp_path / "design.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


class Clock:
    """One second passes at every look."""

    def __init__(self):
        self.seconds = count()

    def __call__(self) -> float:
        return float(next(self.seconds))


def call(small: Path, folder: Path, *words: str, now=None) -> int:
    argv = ["--design", str(small), "--outputs", str(folder / "outputs"), "--results", str(folder / "results")]
    clock = {} if now is None else {"now": now}
    return run.main(
        [*argv, "--graders", "0", "--model-name", "the reasoner", "--model-note", "as shipped", *words], **clock
    )


def drawn_in(folder: Path) -> dict[tuple, list[int]]:
    """The ids of every stored sample, by arm, problem and sample."""
    parts = Parts(folder / "outputs/the-reasoner/parts")
    found = {}
    for arm in ARMS:
        for part in parts.rounds(arm):
            read = parts.read(part)
            assert read is not None
            for row, ids in zip(read[0].rows(), read[0].completions(), strict=True):
                assert (arm, *row) not in found
                found[(arm, *row)] = ids
    return found


def results_in(folder: Path) -> dict[str, dict]:
    return Results(folder / "results").found


def test_an_interrupted_call_is_continued(small, tmp_path, capsys):
    """A call that the budget stops in the middle of a round, and the calls after it, draw what one call draws."""
    assert call(small, tmp_path / "one") == 0
    whole = drawn_in(tmp_path / "one")
    assert set(whole) == {(arm, problem, sample) for arm in ARMS for problem in range(3) for sample in range(4)}
    # 17 seconds (and 4 in reserve) on a clock of one second a look: within the second arm of the first round.
    assert call(small, tmp_path / "two", "--minutes", "0.35", "--slots", "2", now=Clock()) == 0
    first = drawn_in(tmp_path / "two")
    assert 6 < len(first) < 12 and {sample for *_, sample in first} == {0, 1}
    assert "not complete: the time is up" in capsys.readouterr().out
    # The half round of the second arm is kept, and is not scored.
    assert set(results_in(tmp_path / "two")) == {"real/hard/the-reasoner"}
    assert call(small, tmp_path / "two", "--rounds", "2") == 0
    assert {sample for *_, sample in drawn_in(tmp_path / "two")} == {0, 1}
    assert (
        results_in(tmp_path / "two")["real/gumbel/the-reasoner"]["scores"][str(QUESTIONS_FILE)]["own"]["samples"] == 2
    )
    assert call(small, tmp_path / "two") == 0
    assert drawn_in(tmp_path / "two") == whole
    one, two = results_in(tmp_path / "one"), results_in(tmp_path / "two")
    assert {name: result["scores"] for name, result in one.items()} == {
        name: result["scores"] for name, result in two.items()
    }
    assert len(two["real/hard/the-reasoner"]["later"]) == 2


def test_it_is_the_evaluation_of_the_package(small, tmp_path):
    """The same samples and the same verdicts as `trl_soft.evaluate`, where prompt and caps are equal."""
    assert call(small, tmp_path) == 0
    numbers = json.loads((tmp_path / "problems.json").read_text())[str(QUESTIONS_FILE)]["numbers"]
    folder = tmp_path / "evaluation"
    evaluate(
        Evaluation(
            str(REASONER), [str(QUESTIONS_FILE)], [Decoding.parse({"name": name, **arm, "num_samples": 4}) for name, arm in ARMS.items()],
            str(folder), limit=max(numbers) + 1, grader="exact", max_completion_length=48, dtype="float32",
        )
    )  # fmt: skip
    samples = read_samples(Store(folder))
    for name in ARMS:
        mine = results_in(tmp_path)[f"real/{name}/the-reasoner"]["scores"][str(QUESTIONS_FILE)]["own"]
        theirs = samples[str(QUESTIONS_FILE), name].by_problem()
        assert mine["right"] == [sum(line["correct"] for line in theirs[number]) for number in numbers]
        chosen = [line for number in numbers for line in theirs[number]]
        assert mine["tokens"] == sum(line["length"] for line in chosen)
        assert mine["thinking_length"] == pytest.approx(
            np.mean([line["thinking_length"] for line in chosen]), rel=1e-4
        )
        assert mine["entropy"] == pytest.approx(np.mean([line["entropy"] for line in chosen]), rel=1e-4)
        assert mine["clipped"] == np.mean([line["clipped"] for line in chosen])


def test_grading_later_is_grading_at_once(small, tmp_path, capsys):
    assert call(small, tmp_path / "at once") == 0
    assert "mean" in capsys.readouterr().out
    assert call(small, tmp_path / "later", "--grade-later") == 0
    assert not results_in(tmp_path / "later") and "mean" not in capsys.readouterr().out
    assert call(small, tmp_path / "later", "--grade") == 0
    at_once, later = results_in(tmp_path / "at once"), results_in(tmp_path / "later")
    assert list(later) == list(at_once) == ["real/gumbel/the-reasoner", "real/hard/the-reasoner"]
    for name, result in later.items():
        for key in ("scores", "settings", "model", "problems", "cell"):
            assert result[key] == at_once[name][key], (name, key)
        assert result["model"]["note"] == "as shipped" and result["spent"]["seconds"] > 0
        assert result["settings"]["thought"] == result["cell"]["method"] and result["settings"]["seed"] == 0


def test_processes_grade_as_this_one(tmp_path):
    texts, golds = [r"\boxed{12}", r"\boxed{\frac{1}{2}}", "nothing"], ["12", "0.5", "3"]
    with grade.executor(1) as pool:
        assert isinstance(pool, ProcessPoolExecutor)
        found = pool.submit(grade_texts, "math", texts, golds).result()
    assert found == grade_texts("math", texts, golds) and [right for right, _ in found] == [True, True, False]


class Fake:
    """A policy that draws in no time. Some arms fail."""

    def __init__(self, failing=()):
        self.design, self.failing, self.asked, self.eager = DESIGN, failing, [], set()

    def complete(self, arm, rows):
        self.asked.append((arm.name, len(rows)))
        if arm.name in self.failing:
            raise RuntimeError("no kernel")
        for row in rows:
            one = np.ones(1, dtype=np.int32)
            yield Drawn(one * row[0], one * row[1], one, one, one, one > 1, one > 1, one * np.float32(0.5))


class Slow(Fake):
    """A policy whose every completion takes a second on its clock."""

    def __init__(self):
        super().__init__()
        self.seconds = 0.0

    def complete(self, arm, rows):
        for drawn in super().complete(arm, rows):
            self.seconds += 1
            yield drawn


def test_rounds_are_balanced_and_stop_before_the_budget(tmp_path):
    """Every arm has its round before any has the next one, and a round that would not end in time is not begun."""
    slow, said = Slow(), []
    budget = Budget(100.0, lambda: slow.seconds, reserve=4.0)
    drawing = Drawing(slow, Parts(tmp_path), 2, budget, said.append)
    assert not drawing.run(schedule(DESIGN, [2, 4]))
    names = list(DESIGN.arms)
    # Two problems x 2 samples, 1 of an arm without a draw: 6 + 18 x 4 = 78 seconds for the first round, and 4 arms of the second.
    assert [name for name, _ in slow.asked[:21]] == names
    assert [name for name, _ in slow.asked[21:]] == [name for name in names if DESIGN.arms[name].samples > 1][:4]
    assert slow.seconds == 94 and "2 samples take about 4 s" in said[-1]
    # The next call goes on there.
    again = Fake()
    assert Drawing(again, Parts(tmp_path), 2, Budget(9.0, lambda: 0.0), said.append).run(schedule(DESIGN, [2, 4]))
    assert [name for name, _ in again.asked] == [name for name in names if DESIGN.arms[name].samples > 1][4:]


def test_an_arm_that_fails_does_not_stop_the_others(tmp_path):
    fake, said = Fake(failing=("soft",)), []
    drawing = Drawing(fake, Parts(tmp_path), 1, Budget(9.0, lambda: 0.0), said.append)
    assert not drawing.run(schedule(DESIGN, [1, 2])) and drawing.failed == ["soft"]
    assert [name for name, _ in fake.asked].count("soft") == 1 and len(fake.asked) == 21 + 18
    assert any("soft: failed" in line and "no kernel" in line for line in said)


def test_an_arm_that_no_graph_holds_is_drawn_without(tmp_path):
    """It says so, and draws the arm once more, kernel by kernel."""

    class Uncaptured(Fake):
        def complete(self, arm, rows):
            if arm.name == "dirichlet" and "dirichlet" not in self.eager:
                raise RuntimeError("A step of Model cannot be captured in a CUDA graph")
            yield from super().complete(arm, rows)

    fake, said = Uncaptured(), []
    assert Drawing(fake, Parts(tmp_path), 1, Budget(9.0, lambda: 0.0), said.append).run(schedule(DESIGN, [1]))
    assert fake.eager == {"dirichlet"} and len(fake.asked) == 21
    assert any(line.startswith("dirichlet: without CUDA graphs") for line in said)


def test_samples_of_another_setting_are_refused(small, tmp_path, capsys):
    assert call(small, tmp_path, "--rounds", "2", "--grade-later") == 0
    content = yaml.safe_load(small.read_text())
    content["arms"]["gumbel"]["thinking_temperature"] = 0.5
    small.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match=r"was drawn with .* and the arm gumbel of the design is"):
        call(small, tmp_path, "--only", "gumbel", "--rounds", "2", "--grade-later")
    with pytest.raises(ValueError, match=r"was drawn with"):
        call(small, tmp_path, "--grade")
    with pytest.raises(ValueError, match="holds a run whose `note`"):
        call(small, tmp_path, "--model-note", "another file")
    with pytest.raises(ValueError, match="rounds grow from 1 to at most 4"):
        call(small, tmp_path, "--rounds", "2", "8")


def test_other_questions_are_refused(small, tmp_path):
    problems = json.loads((tmp_path / "problems.json").read_text())
    problems[str(QUESTIONS_FILE)]["numbers"][0] += 1
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    with pytest.raises(ValueError, match=r"are not the questions that .* registers"):
        call(small, tmp_path)


def test_drawing_needs_torch_and_transformers_alone():
    """Where samples are drawn, and where they are graded, there may be no TRL and no data library."""
    reached, todo = set(), ["study.real.run"]
    while todo:
        name = todo.pop()
        path = next((p for p in _files(name) if p.exists()), None)
        if name in reached or path is None:
            continue
        reached.add(name)
        todo += imports(path, ast.parse(path.read_text("utf-8")), name)
    assert {
        "study.real.draw",
        "study.real.training",
        "trl_soft.rollout.slot_engine",
        "trl_soft.evaluate.grading",
    } < reached
    for name in reached:
        path = next(p for p in _files(name) if p.exists())
        roots = {target.split(".")[0] for target in imports(path, ast.parse(path.read_text("utf-8")), name)}
        assert not roots & {"trl", "datasets", "pandas", "pyarrow", "math_verify", "sympy"}, name


def _files(name: str) -> list[Path]:
    """Where a module of the repository may lie."""
    path = ROOT / name.replace(".", "/")
    return [path.with_suffix(".py"), path / "__init__.py"]


def imports(path: Path, tree: ast.Module, name: str) -> list[str]:
    """The modules that a module imports when it is imported: not those inside of its functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return found


def test_the_numbers_follow_from_the_rule():
    registered = json.loads(DESIGN.problems.read_text("utf-8"))
    assert {name: entry["numbers"] for name, entry in registered.items()} == {
        name: numbers_of(name) for name in COUNTS
    }
    assert {name: len(entry["numbers"]) for name, entry in registered.items()} == {"gsm8k": 200, "math500": 100}


def test_the_design_compares_equal_supports():
    """(b) compares thoughts and tokens that are drawn from the same candidates at the same temperatures."""
    questions = DESIGN["questions"]
    for soft, hard in zip(questions["gumbel"], questions["discrete"], strict=True):
        mine, theirs = DESIGN.arms[soft], DESIGN.arms[hard]
        assert (
            mine.sampling == theirs.sampling
            and theirs.given["thought"] == "hard"
            and mine.given["thought"] == "gumbel"
        )
        drawn = {
            name.removeprefix("thinking_"): mine.given[name]
            for name in ("thinking_temperature", "thinking_top_k", "thinking_top_p")
        }
        assert drawn == theirs.sampling
    soft, sharp = (DESIGN.arms[name].given for name in questions["decorative"])
    assert {key for key in soft if soft[key] != sharp[key]} == {"gumbel_temperature"}
    assert [arm.samples for arm in DESIGN.arms.values()].count(1) == 3
    for arm in DESIGN.arms.values():
        assert (arm.samples == 1) == (arm.sampling["temperature"] == 0)


# Training


class InThisProcess:
    """A training process that is none: `wait` runs the script here."""

    def __init__(self, command, **kwargs):
        assert command[1:4] == ["-m", "trl_soft.scripts.grpo", "--config"]
        self.file = command[4]

    def wait(self, seconds=None) -> int:
        try:
            grpo.main(["--config", self.file])
        except SystemExit as stopped:
            return stopped.code
        return 0


def test_training_stops_and_continues(small, tmp_path, monkeypatch):
    """A call whose time is up leaves a result of the updates so far. The next one ends as a call that nothing stopped."""
    monkeypatch.setattr(training.train, "__kwdefaults__", {"start": InThisProcess})
    words = ("--train", "concrete", "--limit", "2", "--minutes", "100")
    assert call(small, tmp_path / "one", *words) == 0
    with monkeypatch.context() as patched:
        patched.setattr(SigtermMixin, "_any_signalled", lambda trainer: trainer.state.global_step >= 1)
        assert call(small, tmp_path / "two", *words) == 0
    stopped = results_in(tmp_path / "two")["real/concrete/the-reasoner"]
    assert stopped["updates"] == 1 and len(stopped["curve"]["reward"]) == 1
    assert call(small, tmp_path / "two", *words) == 0
    one, two = (results_in(tmp_path / folder)["real/concrete/the-reasoner"] for folder in ("one", "two"))
    assert one["updates"] == two["updates"] == 3 and len(two["curve"]["reward"]) == 3
    for key in ("reward", "grad_norm", "thinking/logp_difference/mean"):
        assert one["curve"][key] == two["curve"][key], key
    assert two["curve"]["reward"][:1] == stopped["curve"]["reward"]
    output = tmp_path / "two/outputs/the-reasoner/training/concrete/model"
    assert not (output / "metrics.jsonl.old").exists()  # it did not begin again
    for when in ("before", "after"):
        assert list(one[when]) == ["greedy", "hard", "own"]
        assert {arm: entry["scores"] for arm, entry in one[when].items()} == {
            arm: entry["scores"] for arm, entry in two[when].items()
        }
    assert one["before"]["own"]["scores"] != one["after"]["own"]["scores"]
    assert one["before"]["own"]["settings"]["gumbel_density"] == "concrete"
    assert one["cell"]["phase"] == "train" and one["recipe"]["max_steps"] == 3 and "output_dir" not in one["recipe"]
    # Samples and metrics are enough to grade elsewhere.
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path)
    (output / "trainer_state.json").unlink()
    (tmp_path / "two/results/real/concrete/the-reasoner.json").unlink()
    assert call(small, tmp_path / "two", "--limit", "2", "--grade") == 0
    assert results_in(tmp_path / "two")["real/concrete/the-reasoner"] == two
    # What was trained is no evaluation without training.
    assert models(RealDesign(small), Results(tmp_path / "two/results")) == {}


class Process:
    """A process that ends with a status, or only after it was asked to."""

    def __init__(self, status, late=False):
        self.status, self.late, self.asked = status, late, []

    def __call__(self, command, **kwargs):
        return self

    def wait(self, seconds=None):
        if self.late and not self.asked:
            raise subprocess.TimeoutExpired("training", seconds)
        return self.status

    def terminate(self):
        self.asked.append("SIGTERM")


@pytest.mark.parametrize(
    "status, late, ended", [(0, False, True), (143, True, False), (-15, True, False), (0, True, True)]
)
def test_training_is_asked_to_stop_when_its_time_is_up(status, late, ended, tmp_path):
    process, said = Process(status, late), []
    assert training.train({"output_dir": str(tmp_path / "model")}, "grpo", 5.0, said.append, start=process) is ended
    assert process.asked == (["SIGTERM"] if late else []) and bool(said) is late


def test_training_that_fails_names_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"status 1\. .*model\.log says why"):
        training.train({"output_dir": str(tmp_path / "model")}, "grpo", 5.0, print, start=Process(1))


@pytest.mark.parametrize("arm", DESIGN["training"]["arms"])
def test_an_arm_trains_as_it_is_evaluated(arm, tmp_path):
    """The recipe is accepted by its trainer's configuration, and its thoughts and answers are those of the evaluation."""
    file = tmp_path / "recipe.yaml"
    recipe = training.recipe(DESIGN, arm, str(REASONER), "data", tmp_path / "model")
    file.write_text(yaml.safe_dump(recipe))
    config = {"grpo": SoftGRPOConfig, "rloo": SoftRLOOConfig}[DESIGN["training"]["arms"][arm]["trainer"]]
    script, settings, _ = SoftParser((SoftScriptArguments, config, ModelConfig)).parse_args_and_config(
        ["--config", str(file)]
    )
    assert (
        settings.per_device_train_batch_size * settings.gradient_accumulation_steps == 256
        and settings.num_generations == 8
    )
    assert settings.max_steps == 100 and settings.learning_rate == 2e-6 and script.data_dir == "data"
    own = DESIGN.evaluated(arm).arms["own"]
    assert own.settings == ThinkingSettings(**{f.name: getattr(settings, f.name) for f in fields(ThinkingSettings)})
    assert own.sampling == {name: getattr(settings, name) for name in own.sampling}
    assert DESIGN.evaluated(arm).arms["hard"].sampling == own.sampling
    assert (
        script.prompt_template == DESIGN["prompt"]
        and settings.max_completion_length == DESIGN["max_completion_length"]
    )


# Questions and page


def entry(right: list[int], n: int, entropy: float) -> dict:
    share = sum(right) / (n * len(right))
    ks = [2**i for i in range(n.bit_length())]
    return {
        "own": {
            "samples": n, "mean": share, "right": right, "mean@n": [share, share - 0.05, share + 0.05],
            "pass@k": {str(k): [share, share, share] for k in ks}, "maj@k": {str(k): [share, share, share] for k in ks},
            "length": 200.0, "thinking_length": 190.0, "correct_length": 150.0, "clipped": 0.1, "thinking_cut": 0.4, "entropy": entropy,
            "tokens": 1000,
        }
    }  # fmt: skip


def arms(
    shares: dict[str, float], n: int = 8, entropies: dict[str, float] | None = None, jitter: int = 0
) -> dict[str, dict]:
    """Results of every arm of the design: a share of right samples of each of 300 problems, plus or minus `jitter` samples."""
    registered = json.loads(DESIGN.problems.read_text("utf-8"))
    found = {}
    for name, arm in DESIGN.arms.items():
        share, samples = shares.get(name, 0.5), min(n, arm.samples)
        if samples == 1:
            right = [int(i < round(300 * share)) for i in range(300)]
        else:
            right = [min(max(round(samples * share) + (-1) ** i * jitter, 0), samples) for i in range(300)]
        found[name] = {
            "cell": {"task": "real", "method": name, "phase": "evaluate", "model": "M", "seed": 0},
            "model": {"name": "M", "note": "of a 4-bit file", "weights": "w", "dtype": "bfloat16"},
            "problems": {b: {"count": 1, "sha256": e["sha256"]} for b, e in registered.items()},
            "environment": {"device": "D", "commit": "abc", "registered": "def", "versions": {}},
            "later": [], "spent": {"seconds": 2.0, "tokens": 1000, "tokens_per_second": 500.0},
            "scores": {b: entry(right, samples, (entropies or {}).get(name, 0.3)) for b in registered},
        }  # fmt: skip
    return found


def word(question: str, found: dict[str, dict]) -> str:
    return QUESTIONS[question][1](DESIGN, found, "gsm8k").word


def gumbels(share: float) -> dict[str, float]:
    return dict.fromkeys(DESIGN["questions"]["gumbel"], share)


def hards(share: float) -> dict[str, float]:
    return dict.fromkeys(DESIGN["questions"]["temperatures"], share)


@pytest.mark.parametrize(
    "question, shares, expected",
    [
        ("a", hards(0.875) | {"soft": 0.3, "greedy": 0.3}, CONFIRMED),
        ("a", hards(0.25) | {"soft": 0.3, "greedy": 0.3}, UNDECIDED),  # no worse than the best temperature
        ("a", hards(0.125) | {"soft": 0.9, "greedy": 0.9}, OVERTURNED),  # soft above every temperature
        ("a", hards(0.875) | {"soft": 0.3, "greedy": 0.8}, OVERTURNED),  # soft is not greedy
        ("b", gumbels(0.75) | hards(0.0), CONFIRMED),
        ("b", gumbels(0.25) | hards(0.75), OVERTURNED),
        ("b", gumbels(0.5) | hards(0.5), OVERTURNED),  # nothing above 0 at the best temperature
        ("b", gumbels(0.75) | hards(0.25) | {"hard-0.3-truncated": 0.75}, OVERTURNED),  # the gap vanishes there
        ("b", gumbels(0.875) | hards(0.5) | {"gumbel-0.6": 0.125}, OVERTURNED),  # worse at matched entropy
        ("c", {"gumbel-1.0": 0.5, "gumbel-1.0-argmax": 0.5}, DECORATIVE),
        ("c", {"gumbel-1.0": 0.75, "gumbel-1.0-argmax": 0.25}, MATTERS),
    ],
)  # fmt: skip
def test_the_word_of_a_question(question, shares, expected):
    assert word(question, arms(shares)) == expected


def test_what_is_not_sure_is_undecided():
    """Differences that point both ways."""
    found = arms(gumbels(0.5) | hards(0.5), jitter=2)
    for name in DESIGN["questions"]["discrete"]:
        right = found[name]["scores"]["gsm8k"]["own"]["right"]
        found[name]["scores"]["gsm8k"]["own"]["right"] = [*right[1:-1], right[0] - 1, right[-1]]
    assert word("b", found) == UNDECIDED
    assert word("c", arms({"gumbel-1.0": 0.5, "gumbel-1.0-argmax": 0.5}, jitter=0) | {
        "gumbel-1.0": arms({}, jitter=2)["gumbel-1.0"]
    }) in (DECORATIVE, UNDECIDED)  # fmt: skip


def test_matched_entropy_is_the_nearest():
    near = {"gumbel-0.6": 0.5, "hard-0.3-truncated": 0.1, "hard-0.6-truncated": 0.3, "hard-0.8-truncated": 0.48}
    finding = QUESTIONS["b"][1](DESIGN, arms({}, entropies=near | {"hard-1.0-truncated": 0.7}), "gsm8k")
    matched = [d for d in finding.differences if d.name.startswith("matched")]
    assert {(d.arm, d.other) for d in matched} == {("gumbel-0.6", "hard-0.8-truncated")}
    assert [d.name for d in matched] == [f"matched entropy, pass@{k}" for k in (1, 2, 4, 8)]
    assert all(d.strict_low <= d.low <= d.mean <= d.high <= d.strict_high for d in finding.differences)


@pytest.mark.parametrize("question, gone", [("a", "soft"), ("b", "gumbel-0.3"), ("c", "gumbel-1.0-argmax")])
def test_a_missing_arm_is_not_run(question, gone):
    found = arms({})
    del found[gone]
    assert word(question, found) == NOT_RUN


def test_the_page_names_the_model_at_every_table(tmp_path):
    results = Results(tmp_path)
    assert "Not run" in page.section(DESIGN, results, "README.md")
    found = arms({"soft": 0.3, "greedy": 0.3} | hards(0.875))
    del found["latent"]
    for name, result in found.items():
        results.write(f"real/{name}/M", result)
    other = json.loads(json.dumps(found["greedy"]))
    other["model"]["name"], other["problems"]["gsm8k"]["sha256"] = "another", "other questions"
    results.write("real/greedy/another", other)
    assert list(models(DESIGN, results)) == ["M"]
    text = page.section(DESIGN, results, "README.md")
    tables = text.split("\n\n")
    for i, block in enumerate(tables):
        if block.startswith("|") and "PPO" not in block:
            assert "M (of a 4-bit file)" in tables[i - 1], tables[i - 1]
    assert "| `greedy` | 1 | 30.0 (25.0 to 35.0) |" in text and "Not run: `latent`." in text
    assert "(a) Is plain soft thinking equal to greedy decoding? Confirmed on `gsm8k`" in text
    assert "Commit of the registered questions: def" in text and "Device: D" in text


def test_the_page_of_training(tmp_path):
    """What was trained, what it changed, and what is published beside it."""
    results, scored = Results(tmp_path), arms({})
    text = page.section(DESIGN, results, "README.md")
    assert "Not run: `hard-truncated`" in text and "| PPO" in text and "56.7" in text

    def side(share: float) -> dict:
        return {
            kind: arms(dict.fromkeys(("greedy", "gumbel-0.6"), share))[name]
            for kind, name in (("greedy", "greedy"), ("own", "gumbel-0.6"))
        }

    head = {key: scored["greedy"][key] for key in ("model", "problems", "environment", "later")}
    curve = {
        "reward": [0.25] * 10 + [0.5, 0.75],
        "thinking/logp_difference/mean": [0.002, None, 0.006],
        "nonfinite/skipped": [0, 1, 0],
    }
    cell = {"task": "real", "method": "gumbel-concrete", "phase": "train", "model": "M", "seed": 0}
    result = {**head, "cell": cell, "updates": 12, "curve": curve, "before": side(0.25), "after": side(0.75)}
    results.write("real/gumbel-concrete/M", result)
    text = page.section(DESIGN, results, "README.md")
    assert "### M (of a 4-bit file), with training" in text
    assert "| `gumbel-concrete` | 12 of 100 | 0.25 | 0.625 | - |" in text and "| 0.006 | 1 |" in text
    assert re.search(r"`gumbel-concrete`, own \| 8 \| 25.0 .* \| 75.0 .* \| \+50.0 \(", text)
    assert "Not run: `hard-truncated`, greedy," in text and "`gumbel-concrete`, hard" in text.split("Not run: ")[-1]
    blocks = text.split("\n\n")
    for i, block in enumerate(blocks):
        if block.startswith("| ") and "PPO" not in block:
            assert "M (of a 4-bit file)" in blocks[i - 1]


def test_the_page_of_part_a_has_part_b(tmp_path):
    """Results of both parts lie in one folder. Part A counts its own."""
    results = Results(tmp_path / "results")
    for name, result in arms({}).items():
        results.write(f"real/{name}/M", result)
    report.write(Design(), results, tmp_path / "study.md", tmp_path / "images")
    text = (tmp_path / "study.md").read_text("utf-8")
    assert "0 of 390 cells have a result." in text and "### M (of a 4-bit file), without training" in text
    assert report.made_from(Design(), results) in text
    assert "(images/study_real_pass_at_k.svg)" in text
    picture = (tmp_path / "images/study_real_pass_at_k.svg").read_text("utf-8")
    assert all(name in picture for name in (*DESIGN.arms, "M, gsm8k", "M, math500"))
    report.write(Design(), Results(tmp_path / "none"), tmp_path / "study.md", tmp_path / "images")
    assert not (tmp_path / "images/study_real_pass_at_k.svg").exists()


def test_a_part_on_disk_is_what_was_drawn(tmp_path):
    parts, part = Parts(tmp_path), Round("arm", 0, 2)
    ids = np.array([5, 6, 7, 8], dtype=np.int32)
    drawn = Drawn(
        np.array([0, 1]), np.array([0, 1]), np.array([3, 1]), ids, np.array([2, 0]), np.array([True, False]),
        np.array([False, True]), np.array([0.5, np.nan], dtype=np.float32),
    )  # fmt: skip
    assert parts.read(part) is None and parts.rounds("arm") == []
    parts.write(part, drawn, seconds=1.5, settings={})
    read, about = parts.read(part)
    assert read.completions() == [[5, 6, 7], [8]] and read.rows() == [(0, 0), (1, 1)]
    assert np.isnan(read.entropy[1]) and about == {"seconds": 1.5, "settings": {}}
    assert parts.rounds("arm") == [part] and not list(tmp_path.rglob("*.tmp"))
