# SPDX-License-Identifier: Apache-2.0
"""A training run from its settings: prompts of a data set or a benchmark, a trainer, and the saved model."""

import logging
import os
import sys
from typing import cast

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..command_line import is_sentence, model_at
from ..data import drop_long_prompts, load_rows, overlap, to_prompts
from ..evaluate import BENCHMARKS, load_problems
from ..files import printable
from ..rewards import REWARDS
from ..training.check_arguments import refuse_missing_trackers
from .arguments import SoftScriptArguments, check_update


logger = logging.getLogger(__name__)
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")


def questions(arguments: SoftScriptArguments, name: str, split: str) -> Dataset:
    """Rows with the question and answer columns, of a benchmark by its name, a file or a hub id."""
    if name not in BENCHMARKS:
        try:
            return load_rows(name, split, arguments.dataset_config)
        except OSError as error:
            if is_sentence(error):
                raise
            raise FileNotFoundError(
                f"{name!r} is neither a file, a benchmark nor a data set that the hub gives: {printable(str(error))} Check the "
                "path or the name."
            ) from error
    if arguments.answer_marker is not None:
        logger.warning(
            "%s: its answers are read already, so `answer_marker` (%r) is for no row of it",
            name,
            arguments.answer_marker,
        )
    problems = load_problems(name, arguments.data_dir)
    corrected = [problem.number for problem in problems if "corrected" in problem.meta]
    if corrected:
        logger.warning("%s: wrong or missing answers corrected in rows %s", name, corrected)
    columns = {
        arguments.question_column: [problem.question for problem in problems],
        arguments.answer_column: [problem.gold for problem in problems],
    }
    return Dataset.from_dict(columns)


def without_held_out(arguments: SoftScriptArguments, name: str, rows: Dataset) -> Dataset:
    """The training rows. Rows that a benchmark asks too are counted, and dropped with `drop_contaminated`."""
    found: set[int] = set()
    for benchmark in arguments.contamination or ():
        held_out = load_problems(benchmark, arguments.data_dir)
        same = overlap(rows[arguments.question_column], [problem.question for problem in held_out])
        names = [str(held_out[n].meta.get("unique_id", held_out[n].meta.get("id", n))) for n in same]
        logger.warning("%s: %d questions of %s are among its %d: %s", name, len(same), benchmark, len(rows), names)
        found |= {row for copies in same.values() for row in copies}
    if not arguments.drop_contaminated:
        return rows
    logger.warning("%s: %d rows dropped because a benchmark asks them", name, len(found))
    return rows.select([row for row in range(len(rows)) if row not in found])


def load_prompts(
    arguments: SoftScriptArguments, name: str, split: str, tokenizer, limit: int, training: bool
) -> Dataset:
    """Prompts that fit the context. The log counts the others, and the prompts that are also in a benchmark."""
    rows = questions(arguments, name, split)
    prompts = to_prompts(
        without_held_out(arguments, name, rows) if training else rows,
        tokenizer,
        arguments.question_column,
        arguments.answer_column,
        arguments.prompt_template,
        arguments.answer_marker,
        arguments.raw_prompt,
    )
    prompts, dropped = drop_long_prompts(prompts, tokenizer, limit, arguments.max_prompt_length)
    most = min(limit, arguments.max_prompt_length or limit)
    logger.warning(
        "%s: %d prompts, %d dropped because they are longer than %d tokens", name, len(prompts), dropped, most
    )
    return prompts


def split_off(prompts: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """Training and validation rows."""
    if not 0 < count < len(prompts):
        raise ValueError(
            f"`validation_rows` is {count} of {len(prompts)} prompts, but some must be left on either side. Set it to "
            f"between 1 and {len(prompts) - 1}."
        )
    parts = prompts.train_test_split(test_size=count, seed=0)
    return parts["train"], parts["test"]


def check_rows(train: Dataset, training) -> None:
    """Refuse too few rows: TRL leaves out a rollout that it cannot fill, and takes no step if that is the first one."""
    prompts = training.generation_batch_size // training.num_generations
    if len(train) < prompts:
        raise ValueError(
            f"{len(train)} prompts are left to train on, but a rollout takes {prompts} (`generation_batch_size` "
            f"{training.generation_batch_size} / `num_generations` {training.num_generations}), so no step would be taken. "
            "Give more rows, or lower `generation_batch_size`."
        )


def refuse(arguments: SoftScriptArguments, training, model: ModelConfig) -> None:
    """Refuse settings of the script that cannot work, before a model or a data set is read."""
    needed = {"dataset_name": arguments.dataset_name, "model_name_or_path": model.model_name_or_path}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise ValueError(
            f"{' and '.join(f'`{name}`' for name in missing)} must be set, in the YAML file or as a flag. For example: "
            "`trl-soft train --config recipes/quickstart/gumbel.yaml`."
        )
    if arguments.dataset_streaming:
        raise ValueError(
            "`dataset_streaming` is set, but prompts are measured and counted before training. Set it to false."
        )
    unknown = [name for name in arguments.reward_funcs if name not in REWARDS]
    if unknown:
        raise ValueError(f"`reward_funcs` holds {unknown}. Choose among {', '.join(REWARDS)}.")
    if arguments.validation_rows and (arguments.dataset_test_name or training.eval_strategy == "no"):
        raise ValueError(
            "`validation_rows` is set, but `dataset_test_name` names other rows to evaluate on or `eval_strategy` is no. "
            "Pass `--validation_rows 0`, or leave the other out."
        )
    if os.path.exists(training.output_dir) and not os.path.isdir(training.output_dir):
        raise FileExistsError(f"`output_dir` is {training.output_dir}, which is a file. Give a folder.")
    _refuse_folder_of_another_kind(training.output_dir, bool(model.use_peft))
    if getattr(training, "loss_type", LOSS_TYPES[0]) not in LOSS_TYPES:
        raise ValueError(
            f"`loss_type` is {training.loss_type}, which TRL's GRPO does not know. Choose among {', '.join(LOSS_TYPES)}. For RLOO "
            "take a recipe with its keys, or `examples/rloo_soft.py`."
        )
    refuse_missing_trackers(training)
    check_update(arguments, training)


def _refuse_folder_of_another_kind(folder: str, adapter: bool) -> None:
    """A folder must not hold both an adapter and a whole model: loading it would put the one on the other."""
    ours, theirs = ("an adapter", "a whole model") if adapter else ("a whole model", "an adapter")
    names = ("model.safetensors", "model.safetensors.index.json") if adapter else ("adapter_config.json",)
    found = [name for name in names if os.path.exists(os.path.join(folder, name))]
    if found:
        raise FileExistsError(
            f"`output_dir` is {folder}, which holds {theirs} ({found[0]}) of an earlier run. This run saves {ours}, and the folder "
            "would load as a mixture of both. Give another folder, or empty this one."
        )


def make_folder(folder: str) -> None:
    """Make the run's folder before anything is loaded."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"`output_dir` is {folder}, a folder that cannot be made: {error.strerror}. Name one where you may write."
        ) from error


def load_datasets(
    arguments: SoftScriptArguments, training, model: ModelConfig, tokenizer
) -> tuple[Dataset, Dataset | None]:
    """Prompts to train on, and prompts to evaluate on if the settings ask for an evaluation."""
    path, trust = cast(str, model.model_name_or_path), training.trust_remote_code
    with model_at(path):
        config = AutoConfig.from_pretrained(path, revision=model.model_revision, trust_remote_code=trust)
    config = config.get_text_config()
    # Models without a fixed context (such as ALiBi) have no such field, and no prompt is too long for them.
    limit = getattr(config, "max_position_embeddings", sys.maxsize) - training.max_completion_length
    name = cast(str, arguments.dataset_name)
    train = load_prompts(arguments, name, arguments.dataset_train_split, tokenizer, limit, True)
    evaluation = None
    if arguments.validation_rows:
        train, evaluation = split_off(train, arguments.validation_rows)
    elif training.eval_strategy != "no":
        name = arguments.dataset_test_name or name
        evaluation = load_prompts(arguments, name, arguments.dataset_test_split, tokenizer, limit, False)
    check_rows(train, training)
    return train, evaluation


def source_of(name: str) -> str:
    """What a model card calls the data set: a benchmark by its id on the hub."""
    return BENCHMARKS[name].hub_id if name in BENCHMARKS else name


def train(arguments: SoftScriptArguments, training, model: ModelConfig, trainer_class) -> None:
    """Train by the settings, and save the model into `output_dir`, where `{seed}` stands for the seed."""
    refuse(arguments, training, model)
    training.output_dir = training.output_dir.replace("{seed}", str(training.seed))
    make_folder(training.output_dir)
    path, given = cast(str, model.model_name_or_path), {"revision": model.model_revision}
    with model_at(path):
        tokenizer = AutoTokenizer.from_pretrained(path, **given, trust_remote_code=training.trust_remote_code)
    train_dataset, eval_dataset = load_datasets(arguments, training, model, tokenizer)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = trainer_class(
        model=model.model_name_or_path,
        reward_funcs=[REWARDS[name] for name in arguments.reward_funcs],
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.dataset_name = source_of(cast(str, arguments.dataset_name))
    # On the command line and in YAML the field is text: a folder, `true` for the latest whole checkpoint of output_dir, or
    # `auto` for the same if there is one, for jobs that are queued again.
    resume = training.resume_from_checkpoint
    trainer.train(resume_from_checkpoint={"true": True, "false": None}.get(str(resume).lower(), resume))
    trainer.save_model(training.output_dir)
    trainer.save_state()
    if training.push_to_hub:
        trainer.push_to_hub()
    if trainer.accelerator.is_main_process:
        print(f"Wrote {training.output_dir}. To ask the model: trl-soft chat {training.output_dir}")
