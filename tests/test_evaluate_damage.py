# SPDX-License-Identifier: Apache-2.0
"""Run folders whose files hold something else than a run wrote: one sentence that names the file and the entry."""

import copy
import json
import random
import unicodedata

import pytest

from trl_soft.evaluate.compare import compare
from trl_soft.evaluate.compare import main as compare_main
from trl_soft.evaluate.inspect import inspect_page
from trl_soft.evaluate.inspect import main as inspect_main
from trl_soft.evaluate.report import report
from trl_soft.evaluate.report.command import main as report_main
from trl_soft.evaluate.report.replication import main as table_main
from trl_soft.evaluate.report.replication import read_ours
from trl_soft.evaluate.runner import score
from trl_soft.evaluate.store import Store


MANIFEST = {
    "name": "run", "model": "m", "seed": 0, "commit": "c", "limit": None, "benchmarks": ["b"],
    "decodings": [
        {"name": name, "thinking": {"thought": "hard", "thinking_temperature": 0.6, "end_of_thinking": "</t>"},
         "answer": {"temperature": 0.6}}
        for name in ("d", "e")
    ],
    "problems": {"b": {"count": 1, "sha256": "x"}},
}  # fmt: skip
ESTIMATE = {"value": 0.5, "low": 0.4, "high": 0.6}
METRICS = {
    "b": {
        "d": {
            "mean@n": ESTIMATE, "pass@k": {"1": ESTIMATE}, "maj@k": {"1": ESTIMATE}, "first_k": {"1": ESTIMATE}, "samples": 1,
            "length": {"mean": 3.0}, "correct_length": None, "thinking_length": {"mean": 2.0}, "clipped": 0.0,
            "entropy": 0.5, "tokens_per_second": 8.0, "entropy_by_position": {"mean": [0.5, None], "completions": [1, 0]},
        }
    }
}  # fmt: skip
SAMPLE = {
    "benchmark": "b", "decoding": "d", "problem": 0, "sample": 0, "prompt": "p", "text": "a</t>2", "answer": "2",
    "vote": "2", "correct": True, "length": 3, "thinking_length": 2, "clipped": False, "thinking_cut": False,
    "entropy": 0.5, "answer_at": 5,
    "thoughts": [{"token": "a", "entropy": 0.5, "thought": True, "candidates": [["a", 0.75], ["b", 0.25]]}],
}  # fmt: skip
OUT_OF_DOMAIN = {"model": "m", "limit": None, "tasks": {"mmlu": {"acc": {"value": 0.9}, "nll": {"value": 1.5}}}}
KEY = "9" * 5000
OTHERS = [
    None, [], [1], ["x"], "x", "x\x1b[2J", {}, {"a": 1}, {KEY: 1}, True, -1, 0.5, 5, 1e308, 10**299, float("nan"),
]  # fmt: skip


def folder_of(path, manifest=MANIFEST, metrics=METRICS, sample=SAMPLE, seal=None):
    (path / "samples").mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "metrics.json").write_text(json.dumps(metrics))
    lines = []
    for name in ("d", "e"):
        line = {**sample, "decoding": name} if sample.get("decoding") == "d" else sample
        lines += [{"begin": ["b", name, 0]}, line, {"seal": ["b", name, 0], "samples": 1, "tokens": 3, "seconds": 1.0, **(seal or {})}]  # fmt: skip
    (path / "samples" / "0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def readers(run):
    """What reads a run folder, by name."""
    return {
        "report": lambda: report([run], run / "report", figures=False),
        "compare": lambda: compare((run, "d"), (run, "e")),
        "score": lambda: score(Store(run)),
        "inspect": lambda: inspect_page(run, run / "page.html"),
    }


def entries(value, path=()):
    """The paths of all entries below a value, its own among them."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from entries(item, (*path, key))


def replaced(value, path, other):
    if not path:
        return other
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], other)
    return changed


def said(read, *names: str) -> bool:
    """Whether a reader refuses in one sentence that has one of these names; every other end but a result fails."""
    try:
        read()
    except ValueError as error:
        text = str(error)
        assert any(name in text for name in names) and len(text) < 1000, text
        assert not any(unicodedata.category(c) == "Cc" for c in text), text
        return True
    return False


def test_a_whole_folder_is_read(tmp_path):
    for read in readers(folder_of(tmp_path / "run")).values():
        read()


@pytest.mark.parametrize("of", ["manifest", "metrics", "sample", "seal"])
def test_whatever_stands_in_an_entry_no_reader_fails_but_in_a_sentence(tmp_path, of):
    sums = {"entropy_by_position": {"sums": [0.5], "counts": [1]}}
    valid = {"manifest": MANIFEST, "metrics": METRICS, "sample": SAMPLE, "seal": sums}[of]
    file = {"manifest": "manifest.json", "metrics": "metrics.json"}.get(of, "samples/0.jsonl")
    using = {"manifest": ("report", "compare", "inspect"), "metrics": ("report",), "seal": ("score",)}
    refused, draw = 0, random.Random(0)
    for path in entries(valid):
        for other in draw.sample(OTHERS, 6):
            changed = replaced(valid, path, other)
            if of in ("sample", "seal") and not isinstance(changed, dict):
                continue  # a line that is no object is as if it had never been written
            run = folder_of(tmp_path / "run", **{of: changed})
            for name, read in readers(run).items():
                if name in using.get(of, ("compare", "score", "inspect")):
                    refused += said(read, file, str(run))
    if of == "seal":
        assert refused == 0, "a seal that no run writes, and its chunk, are as if they had never been written"
    else:
        assert refused > 100


@pytest.mark.parametrize(
    "entry, other",
    [
        (("pass@k",), [1]), (("pass@k",), "x"), (("maj@k",), [1]), (("first_k",), "x"), (("samples",), {"a": 1}),
        (("entropy_by_position",), [1]), (("entropy_by_position",), {"mean": ["x"]}), (("pass@k",), {"x": 0.5}),
        (("pass@k",), {KEY: 0.5}), (("mean@n",), 5), (("pass@k", "1", "high"), None), (("length",), {"mean": "3"}),
    ],
)  # fmt: skip
def test_a_wrong_metric_names_its_entry(tmp_path, entry, other):
    run = folder_of(tmp_path / "run", metrics=replaced(METRICS, ("b", "d", *entry), other))
    with pytest.raises(ValueError, match=rf"metrics\.json: the entry `b`, `d`, `{entry[0]}`.*put the original back"):
        report([run], tmp_path / "out", figures=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "reader, field, other",
    [
        ("compare", "problem", None), ("score", "problem", None), ("score", "length", "x"), ("score", "vote", []),
        ("score", "correct", 3), ("score", "entropy", []), ("inspect", "sample", "x"), ("inspect", "thoughts", [3]),
        ("inspect", "thoughts", [{"token": "a", "candidates": [["a"]]}]), ("inspect", "length", {}),
    ],
)  # fmt: skip
def test_a_wrong_sample_names_its_file_and_entry(tmp_path, reader, field, other):
    run = folder_of(tmp_path / "run", sample={**SAMPLE, field: other})
    with pytest.raises(
        ValueError, match=rf"samples/0\.jsonl: in sample 0 of chunk 0, 'd' on 'b', the entry `{field}`"
    ):
        readers(run)[reader]()


def test_a_sample_without_a_benchmark_is_not_shown(tmp_path):
    run = folder_of(tmp_path / "run", sample={key: value for key, value in SAMPLE.items() if key != "benchmark"})
    with pytest.raises(ValueError, match=r"samples/0\.jsonl: .* lacks benchmark"):
        inspect_page(run, tmp_path / "page.html")


@pytest.mark.parametrize("entry, other", [(("thinking",), "x"), (("name",), None), (("answer", "temperature"), "hot")])
def test_a_wrong_decoding_of_a_manifest_names_its_entry(tmp_path, entry, other):
    run = folder_of(tmp_path / "run", manifest=replaced(MANIFEST, ("decodings", 0, *entry), other))
    for name in ("report", "inspect", "compare"):
        with pytest.raises(ValueError, match=rf"manifest\.json: the entry `decodings`, `0`, `{entry[0]}`"):
            readers(run)[name]()


def test_out_of_domain_scores_and_training_logs_too(tmp_path):
    file = tmp_path / "evaluation/paper/run/ood.json"
    log = tmp_path / "paper/run/seed0/trainer_state.json"
    for path, valid in ((file, OUT_OF_DOMAIN), (log, {"log_history": [{"step": 1, "reward": 0.5}]})):
        path.parent.mkdir(parents=True)
        for entry in entries(valid):
            for other in OTHERS:
                path.write_text(json.dumps(replaced(valid, entry, other)))
                said(lambda: read_ours(tmp_path, "paper"), path.name)
        path.write_text(json.dumps(valid))


ESCAPES = "x\x1b[2J\x1b]0;owned\x07"


def test_no_file_commands_the_terminal(tmp_path, capsys):
    """Commands print what is wrong with a file, and a file's names in it."""
    run = folder_of(tmp_path / "run", metrics={ESCAPES: {"d": {"mean@n": 5}}}, sample={**SAMPLE, "vote": [ESCAPES]})
    paper = tmp_path / "paper.yaml"
    paper.write_text(json.dumps([{"source": ESCAPES, "name": "r", "decoding": "d", "values": {"b": {"mean@1": 1.0}}}]))
    commands = [
        (report_main, [str(run), "-o", str(tmp_path / "out"), "--no_figures"]),
        (compare_main, [str(run), "d", "e"]),
        (inspect_main, [str(run), "-o", str(tmp_path / "page.html")]),
        (table_main, [str(paper), "--outputs", str(tmp_path)]),
    ]
    for main, arguments in commands:
        try:
            main(arguments)
        except SystemExit as ended:
            assert ended.code == 2
        written = "".join(capsys.readouterr())
        assert written and not set(written) & set("\x1b\x07"), written
