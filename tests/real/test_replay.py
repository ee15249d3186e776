# SPDX-License-Identifier: Apache-2.0
"""Drawn against re-scored for every trained thought, on a real model in float32 and bfloat16."""

import pytest

from tests import tiny
from tests.real.conftest import DATA
from tests.rescored import logp_difference
from trl_soft import ThinkingSettings, soft_generate
from trl_soft.evaluate import build_prompt, load_problems
from trl_soft.runs.replay import kind_of, tolerance
from trl_soft.thoughts import THOUGHTS


# At the papers' candidates; those of the tiny world are cut to its 26 tokens.
KINDS = [
    {name: value for name, value in settings.items() if name != "thinking_top_k"}
    for settings in tiny.THOUGHTS
    if THOUGHTS[settings["thought"]].has_density
] + [{"thought": "gaussian", "thinking_temperature": 1e-4}]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS, ids=tiny.name)
def test_drawn_is_rescored(smollm2_in, smollm2_tokenizer, figure, kind, dtype):
    """
    Two questions, two completions each, 24 thoughts and 6 answer tokens at most. The limits are those a run is held to;
    `docs/replay.md` has the measurements they come from. The record fits its mixtures better than its shadow tokens.
    """
    net, tokenizer = smollm2_in(dtype), smollm2_tokenizer
    settings = ThinkingSettings(**kind, max_thinking_length=24, end_of_thinking="The final answer is")
    problems = load_problems("gsm8k", str(DATA), limit=2)
    prompts = [tokenizer(build_prompt(problem, "plain", tokenizer))["input_ids"] for problem in problems]
    out = soft_generate(
        net, tokenizer, prompts, settings, num_generations=2, max_completion_length=34, seed=5, progress=False
    )
    rows = [prompt for prompt in prompts for _ in range(2)]
    seen = logp_difference(net, rows, out)
    limit = tolerance(settings, net.config.hidden_size, dtype == "float32")
    mean, answer = (seen[part].mean().item() for part in ("thinking", "answer"))
    hard = tolerance(ThinkingSettings(thought="hard"), net.config.hidden_size, dtype == "float32")
    shadow = float("nan")
    if kind["thought"] != "hard":
        shadow = logp_difference(net, rows, out, shadow=True)["thinking"].mean().item()
        assert mean < shadow
    figure(f"{kind_of(settings)} {tiny.name(kind)}", dtype, len(seen["thinking"]), mean, shadow, limit)
    assert len(seen["thinking"]) > 32 and mean <= limit and answer <= hard
