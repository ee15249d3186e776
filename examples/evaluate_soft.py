# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model under any ways of thinking, hard tokens included.

    accelerate launch examples/evaluate_soft.py --config recipes/quickstart/evaluate.yaml
    accelerate launch examples/evaluate_soft.py --benchmarks gsm8k math500 --preset soft_tokens \\
        --grid_models hard=outputs/hard soft=outputs/soft fuzzy=outputs/fuzzy

A second start continues an interrupted run. A run writes `manifest.json`, `samples/*.jsonl` and `metrics.json`.
`trl-soft report RUN -o OUT` makes tables and figures of it. `trl-soft inspect RUN`
makes a page that shows its thoughts.
"""

from trl_soft.command_line import one_sentence
from trl_soft.scripts.run_evaluation import main


if __name__ == "__main__":
    with one_sentence():
        main()
