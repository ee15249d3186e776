# SPDX-License-Identifier: Apache-2.0
"""Train a policy whose chain of thought is made of soft tokens, by RLOO.

accelerate launch examples/rloo_soft.py --config recipes/soft_tokens/llama3b_gsm8k_soft.yaml --seed 1
"""

from trl_soft.command_line import one_sentence
from trl_soft.scripts.rloo import main


if __name__ == "__main__":
    with one_sentence():
        main()
