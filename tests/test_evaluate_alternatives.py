# SPDX-License-Identifier: Apache-2.0
"""What else a token could have been: the distribution of its draw, worked out again by transformers' own processors."""

from contextlib import closing

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from tests import tiny
from trl_soft import ThinkingSettings
from trl_soft.evaluate.alternatives import alternatives
from trl_soft.evaluate.entropy import read_again
from trl_soft.forward import soft_tokens_added
from trl_soft.rollout import ENGINES, EngineOptions, Key
from trl_soft.rollout.make_plan import make_plan
from trl_soft.thoughts import Hard


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.5}, {"repetition_penalty": 1.5}])
def test_alternatives_are_the_distribution_that_the_token_was_drawn_from(settings):
    net, prompt = tiny.model(), [5, 9, 12]
    penalty = settings.get("repetition_penalty", 1.0)
    sampling = {name: value for name, value in settings.items() if name != "repetition_penalty"}
    plan = make_plan(
        ThinkingSettings(thought="hard", max_thinking_length=3), tiny.tokenizer(), Hard(**sampling),
        vocab_size=len(tiny.TOKENS), max_completion_length=8, eos_token_ids=[1], repetition_penalty=penalty,
    )  # fmt: skip
    key = Key(0, 0, torch.arange(1))
    with soft_tokens_added(net), closing(ENGINES["slots"](net, [prompt], plan, key, EngineOptions(1))) as done:
        (_, rollout), *_ = done
        found = alternatives(read_again(net, prompt, rollout), prompt, rollout, plan, 4)
    ids = rollout.completion_ids[0].tolist()
    forced = rollout.record.forced_mask[0].tolist()
    assert set(found) == {t for t in range(len(ids)) if not forced[t]}
    for t, pairs in found.items():
        seen = torch.tensor([prompt + ids[:t]])
        z = net(seen).logits[:, -1].float()
        if penalty != 1.0:
            z = RepetitionPenaltyLogitsProcessor(penalty)(seen, z)
        z = z / sampling.get("temperature", 1.0)
        if "top_k" in sampling:
            z = TopKLogitsWarper(3)(seen, z)
        if "top_p" in sampling:
            z = TopPLogitsWarper(0.7)(seen, z)
        p = torch.softmax(z, -1)[0]
        assert ids[t] in dict(pairs) and len(pairs) <= 4
        for token, value in pairs:
            assert value == pytest.approx(p[token].item(), abs=1e-5)  # float32, another order of sums
