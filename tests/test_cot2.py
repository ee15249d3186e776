# SPDX-License-Identifier: Apache-2.0
"""`examples/cot2/mnns.py`: the task, its split, what a step is to predict, and the supervised training."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch


mnns = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "examples/cot2/mnns.py")))


def test_the_answer_is_the_smallest_sum_that_is_not_negative():
    assert mnns.solve((5, 3, 2, 4)) == 0 and mnns.solve((1, 1, 1, 4)) == 1 and mnns.solve((9, 1, 1, 1)) == 6
    assert sorted(mnns.signed_sums((1, 2))) == [-3, -1, 1, 3]


def test_no_set_of_digits_is_in_both_parts():
    training, test = mnns.split(42)
    assert len(training) + len(test) == 9**4 and 0.75 < len(training) / 9**4 < 0.85
    assert not {tuple(sorted(digits)) for digits in training} & {tuple(sorted(digits)) for digits in test}
    assert mnns.split(42) == (training, test) != mnns.split(43)


def test_a_step_is_to_predict_the_distribution_of_partial_sums():
    tokenizer = mnns.make_tokenizer()
    q = mnns.targets((2, 2, 5, 1), tokenizer)
    assert q.shape == (3, len(tokenizer)) and torch.allclose(q.sum(-1), torch.ones(3))
    at = tokenizer.convert_tokens_to_ids
    assert q[0, at("S2")] == q[0, at("S-2")] == 0.5
    assert (q[1, at("S0")], q[1, at("S4")]) == (0.5, 0.25)
    assert tokenizer("D2 D5")["input_ids"] == [tokenizer.bos_token_id, at("D2"), at("D5")]
    assert tokenizer.decode(at(["S-3", "</think>", "S1"]), skip_special_tokens=True).endswith("</think> S1")


def test_training_learns_a_few_questions_by_heart():
    torch.manual_seed(0)
    tokenizer = mnns.make_tokenizer()
    model, questions = mnns.make_model(tokenizer), mnns.split(0)[0][:8]
    prompts = tokenizer([" ".join(f"D{d}" for d in digits) for digits in questions], return_tensors="pt")["input_ids"]
    batch = (
        prompts,
        torch.stack([mnns.targets(digits, tokenizer) for digits in questions]),
        torch.tensor(tokenizer.convert_tokens_to_ids([f"S{mnns.solve(digits)}" for digits in questions])),
        tokenizer.convert_tokens_to_ids("</think>"),
    )
    before = mnns.loss_of(model.eval(), *batch).item()
    mnns.train(model, tokenizer, questions, epochs=30, seed=0)
    after = mnns.loss_of(model.eval(), *batch).item()
    # Four predictions among 87 tokens, less the entropies of three targets: 4 log 87 - 3.8 = 14 at first.
    assert 12 < before < 18 and 0 < after < before
