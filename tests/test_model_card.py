# SPDX-License-Identifier: Apache-2.0
"""The model card: what it says is true of the run, its code runs, and it lies beside every model that is saved."""

import json
import re
import shlex
from collections import UserList
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import load_dataset
from huggingface_hub import ModelCard
from peft import LoraConfig

from tests import tiny
from trl_soft import SoftRLOOConfig, SoftRLOOTrainer, ThinkingSettings
from trl_soft.thoughts import THOUGHTS, Paper
from trl_soft.training import model_card


ASSETS = Path(__file__).parent.parent / "examples/quickstart"
TEMPLATE = "<|user|>{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two updates on a local model and a local file, with a checkpoint and an evaluation; and its output folder."""
    folder = tmp_path_factory.mktemp("run")
    base, rows = folder / "someone" / "base", folder / "rows.jsonl"
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tiny.model().save_pretrained(base)
    rows.write_text('{"prompt": "1+2="}\n{"prompt": "3+4="}\n')
    data = load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder / "cache"))
    trainer = tiny.trainer(
        folder / "out", str(base), train_dataset=data, eval_dataset=data, processing_class=tokenizer, max_steps=2,
        save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8,
        thinking_top_k=3,
    )  # fmt: skip
    trainer.dataset_name = str(rows)
    trainer.train()
    return trainer, folder


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_every_saved_model_has_a_card(trained, tmp_path):
    trainer, folder = trained
    trainer.save_model(str(tmp_path / "model"))
    for place in (folder / "out", folder / "out/checkpoint-2", tmp_path / "model"):
        assert "SofT-GRPO" in card_of(place)
    assert card_of(tmp_path / "model").splitlines()[-2:] == ["}", "```"]


def test_the_card_says_the_method_and_how_it_was_trained(trained):
    trainer, _ = trained
    card = str(model_card.model_card(trainer))
    for told in (
        "arXiv 2511.06411", "g' = log p + s * eps", "| `thinking_top_k` | `3` |", "| `gumbel_density` | `gumbel` |",
        "By GRPO ([DeepSeekMath", "| updates | 2 of 2 |", "| rewards | reward |", "| `learning_rate` | `0.001` |",
        "| `num_generations` | `4` |", "| prompts in the training data | 2 |", "`base` (local)", "`rows.jsonl` (local)",
    ):  # fmt: skip
        assert told in card, told
    first, last = (row["reward"] for row in trainer.state.log_history if "reward" in row)
    assert f"| reward | {first:.4g} (1) | {last:.4g} (2) |" in card
    assert re.search(r"\| reward in evaluation \| \S+ \(1\) \| \S+ \(2\) \|", card)
    assert "| `dirichlet_concentration`" not in card and "thinking_min_p` | `0.0" in card


def test_a_local_path_is_neither_linked_nor_told(trained):
    trainer, folder = trained
    card = model_card.model_card(trainer)
    assert "None" not in str(card) and "huggingface.co/None" not in str(card)
    assert str(folder) not in str(card) and "someone" not in str(card)
    assert card.data.base_model is None and card.data.datasets is None
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert {"trl", "grpo", "trl_soft", "gumbel"} <= set(card.data.tags)


def test_names_on_the_hub_are_linked_and_listed(trained, monkeypatch):
    trainer, _ = trained
    data = UserList([{"prompt": "1+2="}])
    data.cache_files = [{"filename": "/cache/openai___gsm8k/main/0.0.0/gsm8k-train.arrow"}]
    monkeypatch.setattr(trainer, "train_dataset", data)
    monkeypatch.setattr(trainer, "dataset_name", None)
    monkeypatch.setattr(trainer.model.config, "_name_or_path", "Qwen/Qwen3-0.6B")
    monkeypatch.setattr(trainer.args, "hub_model_id", "me/thinker")
    card = model_card.model_card(trainer)
    assert (card.data.base_model, card.data.datasets, card.data.model_name) == (
        "Qwen/Qwen3-0.6B",
        "openai/gsm8k",
        "thinker",
    )
    assert "[Qwen/Qwen3-0.6B](https://huggingface.co/Qwen/Qwen3-0.6B)" in str(card)
    assert "[openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k)" in str(card)
    assert 'path = "me/thinker"' in str(card) and "vllm serve me/thinker" in str(card)


def test_the_code_on_the_card_runs_in_the_folder_of_the_model(trained, monkeypatch, capsys):
    _, folder = trained
    (code,) = re.findall(r"```python\n(.*?)```", card_of(folder / "out/checkpoint-2"), re.DOTALL)
    monkeypatch.chdir(folder / "out/checkpoint-2")
    names: dict = {}
    exec(code, names)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert not names["out"].record.thought.weights(names["out"].record.action)  # the last one thought hard


def test_the_question_on_the_card_can_be_written_by_the_tokenizer(trained):
    """The usual one, and otherwise the first of the training data, as a shell reads it."""
    trainer, folder = trained
    card = card_of(folder / "out")
    assert model_card.QUESTION not in card and 'prompt = [{"role": "user", "content": "1+2="}]' in card
    (command,) = re.findall(r"^curl .*$", card, re.MULTILINE)
    assert json.loads(shlex.split(command)[-1])["messages"] == [{"role": "user", "content": "1+2="}]
    asked = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "it's?"},
        {"role": "assistant", "content": "a"},
    ]
    for data, expected in (([{"prompt": asked}], "it's?"), (None, model_card.QUESTION)):
        other = SimpleNamespace(_tokenizer=trainer._tokenizer, train_dataset=data)
        assert model_card._question(other) == expected

    class Bytes:
        def __call__(self, text, **_):
            return {"input_ids": list(text.encode())}

        def decode(self, ids, **_):
            return bytes(ids).decode().lower()

    assert (
        model_card._question(SimpleNamespace(_tokenizer=Bytes(), train_dataset=[{"prompt": "x"}]))
        == model_card.QUESTION
    )


def test_an_adapter_of_rloo(tmp_path, monkeypatch):
    trainer = tiny.trainer(
        tmp_path, trainer_class=SoftRLOOTrainer, config_class=SoftRLOOConfig, thought="gaussian", eval_thought="soft",
        peft_config=LoraConfig(r=3, target_modules=["q_proj"]),
    )  # fmt: skip
    trainer.create_model_card(tags="mine")
    trainer.save_model(str(tmp_path / "adapter"))
    card = ModelCard(card_of(tmp_path / "adapter"))
    assert card.data.library_name == "peft" and "mine" in card.data.tags
    for told in (
        "A LoRA adapter for a model without a name.", "Soft Tokens, Hard Truths", "By RLOO", "| LoRA `r` | `3` |",
        "trl-soft merge . -o MODEL", "AutoModelForCausalLM", "evaluated with `soft` thoughts", "@article{zhang2025soft,",
        "@article{butt2025soft,", "ahmadian2024back", f"prompt = {json.dumps(tiny.prompts(1)[0]['prompt'])}",
    ):  # fmt: skip
        assert told in str(card), told
    assert "noise_rms" in str(card)


def test_a_hard_run_has_no_soft_paper(tmp_path):
    card = str(model_card.model_card(tiny.trainer(tmp_path, thought="hard")))
    assert "ordinary tokens" in card and "arXiv 2511" not in card and "As it was trained" not in card
    assert "soft_thinking" not in card and "shao2024deepseekmath" in card


def test_trl_is_cited_as_trl_cites_itself():
    template = resources.files("trl").joinpath("templates/lm_model_card.md").read_text(encoding="utf-8")
    assert model_card.TRL_CITATION in template


@pytest.mark.parametrize("name", sorted(THOUGHTS))
def test_a_kind_says_its_equation_and_its_paper(name):
    kind = THOUGHTS[name]
    assert "next input" in kind.equation
    if name == "hard":
        return
    entry = kind.paper.bibtex()
    assert kind.paper.title in entry and f"arXiv:{kind.paper.arxiv}" in entry and "author" in entry


def test_a_paper_without_known_authors_names_none():
    entry = Paper("A Title", "2601.00001").bibtex()
    assert "author" not in entry and entry.startswith("@article{arxiv2026a,") and "2026" in entry


def test_settings_are_those_that_the_thought_reads():
    read = ThinkingSettings(thought="dirichlet", max_thinking_length=9).resolved()
    assert read == {
        "thought": "dirichlet", "thinking_temperature": 0.6, "thinking_top_k": 5, "thinking_top_p": 0.95, "thinking_min_p": 0.0,
        "dirichlet_concentration": 1.0, "end_of_thinking": "</think>", "max_thinking_length": 9,
    }  # fmt: skip
    mixed = ThinkingSettings(thought="gumbel", thinking_top_k=9, eval_thought="hard")
    assert mixed.resolved(evaluation=True) == {"thought": "hard", "end_of_thinking": "</think>"}
    assert mixed.resolved()["thinking_top_k"] == 9
