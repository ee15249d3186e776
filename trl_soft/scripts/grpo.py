# SPDX-License-Identifier: Apache-2.0
"""Train a policy whose chain of thought is made of soft tokens, by GRPO: `accelerate launch -m trl_soft.scripts.grpo`."""

from collections.abc import Sequence

from trl import ModelConfig

from ..command_line import one_sentence
from ..training.config import SoftGRPOConfig
from ..training.trainer import SoftGRPOTrainer
from .arguments import SoftScriptArguments
from .parser import SoftParser
from .run_training import train


def main(argv: Sequence[str] | None = None) -> None:
    prog = None if argv is None else "trl-soft train [--algorithm {grpo,rloo}]"  # a script is named by its file
    parser = SoftParser((SoftScriptArguments, SoftGRPOConfig, ModelConfig), prog=prog)
    arguments, training, model = parser.parse_args_and_config(argv)
    train(arguments, training, model, SoftGRPOTrainer)


if __name__ == "__main__":
    with one_sentence():
        main()
