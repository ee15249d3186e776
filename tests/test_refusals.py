# SPDX-License-Identifier: Apache-2.0
"""Bad input: each a sentence, raised before anything is generated, with nothing half-written."""

import ast
import inspect
import os
import re
import textwrap
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig
from trl import GRPOConfig, ModelConfig

from tests import tiny
from trl_soft import SoftGRPOConfig, ThinkingSettings
from trl_soft.scripts.arguments import SoftScriptArguments
from trl_soft.scripts.parser import SoftParser
from trl_soft.thoughts.option import TRUNCATION


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"thought": "soft"}, "no policy gradient.*eval_thought: soft"),
        ({"thought": "fuzzy"}, "thinking_temperature 1e-4"),
        ({"eval_thought": "latent-ish"}, "no kind of thought"),
        ({"max_thinking_length": 16}, "no room for an answer"),
        ({"max_thinking_length": 40}, "no room for an answer"),
        ({"use_vllm": True, "vllm_structured_outputs_regex": "a*"}, "a grammar allows or forbids tokens"),
        ({"use_vllm": True, "thought": "multiplex", "multiplex_ratio": "draw"}, "has one ratio for each position"),
        ({"vllm_server_base_urls": ["http://a:8000"]}, "no server is used"),
        ({"use_vllm": True, "vllm_mode": "server", "vllm_server_base_urls": "http://a:8000"}, "takes a list"),
        ({"use_transformers_continuous_batching": True}, "cannot feed a mixture back"),
        ({"replay_disagreement": "skip"}, "Choose one of warn, stop, ignore"),
        ({"replay_tolerance": 0.0}, "`replay_tolerance` is 0.0, but it must be above 0"),
        ({"thinking_temperature": -1.0}, "`thinking_temperature` is -1.0"),
        ({"thinking_temperature": 0.0}, "must be above 0"),
        ({"temperature": -0.5}, "`temperature` is -0.5"),
        ({"gumbel_temperature": -0.1}, "`gumbel_temperature`"),
        ({"thinking_top_p": 1.5}, "at most 1"),
        ({"thinking_min_p": -0.1}, "at least 0"),
        ({"thinking_top_k": 0}, "at least 1"),
        ({"noise_scale": 0.0}, "draws nothing"),
        ({"gumbel_density": "sum"}, "gumbel, concrete, softgrpo"),
        ({"answer_prefill": ["one"]}, "two texts"),
        ({"thought": "gaussian", "thinking_top_k": 5}, "mixes the whole vocabulary"),
        ({"thought": "hard", "thinking_temperature": 0.7}, "Set `temperature` instead"),
        ({"ds3_gather_for_generation": False}, "wait forever"),
        ({"cache_implementation": "static"}, "their own cache"),
        ({"generation_kwargs": {"num_beams": 2}}, "would ignore it"),
        ({"thought": "latent"}, "eval_thought: latent"),
        ({"thinking_temperature": float("nan")}, "finite number"),
        ({"thinking_temperature": float("inf")}, "finite number"),
        ({"thinking_top_k": 5.5}, "whole number"),
        ({"thinking_top_k": [5]}, "whole number"),
        ({"max_thinking_length": 4.5}, "whole number"),
        ({"top_p": 1.5}, "`top_p` is 1.5"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty`"),
        ({"noise_placement": "weights"}, "embedding, hidden, logits, probabilities"),
        ({"thought": "multiplex", "thinking_top_p": 0.9}, "draws from the whole vocabulary"),
        ({"multiplex_width": 0}, "at least 1"),
        ({"dirichlet_concentration": 0.0}, "above 0"),
        ({"thought": "dirichlet", "noise_scale": 0.0}, "gumbel and gaussian thoughts do"),
        ({"noise_placement": "hidden"}, "gaussian thoughts do"),
        ({"thought": "gaussian", "noise_placement": "logits", "thinking_top_p": 0.5}, "`thinking_top_p` is set"),
        (
            {"importance_sampling_level": "sequence", "eval_thought": "multiplex", "multiplex_ratio": "draw"},
            "ratio: step",
        ),
        ({"temperature": None}, "`temperature` is None"),
        ({"top_p": None}, "`top_p` is None"),
        ({"repetition_penalty": None}, "`repetition_penalty` is None"),
        ({"gumbel_temperature": None}, "`gumbel_temperature` is None"),
        ({"thought": "multiplex", "multiplex_width": None}, "`multiplex_width` is None"),
        ({"cold_stop_entropy": 0.1, "cold_stop_length": None}, "`cold_stop_length` is None"),
        ({"answer_prefill": [None, None]}, "two texts"),
        ({"seed": 2**33}, "`seed` is 8589934592"),
        ({"rollout_engine": "vllm"}, "slots, simple"),
        ({"rollout_slots": 0}, "`rollout_slots` is 0"),
        ({"max_refill_rollouts": -1}, "`max_refill_rollouts` is -1"),
        ({"max_refill_rollouts": 1.5}, "whole number"),
        ({"rollout_cache_gb": 0.0}, "above 0"),
    ],
)
def test_configs_that_cannot_be_soft(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.config(tmp_path, **settings)


def image_rows():
    return Dataset.from_dict({"prompt": ["1="] * 8, "image": [None] * 8})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"end_of_thinking": "Final answer"}, "this tokenizer cannot produce it"),
        ({"answer_prefill": ["", "The answer is"]}, "this tokenizer cannot produce it"),
        ({"thinking_top_k": 99}, "has only 26 tokens"),
        ({"max_thinking_length": 15}, "no room is left for an answer"),
        ({"answer_prefill": ["1" * 15, ""]}, "no room is left for an answer"),
        ({"end_of_thinking": "<eos>"}, "no answer would follow"),
        ({"answer_prefill": ["", "1<eos>"]}, "no answer would follow"),
        ({"train_dataset": Dataset.from_dict({"question": ["1="] * 8})}, r"columns \['question'\] but no `prompt`"),
        ({"train_dataset": Dataset.from_dict({"prompt": []})}, "is empty"),
        ({"train_dataset": IterableDataset.from_generator(lambda: iter(()))}, "is empty"),
        ({"eval_dataset": {"a": Dataset.from_dict({"question": ["1="]})}}, "`eval_dataset` has the columns"),
        ({"train_dataset": image_rows()}, "has images"),
        ({"max_refill_rollouts": 1, "train_dataset": tiny.prompts().to_iterable_dataset()}, "is a stream"),
        (
            {"max_refill_rollouts": 1, "train_dataset": tiny.prompts().select([0, 1])},
            "has 2 different prompts and a batch takes 2",
        ),
        (
            {
                "max_refill_rollouts": 1,
                "train_dataset": Dataset.from_dict({"prompt": [[{"role": "user", "content": "1="}]] * 8}),
            },
            "has 1 different prompt and a batch takes 2",
        ),
        ({"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)}, "virtual tokens"),
        (
            {"peft_config": LoraConfig(target_modules=["q_proj", "embed_tokens"])},
            "cannot be mixed|plain embedding|rows",
        ),
        ({"peft_config": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])}, "rows"),
    ],
)
def test_trainers_that_cannot_be_soft(tmp_path, monkeypatch, options, sentence):
    monkeypatch.setattr(
        "trl_soft.training.soft_tokens_mixin.assemble", lambda *a, **k: pytest.fail("something was generated")
    )
    with pytest.raises(ValueError, match=sentence):
        tiny.trainer(tmp_path / "out", **options)
    assert not os.path.exists(tmp_path / "out") or not os.listdir(tmp_path / "out")


@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_turns_that_others_write(tmp_path, name):
    from trl_soft import SoftGRPOTrainer

    given = {name: [print] if name == "tools" else print}
    with pytest.raises(ValueError, match=f"`{name}` was passed"):
        SoftGRPOTrainer(tiny.model(), tiny.reward, tiny.config(tmp_path), tiny.prompts(), **given)


def test_a_plain_config_is_refused(tmp_path):
    from trl_soft import SoftGRPOTrainer

    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(TypeError, match="Pass a SoftGRPOConfig"):
        SoftGRPOTrainer(tiny.model(), tiny.reward, args, tiny.prompts(), processing_class=tiny.tokenizer())


def test_a_reward_that_raises_leaves_the_checkpoint(tmp_path):
    calls = []

    def reward(completions, **kwargs):
        calls.append(len(completions))
        if len(calls) == 3:
            raise ZeroDivisionError("my own error")
        return [0.5 * (i % 2) for i in range(len(completions))]

    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "reward_funcs": reward}
    trainer = tiny.trainer(tmp_path, **options)
    with pytest.raises(ZeroDivisionError, match="my own error"):
        trainer.train()
    assert os.listdir(tmp_path) and "checkpoint-2" in os.listdir(tmp_path)
    assert trainer.model.training and trainer._flight is None and "generate" not in vars(trainer.model)
    resumed = tiny.trainer(tmp_path, **{**options, "reward_funcs": tiny.reward})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def parse(tmp_path, text: str, *flags: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return SoftParser((SoftScriptArguments, SoftGRPOConfig, ModelConfig)).parse_args_and_config(
        ["--config", str(path), *flags]
    )


def test_yaml_is_parsed_strictly(tmp_path):
    base = f"output_dir: {tmp_path}/out\nbf16: false\nuse_cpu: true\n"
    _, training, _ = parse(tmp_path, base + "thinking_top_k: 7\n", "--thinking_top_p", "0.5")
    assert (training.thinking_top_k, training.thinking_top_p) == (7, 0.5)
    with pytest.raises(ValueError, match=r"`thinking_topk`.*nearest known name is `thinking_top_k`"):
        parse(tmp_path, base + "thinking_topk: 7\n")
    with pytest.raises(ValueError, match=r"`gumbel_temprature`.*`gumbel_temperature`"):
        parse(tmp_path, base, "--gumbel_temprature", "0.2")
    with pytest.raises(ValueError, match="no kind of thought"):
        parse(tmp_path, base + "thought: fussy\n")
    with pytest.raises(ValueError, match="`seed` 2 times"):
        parse(tmp_path, base + "seed: 1\nseed: 2\n")
    with pytest.raises(ValueError, match="does not read as text"):
        parse(tmp_path, base + "no: 2\n")
    with pytest.raises(ValueError, match="`help`"):
        parse(tmp_path, base + "help: 2\n")
    with pytest.raises(ValueError, match="`thinking_temp`"):
        parse(tmp_path, base, "--thinking_temp", "0.3")
    assert not os.path.exists(tmp_path / "out")


def test_saved_settings_of_another_version(tmp_path):
    (tmp_path / "thinking_config.json").write_text('{"thought": "hard", "warp": 9}')
    with pytest.raises(ValueError, match=r"\['warp'\]"):
        ThinkingSettings.load_thinking(tmp_path)
    with pytest.raises(FileNotFoundError, match="not saved by a soft trainer"):
        ThinkingSettings.load_thinking(tmp_path / "nowhere")


def test_no_prompts():
    from trl_soft import soft_generate

    with pytest.raises(ValueError, match="nothing to complete"):
        soft_generate(tiny.model(), tiny.tokenizer(), [], ThinkingSettings())


def test_a_model_with_ids_in_every_layer_is_refused():
    from trl_soft import add_soft_tokens

    net = tiny.model()
    net.config.hidden_size_per_layer_input = 8
    with pytest.raises(ValueError, match="per-layer embeddings"):
        add_soft_tokens(net)
    assert torch.is_tensor(net(input_ids=torch.tensor([[1]])).logits)


def test_a_recurrent_model_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    from trl_soft import add_soft_tokens

    net = MambaForCausalLM(MambaConfig(vocab_size=26, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ValueError, match="MambaForCausalLM keeps a recurrent state"):
        add_soft_tokens(net)


def test_generation_is_asked_sensibly():
    from trl_soft import soft_generate

    net, tokenizer, settings = tiny.model(), tiny.tokenizer(), ThinkingSettings()
    with pytest.raises(TypeError, match="list of letters"):
        soft_generate(net, tokenizer, "1+2=", settings)
    with pytest.raises(ValueError, match="at least 1"):
        soft_generate(net, tokenizer, ["1+2="], settings, slots=0)
    for name, value in (("temperature", -1.0), ("top_p", 0.0), ("min_p", 2.0), ("top_k", 0.5), ("engine", "vllm")):
        with pytest.raises(ValueError, match=f"`{name}` is"):
            soft_generate(net, tokenizer, ["1+2="], settings, **{name: value})
    with pytest.raises(ValueError, match="has no tokens"):
        soft_generate(net, tokenizer, [[]], settings)


@pytest.mark.parametrize("engine", ["slots", "simple"])
def test_a_model_that_is_being_trained_thinks(engine):
    """Gradient checkpointing keeps no cache in training mode, which a rollout is not in."""
    from trl_soft import soft_generate

    asked = ["1+2="], ThinkingSettings(max_thinking_length=4)
    options = {"max_completion_length": 8, "engine": engine, "progress": False}
    net = tiny.model()
    plain = soft_generate(net.eval(), tiny.tokenizer(), *asked, **options)
    net.train()
    net.gradient_checkpointing_enable()
    assert soft_generate(net, tiny.tokenizer(), *asked, **options).completion_ids == plain.completion_ids
    assert net.training and net.is_gradient_checkpointing


def test_another_kind_of_thought_leaves_the_saved_kinds_options_behind(tmp_path):
    ThinkingSettings(thinking_top_k=7, gumbel_density="concrete", max_thinking_length=9).save_thinking(tmp_path)
    hard = ThinkingSettings.load_thinking(tmp_path, thought="hard")
    assert (hard.thinking_top_k, hard.gumbel_density, hard.max_thinking_length) == (None, "gumbel", 9)
    assert ThinkingSettings.load_thinking(tmp_path, thinking_min_p=0.1).thinking_top_k == 7


def test_a_model_with_accelerates_hooks_thinks(tmp_path):
    from accelerate.hooks import ModelHook, add_hook_to_module

    from trl_soft import soft_generate

    net, tokenizer = tiny.model(), tiny.tokenizer()
    plain = soft_generate(net, tokenizer, ["1+2="], ThinkingSettings(max_thinking_length=4), progress=False)
    add_hook_to_module(net.get_input_embeddings(), ModelHook())
    add_hook_to_module(net, ModelHook())
    hooked = soft_generate(net, tokenizer, ["1+2="], ThinkingSettings(max_thinking_length=4), progress=False)
    assert hooked.completion_ids == plain.completion_ids
    assert net(input_ids=torch.tensor([[4]])).logits.shape == (1, 1, 26)


def test_a_vocabulary_smaller_than_a_default_is_all_of_it():
    from trl_soft.rollout.make_plan import make_plan
    from trl_soft.thoughts import Hard

    thought = make_plan(
        ThinkingSettings(thought="gaussian", noise_placement="logits"), tiny.tokenizer(), Hard(), vocab_size=26,
        max_completion_length=16, eos_token_ids=[1],
    ).thought  # fmt: skip
    assert thought.top_k == 26 and thought.sigma == 1.0


def refused_by(function) -> set[str]:
    """What the sentences of its errors begin with, where that is a name in backticks. A misspelt choice is no refusal."""
    names = set()

    def sentences(node, loop: list[str]):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            entries = [entry.elts[0] if isinstance(entry, ast.Tuple) else entry for entry in node.iter.elts]
            loop = [entry.value for entry in entries if isinstance(entry, ast.Constant)]
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Name) and node.iter.id == "TRUNCATION":
            loop = list(TRUNCATION)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            told = ast.unparse(node.exc.args[0])
            found = re.match(r"""f?['"]+`(\w+|\{name\})`""", told)
            if found and "Choose one of" not in told:
                names.update(loop if found[1] == "{name}" else [found[1]])
        for child in ast.iter_child_nodes(node):
            sentences(child, loop)

    sentences(ast.parse(textwrap.dedent(inspect.getsource(function))), [])
    return names


def test_the_readme_lists_what_is_refused():
    from trl_soft.thoughts import THOUGHTS
    from trl_soft.training import check_arguments, config

    functions = [function for name, function in vars(config).items() if name.startswith("refuse")]
    functions += [check_arguments.check_arguments, *(kind.check_training for kind in THOUGHTS.values())]
    names = set().union(*map(refused_by, functions))
    names |= {kind.several_ratios[0] for kind in THOUGHTS.values() if kind.several_ratios}
    names -= {"args"}  # not of a class that knows thoughts
    assert len(names) > 20 and {"tools", "thinking_min_p", "optim"} <= names
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## What is refused")[2].partition("## ")[0]
    assert {name for name in names if f"`{name}" not in section} == set()
