# SPDX-License-Identifier: Apache-2.0
"""Train a policy whose chain of thought is made of soft tokens, by GRPO.

    accelerate launch examples/grpo_soft.py --config recipes/quickstart/gumbel.yaml
    accelerate launch examples/grpo_soft.py --config recipes/quickstart/gsm8k.yaml --model_name_or_path MODEL

A flag overrides the YAML file. A key that nothing reads is an error. `{seed}` in `output_dir` stands for the seed.
"""

from trl_soft.command_line import one_sentence
from trl_soft.scripts.grpo import main


if __name__ == "__main__":
    with one_sentence():
        main()
