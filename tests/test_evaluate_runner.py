# SPDX-License-Identifier: Apache-2.0
"""A run: what is written, what is scored, and that neither kills, processes nor chunks change it."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from tests import evaluated, forked, tiny
from tests.evaluated import BRIEF, evaluation
from trl_soft import ThinkingSettings, soft_generate
from trl_soft.evaluate.decoding import Decoding, soft_tokens_grid
from trl_soft.evaluate.difference import NOT_RECORDED, difference
from trl_soft.evaluate.grading import GRADERS, grade_exact
from trl_soft.evaluate.presets import PRESETS, PromptFormat
from trl_soft.evaluate.runner import evaluate, score
from trl_soft.evaluate.scores import pass_at_k
from trl_soft.evaluate.store import Store


TIMES = ("tokens_per_second",)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model, and a benchmark whose answers are what the model says greedily, for every other question."""
    folder = tmp_path_factory.mktemp("world")
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    ThinkingSettings(thinking_top_k=4, max_thinking_length=5).save_thinking(folder / "model")
    questions = [f"{a}+{b}=" for a in range(4) for b in range(3)]
    options = {"max_completion_length": 12, "temperature": 0.0, "progress": False}
    said = soft_generate(tiny.model(), tiny.tokenizer(), questions, ThinkingSettings(thought="hard"), **options)
    texts = [tiny.tokenizer().decode([i for i in ids if i != 1]) for ids in said.completion_ids]
    golds = [grade_exact(text, "?").answer if number % 2 else "never" for number, text in enumerate(texts)]
    rows = [{"question": q, "answer": gold} for q, gold in zip(questions, golds, strict=True)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def plain(metrics: dict) -> dict:
    """Metrics without what depends on the clock."""
    return {
        benchmark: {name: {k: v for k, v in row.items() if k not in TIMES} for name, row in rows.items()}
        for benchmark, rows in metrics.items()
    }


def lines(folder: Path) -> list[dict]:
    rows = [row for _, samples, _ in Store(folder).chunks() for row in samples]
    return sorted(rows, key=lambda row: (row["decoding"], row["problem"], row["sample"]))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, evaluate(evaluation(world, folder, candidates=3))


@pytest.fixture(scope="module")
def brief(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("brief")
    return folder, evaluate(evaluation(world, folder, **BRIEF))


def test_every_sample_is_there_once_and_scored(world, finished):
    folder, metrics = finished
    rows = lines(folder)
    (by_decoding,) = metrics.values()
    assert {name: row["samples"] for name, row in by_decoding.items()} == {
        "hard greedy": 1, "as saved": 6, "gaussian": 4,
    }  # fmt: skip
    for name, row in by_decoding.items():
        own = [line for line in rows if line["decoding"] == name]
        assert [(line["problem"], line["sample"]) for line in own] == [
            (p, s) for p in range(12) for s in range(row["samples"])
        ]
        correct = [[line["correct"] for line in own if line["problem"] == p] for p in range(12)]
        assert row["mean@n"]["value"] == pytest.approx(sum(map(sum, correct)) / len(own))
        for k, entry in row["pass@k"].items():
            assert entry["value"] == pytest.approx(pass_at_k(correct, int(k)).mean())
        assert row["length"]["mean"] == pytest.approx(sum(line["length"] for line in own) / len(own))
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert max(line["thinking_length"] for line in rows if line["decoding"] == "as saved") <= 12
    golds = [json.loads(text)["answer"] for text in (world / "sums.jsonl").read_text().splitlines()]
    for line in rows:
        assert line["correct"] == (line["answer"] == golds[line["problem"]])
    assert by_decoding["hard greedy"]["mean@n"]["value"] == 0.5


def test_thoughts_are_written_as_they_were(finished):
    folder, _ = finished
    drawn = 0
    for line in lines(folder):
        steps = line["thoughts"]
        assert len(steps) == line["length"]
        thoughts = [step for step in steps if step["thought"]]
        tokens = [step for step in steps if step.get("drawn")]
        drawn += len(tokens)
        for step in tokens:  # a token shows what else it could have been
            named = dict(step["candidates"])
            assert step["token"] in named and 1 <= len(named) <= 3 and sum(named.values()) <= 1.0002
        if line["decoding"] == "as saved":
            for step in thoughts:
                weights = [weight for _, weight in step["candidates"]]
                assert 1 <= len(weights) <= 3 and weights == sorted(weights, reverse=True)
                assert step["candidates"][0][0] == step["token"]
        elif line["decoding"] == "hard greedy":
            assert all(step["candidates"][0][0] == step["token"] for step in tokens)
        else:  # noise on an embedding has no candidates
            assert not any(step["candidates"] for step in thoughts)
    assert drawn > 0


def test_steps_of_some_samples_alone(world, tmp_path):
    evaluate(evaluation(world, tmp_path, limit=2, candidates=2, candidates_samples=1))
    rows = lines(tmp_path)
    assert {row["sample"] for row in rows if "thoughts" in row} == {0} and max(row["sample"] for row in rows) > 0


def test_a_finished_run_computes_nothing_again(world, finished, monkeypatch):
    folder, metrics = finished
    monkeypatch.setattr("trl_soft.evaluate.runner.EvaluatedModel", lambda *args: pytest.fail("something was loaded"))
    assert plain(evaluate(evaluation(world, folder, candidates=3))) == plain(metrics)
    assert len(json.loads((folder / "manifest.json").read_text())["resumed"]) >= 1


def refusal(run) -> str:
    """The error of an evaluation. The exception is not kept: it would hold the lock of the folder."""
    try:
        evaluate(run)
    except ValueError as error:
        return str(error)
    return pytest.fail("it was not refused")


def test_another_question_in_the_same_folder_is_refused(world, finished):
    folder, _ = finished
    for changes, named in (
        ({"preset": "soft_grpo"}, "preset"), ({"limit": 3}, "limit"), ({"chunk": 11}, "chunk"),
        ({"max_completion_length": 13}, "max_completion_length"), ({"candidates": 4}, "`candidates` is 3, and now it is 4"),
        ({"candidates": 0}, "`candidates` is 3"), ({"candidates_samples": 2}, "candidates_samples"),
        ({"entropy_positions": 2}, "`entropy_positions` is 0, and now it is 2"),
    ):  # fmt: skip
        told = refusal(evaluation(world, folder, **{"candidates": 3} | changes))
        assert "samples of two runs would be mixed" in told and named in told and len(told) < 600


def test_a_changed_setting_names_itself_and_its_two_values(world, finished):
    folder, _ = finished
    run = evaluation(world, folder, candidates=3)
    changed = [replace(run.decodings[0], thinking={**run.decodings[0].thinking, "thinking_temperature": 0.25})]
    told = refusal(replace(run, decodings=[*changed, *run.decodings[1:]]))
    assert f"`decodings.{changed[0].name}.thinking.thinking_temperature` is " in told and "now it is 0.25" in told
    with pytest.raises(ValueError, match=r"`decodings` is \['.*, and now it is \['"):
        evaluate(replace(run, decodings=run.decodings[:1]))


@pytest.mark.parametrize(
    "before, now, found",
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, ("a.b", [1, 2], [1, 3])),
        ({}, {"a": 0}, ("a", NOT_RECORDED, 0)),
        ({"d": [{"name": "x", "n": 1}]}, {"d": [{"name": "x", "n": 2}]}, ("d.x.n", 1, 2)),
        ({"d": [{"name": "x"}]}, {"d": [{"name": "y"}]}, ("d", ["x"], ["y"])),
        ({"a": 1, "b": 2}, {"b": 3, "a": 4}, ("b", 2, 3)),
    ],
)
def test_the_first_difference_of_two_manifests(before, now, found):
    assert difference(before, now) == found


def test_other_rows_weights_or_thoughts_under_the_same_path_are_refused(world, tmp_path):
    own = tmp_path / "world"
    shutil.copytree(world, own)
    evaluate(evaluation(own, tmp_path / "out", limit=2))
    rows, kept = own / "sums.jsonl", (own / "sums.jsonl").read_text()
    thinking = ThinkingSettings.load_thinking(own / "model")
    rows.write_text(kept.replace("0+1", "8+8"))
    with pytest.raises(ValueError, match=r"whose `problems\..*sha256` is"):
        evaluate(evaluation(own, tmp_path / "out", limit=2))
    rows.write_text(kept)
    ThinkingSettings.load_thinking(own / "model", thinking_top_k=3).save_thinking(own / "model")
    with pytest.raises(
        ValueError, match=r"whose `decodings\.as saved\.thinking\.thinking_top_k` is 4, and now it is 3"
    ):
        evaluate(evaluation(own, tmp_path / "out", limit=2))
    thinking.save_thinking(own / "model")
    evaluate(evaluation(own, tmp_path / "out", limit=2))
    tiny.model(seed=5).save_pretrained(own / "model")
    with pytest.raises(ValueError, match=r"whose `weights\..*` is"):
        evaluate(evaluation(own, tmp_path / "out", limit=2))
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest that describes them"):
        evaluate(evaluation(own, tmp_path / "out", limit=2))


def test_answers_are_read_where_they_were_prefilled(world, tmp_path, monkeypatch):
    """soft_tokens: the box is found however the thought ended, and a cut answer is clipped."""
    read = []
    monkeypatch.setitem(GRADERS, "exact", lambda text, gold: (read.append(text), grade_exact(text, gold))[1])
    prefill = {"answer_prefill": ["=a", "b=a"], "end_of_thinking": "</think>", "max_thinking_length": 4}
    ask = PromptFormat("{question}", answer_after="b=a", answer_prefill=("=a", "b=a"), max_answer_length=3)
    preset = replace(PRESETS["soft_tokens"], formats=dict.fromkeys(PRESETS["soft_tokens"].formats, ask))
    monkeypatch.setitem(PRESETS, "soft_tokens", preset)
    run = evaluation(world, tmp_path, preset="soft_tokens", max_completion_length=24)
    run.decodings = [
        Decoding.parse({"name": "g", "thought": "gumbel", "temperature": 1.0, "num_samples": 8, **prefill})
    ]
    evaluate(run)
    rows = lines(tmp_path)
    assert len(read) == len(rows) == 96
    ended = [row for row in rows if not row["thinking_cut"]]
    assert ended and len(ended) < 96 and any(row["clipped"] for row in rows)
    for row in rows:
        after = row["length"] - row["thinking_length"]
        if row["clipped"] and not row["thinking_cut"]:
            assert after == 2 + 3  # two letters forced, three drawn
    # Each answer is read from what was forced on, whatever the thought wrote before it.
    phases = [row["text"][row["answer_at"] :] for row in rows]
    assert sorted(phase.removeprefix("b=a") for phase in phases) == sorted(read)
    assert all(phase == "" or phase.startswith(("=a", "b=a")) for phase in phases)


def test_a_torn_chunk_is_as_if_it_had_never_been(world, brief, tmp_path):
    """Cut at every kind of place: in a line, between lines, before the seal; gone on with, the run is the same."""
    folder, metrics = brief
    whole = (folder / "samples" / "0.jsonl").read_bytes()
    cuts = [len(whole) // 3, whole.index(b'{"seal"'), whole.rindex(b"\n", 0, len(whole) - 1) + 1, len(whole) - 1]
    for number, cut in enumerate(cuts):
        torn = tmp_path / str(number)
        (torn / "samples").mkdir(parents=True)
        (torn / "manifest.json").write_text((folder / "manifest.json").read_text())
        (torn / "samples" / "0.jsonl").write_bytes(whole[:cut])
        again = evaluate(evaluation(world, torn, **BRIEF))
        assert plain(again) == plain(metrics) and lines(torn) == lines(folder)
        assert (torn / "samples" / "0.jsonl").read_bytes().startswith(whole[:cut])  # append-only


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(world, brief, tmp_path):
    """SIGKILL as soon as a random number of bytes is on the disk, three times over; then left alone."""
    folder, metrics = brief
    draw, out = random.Random(0), tmp_path / "out"
    file = out / "samples" / "0.jsonl"
    total = (folder / "samples" / "0.jsonl").stat().st_size
    for _ in range(3):
        reached = file.stat().st_size if file.exists() else 0
        stop = reached + draw.randrange(1, max(total // 4, 2))
        started = forked.start(evaluated.brief, str(world), str(out), folder=tmp_path)
        while (not file.exists() or file.stat().st_size < stop) and not started.wait(0.002):
            pass
        started.kill()
    again = evaluate(evaluation(world, out, **BRIEF))
    assert plain(again) == plain(metrics) and lines(out) == lines(folder)


def test_two_processes_share_the_work(world, brief, tmp_path):
    folder, metrics = brief
    out = tmp_path / "out"
    forked.run(evaluated.brief, str(world), str(out), processes=2, folder=tmp_path)
    assert all((out / "samples" / f"{rank}.jsonl").stat().st_size > 0 for rank in (0, 1))
    assert lines(out) == lines(folder)
    assert plain(json.loads((out / "metrics.json").read_text())) == plain(metrics)


def test_scores_are_of_sealed_samples_alone(brief, tmp_path):
    folder, metrics = brief
    (tmp_path / "samples").mkdir()
    text = (folder / "samples" / "0.jsonl").read_text()
    (tmp_path / "samples" / "0.jsonl").write_text(text + text.splitlines()[1] + "\n")
    assert plain(score(Store(tmp_path))) == plain(metrics)


def test_a_chunk_that_lost_a_line_is_as_if_it_had_never_been(tmp_path):
    (tmp_path / "samples").mkdir()
    store = Store(tmp_path)
    store.append(("b", "d", 0), [{"sample": 0}, {"sample": 1}], tokens=2, seconds=1.0)
    assert [chunk for chunk, _, _ in store.chunks()] == [("b", "d", 0)]
    begin, _, *rest = store.path.read_text().splitlines(True)
    store.path.write_text("".join([begin, *rest]))
    assert not list(store.chunks())


def test_one_process_at_a_time_writes_a_file(tmp_path):
    (tmp_path / "samples").mkdir()
    first, second, other = Store(tmp_path), Store(tmp_path), Store(tmp_path, rank=1)
    first.lock()
    other.lock()
    with pytest.raises(RuntimeError, match="Another process is writing"):
        second.lock()


def test_a_model_folder_that_is_not_there_is_said(world, tmp_path):
    run = evaluation(world, tmp_path)
    run.model = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        evaluate(run)


def test_a_hard_sample_of_soft_tokens_draws_its_thought_and_answers_greedily(world, tmp_path):
    """The same thought, the same answer; and thoughts that differ."""
    (cell,) = (c for c in soft_tokens_grid({"m": str(world / "model")}, 40) if c.name == "m / hard sample")
    cell = replace(cell, thinking=cell.thinking | {"max_thinking_length": 1, "answer_prefill": None})
    evaluate(replace(evaluation(world, tmp_path, limit=2, candidates=1), decodings=[cell]))
    answers: dict = {}
    for line in lines(tmp_path):
        thought, *answer = [step["token"] for step in line["thoughts"]]
        answers.setdefault((line["problem"], thought), []).append(answer)
    assert len(answers) > 2, "thoughts are drawn"
    assert any(len(found) > 1 and found[0] for found in answers.values())
    assert all(found == found[:1] * len(found) for found in answers.values()), "answers are not"


def test_decodings_say_what_they_are():
    with pytest.raises(ValueError, match="nearest known name is `thinking_top_k`"):
        Decoding.parse({"name": "a", "thinking_topk": 3})
    with pytest.raises(ValueError, match="with a `name`"):
        Decoding.parse({"thought": "hard"})
    with pytest.raises(ValueError, match="`num_samples` is 0"):
        Decoding.parse({"name": "a", "num_samples": 0})
    preset, saved = PRESETS["soft_tokens"], ThinkingSettings(thought="gaussian", thinking_temperature=0.7)
    chosen = Decoding.parse({"name": "a", "noise_scale": 0.1}).settings(preset, "math", saved)
    assert (chosen.thought, chosen.thinking_temperature, chosen.noise_scale) == ("gaussian", 0.7, 0.1)
    other = Decoding.parse({"name": "a", "thought": "hard"}).settings(preset, "math", saved)
    assert (other.thought, other.thinking_temperature, other.max_thinking_length) == ("hard", None, 512)


@pytest.mark.parametrize("has_saved", [False, True])
def test_another_gate_of_a_decoding_takes_the_place_of_the_whole_one(has_saved):
    preset = PRESETS["selar"]
    saved = ThinkingSettings(thinking_gate="entropy", gate_entropy=0.5, gate_dwell=3) if has_saved else None
    chosen = Decoding.parse({"name": "a", "thinking_gate": "first"}).settings(preset, "math", saved)
    assert chosen.thinking_gate == "first" and (chosen.gate_entropy, chosen.gate_dwell) == (None, 1)
    assert chosen.thought == ("gumbel" if has_saved else "soft")
    same = Decoding.parse({"name": "a", "gate_dwell": 2}).settings(preset, "math", saved)
    assert (same.thinking_gate, same.gate_dwell) == ("entropy", 2) and same.gate_entropy is not None


def test_the_grid_is_three_by_six():
    cells = soft_tokens_grid({"hard": "a", "soft": "b", "fuzzy": "c"}, 32)
    assert len(cells) == len({cell.name for cell in cells}) == 18
    by_name = {cell.name: cell for cell in cells}
    greedy, sample = by_name["soft / fuzzy greedy"], by_name["soft / fuzzy sample"]
    assert greedy.model == sample.model == "b" and greedy.num_samples == 1 and sample.num_samples == 32
    assert greedy.thinking["noise_scale"] == 0 and sample.thinking["thinking_temperature"] == 1e-4
    sample = by_name["hard / hard sample"]
    assert sample.thinking == {"thought": "hard", "thinking_temperature": 1.0} and sample.num_samples == 32
    assert all(cell.answer == {"temperature": 0.0} for cell in cells)
    for cell in cells:
        cell.settings(PRESETS["soft_tokens"], "math", None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"benchmarks": []}, "`benchmarks` is empty"),
        ({"decodings": []}, "each decoding needs its own name"),
        ({"grader": "judge"}, "`grader` is 'judge'"),
        ({"preset": "paper"}, "`preset` is 'paper'"),
        ({"engine": "vllm"}, "`engine` is 'vllm'"),
        ({"chunk": 0}, "`chunk` is 0"),
    ],
)
def test_what_cannot_be_evaluated_is_said_first(world, tmp_path, changes, sentence):
    run = evaluation(world, tmp_path)
    for name, value in changes.items():
        setattr(run, name, value)
    with pytest.raises(ValueError, match=sentence):
        evaluate(run)


def test_entropy_by_position_is_of_what_each_token_was_drawn_from(world, tmp_path):
    """Hard tokens at temperature 1 are drawn from what is measured; a fuzzy thought's own entropy is near 0, and this is not."""
    entries = [
        {"name": "hard", "thought": "hard", "temperature": 1.0, "num_samples": 2},
        {"name": "fuzzy", "thought": "gaussian", "thinking_temperature": 1e-4, "num_samples": 2},
    ]
    decodings = [Decoding.parse(entry) for entry in entries]
    run = replace(evaluation(world, tmp_path / "run", candidates=1, entropy_positions=6), decodings=decodings)
    (found,) = evaluate(run).values()
    rows = lines(tmp_path / "run")
    for name in ("hard", "fuzzy"):
        steps = [[step["entropy"] for step in line["thoughts"]][:6] for line in rows if line["decoding"] == name]
        own = [mean(column[t] for column in steps if len(column) > t) for t in range(max(map(len, steps)))]
        curve = found[name]["entropy_by_position"]
        assert curve["completions"] == [sum(len(column) > t for column in steps) for t in range(len(own))]
        if name == "hard":
            # The record has four decimals of each, and the curve five of the mean.
            assert curve["mean"] == pytest.approx(own, abs=1e-4)
        else:
            assert max(own) < 0.1 < min(curve["mean"])


def test_entropies_of_a_part_of_the_chunks_are_no_mean(world, tmp_path):
    run = evaluation(world, tmp_path / "run", entropy_positions=4, limit=4, chunk=2)
    run.decodings = run.decodings[:1]
    assert "entropy_by_position" in evaluate(run)[run.benchmarks[0]]["hard greedy"]
    file = next((tmp_path / "run/samples").glob("*.jsonl"))
    text = file.read_text().splitlines()
    seals = [number for number, line in enumerate(text) if '"entropy_by_position"' in line]
    assert len(seals) == 2
    rest = {name: value for name, value in json.loads(text[seals[0]]).items() if name != "entropy_by_position"}
    file.write_text("\n".join([*text[: seals[0]], json.dumps(rest), *text[seals[0] + 1 :]]) + "\n")
    (metrics,) = score(Store(tmp_path / "run")).values()
    assert "entropy_by_position" not in metrics["hard greedy"]


def test_the_length_of_right_completions_stands_beside_that_of_all(finished):
    """Table 9 of 2511.06411."""
    folder, metrics = finished
    (by_decoding,) = metrics.values()
    for name, row in by_decoding.items():
        right = [line["length"] for line in lines(folder) if line["decoding"] == name and line["correct"]]
        assert row["correct_length"] == ({"mean": pytest.approx(mean(right))} if right else None)
