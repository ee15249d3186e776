# SPDX-License-Identifier: Apache-2.0
"""What a user reads in a record: its repr, its candidates and weights, and its table, for every kind of thought."""

import math

import pandas
import pytest
import torch

from tests import tiny
from trl_soft import ThinkingSettings, soft_generate
from trl_soft.record import SoftTokens
from trl_soft.thoughts.gaussian import ProbabilitiesGaussian


@pytest.fixture(scope="module", params=tiny.THOUGHTS, ids=tiny.name)
def out(request):
    settings = ThinkingSettings(max_thinking_length=5, **request.param)
    return soft_generate(
        tiny.model(), tiny.tokenizer(), ["1+2=", "3-1="], settings, max_completion_length=8, progress=False
    )


def test_the_repr_says_shape_kind_and_count(out):
    record = out.record
    count, kind = sum(out.thinking_lengths), record.thought.name
    # SofT-GRPO's released code scores the closing step as a token, so the record has it as one.
    thoughts = int(record.thinking_mask.sum())
    assert repr(record) == f"SoftTokens(shape=(2, {record.shape[1]}), thought={kind!r}, thoughts={thoughts})"
    assert count - 2 <= thoughts <= count


def test_candidates_and_weights_make_what_was_fed(out):
    record, table = out.record, tiny.model().get_input_embeddings().weight.detach()
    for i in range(2):
        ids, weights = record.candidates(i), record.weights(i)
        n = int(record.thinking_mask[i].sum())
        assert (
            ids.shape == weights.shape and len(ids) == n and ids.dtype == torch.long and weights.dtype == torch.float32
        )
        if ids.size(1) == 0:
            assert record.thought.name in ("gaussian", "latent")
            continue
        shadow = torch.tensor(out.completion_ids[i])[record.thinking_mask[i, : len(out.completion_ids[i])]]
        assert all(token in row for token, row in zip(shadow.tolist(), ids.tolist(), strict=True))
        assert not torch.signbit(weights[weights == 0]).any()
        action = record[i : i + 1].flat_action(record.thinking_mask[i : i + 1])
        if not record.thought.is_token:
            fed = record.thought.embed(action, _Lookup(table))
            torch.testing.assert_close((weights.unsqueeze(-1) * table[ids]).sum(1), fed, rtol=1e-5, atol=1e-5)


class _Lookup:
    """`embed` of a thought, on a table."""

    def __init__(self, table):
        self.table = table

    def __call__(self, ids):
        return self.table[ids]

    def mix(self, weights, ids):
        return (weights.unsqueeze(-1) * self.table[ids]).sum(1)


def test_the_table_has_a_row_for_each_candidate(out):
    record, frame = out.record, out.to_pandas()
    assert list(frame.columns) == ["completion", "position", "token_id", "weight", "log_prob", "entropy"]
    expected = sum(max(1, int((row != 0).sum())) for i in range(2) for row in record.weights(i))
    assert len(frame) == expected and not frame.duplicated().all()
    assert set(map(tuple, frame[["completion", "position"]].to_numpy().tolist())) == set(
        map(tuple, record.thinking_mask.nonzero().tolist())
    )
    for row in frame.itertuples():
        assert row.log_prob == pytest.approx(out.log_probs[row.completion][row.position])
        assert row.entropy == pytest.approx(out.entropies[row.completion][row.position])
        known = record.weights(0).size(1) > 0
        assert pandas.notna(row.token_id) == known and (not math.isnan(row.weight)) == known
    assert record.to_pandas()["entropy"].isna().all()
    assert not any(str(value) == "-0.0" for values in (out.log_probs + out.entropies) for value in values)


def test_minus_zero_is_zero():
    thought = ProbabilitiesGaussian()
    noisy = torch.tensor([[[1.5, -0.0, -0.5]]])
    action = {"ids": torch.tensor([[[3, 4, 5]]]), "noisy": noisy, "kept": torch.tensor([[[True, False, True]]])}
    record = SoftTokens(thought, torch.ones(1, 1, dtype=torch.bool), action, torch.tensor([[-0.0]]))
    assert [str(x) for x in record.weights(0)[0].tolist()] == ["1.5", "0.0", "-0.5"]
    frame = record.to_pandas([[-0.0]])
    assert frame["token_id"].tolist() == [3, 5] and str(frame["log_prob"][0]) == str(frame["entropy"][0]) == "0.0"


def test_a_record_without_thoughts_has_an_empty_table():
    action = {"ids": torch.zeros(1, 2, 3, dtype=torch.long), "noisy": torch.ones(1, 2, 3)}
    record = SoftTokens(ProbabilitiesGaussian(), torch.zeros(1, 2, dtype=torch.bool), action, torch.zeros(1, 2))
    assert len(record.to_pandas()) == 0 and record.candidates(0).shape == (0, 3)
