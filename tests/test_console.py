# SPDX-License-Identifier: Apache-2.0
"""The command `trl-soft`: each of its commands on the embedded reasoner, and a user's mistakes in one sentence."""

import io
import json
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from peft import LoraConfig, get_peft_model
from rich.console import Console
from setuptools import find_packages
from transformers import AutoModelForCausalLM

import trl_soft
from tests import tiny
from trl_soft import SoftGRPOConfig, ThinkingSettings, shipped
from trl_soft.command_line import TRACEBACK, is_sentence, one_sentence
from trl_soft.scripts import chat, console, doctor, recipes, run_evaluation
from trl_soft.scripts.merge import merge
from trl_soft.scripts.parser import SoftParser, algorithm_of
from trl_soft.scripts.tried_imports import failures


ROOT = Path(__file__).parent.parent
REASONER = ROOT / "examples/quickstart/reasoner"


def test_without_a_command_it_lists_them(capsys):
    assert console.main([]) == 2
    assert console.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in console.COMMANDS)
    assert console.main(["--version"]) == 0 and capsys.readouterr().out == f"{trl_soft.__version__}\n"


def test_a_misspelt_command_names_the_nearest(capsys):
    assert console.main(["evalute"]) == 2
    assert "The nearest is 'evaluate'" in capsys.readouterr().err


@pytest.mark.parametrize("name", console.COMMANDS)
def test_each_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        console.main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and shown.startswith(f"usage: trl-soft {name} ") and "--" in shown


def test_it_runs_as_a_module():
    shown = subprocess.run([sys.executable, "-m", "trl_soft", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == trl_soft.__version__


# A user's mistakes


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("train --config nowhere.yaml", "nowhere.yaml, which does not exist"),
        ("train --config GUMBEL --learning_rate abc", "invalid float value: 'abc'"),
        ("train --config GUMBEL --lerning_rate 1", "The nearest known name is `learning_rate`"),
        ("train --config GUMBEL --lerning_rate null", "The nearest known name is `learning_rate`"),
        ("train --config GUMBEL --thought soft --gumbel_density null", "no policy gradient"),
        (
            "train",
            "`dataset_name` and `model_name_or_path` must be set, in the YAML file or as a flag. For example: `trl-soft train",
        ),
        ("train --model_name_or_path NEW", "`dataset_name` must be set"),
        ("evaluate", "or a hub id, for example: `trl-soft evaluate --config recipes/quickstart/evaluate.yaml`"),
        ("report", "required: RUN, -o/--output. For example: `trl-soft report"),
        ("compare", "required: RUN DECODING. For example: `trl-soft compare"),
        ("inspect", "required: run, -o/--output. For example: `trl-soft inspect"),
        ("merge", "required: adapter, -o/--output. For example: `trl-soft merge"),
        ("recipes show", "required: name. For example: `trl-soft recipes show quickstart/gumbel`"),
        ("recipes copy", "required: name. For example: `trl-soft recipes copy quickstart/gumbel`"),
        ("chat", "required: model. For example: `trl-soft chat"),
        ("chat REASONER --candidates abc", "argument --candidates: invalid int value: 'abc'. For example"),
        ("train --config FOLDER", "is a folder"),
        ("train --config WEIGHTS", "is not YAML"),
        ("train --config GUMBEL --num_generations 0", "`num_generations` is 0, but it must be at least 1"),
        ("train --config GUMBEL --max_completion_length 0", "`max_completion_length` is 0, but it must be at least 1"),
        ("train --config GUMBEL --report_to nothing", "'nothing', which is no tracker"),
        ("train --config GUMBEL --output_dir REASONER/config.json/run", "cannot be made"),
        ("train --config GUMBEL --per_device_train_batch_size 3", "cannot work together"),
        ("train --config GUMBEL --output_dir GUMBEL", "which is a file"),
        ("train --config GUMBEL --dataset_name NEW", "neither a file, a benchmark nor a data set"),
        ("train --config", "`--config` has no value"),
        ("plan --config --use_cpu", "`--config` has no value"),
        ("train --config GUMBEL --dataset_name BROKEN", "broken.jsonl cannot be read as json"),
        ("train --config GUMBEL --loss_type rloo", "`loss_type` is rloo, which TRL's GRPO does not know"),
        (
            "train --config GUMBEL --output_dir ADAPTER",
            "which holds an adapter (adapter_config.json) of an earlier run",
        ),
        ("chat FOLDER hello", "is neither a folder with a model"),
        ("chat REASONER hello --dtype foo", "invalid choice: 'foo'"),
        ("chat REASONER hello --device nothing", "`--device` is nothing, which cannot be used here"),
        ("chat --max_completion_length 0 REASONER --thought hard hello", "`max_completion_length` is 0"),
        ("plan --config GUMBEL --model_config BROKEN", "is not JSON"),
        ("recipes copy quickstart/gumbel -o BROKEN/new", "Not a directory. Check the path."),
        ("train GUMBEL", "stands alone, but every word belongs to a flag. A recipe follows `--config`"),
        ("plan GUMBEL", "A recipe follows `--config`"),
        ("plan --gpu_bg 80", "The nearest known name is `gpu_gb`"),
        ("plan", "Give `--config RECIPE.yaml`"),
        ("plan --gpu_gb 80", "Give `--config RECIPE.yaml`"),
        ("recipes show gumble", "The nearest is 'quickstart/gumbel'"),
        ("merge REASONER -o NEW", "no `adapter_config.json`"),
        ("chat NEW hello", "neither a folder with a model"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(words, sentence, capsys, tmp_path):
    places = {"GUMBEL": ROOT / "recipes/quickstart/gumbel.yaml", "REASONER": REASONER, "NEW": tmp_path / "new"}
    places |= {"FOLDER": ROOT / "recipes", "WEIGHTS": REASONER / "model.safetensors"}
    broken, adapter = tmp_path / "broken.jsonl", tmp_path / "adapter"
    broken.write_text('{"question": ')
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    places |= {"BROKEN": broken, "ADAPTER": adapter}
    with pytest.raises(SystemExit) as ended:
        console.main([
            str(places.get(word, word.replace("REASONER", str(REASONER)).replace("BROKEN", str(broken)))) for word in words.split()
        ])  # fmt: skip
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert lines[-1].startswith("error: ") and sentence in lines[-1]
    assert not any(line.startswith("Traceback") for line in lines)


def test_errors_of_other_packages_that_are_mistakes(capsys):
    """Their first line, and no traceback. Another error keeps it."""
    with pytest.raises(SystemExit) as ended, one_sentence():
        raise OfflineModeIsEnabled("\nThe hub is off.\nA second line.")
    assert ended.value.code == 2 and capsys.readouterr().err == "error: huggingface_hub says: The hub is off.\n"
    with pytest.raises(SystemExit) as ended, one_sentence():
        raise ConnectionError("Couldn't reach 'a/b' on the Hub.")
    assert ended.value.code == 2 and "on the Hub. Check the connection" in capsys.readouterr().err
    with pytest.raises(RuntimeError), one_sentence():
        raise RuntimeError("a fault of this package")


def test_every_module_that_is_a_command_ends_in_one_sentence():
    for path in (ROOT / "trl_soft").rglob("*.py"):
        _, marked, last = path.read_text("utf-8").partition('if __name__ == "__main__":')
        if marked and "sandbox" not in path.parts and path != ROOT / "trl_soft/__main__.py":
            assert last.lstrip().startswith("with one_sentence():"), path


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "- a\n", "a: [\n"])
def test_yaml_that_is_no_recipe(text, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        console.main(["train", "--config", str(tmp_path / "recipe.yaml")])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_only_our_own_errors_are_sentences(monkeypatch, capsys):
    with pytest.raises(ValueError) as theirs:
        int("x")
    assert not is_sentence(theirs.value)
    with pytest.raises(ValueError, match="invalid literal"):
        with one_sentence():
            int("x")
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(ValueError, match="no kind of thought"):
        with one_sentence():
            ThinkingSettings(thought="x")
    monkeypatch.delenv(TRACEBACK)
    with pytest.raises(SystemExit):
        with one_sentence():
            ThinkingSettings(thought="x")
    assert capsys.readouterr().err.startswith("error: `thought` is 'x'")


def test_an_interrupt_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        with one_sentence():
            raise KeyboardInterrupt
    assert ended.value.code == 130 and "--resume_from_checkpoint auto" in capsys.readouterr().err


def test_null_takes_a_key_of_the_recipe_back(tmp_path):
    (tmp_path / "recipe.yaml").write_text("thought: gumbel\ngumbel_density: concrete\nthinking_top_k: 7\n")
    words = ["--config", str(tmp_path / "recipe.yaml"), "--gumbel_density", "null", "--thinking_top_k=null"]
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(words)
    assert settings == ThinkingSettings(thought="gumbel")


def test_another_thought_leaves_behind_what_shaped_the_recipes(tmp_path, caplog):
    recipe = tmp_path / "recipe.yaml"
    text = "thought: gumbel\ngumbel_density: concrete\nthinking_top_k: 7\nmax_thinking_length: 9\n"
    recipe.write_text(text)
    words = ["--config", str(recipe), "--thought", "dirichlet", "--thinking_top_p", "0.5"]
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(words)
    assert settings == ThinkingSettings(thought="dirichlet", thinking_top_p=0.5, max_thinking_length=9)
    assert (
        "`--thought dirichlet` takes the place of `thought: gumbel`, so the recipe's gumbel_density, thinking_top_k"
        in caplog.text
    )
    caplog.clear()
    recipe.write_text(text + "eval_thought: gumbel\n")
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(["--config", str(recipe), "--thought=hard"])
    assert (
        settings.gumbel_density == "concrete" and settings.thinking_top_k is None
    )  # the evaluation reads the density
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(["--config", str(recipe), "--thought=gumbel"])
    assert settings.thinking_top_k == 7
    recipe.write_text("thought: hard\ngumbel_density: concrete\n")
    with pytest.raises(ValueError, match="which does not read it"):
        SoftParser((ThinkingSettings,)).parse_args_and_config(["--config", str(recipe)])


def test_a_thought_that_is_taken_back_takes_its_options_with_it(tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text("thought: gaussian\nnoise_scale: 0.5\nmax_thinking_length: 9\n")
    words = ["--config", str(tmp_path / "recipe.yaml"), "--thought", "null"]
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(words)
    assert settings == ThinkingSettings(max_thinking_length=9) and "the recipe's noise_scale" in caplog.text
    (tmp_path / "recipe.yaml").write_text("thought: gumbel\neval_thought: gumbel\ngumbel_density: concrete\n")
    words = ["--config", str(tmp_path / "recipe.yaml"), "--thought", "hard", "--eval_thought", "null"]
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(words)
    assert settings == ThinkingSettings(thought="hard")


GATE = "thinking_gate: entropy\ngate_entropy: 0.5\ngate_side: below\ngate_dwell: 7\nthinking_top_k: 7\n"


@pytest.mark.parametrize(
    ("flags", "kept", "left"),
    [
        (["--thinking_gate", "first"], {"thinking_gate": "first"}, "gate_entropy, gate_side, gate_dwell"),
        (["--thinking_gate=always"], {}, "gate_entropy, gate_side, gate_dwell"),
        (["--thinking_gate", "null"], {}, "gate_entropy, gate_side, gate_dwell"),
        # The other gate reads it too.
        (
            ["--thinking_gate", "entropy_trend"],
            {"thinking_gate": "entropy_trend", "gate_dwell": 7},
            "gate_entropy, gate_side",
        ),
        (
            ["--thinking_gate", "random", "--gate_probability", "0.3"],
            {"thinking_gate": "random", "gate_probability": 0.3},
            "gate_entropy, gate_side, gate_dwell",
        ),
    ],
)
def test_another_gate_leaves_behind_what_it_does_not_read(tmp_path, caplog, flags, kept, left):
    (tmp_path / "recipe.yaml").write_text(GATE)
    words = ["--config", str(tmp_path / "recipe.yaml"), *flags]
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(words)
    assert settings == ThinkingSettings(thinking_top_k=7, **kept)
    (record,) = caplog.records
    assert "takes the place of `thinking_gate: entropy`" in record.message and f"left out: {left}." in record.message


def test_the_same_gate_and_no_gate_leave_nothing_behind(tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text(GATE)
    words = ["--config", str(tmp_path / "recipe.yaml"), "--thinking_gate", "entropy"]
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(words)
    assert settings.gate_dwell == 7 and not caplog.records
    # What is no text is left to the check of the settings.
    (tmp_path / "recipe.yaml").write_text("thought: [gumbel]\nthinking_gate: [first]\n")
    (settings,) = SoftParser((ThinkingSettings,)).parse_args_and_config(
        [*words[:2], "--thought=gumbel", words[2], "first"]
    )
    assert (settings.thought, settings.thinking_gate) == ("gumbel", "first")
    # Without a gate in the recipe there is none whose place another takes: the bound is a mistake.
    (tmp_path / "recipe.yaml").write_text("gate_entropy: 0.5\n")
    words = ["--config", str(tmp_path / "recipe.yaml"), "--thinking_gate", "first"]
    with pytest.raises(ValueError, match="which does not read it"):
        SoftParser((ThinkingSettings,)).parse_args_and_config(words)
    # A flag that the gate of the command line does not read is a mistake too.
    (tmp_path / "recipe.yaml").write_text(GATE)
    words = ["--config", str(tmp_path / "recipe.yaml"), "--thinking_gate", "first", "--gate_entropy", "1.0"]
    with pytest.raises(ValueError, match="which does not read it"):
        SoftParser((ThinkingSettings,)).parse_args_and_config(words)


@pytest.mark.parametrize("has_bf16", [False, True])
def test_bf16_is_chosen_by_the_device_unless_it_is_set(tmp_path, monkeypatch, has_bf16):
    monkeypatch.setattr("trl_soft.training.before_trl.is_torch_bf16_gpu_available", lambda: has_bf16)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    assert SoftGRPOConfig(str(tmp_path)).bf16 is has_bf16
    assert SoftGRPOConfig(str(tmp_path), use_cpu=True).bf16 is False
    assert SoftGRPOConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_the_algorithm_is_told_by_the_keys(tmp_path):
    assert algorithm_of(["--config", str(ROOT / "recipes/quickstart/gumbel.yaml")]) == "grpo"
    assert algorithm_of(["--config", str(ROOT / "recipes/soft_tokens/llama3b_gsm8k_soft.yaml")]) == "rloo"
    assert algorithm_of(["--normalize_advantages", "true"]) == "rloo"


# Commands


def test_a_copy_of_a_recipe_runs_where_it_is_copied_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert console.main(["recipes", "copy", "quickstart/gumbel"]) == 0
    assert (tmp_path / "recipes/quickstart/gumbel.yaml").is_file()
    flags = ["--max_steps", "1", "--per_device_train_batch_size", "8", "--use_cpu", "true"]
    assert console.main(["train", "--config", "recipes/quickstart/gumbel.yaml", *flags]) == 0
    assert json.loads((tmp_path / "outputs/quickstart/gumbel/thinking_config.json").read_text())["thought"] == "gumbel"
    (tmp_path / "recipes/quickstart/gumbel.yaml").write_text("mine: 1\n")
    with pytest.raises(SystemExit):
        console.main(["recipes", "copy", "quickstart/gumbel"])
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "recipes/quickstart/gumbel.yaml").read_text() == "mine: 1\n"


def test_bars_of_what_is_quick_are_not_shown(monkeypatch, capsys):
    """By tqdm's own switch, which it reads when a command imports it."""
    monkeypatch.setenv("TQDM_DELAY", "")
    monkeypatch.delenv("TQDM_DELAY")
    console.main(["recipes"])
    bar = [sys.executable, "-c", "from tqdm.auto import tqdm; list(tqdm(range(3)))"]
    shown = subprocess.run(bar, capture_output=True, text=True, check=True)
    assert not shown.stderr


def test_recipes_are_listed_with_what_they_are(capsys):
    assert console.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    training = [
        path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in ("accelerate", "papers")
    ]
    assert len(lines) == len(training)
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_the_wheel_carries_every_package_and_the_recipes():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    carried = {name for name in setup["packages"] if "._files" not in name}
    assert carried == set(find_packages(str(ROOT), include=["trl_soft*"]))
    outside = {name: path for name, path in setup["package-dir"].items() if "._files" in name}
    assert set(outside) == set(setup["packages"]) - carried
    for name, path in outside.items():
        patterns = setup["package-data"][name]
        held = {file for pattern in patterns for file in (ROOT / path).glob(pattern)}
        needed = {file for file in (ROOT / path).rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
        if path == "docs":  # its pages, without pictures and the site's style
            needed = {file for file in needed if file.suffix == ".md" and file.parent.name != "examples"}
        assert held >= needed


def test_chat_shows_the_thought_and_the_answer(capsys, monkeypatch):
    words = [
        "chat",
        str(REASONER),
        "3+4-5=",
        "--thought",
        "gumbel",
        "--max_completion_length",
        "48",
        "--device",
        "cpu",
    ]
    assert console.main([*words, "--temperature", "0", "--candidates", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split() for line in lines if line[:4].strip().isdigit()]
    assert len(steps) > 5 and [int(step[0]) for step in steps] == list(range(1, len(steps) + 1))
    assert all(0 < float(step[3]) <= 1 for step in steps if len(step) > 3 and "." in step[3])
    assert lines[-1].lstrip("-").isdigit()
    typed = iter(["1+1=", "", "2+2="])

    def type_next(*args, **kwargs):
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr(chat.Console, "input", type_next)
    assert console.main([*words[:2], "--no_thought", "--max_completion_length", "48", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 2


def test_a_hard_step_shows_the_probability_of_its_token(capsys):
    words = ["chat", str(REASONER), "3+4-5=", "--thought", "hard", "--device", "cpu", "--temperature", "0"]
    assert console.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split() for line in lines if line.startswith(" ")]
    model, tokenizer = chat.load(str(REASONER), "auto", "cpu")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "3+4-5="}], add_generation_prompt=True)[
        "input_ids"
    ]
    ids = torch.tensor([prompt + tokenizer.convert_tokens_to_ids([step[1] for step in steps])])
    with torch.no_grad():
        p = model(ids[:, :-1]).logits[0, len(prompt) - 1 :].softmax(-1)
    expected = p.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()
    assert len(steps) > 5 and [step[2] for step in steps] == [step[1] for step in steps]
    assert [float(step[3]) for step in steps] == pytest.approx(expected, abs=0.0006)  # three digits are shown


def test_a_chat_without_a_question_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit) as ended:
        console.main(["chat", str(REASONER), "--device", "cpu"])
    assert ended.value.code == 2 and "error: No question was given" in capsys.readouterr().err


def test_a_chat_stays_in_the_context_of_the_model():
    net = tiny.model()  # made for 128 tokens
    assert (chat.room(net, 28), chat.room(net, 200)) == (100, 1)
    net.config.max_position_embeddings = 32768
    assert chat.room(net, 28) == chat.LENGTH
    del net.config.max_position_embeddings
    assert chat.room(net, 28) == chat.LENGTH


def test_a_recipe_is_read_without_warnings_about_names_that_it_must_use(recwarn):
    warnings.simplefilter("always")
    SoftParser((SoftGRPOConfig,)).parse_args_and_config(["--output_dir", "out", "--gradient_checkpointing", "false"])
    assert not [str(warning.message) for warning in recwarn if "gradient_checkpointing" in str(warning.message)]


def test_no_memory_is_pinned_without_a_device(tmp_path):
    assert not tiny.config(tmp_path).dataloader_pin_memory
    assert not tiny.config(tmp_path, use_cpu=True, dataloader_pin_memory=True).dataloader_pin_memory


def test_a_merged_model_still_knows_how_to_think(tmp_path, capsys):
    tiny.model().save_pretrained(tmp_path / "model")
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    net = get_peft_model(net, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    settings = ThinkingSettings(thought="gumbel", thinking_top_k=3)
    net.save_pretrained(tmp_path / "adapter")
    tiny.tokenizer().save_pretrained(tmp_path / "adapter")
    settings.save_thinking(tmp_path / "adapter")
    assert console.main(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]) == 0
    assert ThinkingSettings.load_thinking(tmp_path / "merged") == settings
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(merged(ids).logits, net.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(SystemExit):
        console.main(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")])
    assert "is not empty" in capsys.readouterr().err


def test_a_merge_adds_no_token(tmp_path):
    """A tokenizer may have more tokens than its model, which PEFT's `AutoPeftModel` enlarges by random rows then."""
    more = tiny.tokenizer()
    more.add_tokens(["<more>"])
    tiny.model().save_pretrained(tmp_path / "model")
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, config, rows in (
        ("lora", {}, len(more) - 1),
        ("saved", {"modules_to_save": ["embed_tokens"]}, len(more)),
    ):
        if rows == len(more):
            net.resize_token_embeddings(rows)  # in training, so that the adapter has the rows
        trained = get_peft_model(net, LoraConfig(target_modules=["q_proj"], init_lora_weights=False, **config))
        trained.save_pretrained(tmp_path / name)
        more.save_pretrained(tmp_path / name)
        merge(str(tmp_path / name), tmp_path / f"{name}-merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-merged")
        ids = torch.tensor([[4, 5, 6]])
        assert merged.config.vocab_size == rows
        torch.testing.assert_close(merged(ids).logits, trained.eval()(ids).logits, rtol=1e-4, atol=1e-5)
        net = trained.unload()


@pytest.mark.parametrize("width", [40, 79, 80, 120])
def test_the_scores_of_an_evaluation_keep_every_column(width):
    row = {
        "problems": 1319, "samples": 1024, "mean@n": {"value": 0.5, "low": 0.456, "high": 0.544},
        "pass@k": {"1024": {"value": 0.987}}, "length": {"mean": 12345.6},
    }  # fmt: skip
    stream = io.StringIO()
    run_evaluation.show({"a benchmark": {"a decoding": row}}, Console(file=stream, width=width))
    shown = " ".join(stream.getvalue().split())
    assert all(
        text in shown for text in ("1319", "1024", "0.500", "0.456-0.544", "0.987", "12345.6", "maj@n", "interval")
    )
    assert max(map(len, stream.getvalue().splitlines())) <= width and "…" not in shown


@pytest.fixture
def importable(monkeypatch):
    """Imports nothing: that takes seconds for each package."""
    monkeypatch.setattr(doctor, "failures", lambda names: {})


def test_doctor_says_what_is_there(capsys, importable):
    status = console.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    by_subject = {finding["subject"]: finding for finding in report["findings"]}
    assert by_subject["torch"]["sentence"].startswith(torch.__version__.partition("+")[0])
    assert status == bool(report["problems"])
    assert console.main(["doctor"]) == status


def test_doctor_finds_a_version_outside_the_range(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["trl>=99", "torch>=1", 'trl_soft[plot]; extra == "eval"'])
    found = {finding.subject: finding for finding in doctor.packages()}
    assert found["trl"].state == "problem" and "pip install" in found["trl"].sentence
    assert found["torch"].state == "ok"

    def absent(name):
        raise PackageNotFoundError

    monkeypatch.setattr(doctor, "version", absent)
    found = {finding.subject: finding for finding in doctor.packages()}
    assert found["torch"].state == "problem" and found["wandb"].state == "note"


def test_doctor_tries_the_imports_of_optional_packages(monkeypatch):
    tried = []
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "vllm" else "1")
    monkeypatch.setattr(doctor, "failures", lambda names: tried.extend(names) or dict.fromkeys(tried, "fails (a: b)"))
    found = {finding.subject: finding for finding in doctor.imports()}
    assert set(found) == {f"import {name}" for name in doctor._OPTIONAL if name != "vllm"}
    assert {finding.state for finding in found.values()} == {"problem"}
    assert (
        "the import fails (a: b)." in found["import wandb"].sentence
        and "trains without it" in found["import wandb"].sentence
    )
    assert (
        "`pip uninstall peft`" in found["import peft"].sentence and "nothing trains" in found["import peft"].sentence
    )


def test_an_import_that_raises_crashes_or_hangs_is_a_clause(tmp_path, monkeypatch):
    for name, text in {
        "fine": "",
        "raising": "raise OSError('no\\nlibrary')",
        "crashing": "import os; os.kill(os.getpid(), 9)",
        "hanging": "import threading; threading.Event().wait()",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    how = failures(["fine", "raising", "crashing", "absent"])
    assert how == {
        "raising": "fails (library)",
        "crashing": "ends Python with signal 9",
        "absent": "fails (ModuleNotFoundError: No module named 'absent')",
    }
    assert failures(["hanging"], seconds=0) == {"hanging": "does not end within 0 seconds"}


def test_doctor_sees_a_vllm_that_the_plugin_cannot_use(monkeypatch):
    from trl_soft.rollout.vllm import compat

    monkeypatch.setattr(doctor, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(compat, "vllm_version", lambda: (0, 99))
    (finding,) = doctor.vllm()
    assert finding.state == "problem" and "0.24" in finding.sentence


def test_an_installation_without_recipes_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "trl_soft")
    with pytest.raises(FileNotFoundError, match="no recipes"):
        recipes.names()
