# SPDX-License-Identifier: Apache-2.0
"""The pages say what there is: links, commands, flags, recipes, settings and metrics exist, and their Python runs."""

import ast
import importlib
import os
import re
import shlex
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig

from tests import support_matrix, tiny
from trl_soft import SoftGRPOConfig, SoftRLOOConfig, ThinkingSettings
from trl_soft.scripts.arguments import SoftScriptArguments
from trl_soft.scripts.console import COMMANDS
from trl_soft.scripts.parser import SoftParser
from trl_soft.scripts.run_evaluation import EvaluationArguments
from trl_soft.thoughts import THOUGHTS


ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")]
OTHERS += [ROOT / f"{folder}/README.md" for folder in ("recipes", "benchmarks", "study", "study/real", "tests")]
OTHERS += sorted((ROOT / ".claude").rglob("*.md"))
PAGES = DOCS + OTHERS
# Their blocks are checked by tests of their own: test_own_thought.py runs both of its files.
OWN = {"own_thought.md"}
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TRAINING = (SoftScriptArguments, SoftGRPOConfig, SoftRLOOConfig, ModelConfig)
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_ENVIRONMENT = re.compile(r"^(?:[A-Z_]+=\S+ )+")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages; `""` is a block without one."""
    return [text for _, language, text in _FENCE.findall(path.read_text("utf-8")) if language in languages]


# What belongs together


def nav(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in nav(part)]


def test_the_site_has_every_page():
    """And names none that is not there. `make docs` checks the rest, links and anchors in its pages among it."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = nav(config["nav"])
    outside = set(ast.literal_eval(re.search(r"^PAGES = (.*)$", (ROOT / "docs/hooks.py").read_text(), re.M).group(1)))
    assert len(listed) == len(set(listed))
    assert set(listed) == outside | {str(path.relative_to(ROOT / "docs")) for path in DOCS}
    assert all((ROOT / page).is_file() for page in outside)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path):
    text = _FENCE.sub("", path.read_text("utf-8"))
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)(?:#[^)\s]*)?\)", text):
        assert (path.parent / link).exists(), link


# Commands


def lines_of(block: str) -> list[str]:
    """Commands of a block, each on one line: those behind `$` where there are any, else all."""
    joined = re.sub(r"\\\n\s*", "", block)
    typed = [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return typed or joined.splitlines()


@cache
def flags_of(module: str) -> set[str]:
    """The flags that a command reads, from its dataclasses or from the texts in its source."""
    if module == "trl_soft.scripts.train":
        return {f"--{field}" for kind in TRAINING for field in kind.__dataclass_fields__} | {"--algorithm"}
    if module == "trl_soft.scripts.run_evaluation":
        return {f"--{field}" for field in EvaluationArguments.__dataclass_fields__}
    path = ROOT / (importlib.import_module(module).main.__module__.replace(".", "/") + ".py")
    found = set(re.findall(r'"(--?\w+)"', path.read_text("utf-8")))
    return found | flags_of("trl_soft.scripts.train") if module == COMMANDS["plan"][0] else found


def check_command(words: list[str]) -> bool:
    """Whether this is a command of the project. Raises an `AssertionError` where it names what is not there."""
    module = None
    if words[0] == "make":
        wanted = [word for word in words[1:] if "=" not in word and word != "#"]
        assert wanted and re.search(rf"^{re.escape(wanted[0])}:", MAKEFILE, re.M), words
        return True
    if words[0] == "trl-soft":
        if words[1].startswith("-"):
            return True
        assert words[1] in COMMANDS, words
        module, words = COMMANDS[words[1]][0], words[2:]
    elif words[:2] == ["accelerate", "launch"]:
        known = ("--config_file", "--num_processes", "--mixed_precision", "--num_machines", "--machine_rank")
        known += ("--main_process_ip", "--main_process_port")
        place = next((i for i, w in enumerate(words) if w.endswith(".py") or w == "-m"), None)
        assert place is not None, words
        assert all(w in known for w in words[2:place] if w.startswith("--")), words
        if words[place] == "-m":
            assert words[place + 1] == "trl_soft"
            return check_command(["trl-soft", *words[place + 2 :]])
        script = words[place]
        assert "SCRIPT" in script or (ROOT / script).is_file(), script
        module = "trl_soft.scripts." + ("run_evaluation" if "evaluate" in script else "train")
        words = words[place + 1 :]
    elif words[:2] == ["python", "-m"] and words[2].startswith("trl_soft"):
        module, words = words[2], words[3:]
        if module == "trl_soft":
            return check_command(["trl-soft", *words])
        module = {"trl_soft.plan": COMMANDS["plan"][0], "trl_soft.evaluate.report": COMMANDS["report"][0]}.get(
            module, module
        )
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        for word in words:
            for extra in filter(None, re.findall(r"^(?:\.|trl_soft)\[(.*)\]$", word)):
                assert set(extra.split(",")) <= set(extras), word
        return True
    else:
        return False
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-?[\d.]+", word):
            assert word.partition("=")[0] in flags_of(module) | {"--config", "--help", "-o"}, (word, words)
    for flag, value in pairwise(words):
        if flag == "--config" and value.islower():
            assert (ROOT / value).is_file(), value
    return True


def commands(path: Path) -> list[list[str]]:
    found = []
    for block in blocks(path, "console", "bash", "sh", ""):
        for line in lines_of(block):
            line = _ENVIRONMENT.sub("", line.strip())
            if re.match(r"(trl-soft|make|accelerate launch|python -m trl_soft|pip install)\b", line):
                found.append(shlex.split(line, comments=True))
    return found


@pytest.mark.parametrize("path", [path for path in PAGES if commands(path)], ids=name)
def test_commands_and_flags_exist(path):
    for words in commands(path):
        assert check_command(words)


def test_a_wrong_command_is_seen():
    for line in ("trl-soft trian", "trl-soft chat M --thoughts hard", "make quickstrat", 'pip install -e ".[pfet]"',
                 "trl-soft train --config recipes/none.yaml", "accelerate launch examples/none.py"):  # fmt: skip
        with pytest.raises(AssertionError):
            check_command(shlex.split(line))


# Recipes


FRAGMENT = {
    "model_name_or_path": "examples/quickstart/reasoner", "dataset_name": "examples/quickstart/train.jsonl",
    "output_dir": "outputs/mine", "use_cpu": True, "bf16": False, "max_completion_length": 64, "report_to": "none",
}  # fmt: skip


def parse(text: str, folder: Path):
    values = yaml.safe_load(text)
    if {"decodings", "benchmarks"} & set(values):
        kinds: tuple = (EvaluationArguments,)
    else:
        only = set(SoftRLOOConfig.__dataclass_fields__) - set(SoftGRPOConfig.__dataclass_fields__)
        kinds = (SoftScriptArguments, SoftRLOOConfig if set(values) & only else SoftGRPOConfig, ModelConfig)
        values = {**FRAGMENT, **values}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return SoftParser(kinds).parse_args_and_config(["--config", str(file)])


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "yaml")], ids=name)
def test_recipes_are_read(path, tmp_path):
    """Each block of YAML is a recipe or some keys of one, and no setting of it is refused."""
    for text in blocks(path, "yaml"):
        assert parse(text, tmp_path)


def test_a_wrong_recipe_is_seen(tmp_path):
    for text in ("thoguht: gumbel", "thought: dirichlet\ngumbel_temperature: 0.5"):
        with pytest.raises((ValueError, SystemExit)):
            parse(text, tmp_path)


# Python


def runnable() -> list[Path]:
    return [path for path in PAGES if blocks(path, "python") and path.name not in OWN]


def small(source: str) -> str:
    """The same code with the embedded model and data, and short caps."""
    source = re.sub(r'load_dataset\("trl-lib/[^)]*\)', "ROWS", source)
    if "ROWS" in source:
        source = re.sub(r'"Qwen/[^"]+"', '"examples/quickstart/reasoner"', source)
        source = source.replace("SoftGRPOConfig(\n", "SoftGRPOConfig(\n    **SMALL,\n")
    return re.sub(
        r"(max_thinking_length=)\d{3,}", r"\g<1>24", re.sub(r"(max_completion_length=)\d{3,}", r"\g<1>40", source)
    )


@pytest.mark.parametrize("path", runnable(), ids=name)
def test_python_runs(path, tmp_path, monkeypatch):
    """The blocks of a page one after the other, in a folder that has the examples."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    reasoner = "examples/quickstart/reasoner"
    sizes = {"max_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
    names = {
        "SMALL": {**sizes, "report_to": "none"},
        "ROWS": Dataset.from_list([{"prompt": [{"role": "user", "content": "3+4="}], "solution": "7"}] * 2),
        "model": AutoModelForCausalLM.from_pretrained(reasoner),
        "tokenizer": AutoTokenizer.from_pretrained(reasoner),
    }
    for source in blocks(path, "python"):
        exec(compile(small(source), str(path), "exec"), names)


def test_every_block_says_what_it_is():
    """A page in docs/ that is not checked by these languages would not be checked at all."""
    for path in DOCS:
        for _, language, text in _FENCE.findall(path.read_text("utf-8")):
            assert language in ("", "python", "yaml", "console", "text", "json", "toml"), (path, language)
            assert language or not re.search(r"^(import|from) \w", text, re.M), (path, text)


# Settings, metrics, tests


def rows(text: str) -> list[list[str]]:
    """The cells of the tables of a page."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| `")
    ]


@pytest.mark.parametrize("kind", THOUGHTS)
def test_a_thought_has_a_page_with_its_settings(kind):
    """Every option of the kind, and every setting that shapes its distribution, with the default; no other."""
    text = (ROOT / f"docs/thoughts/{kind}.md").read_text("utf-8")
    section = text.split("## Settings")[1].split("\n## ")[0]
    stated = {cells[0].strip("`"): cells[1].strip("`").strip('"') for cells in rows(section)}
    thought = THOUGHTS[kind]
    values = vars(ThinkingSettings(thought=kind).values(kind))
    wanted = {name: values[name] for name in (*thought.defaults, *thought.options)}
    assert stated == {name: str(value) for name, value in wanted.items()}
    assert f"::: trl_soft.thoughts.{kind}\n" in text and all(
        part in text for part in ("## When", "## Theirs and ours")
    )


def test_every_metric_is_explained(tmp_path):
    """Each that a run writes, with a reference model, off-policy steps and an evaluation."""
    said = set(re.findall(r"`([^`\s]+)`", (ROOT / "docs/metrics.md").read_text("utf-8")))
    tiny.model().save_pretrained(tmp_path / "model")
    net = type(tiny.model()).from_pretrained(tmp_path / "model")
    settings = {"max_steps": 2, "num_iterations": 2, "beta": 0.1, "nonfinite": "skip", "max_refill_rollouts": 1}
    trainer = tiny.trainer(tmp_path, net, **settings)
    trainer.train()
    written = {key for row in trainer.state.log_history if "loss" in row for key in row}
    ours = {key for key in written if not key.startswith("rewards/")} - {"step"}
    assert {"nonfinite/skipped", "thinking/kl", "refill/replaced"} <= ours and not ours - said


def test_the_table_of_what_is_tested_is_the_tests_own(request):
    """As written, and of each file that this session collects, the tests are among those collected."""
    assert support_matrix.page_with(support_matrix.tables()) == support_matrix.PAGE.read_text("utf-8")
    collected = {item.nodeid.partition("[")[0] for item in request.session.items}
    files = {test.partition("::")[0] for test in collected}
    for found in support_matrix.combinations():
        assert found.test.partition("::")[0] not in files or found.test in collected, found.test


# Inline `key: value`

KEYS = {field for kind in (*TRAINING, EvaluationArguments) for field in kind.__dataclass_fields__}


@pytest.mark.parametrize(
    "path",
    [ROOT / "docs/troubleshooting.md", ROOT / "docs/trainers.md", *(ROOT / "docs/thoughts").glob("*.md")],
    ids=name,
)
def test_inline_settings_exist(path):
    for key in re.findall(r"`([a-z]\w+): [^`]+`", path.read_text("utf-8")):
        assert key in KEYS | {"enable_thinking"}, key  # an argument of chat templates


# Files for others: assistants, containers, services


def test_workflows_and_the_image_name_what_is_there():
    assert {path.stem for path in WORKFLOWS} == {"ci", "docs", "wheels"}
    texts = {path: path.read_text("utf-8") for path in (*WORKFLOWS, ROOT / "Dockerfile")}
    for path, text in texts.items():
        for target in re.findall(r"\bmake ([a-z][\w-]*)", text):
            assert re.search(rf"^{target}:", MAKEFILE, re.M), (path, target)
        for file in re.findall(
            r"(?<![\w/.-])((?:\.ci/run|constraints[\w-]*\.txt|pyproject\.toml|outputs/site|mkdocs\.yml))", text
        ):
            assert file == "outputs/site" or (ROOT / file).is_file(), (path, file)
    for path in WORKFLOWS:
        workflow = yaml.safe_load(texts[path])
        assert workflow["jobs"] and all(job["runs-on"] and job["steps"] for job in workflow["jobs"].values())
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    versions = ci["jobs"]["test"]["strategy"]["matrix"]["python"]
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    assert versions == ["3.11", "3.12", "3.13"] and requires == f">={versions[0]}"
    assert os.access(ROOT / ".ci/run", os.X_OK)
