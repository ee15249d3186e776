# SPDX-License-Identifier: Apache-2.0
"""How a model thinks goes where its weights go: every way to save, to merge, to load and to save again."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from trl_soft import ThinkingSettings, saved_settings, soft_generate
from trl_soft.evaluate.runner import saved_beside
from trl_soft.rollout.vllm.engine_support import stored_of


SETTINGS = {"thought": "gaussian", "noise_scale": 0.5, "max_thinking_length": 5}
TARGETS = ["q_proj", "up_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.model().save_pretrained(folder)
    return str(folder)


def trained(folder, base, **changes):
    """A trainer that has saved one checkpoint, and `final`."""
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, **SETTINGS, **changes}
    trainer = tiny.trainer(folder / "run", AutoModelForCausalLM.from_pretrained(base), **options)
    trainer.train()
    trainer.save_model(str(folder / "final"))
    return trainer


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(folder, base)


@pytest.fixture(scope="module", params=[None, "CAUSAL_LM"], ids=["no-task", "task"])
def adapter(base, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("adapter")
    own = LoraConfig(r=4, target_modules=TARGETS, task_type=request.param)
    trainer = trained(folder, base, peft_config=own)
    assert own.auto_mapping is None and own.task_type == request.param, "the user's own config was changed"
    return folder, trainer


def assert_thinks(model, trainer) -> None:
    """`soft_generate` thinks as was trained, with the sigma that was trained with."""
    out = soft_generate(model, tiny.tokenizer(), ["1+2="], max_completion_length=8, progress=False)
    expected = trainer._plans["train"].thought
    assert out.record.thought.name == expected.name and out.record.thought.sigma == expected.sigma
    assert out.thinking_lengths[0] <= SETTINGS["max_thinking_length"]


def assert_found(folder, trainer) -> None:
    """Whoever reads a folder: the package, an evaluation, vLLM."""
    stored = trainer.thinking.thinking_dict()
    assert ThinkingSettings.load_thinking(folder).thinking_dict() == stored
    beside = saved_beside(str(folder))
    assert beside is not None and beside.thinking_dict() == stored
    assert stored_of(SimpleNamespace(model=str(folder), revision=None)) == stored


def test_a_whole_model(whole, tmp_path):
    """Saved by the trainer, by hand, for the hub; loaded, and saved again, twice."""
    folder, trainer = whole
    trainer.model.save_pretrained(tmp_path / "by hand")
    for saved in (folder / "run" / "checkpoint-1", folder / "final", tmp_path / "by hand"):
        assert_found(saved, trainer)
        model = AutoModelForCausalLM.from_pretrained(saved)
        assert_thinks(model, trainer)
    for number in range(2):
        model.save_pretrained(tmp_path / str(number))
        assert_found(tmp_path / str(number), trainer)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
    assert_thinks(model, trainer)
    assert (folder / "final" / "thinking_config.json").is_file()


def test_what_a_trained_model_brings_beats_the_folder_it_came_from(base, tmp_path):
    """A second stage of training, with other thoughts, in the process that trained it."""
    first = tmp_path / "first"
    shutil.copytree(base, first)
    ThinkingSettings(thought="mixture").save_thinking(first)
    trainer = trained(tmp_path, first, save_strategy="no")
    assert_thinks(trainer.model, trainer)
    assert ThinkingSettings.load_thinking(first).thought == "mixture"


def test_the_best_model(base, tmp_path):
    trainer = tiny.trainer(
        tmp_path / "run", AutoModelForCausalLM.from_pretrained(base), eval_dataset=tiny.prompts(1), max_steps=2,
        save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_reward", per_device_eval_batch_size=8, **SETTINGS,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "best"))
    assert_found(tmp_path / "best", trainer)
    assert_thinks(trainer.model, trainer)


def test_an_adapter(adapter, tmp_path):
    """Loaded by PEFT and by transformers, onto a base of any history; saved again."""
    folder, trainer = adapter
    trainer.model.save_pretrained(tmp_path / "by hand")
    for saved in (folder / "run" / "checkpoint-1", folder / "final", tmp_path / "by hand"):
        assert_found(saved, trainer)
        model = AutoPeftModelForCausalLM.from_pretrained(saved)
        assert_thinks(model, trainer)
    model.save_pretrained(tmp_path / "again")
    assert_found(tmp_path / "again", trainer)
    assert_thinks(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "again"), trainer)
    native = AutoModelForCausalLM.from_pretrained(folder / "final")
    assert_thinks(native, trainer)
    native.save_pretrained(tmp_path / "native")
    assert_found(tmp_path / "native", trainer)
    other = tiny.model()
    ThinkingSettings(thought="mixture").attach(other)
    assert_thinks(PeftModel.from_pretrained(other, folder / "final"), trainer)


def test_a_merged_adapter(adapter, base, tmp_path):
    """In the process that trained it and in another one; over a base that had learned to think otherwise."""
    folder, trainer = adapter
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder / "final")
    other = AutoModelForCausalLM.from_pretrained(base)
    ThinkingSettings(thought="mixture").attach(other)
    over = PeftModel.from_pretrained(other, folder / "final")
    again = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=TARGETS))
    trainer.thinking.attach(again)
    for number, model in enumerate((loaded, over, again)):
        merged = model.merge_and_unload()
        assert_thinks(merged, trainer)
        merged.save_pretrained(tmp_path / str(number))
        assert_found(tmp_path / str(number), trainer)
        assert_thinks(AutoModelForCausalLM.from_pretrained(tmp_path / str(number)), trainer)


def test_an_adapter_that_is_taken_off_leaves_the_base_as_it_was(adapter):
    folder, _ = adapter
    model = AutoPeftModelForCausalLM.from_pretrained(folder / "final").unload()
    with pytest.raises(ValueError, match="Pass `settings"):
        soft_generate(model, tiny.tokenizer(), ["1+2="])


def test_settings_written_by_hand_travel_as_well(base, tmp_path):
    shutil.copytree(base, tmp_path / "first")
    ThinkingSettings(thought="hard", max_thinking_length=4).save_thinking(tmp_path / "first")
    AutoModelForCausalLM.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "again")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    out = soft_generate(model, tiny.tokenizer(), ["1+2="], max_completion_length=8, progress=False)
    assert out.record.thought.name == "hard" and out.thinking_lengths[0] <= 4


def test_files_that_say_different_things(base, tmp_path):
    """Nothing tells which of them the weights were trained with."""
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "thinking_config.json"
    ThinkingSettings(thinking_top_k=4).save_thinking(tmp_path / "model")
    path.write_text(path.read_text().replace('"thinking_top_k": 4', '"thinking_top_k": 3'))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for read in (
        lambda: ThinkingSettings.load_thinking(tmp_path / "model"),
        lambda: saved_beside(str(tmp_path / "model")),
        lambda: soft_generate(model, tiny.tokenizer(), ["1+2="]),
    ):
        with pytest.raises(ValueError, match=r"differ: `thinking_top_k` is 3 and 4\. Write them with"):
            read()
    ThinkingSettings(thinking_top_k=3).save_thinking(tmp_path / "model")
    assert ThinkingSettings.load_thinking(tmp_path / "model").thinking_top_k == 3


def test_adapters_that_think_differently(base):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=TARGETS))
    ThinkingSettings(thought="hard").attach(model)
    model.add_adapter("second", LoraConfig(target_modules=TARGETS))
    model.base_model.set_adapter("second")
    ThinkingSettings(thought="soft").attach(model)
    assert saved_settings.of_model(model)["thought"] == "soft"
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="adapter 'default' and of adapter 'second' differ: `thought`"):
        saved_settings.of_model(model)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, '"x"'], ids=["list", "torn", "deep", "text"])
def test_files_that_hold_no_settings(tmp_path, text):
    (tmp_path / "thinking_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"thinking_config\.json (cannot be read as JSON|holds a)"):
        ThinkingSettings.load_thinking(tmp_path)
    (tmp_path / "thinking_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"soft_thinking": [1]}))
    with pytest.raises(ValueError, match="holds a list where the thinking settings should be an object"):
        ThinkingSettings.load_thinking(tmp_path)


def test_a_model_that_has_brought_nothing():
    with torch.device("cpu"), pytest.raises(ValueError, match="neither the model's config, its adapter nor"):
        soft_generate(tiny.model(), tiny.tokenizer(), ["1+2="])
