# SPDX-License-Identifier: Apache-2.0
"""Recipes do not rot: each is parsed, trained on for two updates and evaluated, on stand-ins for model and data."""

import functools
import hashlib
import json
import re
import runpy
import shlex
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoTokenizer
from trl import ModelConfig

from tests import standins
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer, ThinkingSettings
from trl_soft.evaluate import PRESETS, Problem, answer_text, build_prompt
from trl_soft.evaluate.decoding import soft_tokens_grid
from trl_soft.evaluate.report.papers import read_papers
from trl_soft.rewards import REWARDS, math_reward, soft_grpo_reward, soft_tokens_reward
from trl_soft.rollout.stop import EndOfThinking
from trl_soft.scripts import run_evaluation
from trl_soft.scripts.arguments import SoftScriptArguments
from trl_soft.scripts.parser import SoftParser
from trl_soft.scripts.run_training import train


ROOT = Path(__file__).parent.parent
mnns = SimpleNamespace(**runpy.run_path(str(ROOT / "examples/cot2/mnns.py")))

# Not recipes: how processes are started, and the papers' numbers.
RECIPES = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in ("accelerate", "papers")
)
README = (ROOT / "recipes/README.md").read_text(encoding="utf-8")
ACCELERATE = ("single", "ddp", "zero2", "zero3", "zero3_offload", "fsdp2", "multi_node")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes").with_suffix(""))


def is_evaluation(path: Path) -> bool:
    return path.parent.name == "eval" or path.stem.startswith("evaluate")


TRAINING = [path for path in RECIPES if not is_evaluation(path)]
EVALUATION = [path for path in RECIPES if is_evaluation(path)]
PAPERS = [path for path in TRAINING if path.parent.name != "quickstart"]
# Settings that need no source: names, arithmetic, and what only watches.
PLAIN = (
    "model_name_or_path", "thought", "noise_placement", "gradient_accumulation_steps", "eval_strategy", "report_to",
    "per_device_eval_batch_size", "num_generations_eval", "load_best_model_at_end", "greater_is_better",
    "save_total_limit", "logging_steps",
)  # fmt: skip
# Models whose stand-in is that of another model of their family.
SAME_FAMILY = {"Qwen3-8B": "Qwen3-0.6B", "Qwen2.5-3B": "Qwen2.5-3B-Instruct", "Qwen2.5-7B": "Qwen2.5-3B-Instruct"}
KINDS = {"grpo_soft": (SoftGRPOConfig, SoftGRPOTrainer), "rloo_soft": (SoftRLOOConfig, SoftRLOOTrainer)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Stand-in models by their hub id's last part, and data."""
    folder = tmp_path_factory.mktemp("world")
    models = {model: standins.save_model(model, folder) for model in standins.TOKENIZERS}
    models["mnns"] = save_mnns(folder / "mnns")
    return models, standins.save_data(folder / "data")


def save_mnns(folder: Path) -> Path:
    """CoT2's model before its training, with a few of its questions."""
    torch.manual_seed(0)
    tokenizer = mnns.make_tokenizer()
    for made in (mnns.make_model(tokenizer), tokenizer):
        made.save_pretrained(folder)
    for name, questions in zip(("train", "test"), mnns.split(0), strict=True):
        mnns.write_rows(folder / f"{name}.jsonl", questions[:8])
    return folder


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.chdir(ROOT)


def command(path: Path) -> list[str]:
    """The command in a recipe's head, its lines joined."""
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    found = re.search(r"#   (accelerate launch (?:.*\\\n#     )*.*)", head)
    assert found, f"{path} begins with no command"
    return shlex.split(re.sub(r"\\\n#     ", "", found.group(1)))


def parse(path: Path, *flags: str):
    script = "rloo_soft" if path.parent.name == "soft_tokens" else "grpo_soft"
    classes = (SoftScriptArguments, KINDS[script][0], ModelConfig)
    return SoftParser(classes).parse_args_and_config(["--config", str(path), "--use_cpu", "true", *flags])


def test_there_are_as_many_recipes_as_the_index_says():
    said = re.search(r"(\d+) recipes: (\d+) that train and (\d+) that evaluate", README)
    assert said, "recipes/README.md says no longer how many recipes there are"
    assert tuple(map(int, said.groups())) == (len(RECIPES), len(TRAINING), len(EVALUATION))
    assert len(TRAINING) >= 41 and len(EVALUATION) >= 6


# Completions of a rollout in each paper.
ROLLOUTS = {"soft_grpo": 512, "soft_tokens": 64, "n_grpo": 256, "lepo": 1024, "cot2": 128}


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_a_recipe_says_how_it_is_run_and_where_each_setting_is_from(path, scripts):
    words = command(path)
    script = "rloo_soft" if path.parent.name == "soft_tokens" else "grpo_soft"
    assert f"examples/{script}.py" in words and words[words.index("--config") + 1] == str(path.relative_to(ROOT))
    accelerate = Path(words[words.index("--config_file") + 1])
    assert accelerate.parent == Path("recipes/accelerate") and accelerate.stem in ACCELERATE
    assert accelerate.is_file() or not accelerate.parent.is_dir()
    arguments, training, model = parse(path)
    processes = int(words[words.index("--num_processes") + 1])
    update = processes * training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert update == arguments.completions_per_update
    # Unset, it is that of one update on any number of processes.
    rollout = yaml.safe_load(path.read_text(encoding="utf-8")).get("generation_batch_size", update)
    assert rollout == ROLLOUTS[path.parent.name]
    assert rollout % (processes * training.per_device_train_batch_size) == 0
    assert training.output_dir == f"outputs/{path.parent.name}/{path.stem}/seed{{seed}}"
    hub_id = model.model_name_or_path
    made_here = hub_id.startswith("outputs/")
    assert made_here or (ROOT / f"recipes/models/{hub_id.split('/')[1]}.json").is_file()
    assert arguments.contamination
    for line in path.read_text(encoding="utf-8").splitlines():
        setting = re.match(r"(\w+): ", line)
        assert not setting or "  # " in line or setting.group(1) in PLAIN, f"{line!r} does not say where it is from"


# Tokens of a thought while training (2509.19170, section 4).
TRAINING_CAPS = {"gsm8k_train": 128, "math_train": 512, "deepscaler": 512}


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_a_recipe_asks_and_stops_as_its_paper_is_evaluated(path, scripts):
    arguments, training, _ = parse(path)
    preset = PRESETS[path.parent.name]
    kind = "question" if path.parent.name == "cot2" else "math"
    assert arguments.prompt_template == preset.formats[kind].user
    assert arguments.raw_prompt is not preset.chat
    assert (training.thought == "hard" and preset.chat) or training.end_of_thinking == preset.end_of_thinking
    if not preset.chat:
        assert tuple(training.answer_prefill) == preset.formats["math"].answer_prefill
        assert training.max_answer_length == preset.formats["math"].max_answer_length
        known = {"math12k": "math_train"}.get(arguments.dataset_name, arguments.dataset_name)
        assert training.max_thinking_length == TRAINING_CAPS[known]


def shrunk(path: Path, world, out: Path) -> list[str]:
    """Flags that make a recipe small and change nothing else."""
    models, data = world
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    flags = {"output_dir": out / "seed{seed}", "seed": 3, "max_steps": 2, "logging_steps": 1, "disable_tqdm": "true"}
    flags |= {"bf16": "false", "dtype": "float32", "use_cpu": "true", "num_generations": 4, "report_to": "none"}
    flags |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "per_device_eval_batch_size": 4}
    flags |= {"max_completion_length": min(40, recipe["max_completion_length"]), "save_steps": 2, "eval_steps": 2}
    model = recipe["model_name_or_path"].split("/")[-1]
    model = SAME_FAMILY.get(model, model)
    if model in models:
        flags["model_name_or_path"] = models[model]
    if "completions_per_update" in recipe:
        updates = (
            recipe.get("generation_batch_size", recipe["completions_per_update"]) // recipe["completions_per_update"]
        )  # of a rollout
        flags |= {"completions_per_update": 4, "generation_batch_size": 4 * updates, "data_dir": data}
    else:
        flags["eval_strategy"] = "steps"
    if recipe["dataset_name"].startswith("outputs/"):  # what a script of examples makes
        flags |= {key: models[model] / Path(recipe[key]).name for key in ("dataset_name", "dataset_test_name")}
        flags["contamination"] = flags["dataset_test_name"]
    elif recipe["dataset_name"] == "open-r1/DAPO-Math-17k-Processed":
        rows = [json.dumps({"prompt": f"What is {i} + {i}?", "solution": str(2 * i)}) + "\n" for i in range(8)]
        flags["dataset_name"] = out / "dapo.jsonl"
        flags["dataset_name"].write_text("".join(rows))
    elif recipe["dataset_name"] == "openai/gsm8k":
        flags |= {"dataset_name": data / "gsm8k_train.jsonl.gz", "dataset_test_name": data / "gsm8k_test.jsonl.gz"}
    elif "dataset_test_name" in recipe and "completions_per_update" not in recipe:
        lines = (ROOT / recipe["dataset_test_name"]).read_text(encoding="utf-8").splitlines(True)
        (out / "test.jsonl").write_text("".join(lines[:8]))
        flags["dataset_test_name"] = out / "test.jsonl"
    small = {"validation_rows": 4, "max_thinking_length": 16, "max_answer_length": 6}
    flags |= {name: min(value, recipe[name]) for name, value in small.items() if name in recipe}
    if recipe.get("thinking_top_k", 0) > 1000:
        flags["thinking_top_k"] = 400
    return [str(word) for key, value in flags.items() for word in (f"--{key}", value)]


def differing(reward):
    """A reward that a random model can earn something of: its own, and up to a half by what the text is."""

    @functools.wraps(reward)
    def made(completions, **kwargs):
        spread = [hashlib.sha256(str(text).encode()).digest()[0] / 512 for text in completions]
        return [(own or 0) + more for own, more in zip(reward(completions, **kwargs), spread, strict=True)]

    return made


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_a_recipe_takes_two_updates_and_an_evaluation(path, scripts, world, tmp_path, caplog, monkeypatch):
    arguments, training, model = parse(path, *shrunk(path, world, tmp_path))
    (reward,) = arguments.reward_funcs
    rewarded = f"rewards/{REWARDS[reward].__name__}/mean"
    monkeypatch.setitem(REWARDS, reward, differing(REWARDS[reward]))
    trainer_class = SoftRLOOTrainer if isinstance(training, SoftRLOOConfig) else SoftGRPOTrainer
    train(arguments, training, model, trainer_class)
    out = tmp_path / "seed3"
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    steps = [row for row in history if "loss" in row]
    evaluation = [row for row in history if "eval_loss" in row]
    assert len(steps) == 2 and len(evaluation) == 1
    assert all(row["grad_norm"] > 0 for row in steps)
    for row, prefix in ((steps[0], ""), (evaluation[0], "eval_")):
        assert 0 < row.get(prefix + "thinking/soft_ratio", 1) <= 1
        for metric in ("reward", rewarded, "completions/mean_length", "entropy"):
            assert row[prefix + metric] > 0, metric
        assert row[f"{prefix}thinking/mean_length"] >= 1
    # Drawn is what is scored again: rounding of float32, which a gaussian density multiplies by 1/sigma^2.
    bound = 1e-2 if training.thought == "gaussian" else 1e-4
    assert all(row["thinking/logp_difference/mean"] < bound for row in steps)
    assert json.loads((out / "thinking_config.json").read_text())["thought"] == training.thought
    assert "dropped because they are longer than" in caplog.text
    assert path not in PAPERS or (
        "are among its" in caplog.text and f"longer than {arguments.max_prompt_length} tokens" in caplog.text
    )


@pytest.mark.parametrize("path", EVALUATION, ids=name)
def test_an_evaluation_recipe_runs_on_two_problems(path, scripts, world, tmp_path):
    """The recipe with a tiny model, two problems, two samples and short caps."""
    models, data = world
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    (asked,) = SoftParser((run_evaluation.EvaluationArguments,)).parse_args_and_config(["--config", str(path)])
    assert asked.decodings and [d["name"] for d in asked.decodings] == [d["name"] for d in recipe["decodings"]]
    of_papers = path.parent.name == "eval"
    assert not of_papers or asked.preset == path.parent.parent.name
    for made in run_evaluation.decodings_of(asked):
        if "thought" in made.thinking:  # the others take what is saved with a model
            made.settings(PRESETS[asked.preset], "math", None)
    # One of the decodings that differ in the bound of a gate alone: each costs a run of every benchmark.
    swept = ("name", "gate_confidence")
    recipe["decodings"] = list(
        {
            json.dumps({key: value for key, value in decoding.items() if key not in swept}): decoding
            for decoding in recipe["decodings"]
        }.values()
    )
    for decoding in recipe["decodings"]:
        decoding["num_samples"] = min(2, decoding.get("num_samples", 2))
        decoding["max_completion_length"] = min(40, PRESETS[asked.preset].max_completion_length or 40)
        if recipe.get("preset") == "soft_tokens":
            decoding |= {"max_thinking_length": 16, "max_answer_length": 6}
    recipe |= {"limit": 2, "output_dir": str(tmp_path / "run"), "dtype": "float32"}
    if of_papers:
        model = recipe["model_name_or_path"].split("/")[-1]
        model = SAME_FAMILY.get(model, model)
        if model not in models:  # a run's output, outputs/PAPER/RUN/seed0
            model = "DeepSeek-R1-Distill-Qwen-1.5B"
        recipe.pop("max_completion_length", None)  # the decodings' are shorter
        ThinkingSettings(thought="dirichlet").save_thinking(models[model])
        recipe |= {"model_name_or_path": str(models[model]), "data_dir": str(data)}
        made = {
            name: str(models[model] / Path(name).name) for name in recipe["benchmarks"] if name.startswith("outputs/")
        }
        recipe["benchmarks"] = [made.get(name, name) for name in recipe["benchmarks"]]
    small = tmp_path / "recipe.yaml"
    small.write_text(yaml.safe_dump(recipe))
    run_evaluation.run(
        *SoftParser((run_evaluation.EvaluationArguments,)).parse_args_and_config(["--config", str(small)])
    )
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(metrics) == set(recipe["benchmarks"])
    for decodings in metrics.values():
        assert set(decodings) == {decoding["name"] for decoding in recipe["decodings"]}
        assert all(row["problems"] == 2 for row in decodings.values())
    told = json.loads((tmp_path / "run/manifest.json").read_text())["decodings"]
    if "as_trained" in path.stem:
        assert told[0]["thinking"]["thought"] == "dirichlet"  # what lies beside the weights, not the preset's


def test_the_recipe_and_the_grid_ask_for_the_same_six(scripts):
    words = ["--config", str(ROOT / "recipes/soft_tokens/eval/six.yaml")]
    (asked,) = SoftParser((run_evaluation.EvaluationArguments,)).parse_args_and_config(words)
    grid = {cell.name.removeprefix("m / "): cell for cell in soft_tokens_grid({"m": "m"}, 32)}
    for given in run_evaluation.decodings_of(asked):
        cell = grid.pop(given.name)
        assert (given.thinking, given.answer, given.num_samples) == (cell.thinking, cell.answer, cell.num_samples)
    assert not grid


@pytest.mark.parametrize(
    ("recipe", "decoding"),
    [
        ("swireasoning/eval/main", "swireasoning"),
        ("selar/eval/aime", "selar"),
        ("n_grpo/eval/main", "mixed"),
        ("cot2/eval/main", "mts"),
    ],
)
def test_a_preset_thinks_as_its_recipe(recipe, decoding, scripts):
    """A preset serves runs without a list of decodings. Its caps are those of the recipe too."""
    words = ["--config", str(ROOT / f"recipes/{recipe}.yaml")]
    (asked,) = SoftParser((run_evaluation.EvaluationArguments,)).parse_args_and_config(words)
    preset = PRESETS[asked.preset]
    (given,) = (made for made in run_evaluation.decodings_of(asked) if made.name == decoding)
    base = preset.thinking_settings("math")
    ours = given.settings(preset, "math", None)
    theirs = ThinkingSettings(**base)
    assert replace(ours, eval_thought=None) == replace(theirs, eval_thought=None)
    assert {key: value for key, value in given.sampling(preset).items() if key in preset.sampling} == preset.sampling


# What the papers' numbers, the index and the recipes say of each other.


def papers() -> list[Path]:
    return sorted((ROOT / "recipes/papers").glob("*.yaml"))


@pytest.mark.parametrize("path", papers(), ids=lambda path: path.stem)
def test_every_published_row_has_a_recipe_and_an_evaluation(path):
    entries = read_papers(path)
    runs = {recipe.stem for recipe in PAPERS if recipe.parent.name == path.stem}
    named = {entry.name for entry in entries}
    untrained = named - runs
    assert runs <= named and all(name.endswith("_none") for name in untrained)
    if runs:  # the others train nothing
        assert untrained == {f"{run.split('_')[0]}_none" for run in runs}
    evaluations = [yaml.safe_load(p.read_text()) for p in EVALUATION if p.parent.parent.name == path.stem]
    decodings = {decoding["name"] for recipe in evaluations for decoding in recipe["decodings"]}
    assert {entry.decoding for entry in entries} <= decodings | {"training", "ood"}
    measured = {(b, m) for e in entries if e.decoding in decodings for b, ms in e.values.items() for m in ms}
    for benchmark, metric in measured:
        assert any(benchmark in recipe["benchmarks"] for recipe in evaluations), benchmark
        assert any(int(metric.split("@")[1]) in recipe["k_values"] for recipe in evaluations), metric


def test_averages_are_the_papers_and_not_means_of_its_rounded_cells():
    """80.54 is printed, and the five cells, rounded to one decimal, have the mean 80.56; Table 9 prints averages alone."""
    entries = [e for e in read_papers(ROOT / "recipes/papers/soft_grpo.yaml") if e.average]
    by_table = {t: [e for e in entries if e.source.endswith(f"Table {t}")] for t in (1, 2, 3, 5, 9)}
    assert {t: len(rows) for t, rows in by_table.items()} == {1: 15, 2: 5, 3: 5, 5: 3, 9: 15}
    first = by_table[1][0]
    assert (first.name, first.decoding, first.average["first@16"].value) == ("qwen1.5b_none", "discrete", 80.54)
    for e in entries:
        for metric, average in e.average.items() if e.values else ():
            # Both are rounded: the cells to .05, of which a mean is off by no more, and the average to .05.
            assert abs(statistics.fmean(v[metric].value for v in e.values.values()) - average.value) <= 0.1, (
                e,
                metric,
            )
    lengths = {(e.name, e.decoding): tuple(v.value for v in e.average.values()) for e in by_table[9]}
    assert lengths["llama3b_soft", "as_trained"] == (712, 708) and lengths["qwen7b_none", "discrete"] == (7775, 6844)


def test_table_2_of_softgrpo_is_on_the_257_sanitized_tasks():
    """91.1 % is 234 of 257, and of no whole number of 500: so are all Pass@k of MBPP but the 90.0 of one row."""
    table = [e for e in read_papers(ROOT / "recipes/papers/soft_grpo.yaml") if e.source.endswith("Table 2")]
    shares = [
        estimate.value for e in table for metric, estimate in e.values["mbpp_sanitized"].items() if metric != "mean@32"
    ]
    of_257 = {round(100 * right / 257, 1) for right in range(258)}
    assert len(shares) == 15 and 91.1 in shares and [share for share in shares if share not in of_257] == [90.0]
    for path in EVALUATION:
        if path.parent.parent.name == "soft_grpo" and path.stem.endswith("_ood"):
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
            assert recipe["benchmarks"] == ["gpqa_diamond", "humaneval", "mbpp_sanitized"]


def test_table_4s_row_of_soft_tokens_is_the_deepscaler_model_under_soft_sampling():
    """41.3 / 77.9 / 75.5 / 95.2 stand in Tables 4 and 3 of 2509.19170."""
    (row,) = (line for line in README.splitlines() if line.startswith("| 4: Soft Tokens |"))
    (cells,) = (
        e.values
        for e in read_papers(ROOT / "recipes/papers/soft_tokens.yaml")
        if (e.name, e.decoding) == ("llama3b_deepscaler_soft", "soft sample") and "Tables 3-5" in e.source
    )
    numbers = [
        cells[benchmark][metric].value for benchmark in ("math500", "gsm8k") for metric in ("mean@32", "pass@32")
    ]
    assert numbers == [41.3, 77.9, 75.5, 95.2]
    assert "[llama3b_deepscaler_soft](" in row and "`soft sample` | 41.3 / 77.9 / 75.5 / 95.2 |" in row


def test_cells_that_are_printed_with_more_decimals_keep_them():
    entries = read_papers(ROOT / "recipes/papers/soft_tokens.yaml")
    (cell,) = (
        e.values["gsm8k"]["mean@1"]
        for e in entries
        if (e.source, e.name, e.decoding) == ("Soft Tokens, Table 1", "qwen3b_none", "hard greedy")
    )
    assert cell.value == 8.92


# In which part of 2509.19170 a setting stands.
PLACES = {
    "prompt_template": "appendix B", "raw_prompt": "appendix B", "end_of_thinking": "appendix C",
    "answer_prefill": "appendix C", "max_answer_length": "section 4", "max_thinking_length": "section 4",
    "learning_rate": "appendix D", "lr_scheduler_type": "section 4", "warmup_steps": "section 4",
    "eval_greedy": "section 4", "num_generations": "section 4", "max_steps": "section 4",
}  # fmt: skip


@pytest.mark.parametrize("path", [path for path in PAPERS if path.parent.name == "soft_tokens"], ids=name)
def test_settings_of_soft_tokens_stand_where_the_recipe_says(path):
    said = dict(re.findall(r"^(\w+): .*?# (appendix \w|section \d)\b", path.read_text(encoding="utf-8"), re.M))
    assert {setting: said.get(setting) for setting in PLACES} == PLACES


@pytest.mark.parametrize("path", [path for path in PAPERS if path.parent.name == "soft_grpo"], ids=name)
def test_settings_of_the_released_scripts(path):
    """save_freq is 80 in the scripts of the Llama and of Gaussian noise, 200 in the others; kl_loss_coef was 0.002."""
    text = path.read_text(encoding="utf-8")
    rollouts = 80 if path.stem.startswith("llama3b") or "gaussian" in path.stem else 200
    assert f"save_steps: 80  # script: every {rollouts} rollouts;" in text
    assert ("have 0.002" in text) is path.stem.startswith("qwen1.5b_soft")


def test_soft_evaluations_clamp_the_noise_as_the_released_sampler_does():
    """Of untrained and GRPO models too: every Gumbel number is clamped to [-1.5, 3]."""
    for path in EVALUATION:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        soft = [d for d in recipe["decodings"] if d.get("thought") == "gumbel"]
        if recipe.get("preset") == "soft_grpo":
            assert all(d["gumbel_density"] == "softgrpo" for d in soft), path
    assert PRESETS["soft_grpo"].thinking["gumbel_density"] == "softgrpo"


def test_the_index_has_every_recipe_and_the_papers_numbers():
    rows = [line for line in README.splitlines() if line.startswith("| ")]
    for path in [*PAPERS, *(p for p in EVALUATION if p.parent.name == "eval")]:
        assert f"({path.relative_to(ROOT / 'recipes')})" in README, path
    grpo, tokens = ({}, {})
    for index, paper in ((grpo, "soft_grpo"), (tokens, "soft_tokens")):
        for e in read_papers(ROOT / f"recipes/papers/{paper}.yaml"):
            index[e.source.split(", ")[1], e.name, e.decoding] = e.columns

    def row(run: str, *parts: str) -> str:
        found = [r for r in rows if (f"[{run}](" in r or f"`{run}`" in r) and all(part in r for part in parts)]
        assert len(found) == 1, (run, parts, found)
        return found[0]

    for (table, run, decoding), values in grpo.items():
        if "average" not in values:
            continue
        decimals = {"Table 9": 0, "Table 1": 2, "Table 2": 2}.get(table, 1)  # as the paper prints them
        averages = " / ".join(f"{average.value:.{decimals}f}" for average in values["average"].values())
        line = row(run, f"| {table[-1]}: ", f"`{decoding}`")
        assert f"| {averages} | not run |" in line, (table, run, averages)
    for (table, run, decoding), greedy in tokens.items():
        line = f"({'soft_tokens/' + run}.yaml)" if not run.endswith("_none") else f"`{run}`: untrained"
        shown = "Table 1" if ("Table 1", run, decoding) in tokens else "Appendix F"
        if table != shown or decoding != "hard greedy":
            continue
        sample = tokens[table, run, "hard sample"]
        cells = [f"{v(greedy, b, 'mean@1')} / {v(sample, b, 'mean@32')} / {v(sample, b, 'pass@32')}" for b in greedy]
        (found,) = (r for r in rows if line in r and r.startswith(("| 1-5: ", "| F: ")))
        assert f"| {', '.join(cells)} | not run |" in found, (run, cells)


def test_the_index_has_the_numbers_of_selar():
    for entry in read_papers(ROOT / "recipes/papers/selar.yaml"):
        cells = " / ".join(f"{by['mean@1'].value:.2f}" for by in entry.values.values())
        model = {"qwen3_1.7b_none": "Qwen3-1.7B", "qwen3_8b_none": "Qwen3-8B", "qwen3_32b_none": "Qwen3-32B"}[
            entry.name
        ]
        (row,) = (
            line
            for line in README.splitlines()
            if line.startswith(f"| {model} ") and f"`{entry.decoding}`" in line and "selar/" in line
        )
        assert cells in row, (entry.name, entry.decoding, cells)


def test_the_index_has_the_numbers_of_n_grpo():
    for entry in read_papers(ROOT / "recipes/papers/n_grpo.yaml"):
        (row,) = (
            line
            for line in README.splitlines()
            if "(n_grpo/eval/" in line
            and f"`{entry.decoding}`" in line
            and (f"`{entry.name}`" in line or f"[{entry.name}]" in line)
        )
        assert " / ".join(f"{average.value:.2f}" for average in entry.average.values()) in row, entry.name


def v(values: dict, benchmark: str, metric: str) -> float:
    """A published number without its standard deviation."""
    return values[benchmark][metric].value


# Special tokens, chat templates, stop rules and answers, on the real tokenizers where the hub's cache has them.

HUB = {
    path.split("/")[-1]: path
    for path in (yaml.safe_load(recipe.read_text(encoding="utf-8"))["model_name_or_path"] for recipe in TRAINING)
}


@pytest.fixture(
    scope="module", params=[f"{name} ({kind})" for name in standins.TOKENIZERS for kind in ("stand-in", "real")]
)
def tokenizer(request):
    model, kind = request.param.rstrip(")").split(" (")
    if kind == "stand-in":
        return model, standins.tokenizer(model)
    try:
        return model, AutoTokenizer.from_pretrained(HUB[model], local_files_only=True)
    except OSError:
        pytest.skip(f"the tokenizer of {HUB[model]} is not in the hub's cache")


def test_what_a_prompt_is(tokenizer):
    """R1 begins its thought in the prompt; a chat has one beginning of sequence, and a raw prompt is the paper's text."""
    model, tok = tokenizer
    family = standins.FAMILIES[standins.TOKENIZERS[model]]
    assert (tok.bos_token or None, tok.eos_token) == (family["bos"], family["eos"])
    problem = Problem(0, "1+1?", "2", {"kind": "math"})
    chat = build_prompt(problem, "soft_grpo", tok)
    ids = tok(chat)["input_ids"]
    assert "1+1? Let's think step by step and output the final answer within \\boxed{}." in chat
    assert ids.count(tok.bos_token_id) == (1 if family["bos"] else 0)
    assert chat.endswith("<think>\n") is (standins.TOKENIZERS[model] == "deepseek")
    raw = build_prompt(problem, "soft_tokens", tok)
    assert raw.endswith("User: 1+1? Assistant:") and tok.decode(tok(raw)["input_ids"], skip_special_tokens=True) == raw


def test_what_ends_a_thought(tokenizer):
    """</think> is one token of R1's and Qwen3's, and text to a Llama; neither ends a completion."""
    model, tok = tokenizer
    end = EndOfThinking(tok, "</think>")
    added = standins.FAMILIES[standins.TOKENIZERS[model]]["added"]
    assert end.is_token is ("</think>" in added) and (len(end.ids) == 1) is end.is_token
    assert tok.eos_token_id not in end.ids
    assert ended(tok, "</think>", "so x > 1 it is </think>\n42") == "so x > 1 it is </think>"
    # A bare ">", where the released code would stop, does not.
    assert ended(tok, "</think>", "x > 1 and <b> y") is None


def test_when_the_final_answer_is_announced(tokenizer):
    """The blank belongs to what follows it, unless that is a digit: the thought closes with the token that has it."""
    _, tok = tokenizer
    rule = "The final answer is: "
    assert ended(tok, rule, "2. The final answer is: 42") == "2. The final answer is: "
    assert ended(tok, rule, "2. The final answer is: \\boxed{42}") == "2. The final answer is: \\"
    assert ended(tok, rule.strip(), "2. The final answer is: \\boxed{42}") == "2. The final answer is:"
    ids = tok("The final answer is: \\boxed{", add_special_tokens=False)["input_ids"]
    assert tok.decode(ids) == "The final answer is: \\boxed{" and len(ids) <= 16  # the room that recipes leave


def ended(tok, rule: str, text: str) -> str | None:
    """What has been thought when the rule ends a thought that goes like `text`, one token a step; `None`: it does not."""
    end, ids = EndOfThinking(tok, rule), tok(text, add_special_tokens=False)["input_ids"]
    for step in range(1, len(ids) + 1):
        if end.rests([ids[:step]]) != [None]:
            return tok.decode(ids[:step])
    return None


def test_where_an_answer_is_read(tokenizer):
    """What a completion decodes to goes through the judge of the evaluation and the rewards of training."""
    _, tok = tokenizer
    for text, right in (("a </think> so \\boxed{\\frac{1}{2}}", True), ("\\boxed{2}", False)):
        decoded = tok.decode(tok(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
        assert math_reward([decoded], ["1/2"]) == soft_grpo_reward([decoded], ["1/2"]) == [float(right)]
    final = "x. The final answer is: \\boxed{42}. User: 1"
    decoded = tok.decode(tok(final, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
    assert soft_tokens_reward([decoded], ["42"]) == [100.0]
    assert answer_text(decoded, "soft_tokens", "math") == "\\boxed{42}"
