# SPDX-License-Identifier: Apache-2.0
"""The arguments of a training script besides those of trainer and model: the data, and how to grade them."""

from dataclasses import dataclass, field
from typing import cast

from trl import ScriptArguments

from ..evaluate import BENCHMARKS
from ..rewards import REWARDS


@dataclass
class SoftScriptArguments(ScriptArguments):
    """The data to train on, and how to grade them."""

    dataset_test_name: str | None = field(
        default=None, metadata={"help": "Hub id or file to evaluate on; unset: dataset_test_split of dataset_name."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": f"Folder with local files of {', '.join(BENCHMARKS)}, which are data sets too; unset: the hub."
        },
    )
    validation_rows: int | None = field(
        default=None,
        metadata={"help": "Rows to hold out of the training set and evaluate on, the same for every seed; 0: none."},
    )
    question_column: str = field(default="question", metadata={"help": "Column that holds the question."})
    answer_column: str = field(default="answer", metadata={"help": "Column that holds the answer."})
    answer_marker: str | None = field(
        default=None, metadata={"help": "The answer is the text after the last of these marks (GSM8K: '####')."}
    )
    prompt_template: str = field(default="{question}", metadata={"help": "The prompt, with {question} in it."})
    raw_prompt: bool = field(default=False, metadata={"help": "The prompt is text, without the chat template."})
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Drop longer prompts, in tokens; unset: those that leave no room in the context."},
    )
    contamination: list[str] | None = field(
        default=None,
        metadata={"help": "Benchmarks, files or hub ids whose questions are searched in the training set."},
    )
    drop_contaminated: bool = field(default=False, metadata={"help": "Leave those training questions out."})
    completions_per_update: int | None = field(
        default=None,
        metadata={"help": "Refuse to start if processes, batch and accumulation do not make this many per update."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["math"], metadata={"help": f"Rewards, among {', '.join(REWARDS)}."}
    )


def check_update(arguments: SoftScriptArguments, training) -> None:
    """Check the size of an update, because it changes with the number of processes."""
    wanted = arguments.completions_per_update
    at_once = training.per_device_train_batch_size * training.world_size
    have = at_once * training.gradient_accumulation_steps
    if wanted not in (None, have):
        steps, rest = divmod(cast(int, wanted), at_once)
        remedy = (
            f"`gradient_accumulation_steps: {steps}`" if steps and not rest else "another number of processes or batch"
        )
        raise ValueError(
            f"`completions_per_update` is {wanted}, but {training.world_size} processes x `per_device_train_batch_size` "
            f"{training.per_device_train_batch_size} x `gradient_accumulation_steps` "
            f"{training.gradient_accumulation_steps} are {have}. Set {remedy}."
        )
