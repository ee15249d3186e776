# SPDX-License-Identifier: Apache-2.0
"""The model card: what a trained model is, how it thinks, how to run it and how it was trained.

TRL's card says the algorithm and the versions. This one is written in its place, and beside the weights whenever they are saved.
"""

import json
import os
import re
import shlex
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from huggingface_hub import ModelCard, ModelCardData
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

from ..settings import ThinkingSettings
from ..thoughts import THOUGHTS, Paper


if TYPE_CHECKING:
    from .trl_trainers import GRPOTrainer as _Host
else:
    _Host = object

QUESTION = "What is 12 * 13?"  # of the example on the card
# As in TRL's own card.
TRL_CITATION = """\
@software{vonwerra2020trl,
  title   = {{TRL: Transformers Reinforcement Learning}},
  author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
  license = {Apache-2.0},
  url     = {https://github.com/huggingface/trl},
  year    = {2020}
}"""
# Metrics of a log, in the order of the table, and what they are called there.
_METRICS = {
    "reward": "reward",
    "eval_reward": "reward in evaluation",
    "thinking/mean_length": "thoughts in a completion",
    "completions/mean_length": "tokens in a completion",
    "thinking/entropy": "entropy of thoughts, nats",
    "kl": "KL to the reference model, nats",
}
# Arguments that decide what a run learns. A trainer that lacks one (RLOO has no `loss_type`) leaves it out.
_ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_generations", "generation_batch_size", "steps_per_generation",
    "num_iterations", "loss_type", "epsilon", "epsilon_high", "beta", "importance_sampling_level", "scale_rewards",
    "normalize_advantages", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "mask_truncated_completions", "bf16", "fp16", "use_vllm", "seed",
)  # fmt: skip
_PACKAGES = ("trl_soft", "trl", "transformers", "torch", "accelerate", "datasets", "tokenizers", "peft", "vllm")


class ModelCardMixin(_Host):
    """
    Writes the card wherever TRL writes its own, and into the folder of every model that is saved.

    Attributes:
        dataset_name (`str`, *optional*):
            Hub id or file of the training data, for the card. `None`: what the data set itself knows.
    """

    thinking: ThinkingSettings
    dataset_name: str | None = None
    _tags: tuple[str, ...] = ()

    def create_model_card(  # type: ignore[override]  # TRL's arguments, which are not transformers'
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ):
        """
        Write `README.md` into `output_dir`.

        Args:
            model_name (`str`, *optional*): title of the card. `None`: the hub's name, or the folder's.
            dataset_name (`str`, *optional*): sets the attribute of that name.
            tags (`str` or `list[str]`, *optional*): further tags of the model.
        """
        if dataset_name is not None:
            self.dataset_name = dataset_name
        if tags is not None:
            self._tags = (tags,) if isinstance(tags, str) else tuple(tags)
        if self.is_world_process_zero():
            self._write_card(None, model_name)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_card(output_dir)

    def _write_card(self, folder: str | None, name: str | None = None) -> None:
        model_card(self, name).save(os.path.join(folder or str(self.args.output_dir), "README.md"))


def model_card(trainer: Any, name: str | None = None) -> ModelCard:
    """
    The card of the model in a trainer, as it is now.

    Args:
        trainer (`SoftGRPOTrainer` or `SoftRLOOTrainer`).
        name (`str`, *optional*): its title. `None`: the name on the hub, or that of `output_dir`.
    """
    hub_id = trainer.args.hub_model_id
    name = name or (hub_id or Path(trainer.args.output_dir).resolve().name).split("/")[-1]
    base, base_on_hub = _source(get_config_model_id(trainer.model.config), os.path.isdir)
    data, data_on_hub = _source(trainer.dataset_name or _data_source(trainer.train_dataset), os.path.exists)
    adapter = is_peft_model(trainer.model)
    metadata = ModelCardData(
        base_model=base if base_on_hub else None,
        datasets=data if data_on_hub else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        model_name=name,
        tags=sorted({"generated_from_trainer", trainer.thinking.thought, *trainer._tag_names, *trainer._tags}),
    )
    sections = [
        f"# {name}",
        _introduction(trainer, (base, base_on_hub), (data, data_on_hub), adapter),
        _thinking(trainer.thinking),
        _running(trainer, hub_id, adapter),
        _training(trainer),
        _results(trainer.state.log_history),
        _versions(adapter),
        _citations(trainer),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def _source(name: str | None, is_local) -> tuple[str | None, bool]:
    """
    What a card calls a model or a data set, and whether the hub has it. Of a local path the card says its last part alone: the
    rest says where somebody keeps their files.
    """
    if not name:
        return None, False
    on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.startswith(".") and not is_local(name)
    return (name, True) if on_hub else (Path(name).resolve().name, False)


def _data_source(dataset) -> str | None:
    """The hub id that a data set was loaded by; `None` where it does not say so. Its cache lies in `namespace___name`."""
    for file in getattr(dataset, "cache_files", None) or ():
        for part in Path(file["filename"]).parts:
            if "___" in part:
                return part.replace("___", "/", 1)
    return None


def _link(source: tuple[str | None, bool], place: str, unknown: str) -> str:
    name, on_hub = source
    if name is None:
        return unknown
    return f"[{name}](https://huggingface.co/{place}{name})" if on_hub else f"`{name}` (local)"


def _introduction(trainer, base, data, adapter: bool) -> str:
    papers = _papers(trainer.thinking)
    kind = trainer.thinking.thought
    made = "A LoRA adapter for" if adapter else "A fine-tuned version of"
    model = f"{made} {_link(base, '', 'a model without a name')}"
    model += "." if data[0] is None else f", trained on {_link(data, 'datasets/', '')}."
    if THOUGHTS[kind].is_token:
        thinks = "It thinks in ordinary tokens."
    else:
        thinks = (
            f"It was trained to think in *soft tokens* of the kind `{kind}`: a thinking step feeds the model a mixture in the place "
            "of one token's embedding."
        )
        gate = trainer.thinking.make_gate()
        if gate is not None:
            held = "an update holds its decisions fixed" if gate.reads_policy else "it does not depend on the policy"
            thinks += f" The gate `{gate.name}` makes some steps ordinary tokens; {held}."
    told = f" The method is [{papers[0].title}]({papers[0].url}) (arXiv {papers[0].arxiv})." if papers else ""
    return textwrap.fill(model + " " + thinks + told, 119, break_long_words=False, break_on_hyphens=False)


def _papers(thinking: ThinkingSettings) -> list[Paper]:
    """Those of the trained thought, of `eval_thought` and of the gate."""
    gate = thinking.make_gate() or thinking.make_gate(evaluation=True)
    sources: list[Any] = [*thinking.kinds(), *([] if gate is None else [gate])]
    return list(dict.fromkeys(source.paper for source in sources if source.paper is not None))


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])


def _thinking(thinking: ThinkingSettings) -> str:
    kind, *_ = thinking.kinds()
    equation = f"```\n{kind.equation}\n```\n\n" if kind.equation else ""
    rows = [(f"`{name}`", f"`{value}`") for name, value in thinking.resolved().items()]
    text = "## How it thinks\n\n" + equation + _table(("setting", "value"), rows)
    if thinking.eval_thought is not None:
        text += f"\n\nIt was evaluated with `{thinking.eval_thought}` thoughts."
    return text


def _question(trainer) -> str:
    """A question for the example: the usual one, or the first of the training data where the tokenizer cannot write that one."""
    row = None if _writes(trainer._tokenizer, QUESTION) else next(iter(trainer.train_dataset or ()), None)
    if row is None:
        return QUESTION
    asked = row["prompt"]
    if isinstance(asked, str):
        return asked
    told = (turn["content"] for turn in reversed(asked) if turn["role"] == "user" and isinstance(turn["content"], str))
    return next(told, QUESTION)


def _writes(tokenizer, text: str) -> bool:
    """Whether the tokenizer has tokens for all of a text. Some tokenizers change blanks and capital letters."""
    try:
        written = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
    except Exception:  # one without an unknown token may refuse the text, with any error
        return False
    return "".join(written.casefold().split()) == "".join(text.casefold().split())


def _running(trainer, hub_id: str | None, adapter: bool) -> str:
    """Code that runs in the model's folder, or anywhere once the model is on the hub."""
    soft = not trainer._plans["train"].thought.is_token
    question = _question(trainer)
    messages = json.dumps([{"role": "user", "content": question}], ensure_ascii=False)
    prompt = messages if trainer._tokenizer.chat_template else json.dumps(question, ensure_ascii=False)
    where = f'"{hub_id}"' if hub_id else '"."  # the folder of this card'
    length = trainer.args.max_completion_length
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "from trl_soft import ThinkingSettings, soft_generate",
        "",
        f"path = {where}",
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)",
        f"prompt = {prompt}",
    ]
    soft_call = f"out = soft_generate(model, tokenizer, [prompt], max_completion_length={length})"
    end = trainer.thinking.end_of_thinking
    if soft:
        code += [
            "",
            "# As it was trained: the thinking settings lie beside the weights.",
            soft_call,
            "print(out.texts[0])",
        ]
    code += [
        "",
        "# With hard thoughts, which are ordinary tokens. Any library that runs the base model does this too.",
        f'hard = ThinkingSettings(thought="hard", end_of_thinking={json.dumps(end, ensure_ascii=False)})',
        soft_call.replace("[prompt], ", "[prompt], hard, "),
        "print(out.texts[0])",
    ]
    text = "## How to run it\n\n```python\n" + "\n".join(code) + "\n```\n\n"
    served = hub_id or "."
    if adapter:
        text += f"In vLLM, after the adapter was merged (`trl-soft merge {served} -o MODEL`), with `pip install trl_soft[vllm]`"
        served = "MODEL"
    else:
        text += "In vLLM, with `pip install trl_soft[vllm]`"
    text += ". A request without `vllm_xargs` gets hard thoughts:" if soft else ":"
    extra = ', "vllm_xargs": {"soft_thinking": true}' if soft else ""
    ask = shlex.quote(f'{{"model": "{served}", "messages": {messages}{extra}}}')
    url, kind = "http://localhost:8000/v1/chat/completions", '"Content-Type: application/json"'
    return text + f"\n\n```\nvllm serve {served}\ncurl {url} -H {kind} -d {ask}\n```"


def _training(trainer) -> str:
    args, state, paper = trainer.args, trainer.state, trainer._paper
    algorithm = {"SoftGRPO": "GRPO", "SoftRLOO": "RLOO"}.get(trainer._name, trainer._name)
    if paper.get("id"):
        algorithm = f"{algorithm} ([{paper['title']}](https://arxiv.org/abs/{paper['id']}))"
    done = f"{state.global_step} of {state.max_steps}" if state.max_steps > 0 else str(state.global_step)
    rows: list[tuple] = [("updates", done), ("rewards", ", ".join(trainer.reward_func_names))]
    if hasattr(trainer.train_dataset, "__len__"):
        rows.append(("prompts in the training data", len(trainer.train_dataset)))
    rows.append(("processes", args.world_size))
    for name in _ARGUMENTS:
        value = getattr(args, name, None)
        if value is not None and value is not False:
            rows.append((f"`{name}`", f"`{getattr(value, 'value', value)}`"))
    if is_peft_model(trainer.model):
        config = trainer.model.active_peft_config
        for name in ("r", "lora_alpha"):
            if getattr(config, name, None) is not None:
                rows.append((f"LoRA `{name}`", f"`{getattr(config, name)}`"))
    links = [
        ("Weights & Biases", _wandb_url()),
        ("Trackio", get_trackio_space_url()),
        ("Comet", get_comet_experiment_url()),
    ]
    told = "".join(f" [{title}]({url}) has its curves." for title, url in links if url)
    return f"## How it was trained\n\nBy {algorithm}, with `{type(trainer).__name__}`.{told}\n\n" + _table(
        ("setting", "value"), rows
    )


def _wandb_url() -> str | None:
    run = getattr(sys.modules.get("wandb"), "run", None)
    return None if run is None else run.url


def _results(history: list[dict]) -> str:
    """The first and the last value that the run logged of each metric."""
    rows = []
    for name, called in _METRICS.items():
        values = [(row["step"], row[name]) for row in history if row.get(name) is not None]
        if len(values) > 1:
            (first_step, first), (last_step, last) = values[0], values[-1]
            rows.append((called, f"{first + 0.0:.4g} ({first_step})", f"{last + 0.0:.4g} ({last_step})"))
    if not rows:
        return ""
    return (
        "## Before and after\n\nThe first and the last value in the log, each with the number of updates made by then. Values that "
        "are not of an evaluation are means over the rollouts of training, with its thoughts.\n\n"
        + _table(("", "first", "last"), rows)
    )


def _versions(adapter: bool) -> str:
    lines = []
    for package in _PACKAGES:
        if package == "peft" and not adapter:
            continue
        try:
            lines.append(f"- {package} {version(package)}")
        except PackageNotFoundError:
            if package == "trl_soft":  # run from a checkout, without an installation
                from ..version import __version__

                lines.append(f"- trl_soft {__version__}")
    return "## Versions\n\n" + "\n".join(lines)


def _citations(trainer) -> str:
    entries = [paper.bibtex() for paper in _papers(trainer.thinking)]
    entries += [textwrap.dedent(trainer._paper["citation"]).strip()] if trainer._paper.get("citation") else []
    return "## Citations\n\n```bibtex\n" + "\n\n".join([*entries, TRL_CITATION]) + "\n```"
