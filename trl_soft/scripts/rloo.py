# SPDX-License-Identifier: Apache-2.0
"""Train a policy whose chain of thought is made of soft tokens, by RLOO: `accelerate launch -m trl_soft.scripts.rloo`."""

from collections.abc import Sequence

from trl import ModelConfig

from ..command_line import one_sentence
from ..training.config import SoftRLOOConfig
from ..training.trainer import SoftRLOOTrainer
from .arguments import SoftScriptArguments
from .parser import SoftParser
from .run_training import train


def main(argv: Sequence[str] | None = None) -> None:
    prog = None if argv is None else "trl-soft train [--algorithm {grpo,rloo}]"  # a script is named by its file
    parser = SoftParser((SoftScriptArguments, SoftRLOOConfig, ModelConfig), prog=prog)
    arguments, training, model = parser.parse_args_and_config(argv)
    train(arguments, training, model, SoftRLOOTrainer)


if __name__ == "__main__":
    with one_sentence():
        main()
