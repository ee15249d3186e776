# SPDX-License-Identifier: Apache-2.0
"""Train a policy whose chain of thought is made of soft tokens.

    accelerate launch examples/grpo_soft.py --config recipes/quickstart/gumbel.yaml
    accelerate launch examples/grpo_soft.py --config recipes/quickstart/gsm8k.yaml --model_name_or_path MODEL

The command line beats the YAML file; a key that nothing reads is an error.
"""

import logging
import sys
from dataclasses import dataclass, field

from transformers import AutoConfig, AutoTokenizer
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_soft import SoftGRPOConfig, SoftGRPOTrainer
from trl_soft.config import SoftParser
from trl_soft.data import drop_long_prompts, load_rows, to_prompts
from trl_soft.rewards import REWARDS


logger = logging.getLogger("grpo_soft")


@dataclass
class Arguments(ScriptArguments):
    """What to train on, and how to grade it."""

    dataset_test_name: str | None = field(
        default=None, metadata={"help": "Hub id or file to evaluate on; unset: dataset_test_split of dataset_name."}
    )
    question_column: str = field(default="question", metadata={"help": "Column that holds the question."})
    answer_column: str = field(default="answer", metadata={"help": "Column that holds the answer."})
    answer_marker: str | None = field(
        default=None, metadata={"help": "The answer is what follows the last of these marks (GSM8K: '####')."}
    )
    prompt_template: str = field(default="{question}", metadata={"help": "The prompt, with {question} in it."})
    reward_funcs: list[str] = field(
        default_factory=lambda: ["math"], metadata={"help": f"Rewards, among {', '.join(REWARDS)}."}
    )


def load_prompts(arguments: Arguments, name: str, split: str, tokenizer, limit: int):
    """Prompts that fit the context, with the count of those that did not."""
    rows = load_rows(name, split, arguments.dataset_config)
    prompts = to_prompts(
        rows,
        tokenizer,
        arguments.question_column,
        arguments.answer_column,
        arguments.prompt_template,
        arguments.answer_marker,
    )
    prompts, dropped = drop_long_prompts(prompts, tokenizer, limit)
    logger.warning(
        "%s: %d prompts, %d dropped because they are longer than %d tokens", name, len(prompts), dropped, limit
    )
    return prompts


def main(arguments: Arguments, training: SoftGRPOConfig, model: ModelConfig):
    if arguments.dataset_name is None or model.model_name_or_path is None:
        raise ValueError("`dataset_name` and `model_name_or_path` must both be set, in the YAML file or as flags.")
    if arguments.dataset_streaming:
        raise ValueError(
            "`dataset_streaming` is set, but prompts are measured and counted before training. Set it to false."
        )
    unknown = [name for name in arguments.reward_funcs if name not in REWARDS]
    if unknown:
        raise ValueError(f"`reward_funcs` holds {unknown}. Choose among {', '.join(REWARDS)}.")

    tokenizer = AutoTokenizer.from_pretrained(
        model.model_name_or_path, revision=model.model_revision, trust_remote_code=training.trust_remote_code
    )
    config = AutoConfig.from_pretrained(
        model.model_name_or_path, revision=model.model_revision, trust_remote_code=training.trust_remote_code
    ).get_text_config()
    # Models without a fixed context (ALiBi, say) have no such field, and no prompt is too long for them.
    limit = getattr(config, "max_position_embeddings", sys.maxsize) - training.max_completion_length
    train = load_prompts(arguments, arguments.dataset_name, arguments.dataset_train_split, tokenizer, limit)
    evaluation = None
    if training.eval_strategy != "no":
        name = arguments.dataset_test_name or arguments.dataset_name
        evaluation = load_prompts(arguments, name, arguments.dataset_test_split, tokenizer, limit)

    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = SoftGRPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=[REWARDS[name] for name in arguments.reward_funcs],
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    # On the command line and in YAML the field is text: a folder, `true` for the latest whole checkpoint of output_dir, or
    # `auto` for the same where there is one, which is what a job that is queued again wants.
    resume = training.resume_from_checkpoint
    trainer.train(resume_from_checkpoint={"true": True, "false": None}.get(str(resume).lower(), resume))
    trainer.save_model(training.output_dir)
    trainer.save_state()
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.dataset_name)


if __name__ == "__main__":
    main(*SoftParser((Arguments, SoftGRPOConfig, ModelConfig)).parse_args_and_config())
