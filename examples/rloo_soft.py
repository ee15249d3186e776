# SPDX-License-Identifier: Apache-2.0
"""Train a policy whose chain of thought is made of soft tokens, by RLOO: `grpo_soft.py` with the other trainer.

accelerate launch examples/rloo_soft.py --config recipes/soft_tokens/llama3b_gsm8k_soft.yaml --seed 1
"""

from grpo_soft import Arguments, main
from trl import ModelConfig

from trl_soft import SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.config import SoftParser


if __name__ == "__main__":
    main(*SoftParser((Arguments, SoftRLOOConfig, ModelConfig)).parse_args_and_config(), SoftRLOOTrainer)
