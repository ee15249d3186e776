# SPDX-License-Identifier: Apache-2.0
"""Out of domain through lm-evaluation-harness, on rows of this test's own: likelihoods are the model's."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from trl_soft.evaluate.ood import TASKS, configurations, leaves_of, out_of_domain


pytest.importorskip("lm_eval")
HELLASWAG = [
    {"ind": i, "activity_label": f"{i}", "ctx": f"{i}+1", "label": i % 4, "endings": ["=1", "=2", "=a", "=bb"]}
    for i in range(6)
]
MMLU = [{"question": f"{i}+1", "subject": "a", "choices": list("1234"), "answer": i % 4} for i in range(6)]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture
def data(tmp_path):
    for name, rows in (("hellaswag_val", HELLASWAG), ("mmlu_validation", MMLU)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path


def log_likelihood(net, tokenizer, context: str, ending: str) -> float:
    """log p of the ending's tokens, one forward, as the harness asks it: context, a blank, ending."""
    ids = tokenizer(f"{context} {ending}")["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        log_p = torch.log_softmax(net(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    return sum(log_p[t - 1, ids[t]].item() for t in range(start, len(ids)))


def test_likelihoods_are_the_models(data):
    """The NLL is a token's (2509.19170, section 4); the sum over the answer has its own name."""
    net, tokenizer = tiny.model().eval(), tiny.tokenizer()
    (row,) = out_of_domain(net, tokenizer, ["hellaswag"], str(data)).values()
    scores = [
        [log_likelihood(net, tokenizer, f"{r['activity_label']}: {r['ctx']}", e) for e in r["endings"]]
        for r in HELLASWAG
    ]
    right = [max(range(4), key=s.__getitem__) == r["label"] for s, r in zip(scores, HELLASWAG, strict=True)]
    nll = [-s[r["label"]] for s, r in zip(scores, HELLASWAG, strict=True)]
    # One token a character, and the blank before the answer is one.
    per_token = [x / len(f" {r['endings'][r['label']]}") for x, r in zip(nll, HELLASWAG, strict=True)]
    assert row["questions"] == 6 and row["acc"]["value"] == pytest.approx(sum(right) / 6)
    assert row["nll"]["value"] == pytest.approx(sum(per_token) / 6, rel=1e-5)
    assert row["nll_sum"]["value"] == pytest.approx(sum(nll) / 6, rel=1e-5)
    assert row["nll"]["low"] <= row["nll"]["value"] <= row["nll"]["high"]


def test_success_is_of_what_is_written_greedily(data):
    """A model that writes one letter whatever is asked is right where that is the right one's, unlikely answers or not."""
    net, tokenizer = tiny.model().eval(), tiny.tokenizer()
    tokenizer.add_tokens(["C;"])  # it goes on to write `C;C;`, in which the first letter stands alone
    net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    letter = tokenizer.convert_tokens_to_ids("C;")
    head = torch.nn.Linear(net.config.hidden_size, len(tokenizer))
    torch.nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.zero_()[letter] = 10.0
    net.set_output_embeddings(head)
    results = out_of_domain(net, tokenizer, ["hellaswag", "mmlu_validation"], str(data))
    share = sum(row["label"] == 2 for row in HELLASWAG) / 6  # labels 0 1 2 3 0 1: one of six
    assert results["hellaswag"]["greedy"]["value"] == pytest.approx(share) == pytest.approx(1 / 6)
    assert results["mmlu_validation"]["greedy"]["value"] == pytest.approx(1 / 6)
    assert results["mmlu_validation"]["questions"] == 6


def test_both_shapes_of_rows_are_one_question():
    """The hub's rows and the authors' files, as the harness cleans HellaSwag's."""
    arc = TASKS["arc_challenge"].read
    choices = [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]
    of_file = arc({"question": {"stem": "q", "choices": choices}, "answerKey": "2"})
    of_hub = arc({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"})
    assert of_file == of_hub == {"question": "q", "options": ["x", "y"], "right": 1}
    hellaswag = {"activity_label": "Home", "ctx_a": "[header] To bake [title] Mix.", "ctx_b": "then", "label": "1"}
    row = TASKS["hellaswag"].read({**hellaswag, "endings": ["a [substeps] b", "c"]})
    assert row == {"question": "Home: To bake. Mix. Then", "options": ["a b", "c"], "right": 1}


def test_a_group_of_the_harness_is_its_leaves():
    """The harness's `mmlu` is a group of groups, whose questions are pooled under the name that was asked for."""
    groups = {"mmlu_h": ["stem", "other"], "stem": ["a", "b"], "other": ["c", "b"], "a": [], "b": [], "c": []}
    assert leaves_of("mmlu_h", groups) == ["a", "b", "c"] and leaves_of("a", groups) == ["a"]


def test_mmlu_is_its_test_split(data):
    """Validation rows are never taken for it: they have another name, which no table of a paper has."""
    assert TASKS["mmlu"].hub == ("cais/mmlu", "all", "test") and TASKS["mmlu"].file == "mmlu_test.jsonl.gz"
    with pytest.raises(
        FileNotFoundError, match=r"mmlu_test.jsonl.gz does not exist.*leave out `data_dir`.*`mmlu_validation`"
    ):
        configurations("mmlu", str(data))


def test_what_is_not_there_is_said(data):
    with pytest.raises(ValueError, match="`tasks` holds 'winogrande'"):
        configurations("winogrande", str(data))
    with pytest.raises(FileNotFoundError, match="leave out `data_dir`"):
        out_of_domain(None, None, ["arc_challenge"], str(data))


def test_a_tokenizer_that_reads_no_question_is_named(data):
    rows = [{"ind": 0, "activity_label": "", "ctx": "why", "label": 0, "endings": ["a", "b", "c", "d"]}]
    with gzip.open(data / "hellaswag_val.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    reasoner = Path(__file__).parent.parent / "examples/quickstart/reasoner"
    net, tokenizer = AutoModelForCausalLM.from_pretrained(reasoner), AutoTokenizer.from_pretrained(reasoner)
    with pytest.raises(ValueError, match="no token of a question"):
        out_of_domain(net, tokenizer, ["hellaswag"], str(data))
