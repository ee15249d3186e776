# SPDX-License-Identifier: Apache-2.0
"""Train a policy whose chain of thought is made of soft tokens, by GRPO: `accelerate launch -m trl_soft.scripts.grpo`."""

from trl import ModelConfig

from ..training.config import SoftGRPOConfig
from ..training.trainer import SoftGRPOTrainer
from .arguments import SoftScriptArguments
from .parser import SoftParser
from .run_training import train


def main() -> None:
    arguments, training, model = SoftParser((SoftScriptArguments, SoftGRPOConfig, ModelConfig)).parse_args_and_config()
    train(arguments, training, model, SoftGRPOTrainer)


if __name__ == "__main__":
    main()
