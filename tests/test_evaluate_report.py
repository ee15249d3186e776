# SPDX-License-Identifier: Apache-2.0
"""Tables by hand, spreads over seeds, what is missing and said to be, and figures that are the same bytes twice."""

import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.synthetic_run import PAPERS, write_log, write_run
from trl_soft.evaluate.report import figures, main
from trl_soft.evaluate.report.document import report
from trl_soft.evaluate.report.results import ResultCell, ResultRow
from trl_soft.evaluate.report.run_results import load_run, rows_of
from trl_soft.evaluate.report.table_formats import csv_text, escape_latex, escape_markdown, latex, markdown
from trl_soft.evaluate.report.tables import ResultTable
from trl_soft.evaluate.report.training_logs import read_training_log


FIGURES = ("pass_at_k", "maj_at_k", "accuracy_tokens", "training")


def folder(path: Path, scores: dict, name="run", seed=0, **manifest) -> Path:
    """A run folder with these metrics."""
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"name": name, "model": "m", "seed": seed} | manifest))
    (path / "metrics.json").write_text(json.dumps(scores))
    return path


def share(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def cells(output: Path, table="accuracy") -> list[dict]:
    with (output / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_run_has_its_values_and_intervals_in_percent(tmp_path):
    scores = {"gsm8k": {"hard": {"mean@n": share(0.4625, 0.43, 0.493), "pass@k": {"1": share(0.4625), "4": share(0.8, 0.7, 0.9)},
              "maj@k": {"4": share(0.55)}, "problems": 20, "samples": 4, "length": {"mean": 120.25}, "entropy": 0.12345}}}  # fmt: skip
    report([folder(tmp_path / "a", scores)], tmp_path / "out", figures=False)
    (row,) = cells(tmp_path / "out")
    assert row["gsm8k mean@n (%)"] == "46.2500" and row["gsm8k mean@n (%) low"] == "43.0000"
    assert row["gsm8k pass@4 (%)"] == "80.0000" and row["gsm8k maj@4 (%) high"] == ""
    assert "gsm8k pass@1 (%)" not in row  # the largest k alone, unless more are asked for
    text = (tmp_path / "out/report.md").read_text()
    assert r"| run | hard | 4 | 46.2 <sub>[43.0, 49.3]</sub> | 80.0 <sub>[70.0, 90.0]</sub> | 55.0 |" in text
    assert "| 120.2 | 0.123 |" in text
    assert (
        r"46.2 {\scriptsize [43.0, 49.3]} & 80.0 {\scriptsize [70.0, 90.0]} & 55.0 \\"
        in (tmp_path / "out/accuracy.tex").read_text()
    )


def test_seeds_give_mean_and_sample_standard_deviation(tmp_path):
    runs = [
        folder(tmp_path / str(s), {"b": {"d": {"mean@n": share(v, v - 0.1, v + 0.1), "samples": 8}}}, seed=s)
        for s, v in enumerate((0.2, 0.3, 0.7))
    ]
    report(runs, tmp_path / "out", figures=False)
    (row,) = cells(tmp_path / "out")
    # 20, 30 and 70 have the mean 40 and the squared deviations 400 + 100 + 900, over n - 1 = 2: sqrt(700) = 26.4575.
    assert (row["b mean@n (%)"], row["b mean@n (%) std"], row["seeds"]) == ("40.0000", "26.4575", "3")
    assert (row["b mean@n (%) low"], row["b mean@n (%) high"]) == ("30.0000", "50.0000")
    assert "| 40.0 ± 26.5 |" in (tmp_path / "out/accuracy.md").read_text()
    assert r"$40.0 \pm 26.5$" in (tmp_path / "out/accuracy.tex").read_text()


def test_an_accuracy_near_zero_stays(tmp_path):
    scores = {"b": {"hard": {"mean@n": share(0.0, 0.0, 0.0)}, "soft": {"mean@n": share(0.0002, 0.0, 0.0007)}}}
    report([folder(tmp_path / "a", scores)], tmp_path / "out", figures=False)
    assert [line.split("|")[4].strip() for line in (tmp_path / "out/accuracy.md").read_text().splitlines()[2:]] == [
        "0.0 <sub>[0.0, 0.0]</sub>",
        "0.0 <sub>[0.0, 0.1]</sub>",
    ]


def test_what_is_missing_is_left_out_and_said(tmp_path):
    one = {"a": {"d": {"mean@n": share(0.5), "maj@k": {"2": share(0.5)}}, "e": {"mean@n": share(0.1)}}}
    two = {"a": {"d": {"mean@n": share(0.7), "entropy": None}}}
    runs = [folder(tmp_path / "0", one, seed=0), folder(tmp_path / "1", two, seed=1)]
    path = report(runs, tmp_path / "out", metrics=["mean@n", "maj@2", "pass@16", "first@2"])
    text = path.read_text()
    for said in (
        "No run has pass@16 on a, so there is no such column.",
        "No run has first@2 (legacy) on a, so there is no such column.",
        "No run has entropy, nats on a, so there is no such column.",
        "run / e has no maj@2 on a: left empty.",
        "maj@2 of run / d on a is of 1 of the 2 runs of that name; the others have none.",
        "No run has pass@k, so that figure is left out.",
        "No run has mean@n together with a length, so that figure is left out.",
    ):
        assert said in text
    d, e = cells(tmp_path / "out")
    assert e["a maj@2 (%)"] == "" and d["a maj@2 (%)"] == "50.0000" and d["a maj@2 (%) std"] == ""
    assert not (tmp_path / "out/pass_at_k.png").exists() and (tmp_path / "out/maj_at_k.png").exists()


def test_first_k_is_a_legacy_column_when_asked_for(tmp_path):
    run = folder(tmp_path / "a", {"b": {"d": {"mean@n": share(0.5), "first_k": {"2": share(0.75)}}}})
    report([run], tmp_path / "out", metrics=["mean@n", "first@2"], figures=False)
    assert cells(tmp_path / "out")[0]["b first@2 (legacy) (%)"] == "75.0000"
    report([run], tmp_path / "default", figures=False)
    assert "legacy" not in (tmp_path / "default/accuracy.csv").read_text()
    assert "first@2 (legacy)" in (tmp_path / "default/numbers.csv").read_text()


@pytest.mark.parametrize("suffix", ["yaml", "csv"])
def test_papers_stand_below_ours(tmp_path, suffix):
    scores = {"g": {d: {"mean@n": share(v), "pass@k": {"4": share(v)}} for d, v in (("hard", 0.5), ("soft", 0.6))}}
    papers = tmp_path / f"papers.{suffix}"
    papers.write_text(
        "source,name,decoding,benchmark,metric,value,std\n2511.1,run,hard,g,mean@32,51.5,0.5\n"
        "2511.1,other,hard,g,pass@16,90,\n2511.1,other,hard,unheard,mean@n,1,\n"
        if suffix == "csv"
        else "- {source: 2511.1, name: run, decoding: hard, values: {g: {mean@32: {value: 51.5, std: 0.5}}}}\n"
        "- {source: 2511.1, name: other, decoding: hard, values: {g: {pass@16: 90}, unheard: {mean@n: 1}}}\n"
    )
    text = report([folder(tmp_path / "a", scores)], tmp_path / "out", papers, figures=False).read_text()
    rows = cells(tmp_path / "out")
    assert [(row["run"], row["decoding"], row["source"]) for row in rows] == [
        ("run", "hard", "ours"), ("run", "hard", "2511.1"), ("run", "soft", "ours"), ("other", "hard", "2511.1"),
    ]  # fmt: skip
    assert (rows[1]["g mean@n (%)"], rows[1]["g mean@n (%) std"], rows[1]["n"]) == ("51.5000", "0.5000", "32")
    assert rows[3]["g pass@16 (%)"] == "90.0000" and rows[0]["g pass@16 (%)"] == ""
    assert f"papers.{suffix} has numbers on unheard, which no run was evaluated on; they are left out." in text
    assert "run / hard has no pass@16 on g: left empty." in text


def test_text_is_escaped():
    nasty = r"50% of_a & {b} $x$ #1 ~ ^ \end | <i>"
    assert escape_latex(nasty) == (
        r"50\% of\_a \& \{b\} \$x\$ \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}end \textbar{} "
        r"\textless{}i\textgreater{}"
    )
    assert escape_markdown("a|b <i> *c* _d_ e_f\ng") == r"a\|b \<i\> \*c\* \_d\_ e_f g"
    table = ResultTable(
        "t", [("b_1", "mean@n")], [ResultRow("[x]", nasty, cells={("b_1", "mean@n"): ResultCell(1.0)})]
    )
    assert r"{}[x] & 50\% of\_a" in latex(table) and r"\multicolumn{1}{c}{b\_1}" in latex(table)
    body = [line for line in latex(table).splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {3}
    assert {line.replace(r"\|", "").count("|") for line in markdown(table).splitlines()} == {5}
    assert next(csv.reader([csv_text(table).splitlines()[1]]))[1] == nasty


@pytest.mark.parametrize(
    "scores, manifest, message",
    [
        ({"b": {"d": {"mean@n": share(46.2)}}}, {}, "a share lies between 0 and 1"),
        ({"b": {"d": {"mean@n": share(0.4)}}}, {}, "would count one run twice"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, scores, manifest, message):
    runs = [folder(tmp_path / x, scores, **manifest) for x in "ab"]
    with pytest.raises(ValueError, match=message):
        report(runs, tmp_path / "out", figures=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "row, message",
    [
        ("p,run,d,b,accuracy,5", "which is no known score"),
        ("p,run,d,b,mean@n,105", "not a percentage"),
        (",run,d,b,mean@n,5", "without a name or a source"),
    ],
)
def test_a_papers_number_that_cannot_be_placed_is_refused(tmp_path, row, message):
    (tmp_path / "p.csv").write_text("source,name,decoding,benchmark,metric,value\n" + row + "\n")
    run = folder(tmp_path / "a", {"b": {"d": {"mean@n": share(0.4)}}})
    with pytest.raises(ValueError, match=message):
        report([run], tmp_path / "out", tmp_path / "p.csv", figures=False)


def test_a_folder_without_metrics_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"metrics\.json does not exist"):
        report([tmp_path], tmp_path / "out", figures=False)


def test_training_logs_of_three_kinds_are_read(tmp_path):
    state = write_log(tmp_path / "run/checkpoint-20/trainer_state.json", steps=20)
    write_log(tmp_path / "run/checkpoint-9/trainer_state.json", steps=9)
    assert len(read_training_log(tmp_path / "run")) == 20  # the last checkpoint, by number
    lines = json.loads(state.read_text())["log_history"]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "log.csv").write_text("\n".join(["step,reward", *(f"{x['step']},{x['reward']!r}" for x in lines)]))
    assert read_training_log(tmp_path / "log.jsonl") == lines
    assert [(x["step"], x["reward"]) for x in read_training_log(tmp_path / "log.csv")] == [
        (x["step"], x["reward"]) for x in lines
    ]
    (tmp_path / "empty.jsonl").write_text('{"reward": 1}')
    with pytest.raises(ValueError, match="no line with a `step`"):
        read_training_log(tmp_path / "empty.jsonl")


def test_the_running_mean_is_centred():
    series = [(float(i), float(i * i)) for i in range(80)]  # a window of five: i*i + (4 + 1 + 0 + 1 + 4) / 5
    assert figures.running_mean(series) == [(x, y + 2) for x, y in series[2:-2]]
    assert figures.running_mean(series[:39]) == series[:39]


def everything(out: Path, made: Path) -> Path:
    (made / "papers.yaml").write_text(PAPERS)
    (made / "reference.csv").write_text("step,value,label\n1,0.3,theirs\n200,0.8,theirs\n")
    return report(
        [made / "s0", made / "s1", made / "base"], out, made / "papers.yaml",
        {"soft": [made / "l0.json", made / "l1.json"], "hard": made / "l2.json"}, made / "reference.csv",
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for seed in range(2):
        write_run(root / f"s{seed}", seed=seed)
        write_log(root / f"l{seed}.json", seed)
    write_run(root / "base", "base $x$", decodings={"hard": -0.5})
    write_log(root / "l2.json", 2, keys=("reward",))
    return root


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> Path:
    """The folder of a report with everything in it."""
    return everything(tmp_path_factory.mktemp("whole") / "report", made).parent


def test_a_report_has_its_tables_and_figures(whole):
    tables = [f"{table}.{suffix}" for table in ("accuracy", "costs") for suffix in ("csv", "md", "tex")]
    pictures = [f"{figure}.{suffix}" for figure in FIGURES for suffix in ("png", "svg")]
    assert sorted(path.name for path in whole.iterdir()) == sorted([*tables, *pictures, "numbers.csv", "report.md"])
    text = (whole / "report.md").read_text()
    for figure in FIGURES:
        assert (whole / f"{figure}.png").read_bytes().startswith(b"\x89PNG") and f"{figure}.png" in text
        assert b"<dc:date>" not in (whole / f"{figure}.svg").read_bytes()
    # base has no seeds of its own, soft-grpo has two, and a log without KL is said to have none.
    assert "l2.json has no kl, so hard has no such curve." in text and text.count("±") > 10


def test_a_report_is_the_same_bytes_in_another_process_with_other_settings(tmp_path, made, whole):
    """Hash randomisation and a user's matplotlibrc change nothing."""
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nsvg.hashsalt: other\naxes.linewidth: 3\n")
    logs = ["--training_log", f"soft={made}/l0.json", "--training_log", f"soft={made}/l1.json"]
    command = [sys.executable, "-m", "trl_soft.evaluate.report", *(f"{made}/{r}" for r in ("s0", "s1", "base"))]
    command += ["-o", str(tmp_path / "b"), "--papers", f"{made}/papers.yaml", *logs]
    command += ["--training_log", f"hard={made}/l2.json", "--reference", f"{made}/reference.csv"]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, check=True)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert [name for name in names if (whole / name).read_bytes() != (tmp_path / "b" / name).read_bytes()] == []


def test_a_figure_is_the_same_bytes_twice_in_one_process(tmp_path):
    cells = {("b", f"pass@{k}"): ResultCell(10.0 * k, 5.0, 50.0) for k in (1, 2, 4)}
    rows = [ResultRow("a", "hard", cells=cells), ResultRow("a", "soft", cells=cells)]
    files = [figures.curves(rows, [], ["b"], "pass", tmp_path / stem) for stem in ("x", "y")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_bands_and_curves_are_drawn_where_the_numbers_are():
    """The points, bands and ticks of a panel, read back from it."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    numbers = {("b", f"pass@{k}"): ResultCell(v, v - 5, v + 5) for k, v in ((1, 0.0), (2, 10.0), (4, 30.0))}
    numbers["b", "pass@1"] = ResultCell(0.0, 0.0, 0.0)
    figures._curve_panel(axes, [ResultRow("r", "d", cells=numbers)], [], "b", "pass")
    assert axes.lines[0].get_xydata().tolist() == [[1, 0], [2, 10], [4, 30]]
    band = axes.collections[0].get_paths()[0].vertices.tolist()
    assert [2, 5] in band and [2, 15] in band and [4, 35] in band
    assert axes.get_xscale() == "log" and axes.get_xticks().tolist() == [1, 2, 4]
    assert axes.get_ylim()[0] < 0 < 35 < axes.get_ylim()[1]


def test_a_long_legend_leaves_the_panels_their_room(tmp_path):
    """The 3 x 6 grid: eighteen long names below one panel; matplotlib warns where a panel is squeezed out."""
    numbers = {
        ("b", "pass@1"): ResultCell(0.0, 0.0, 0.1),
        ("b", "mean@n"): ResultCell(0.0),
        ("b", "length"): ResultCell(9.0),
    }
    rows = [ResultRow(f"{n}-trained", f"{d} sample", cells=numbers) for n in ("a", "b", "c") for d in "uvwxyz"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(figures.curves(rows, [], ["b"], "pass", tmp_path / "p")) == 2
        assert len(figures.accuracy_against_tokens(rows, ["b"], tmp_path / "a")) == 2


def test_rows_are_told_apart_by_colour_and_by_shape():
    rows = [ResultRow(name, decoding) for name in "ab" for decoding in ("hard", "soft")]
    looks = figures._looks(rows)
    assert len({(look["color"], look["marker"]) for look in looks}) == 4
    assert looks[0]["color"] == looks[1]["color"] != looks[2]["color"] and looks[0]["marker"] == looks[2]["marker"]
    alone = figures._looks([ResultRow("a", d) for d in "xyz"])
    assert len({look["color"] for look in alone}) == len({look["marker"] for look in alone}) == 3


def test_without_matplotlib_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = folder(tmp_path / "a", {"b": {"d": {"mean@n": share(0.4)}}})
    with pytest.raises(SystemExit) as stop:
        main([str(run), "-o", str(tmp_path / "out")])
    assert stop.value.code == 2 and "pip install 'trl_soft[plot]'" in capsys.readouterr().err
    main([str(run), "-o", str(tmp_path / "out"), "--no_figures"])
    assert (tmp_path / "out/report.md").is_file()


def test_entropy_by_position_is_drawn_where_it_was_measured(tmp_path):
    """Figure 4 of 2509.19170: seeds of one run are one curve, of unequal lengths and with gaps."""
    pytest.importorskip("matplotlib")
    curves = ([1.0, 2.0, None], [3.0, None, None, 4.0])
    runs = [
        folder(
            tmp_path / str(seed),
            {"b": {"d": {"mean@n": share(0.5), "entropy_by_position": {"mean": curve}}}},
            seed=seed,
        )
        for seed, curve in enumerate(curves)
    ]
    text = report(runs, tmp_path / "out").read_text()
    assert "(entropy.png)" in text and (tmp_path / "out/entropy.svg").stat().st_size > 0
    (row,), _ = rows_of([load_run(run) for run in runs], [])
    assert row.positions == {"b": [2.0, 2.0, None, 4.0]}
    without = [folder(tmp_path / "w", {"b": {"d": {"mean@n": share(0.5)}}})]
    assert "(entropy.png)" not in report(without, tmp_path / "none").read_text()


def test_a_sweep_of_temperatures_is_drawn(tmp_path):
    """Figure 5 of 2511.06411: three temperatures of one kind of thought make a curve; two, or two kinds, make none."""
    pytest.importorskip("matplotlib")

    def run(name: str, kinds: list[tuple[str, float]]) -> Path:
        decodings = [
            {"name": f"T {t}", "thinking": {"thought": kind, "thinking_temperature": None if kind == "hard" else t},
             "answer": {"temperature": t}} for kind, t in kinds
        ]  # fmt: skip
        scores = {d["name"]: {"mean@n": share(0.4, 0.3, 0.5), "pass@k": {"4": share(0.8)}} for d in decodings}
        return folder(tmp_path / name, {"b": scores}, name=name, decodings=decodings)

    swept = report([run("a", [("gumbel", t) for t in (1.4, 0.6, 1.0)])], tmp_path / "swept").read_text()
    assert "(temperatures.png)" in swept and (tmp_path / "swept/temperatures.png").stat().st_size > 0
    assert (
        "(temperatures.png)"
        in report([run("b", [("hard", t) for t in (0.6, 1.0, 1.4)])], tmp_path / "hard").read_text()
    )
    other = report([run("c", [("gumbel", 0.6), ("gumbel", 1.0), ("hard", 1.4)])], tmp_path / "other").read_text()
    assert "(temperatures.png)" not in other
