# SPDX-License-Identifier: Apache-2.0
"""Run folders that two processes open at once, or that somebody damaged; names that a program would obey."""

import csv
import io
import json
import threading

import pytest

from trl_soft.evaluate.decoding import Decoding
from trl_soft.evaluate.report import report
from trl_soft.evaluate.report.csv_files import to_csv
from trl_soft.evaluate.report.table_formats import escape_latex, escape_markdown
from trl_soft.evaluate.runner import Evaluation, score
from trl_soft.evaluate.store import Store
from trl_soft.files import parse_json, printable, read_object, replace_text
from trl_soft.runs.checkpoint import MANIFEST, CheckpointError, read_manifest


SCORES = {
    "b": {"d": {"mean@n": {"value": 0.5, "low": 0.4, "high": 0.6}, "pass@k": {"1": {"value": 0.5}}, "samples": 4}}
}
ASKED = {"model": "m", "environment": {"commit": "c"}}
DAMAGED = {
    "truncated": '{"model": "m", "environ',
    "empty": "",
    "a list": "[1, 2]",
    "a number": "3",
    "nested": "[" * 100_000,
    "digits": '{"seed": ' + "7" * 5000 + "}",
    "bytes": b'{"model": "\xff"}',
}
SAMPLE = {
    "problem": 0, "sample": 0, "correct": True, "vote": "1", "length": 3, "thinking_length": 2, "clipped": False,
    "thinking_cut": False, "entropy": 0.5,
}  # fmt: skip


def run_folder(folder, name="ours", seed=0):
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"name": name, "model": "m", "seed": seed}))
    (folder / "metrics.json").write_text(json.dumps(SCORES))
    return folder


def damage(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_of_two_runs_that_begin_together_one_has_the_folder(tmp_path):
    for number in range(20):
        folder, barrier, outcomes = tmp_path / str(number), threading.Barrier(2), []
        stores = [Store(folder), Store(folder)]

        def begin(store, barrier=barrier, outcomes=outcomes):
            barrier.wait()
            try:
                store.lock()
                store.open(ASKED, ("model",))
                outcomes.append("opened")
            except RuntimeError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=begin, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcome[:15] for outcome in outcomes) == ["Another process", "opened"]
        assert json.loads((folder / "manifest.json").read_text()) == ASKED


def test_writers_of_one_file_do_not_take_each_others_text(tmp_path):
    texts = [f"{n}" * 5000 for n in range(4)]
    barrier, errors = threading.Barrier(4), []

    def write(text):
        barrier.wait()
        try:
            for _ in range(20):
                replace_text(tmp_path / "file", text)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and (tmp_path / "file").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_one_sentence_and_stays_as_it_is(tmp_path, content):
    file = tmp_path / "manifest.json"
    damage(file, content)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"manifest\.json (is not JSON|holds no JSON object).*nothing says"):
        Store(tmp_path).open(ASKED, ("model",))
    with pytest.raises(ValueError, match=r"manifest\.json (is not JSON|holds no JSON object).*nothing says"):
        report([tmp_path], tmp_path / "report", figures=False)
    assert file.read_bytes() == before
    damage(tmp_path / "checkpoint-3" / MANIFEST, content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize(
    "seal",
    [
        {"seal": 3, "samples": 1, "tokens": 3, "seconds": 1.0},
        {"seal": [["b"], {}, 0], "samples": 1, "tokens": 3, "seconds": 1.0},
        {"seal": ["b", "d", 0], "tokens": 3, "seconds": 1.0},
        {"seal": ["b", "d", 0], "samples": 1, "tokens": 3, "seconds": -1.67},
        {"seal": ["b", "d", 0], "samples": 1, "tokens": "3", "seconds": 1.0},
        {"seal": ["b", "d", 0], "samples": 1, "tokens": 10**400, "seconds": 1.0},  # no float holds it
        {"seal": ["b", "d", 0], "samples": 1, "tokens": 3, "seconds": 10**400},
        {"seal": ["b", "d", 10**400], "samples": 1, "tokens": 3, "seconds": 1.0},
    ],
)
def test_a_chunk_whose_seal_no_run_writes_is_computed_again(tmp_path, seal):
    lines = [{"begin": ["b", "d", 0]}, SAMPLE, seal]
    damage(tmp_path / "samples" / "0.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    store = Store(tmp_path)
    assert list(store.chunks()) == []
    store.append(("b", "d", 0), [SAMPLE], tokens=3, seconds=1.5)
    ((chunk, samples, _),) = store.chunks()
    assert chunk == ("b", "d", 0) and samples == [SAMPLE]
    assert score(store)["b"]["d"]["tokens_per_second"] == 2.0


def test_a_sample_that_cannot_be_read_takes_its_chunk_with_it(tmp_path):
    (tmp_path / "samples").mkdir()
    for text in ("[" * 100_000, json.dumps({**SAMPLE, "length": 10**400}), '{"a": ' + "7" * 5000 + "}", "{"):
        Store(tmp_path).append(("b", "d", 0), [SAMPLE], tokens=3, seconds=1.0)
        path = Store(tmp_path).path
        begin, _, seal = path.read_text().splitlines()
        path.write_text("\n".join([begin, text, seal]) + "\n")
        assert list(Store(tmp_path).chunks()) == []
        path.unlink()


@pytest.mark.parametrize("name", ["samples/0.jsonl", "samples/0.lock", "manifest.json"])
def test_a_folder_in_the_place_of_a_file_is_said(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"{name} is a folder.* Move it away"):
        Store(tmp_path).lock()
        Store(tmp_path).open(ASKED, ("model",))
    if name == "samples/0.jsonl":
        with pytest.raises(ValueError, match=rf"{name} is a folder.* Move it away"):
            score(Store(tmp_path))


@pytest.mark.parametrize("name", ["run", "run/samples"])
def test_a_file_in_the_place_of_a_folder_is_said(tmp_path, name):
    damage(tmp_path / name, "text")
    with pytest.raises(ValueError, match="samples has to be a folder, but it is a file"):
        Store(tmp_path / "run").lock()


def test_a_sample_without_a_field_is_said(tmp_path):
    line = {key: value for key, value in SAMPLE.items() if key != "vote"}
    (tmp_path / "samples").mkdir()
    Store(tmp_path).append(("b", "d", 0), [line], tokens=3, seconds=1.0)
    with pytest.raises(
        ValueError,
        match=r"samples/0\.jsonl: in sample 0 of chunk 0, 'd' on 'b', the whole lacks vote, .* cannot be scored",
    ):
        score(Store(tmp_path))


@pytest.mark.parametrize("content", ['{"gsm8k": 3}', '{"gsm8k": ["a"]}', '{"gsm8k": {"greedy": 4}}'])
def test_metrics_of_another_form_are_said(tmp_path, content):
    run = run_folder(tmp_path / "run")
    (run / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json: the entry `gsm8k`.* has to be an object"):
        report([run], tmp_path / "report", figures=False)


def test_a_run_of_several_seeds_is_told_apart_by_them(tmp_path):
    runs = [run_folder(tmp_path / str(i), seed=seeds) for i, seeds in enumerate(([0, 1], [2, 3]))]
    report(runs, tmp_path / "report", figures=False)
    with pytest.raises(ValueError, match="would count one run twice"):
        report([runs[0], run_folder(tmp_path / "again", seed=[0, 1])], tmp_path / "report", figures=False)


def test_a_training_log_that_is_no_json_names_its_line(tmp_path):
    run, log = run_folder(tmp_path / "run"), tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew\n')
    with pytest.raises(ValueError, match=r"Line 2 of .*log\.jsonl is not JSON"):
        report([run], tmp_path / "report", training_logs=[log], figures=False)


def test_json_and_objects():
    assert parse_json('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist, and without it nothing works"):
        read_object(tmp_path / "none.json", "nothing works")


def test_names_command_nothing():
    assert printable("a\x1b[31mb\x00c\u202ed\ud800") == "a\ufffd[31mb\ufffdc\ufffdd\ufffd"
    assert printable("größe 數 \U0001f469\u200d\U0001f52c") == "größe 數 \U0001f469\u200d\U0001f52c"
    assert printable("a\tb\nc") == "a b c"
    name = "\x1b]0;owned\x07run"
    assert all("\x1b" not in text and "\x07" not in text for text in (escape_markdown(name), escape_latex(name)))
    cells = ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "plain", "-1.5", "+3", "12", ""]
    (row,) = csv.reader(io.StringIO(to_csv([cells])))
    assert row == ["'=HYPERLINK(1)", "'+1+1", "'-2+3", "'@SUM(A1)", " =1", "plain", "-1.5", "+3", "12", ""]


@pytest.mark.parametrize("where", ["name", "decoding"])
def test_a_name_that_a_terminal_would_obey_is_refused(tmp_path, where):
    name = "red\x1b[31m"
    decoding = Decoding.parse({"name": name if where == "decoding" else "d", "thought": "hard"})
    run = Evaluation("m", ["b"], [decoding], str(tmp_path), name=name if where == "name" else None)
    with pytest.raises(ValueError, match="control characters"):
        run.check()


def test_a_figure_holds_no_control_character(tmp_path):
    pytest.importorskip("matplotlib")
    run = run_folder(tmp_path / "run", "our\x1bs\x00")
    report([run], tmp_path / "report")
    drawn = list((tmp_path / "report").glob("*.svg"))
    assert drawn and not any(c in path.read_text(encoding="utf-8") for path in drawn for c in "\x1b\x00")
