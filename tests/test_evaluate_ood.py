# SPDX-License-Identifier: Apache-2.0
"""Out of domain through lm-evaluation-harness, on rows of this test's own: likelihoods are the model's."""

import gzip
import json

import pytest
import torch

from tests import tiny
from trl_soft.evaluate.ood import local_task, out_of_domain


pytest.importorskip("lm_eval")
HELLASWAG = [
    {"ind": i, "activity_label": f"{i}", "ctx": f"{i}+1", "label": i % 4, "endings": ["=1", "=2", "=a", "=bb"]}
    for i in range(6)
]


@pytest.fixture
def data(tmp_path):
    with gzip.open(tmp_path / "hellaswag_val.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in HELLASWAG)
    return tmp_path


def log_likelihood(net, tokenizer, context: str, ending: str) -> float:
    """log p of the ending's tokens, one forward, as the harness asks it: context, a blank, ending."""
    ids = tokenizer(f"{context} {ending}")["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        log_p = torch.log_softmax(net(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    return sum(log_p[t - 1, ids[t]].item() for t in range(start, len(ids)))


def test_likelihoods_are_the_models(data, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    net, tokenizer = tiny.model().eval(), tiny.tokenizer()
    (row,) = out_of_domain(net, tokenizer, ["hellaswag"], str(data)).values()
    scores = [
        [log_likelihood(net, tokenizer, f"{r['activity_label']}: {r['ctx']}", e) for e in r["endings"]]
        for r in HELLASWAG
    ]
    right = [max(range(4), key=s.__getitem__) == r["label"] for s, r in zip(scores, HELLASWAG, strict=True)]
    nll = [-s[r["label"]] for s, r in zip(scores, HELLASWAG, strict=True)]
    assert row["questions"] == 6 and row["acc"]["value"] == pytest.approx(sum(right) / 6)
    assert row["nll"]["value"] == pytest.approx(sum(nll) / 6, rel=1e-5)
    assert row["nll"]["low"] <= row["nll"]["value"] <= row["nll"]["high"]


def test_what_is_not_there_is_said(data):
    with pytest.raises(ValueError, match="`tasks` holds 'winogrande'"):
        local_task("winogrande", str(data))
    with pytest.raises(FileNotFoundError, match="leave out `data_dir`"):
        local_task("mmlu", str(data))
