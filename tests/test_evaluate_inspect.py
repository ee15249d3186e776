# SPDX-License-Identifier: Apache-2.0
"""The page that shows thoughts: what is in it, what cannot get out of it, and how it behaves in a real browser."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from tests import chromium
from tests.synthetic_run import write_run
from trl_soft import ThinkingSettings
from trl_soft.evaluate.report.thoughts_page import inspect_page, main
from trl_soft.evaluate.store import Store


# Ends of the data's element with and without a space, and the comment after which a browser overlooks the real end.
HOSTILE = "</script><img src=x onerror=\"window.hit=1;document.title='hit'\"></script ><!--<script \u2028"
browser_only = pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine")


class Elements(HTMLParser):
    """What a browser's parser would find: elements, their attributes, and the scripts' text."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.found[-1:] and self.found[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def page_data(path: Path) -> dict:
    """What the page's script will read."""
    return json.loads(Elements(path.read_text(encoding="utf-8")).scripts[0])


def step(token: str, entropy=0.5, candidates=None, thought=True) -> dict:
    candidates = [[token, 0.75], [" other", 0.25]] if candidates is None else candidates
    return {"token": token, "entropy": entropy, "candidates": candidates, "thought": thought}


def sample(decoding: str, tokens: list[str] | None, text=None, problem=0, number=0, **fields) -> dict:
    """A line whose last token is its answer."""
    steps = tokens and [step(t, thought=i < len(tokens) - 1) for i, t in enumerate(tokens)]
    line = {
        "benchmark": "b", "decoding": decoding, "problem": problem, "sample": number, "prompt": "1+1=",
        "text": "".join(tokens or ()) if text is None else text, "answer": "2", "vote": "2", "correct": True,
        "length": len(tokens or ()), "thinking_length": len(tokens or "x") - 1, "thinking_cut": False, "clipped": False,
        "entropy": 0.5,
    }  # fmt: skip
    return line | ({"thoughts": steps} if steps else {}) | fields


def run_of(folder: Path, lines: list[dict], name="run", end="</think>") -> Path:
    (folder / "samples").mkdir(parents=True)
    names = [*dict.fromkeys(line["decoding"] for line in lines)]
    decodings = [{"name": n, "thinking": {"thought": n, "end_of_thinking": end}, "num_samples": 1} for n in names]
    (folder / "manifest.json").write_text(json.dumps({"name": name, "model": "m", "decodings": decodings}))
    Store(folder).append(("b", "all", 0), lines, tokens=0, seconds=0.0)
    return folder


def test_a_page_holds_the_steps_as_they_were(tmp_path):
    run = run_of(tmp_path / "run", [sample("soft", ["a", "</think>", "2"])])
    line = page_data(inspect_page(run, tmp_path / "p.html"))["benchmarks"]["b"]["problems"]["0"]["soft"]["0"]
    assert [s["token"] for s in line["thoughts"]] == ["a", "</think>", "2"]
    assert line["thoughts"][0]["candidates"] == [["a", 0.75], [" other", 0.25]]
    assert [s["thought"] for s in line["thoughts"]] == [True, True, False]
    assert line["text"][line["answer_at"] :] == "2" and line["correct"] is True


def test_the_page_loads_nothing_and_admits_its_own_script_alone(tmp_path):
    text = inspect_page(write_run(tmp_path / "run"), tmp_path / "p.html").read_text(encoding="utf-8")
    page = Elements(text)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.found}
    assert not any({"src", "href", "srcset", "action"} & attributes.keys() for _, attributes in page.found)
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.found for name in attributes)
    assert "url(" not in text and "@import" not in text and "fetch(" not in text and "innerHTML" not in text
    policy = next(a["content"] for tag, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';") and "unsafe" not in policy


def test_hostile_text_stays_text(tmp_path):
    lines = [sample("soft", [HOSTILE, "\ud83d", "2"], prompt=HOSTILE, answer=HOSTILE, vote=HOSTILE)]
    lines[0]["thoughts"][0]["candidates"] = [[HOSTILE, 1.0]]
    run = run_of(tmp_path / "run", lines, name=HOSTILE)
    path = inspect_page(run, tmp_path / "p.html")
    harmless = inspect_page(run_of(tmp_path / "safe", [sample("soft", ["a", "2"])]), tmp_path / "s.html")
    tags = [[tag for tag, _ in Elements(p.read_text(encoding="utf-8")).found] for p in (path, harmless)]
    assert tags[0] == tags[1] and "img" not in tags[0]
    # Python's parser needs a `>` to end a script, and a browser does not: so no mark of HTML may stand in the data at all.
    (data,) = re.findall('id="data">(.*)\n?</script>\n', path.read_text(encoding="utf-8"))
    assert not set(data) & set("<>&\u2028\u2029")
    line = page_data(path)["benchmarks"]["b"]["problems"]["0"]["soft"]["0"]
    assert line["thoughts"][0]["token"] == line["answer"] == HOSTILE and line["thoughts"][1]["token"] == "\ud83d"
    assert "&lt;/script&gt;" in re.search("<title>(.*)</title>", path.read_text(encoding="utf-8"))[1]


def test_numbers_that_json_has_no_word_for_are_not_recorded(tmp_path):
    lines = [sample("soft", ["a", "2"], entropy=float("nan"))]
    lines[0]["thoughts"][0] |= {"entropy": float("inf"), "candidates": [["a", float("nan")]]}
    data = page_data(inspect_page(run_of(tmp_path / "run", lines), tmp_path / "p.html"))
    line = data["benchmarks"]["b"]["problems"]["0"]["soft"]["0"]
    assert line["entropy"] is None and line["thoughts"][0]["entropy"] is None and data["ceiling"] == 0.5
    assert line["thoughts"][0]["candidates"] == [["a", None]]


@pytest.mark.parametrize(
    "text, end, answer", [("x</think>y", "</think>", "y"), ("x y", "</think>", None), ("\U0001d518</t>y", "</t>", "y")]
)
def test_without_thoughts_the_end_token_tells_where_the_answer_begins(tmp_path, text, end, answer):
    run = run_of(tmp_path / "run", [sample("soft", None, text)], end=end)
    line = page_data(inspect_page(run, tmp_path / "p.html"))["benchmarks"]["b"]["problems"]["0"]["soft"]["0"]
    units = text.encode("utf-16-le")  # as JavaScript counts
    begins = line["answer_at"]
    assert (
        line["thoughts"] is None and (begins if begins is None else units[2 * begins :].decode("utf-16-le")) == answer
    )


def test_what_is_shown_can_be_chosen_and_the_rest_is_counted(tmp_path):
    run = write_run(tmp_path / "run", problems=12)
    data = page_data(inspect_page(run, tmp_path / "p.html"))
    assert list(data["benchmarks"]) == ["gsm8k", "math500"]
    assert list(data["benchmarks"]["gsm8k"]["problems"]) == [str(i) for i in range(8)]
    assert data["benchmarks"]["gsm8k"]["note"] == "This page holds 8 of 12 problems and 4 of 4 samples of each."
    main([str(run), "-o", str(tmp_path / "q.html"), "--benchmark", "math500", "--decodings", "gumbel", "--problems", "9", "3", "--samples", "1"])  # fmt: skip
    data = page_data(tmp_path / "q.html")
    assert list(data["benchmarks"]) == ["math500"] and [d["name"] for d in data["decodings"]] == ["gumbel"]
    problems = data["benchmarks"]["math500"]["problems"]
    assert list(problems) == ["3", "9"] and [*problems["3"]] == ["gumbel"] and [*problems["3"]["gumbel"]] == ["0"]


def test_nothing_to_show_is_an_error(tmp_path, capsys):
    run = write_run(tmp_path / "run", problems=1)
    with pytest.raises(ValueError, match=r"nothing to show. It has the benchmarks \['gsm8k', 'math500'\]"):
        inspect_page(run, tmp_path / "p.html", benchmark="aime")
    with pytest.raises(ValueError, match=r"/run has \['hard', 'gumbel'\]"):
        inspect_page(run, tmp_path / "p.html", decodings=["fuzzy"])
    with pytest.raises(SystemExit):
        main([str(tmp_path), "-o", str(tmp_path / "p.html")])
    assert "nothing says which run this is" in capsys.readouterr().err and not (tmp_path / "p.html").exists()


def test_what_a_killed_run_left_unsealed_is_passed_over(tmp_path):
    run = run_of(tmp_path / "run", [sample("soft", ["a", "2"])])
    file = run / "samples/0.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[: whole.index('{"seal"')])
    assert list(page_data(inspect_page(run, tmp_path / "p.html"))["benchmarks"]["b"]["problems"]) == ["0"]
    file.write_text(whole[: whole.index('{"seal"')])
    with pytest.raises(FileNotFoundError, match="no finished chunk"):
        inspect_page(run, tmp_path / "p.html")


def test_only_settings_that_the_thought_reads_are_shown(tmp_path):
    thinking = ThinkingSettings(thought="gumbel", thinking_top_k=7, max_thinking_length=9).thinking_dict()
    run = run_of(tmp_path / "run", [sample("gumbel", ["a", "2"]), sample("hard", ["a", "2"])])
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["decodings"][0] |= {"thinking": thinking, "answer": {"temperature": 1.0, "min_p": None}}
    manifest["decodings"][1]["thinking"] = ThinkingSettings(thought="hard").thinking_dict()
    (run / "manifest.json").write_text(json.dumps(manifest))
    soft, hard = (d["about"] for d in page_data(inspect_page(run, tmp_path / "p.html"))["decodings"])
    assert soft == (
        "thought gumbel, thinking_temperature 1.0, thinking_top_k 7, thinking_top_p 0.95, thinking_min_p 0.0, "
        "gumbel_temperature 0.1, gumbel_density gumbel, noise_scale 1.0, end_of_thinking </think>, max_thinking_length 9, "
        "answer temperature 1.0"
    )
    assert hard == "thought hard, end_of_thinking </think>"


def test_two_runs_stand_side_by_side(tmp_path):
    runs = [
        run_of(tmp_path / name, [sample(d, [name, "2"]) for d in ("hard", "gumbel")], name=name)
        for name in ("before", "after")
    ]
    main([*map(str, runs), "-o", str(tmp_path / "p.html")])
    data = page_data(tmp_path / "p.html")
    assert data["first"] == {"left": "before: gumbel", "right": "after: gumbel"} and data["name"] == "before and after"
    assert [d["name"] for d in data["decodings"]] == ["before: hard", "before: gumbel", "after: hard", "after: gumbel"]
    by = data["benchmarks"]["b"]["problems"]["0"]
    assert {name: line["0"]["thoughts"][0]["token"] for name, line in by.items()} == {
        "before: hard": "before", "before: gumbel": "before", "after: hard": "after", "after: gumbel": "after",
    }  # fmt: skip


def test_runs_of_one_name_are_told_apart_by_their_folders_and_other_problems_are_refused(tmp_path):
    runs = [run_of(tmp_path / name, [sample("gumbel", ["a", "2"])], name="same") for name in ("x", "y")]
    assert [d["name"] for d in page_data(inspect_page(runs, tmp_path / "p.html"))["decodings"]] == [
        "x: gumbel",
        "y: gumbel",
    ]
    for folder, digest in zip(runs, ("1", "2"), strict=True):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"problems": {"b": {"sha256": digest}}}))
    with pytest.raises(ValueError, match="other problems under the name 'b'"):
        inspect_page(runs, tmp_path / "p.html")


def test_minus_zero_is_shown_as_zero(tmp_path):
    lines = [sample("soft", ["a", "2"], entropy=-0.0)]
    lines[0]["thoughts"][0] |= {"entropy": -1e-9, "candidates": [["a", -0.0]]}
    assert (
        "-0.0"
        not in inspect_page(run_of(tmp_path / "run", lines), tmp_path / "p.html")
        .read_text()
        .partition('data">')[2]
        .partition("<")[0]
    )


TOKENS = (
    "[...document.querySelectorAll('.side')].map(s => [...s.querySelectorAll('.step bdi')].map(b => b.textContent))"
)
AFTER_HASH = "new Promise(done => addEventListener('hashchange', () => done(document.documentElement.dataset.ready), {{once: true}}) || {})"


def address(page: Path, **choice) -> str:
    return page.resolve().as_uri() + "#" + "&".join(f"{key}={value}" for key, value in choice.items())


def healthy(browser: chromium.Browser) -> None:
    """No error recorded by the page or the browser, and no request but for the page's own file."""
    assert browser.value("document.documentElement.dataset.error ?? null") is None
    assert browser.value("document.getElementById('failed').hidden")
    told = [event for event in browser.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    asked = {e["params"]["request"]["url"].partition(":")[0] for e in browser.events if e.get("method") == "Network.requestWillBeSent"}  # fmt: skip
    assert told == [] and asked <= {"file"}


@browser_only
def test_in_a_browser_boxes_panel_keys_and_pointer_work(tmp_path):
    hard, soft = ["one", " two", " three", "</think>", "2"], ["one", " two", " 3\n", "</think>", "2"]
    lines = [sample("hard", hard), sample("gumbel", soft, correct=False)]
    lines += [sample(d, ["same", "2"], problem=1) for d in ("hard", "gumbel")]
    page = inspect_page(run_of(tmp_path / "run", lines), tmp_path / "p.html")
    with chromium.Browser(tmp_path / "profile") as browser:
        browser.open(address(page))
        assert browser.value("document.documentElement.dataset.ready") == "b/0/0"
        assert browser.value(TOKENS) == [
            ["one", "·two", "·three", "</think>", "2"], ["one", "·two", "·3⏎", "</think>", "2"],
        ]  # fmt: skip
        assert browser.value("[...document.querySelectorAll('.verdict')].map(v => v.textContent)") == [
            "✓ correct",
            "✗ wrong",
        ]
        # They part at the third step, which is marked in both and chosen to begin with.
        assert browser.value("document.getElementById('parting').textContent").startswith(
            "The first 2 shadow tokens are the same; they part at step 3: hard says “·three”, gumbel “·3⏎”."
        )
        marked = "[...document.querySelectorAll('li.parting .step')].map(b => b.dataset.side + '/' + b.dataset.step)"
        assert browser.value(marked) == ["0/2", "1/2"]
        chosen = "[...document.querySelectorAll('.step[aria-current]')].map(b => Number(b.dataset.step))"
        assert browser.value(chosen) == [2, 2]
        assert browser.value("[...document.querySelectorAll('.dock th')].map(h => h.textContent)") == ["·three", "·other", "·3⏎", "·other"]  # fmt: skip
        assert (
            browser.value("[...document.querySelectorAll('.dock .bar')].map(b => b.style.width)") == ["75%", "25%"] * 2
        )
        # The answer is behind a line, and is no thought.
        ends = "[...document.querySelectorAll('li.end')].map(e => e.nextElementSibling.textContent + e.textContent)"
        assert browser.value(ends) == ["2the thought ends; the answer begins"] * 2
        assert browser.value("document.querySelectorAll('.step.answered').length") == 2
        # Keys: tab reaches one box of a side, arrows move in it, on both sides, and the ends hold.
        assert browser.value("document.querySelectorAll('.side .step[tabindex=\"0\"]').length") == 2
        browser.value("document.querySelector('.step[tabindex=\"0\"]').focus()")
        for key, code, expected in (("ArrowRight", 39, 3), ("ArrowLeft", 37, 2), ("Home", 36, 0), ("ArrowLeft", 37, 0), ("End", 35, 4)):  # fmt: skip
            browser.press(key, code)
            assert browser.value(chosen) == [expected, expected]
        assert browser.value("document.activeElement.dataset.step") == "4"
        assert browser.value("location.hash").endswith("&step=5")
        assert "ordinary token" in browser.value("document.getElementById('dock').textContent")
        assert browser.value("document.getElementById('tip').hidden") is False
        browser.press("Escape", 27)
        assert browser.value("document.getElementById('tip').hidden") is True
        # Pointer: hovering shows candidates and weights, clicking chooses.
        browser.point('.step[data-side="1"][data-step="1"]')
        assert browser.value("document.getElementById('tip').textContent") == "0.500 nats\n0.750  ·two\n0.250  ·other"
        browser.point('.step[data-side="1"][data-step="1"]', click=True)
        assert browser.value(chosen) == [1, 1]
        browser.point("#go-parting", click=True)
        assert browser.value(chosen) == [2, 2] and browser.value("document.activeElement.dataset.step") == "2"
        # The next problem, by its button; back by the browser's own "back".
        assert browser.value(AFTER_HASH.format("document.getElementById('next').click()")) == "b/1/0"
        assert browser.value(TOKENS) == [["same", "2"], ["same", "2"]]
        assert "the same from beginning to end" in browser.value("document.getElementById('parting').textContent")
        assert browser.value(AFTER_HASH.format("history.back()")) == "b/0/0"
        healthy(browser)


@browser_only
def test_in_a_browser_the_address_chooses(tmp_path):
    page = inspect_page(write_run(tmp_path / "run"), tmp_path / "p.html")
    data = page_data(page)["benchmarks"]["math500"]["problems"]
    with chromium.Browser(tmp_path / "profile") as browser:
        for problem, number, right in ((1, 2, "gumbel"), (2, 3, "-")):
            browser.open(address(page, benchmark="math500", problem=problem, sample=number, right=right, step=2))
            assert browser.value("document.documentElement.dataset.ready") == f"math500/{problem}/{number}"
            sides = ["hard", "gumbel"] if right == "gumbel" else ["hard"]
            lines = [data[str(problem)][side][str(number)] for side in sides]
            assert [len(side) for side in browser.value(TOKENS)] == [len(line["thoughts"]) for line in lines]
            assert browser.value("[...document.querySelectorAll('.side h2')].map(h => h.textContent)") == sides
            assert browser.value("document.querySelectorAll('.step[data-step=\"1\"][aria-current]').length") == len(
                sides
            )
            healthy(browser)
        # An address that names what is not there shows what is.
        browser.open(address(page, benchmark="nope", problem=99, sample="x", left="</script>", step="NaN"))
        assert browser.value("document.documentElement.dataset.ready") == "gsm8k/0/0"
        healthy(browser)


@browser_only
def test_in_a_browser_entropy_is_ordered_by_lightness_in_both_themes(tmp_path):
    line = sample("soft", ["a", "b", "c", "d", "2"])
    for i, s in enumerate(line["thoughts"]):
        s["entropy"] = 0.5 * i
    page = inspect_page(run_of(tmp_path / "run", [line]), tmp_path / "p.html")
    shades = "[...document.querySelectorAll('.step')].map(b => Number(getComputedStyle(b).backgroundColor.match(/oklch\\(([\\d.]+)/)[1]))"
    with chromium.Browser(tmp_path / "profile") as browser:
        for theme in ("light", "dark"):
            browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            browser.open(address(page))
            found = browser.value(shades)
            assert found == sorted(found, reverse=theme == "light") and len(set(found)) == 5
            steps = [later - sooner for sooner, later in pairwise(found)]
            assert max(steps) - min(steps) < 0.005  # even steps, but for the three digits they are written in
        assert browser.value("[...document.querySelectorAll('.ticks span')].map(t => t.textContent)") == ["0.00", "0.50", "1.00", "1.50", "2.00"]  # fmt: skip
        healthy(browser)


@browser_only
def test_in_a_browser_hostile_text_runs_nothing(tmp_path):
    lines = [
        sample("hard", [HOSTILE, "2"], prompt=HOSTILE, answer=HOSTILE),
        sample("soft", None, HOSTILE, answer=None),
    ]
    lines[0]["thoughts"][0]["candidates"] = [[HOSTILE, 1.0]]
    page = inspect_page(run_of(tmp_path / "run", lines, name=HOSTILE), tmp_path / "p.html")
    with chromium.Browser(tmp_path / "profile") as browser:
        browser.open(address(page))
        browser.point(".step", click=True)
        assert browser.value("window.hit ?? null") is None and browser.value("document.images.length") == 0
        assert browser.value("document.getElementById('prompt').textContent") == HOSTILE
        assert browser.value("document.querySelector('.dock th').textContent").startswith("</script><img·src")
        assert browser.value("document.querySelector('.step bdi').textContent").endswith("<script·U+2028")
        # The other side has no steps, and says so.
        assert browser.value("[...document.querySelectorAll('.unrecorded')].map(n => n.textContent.slice(0, 45))") == ["The steps of this sample were not recorded: o"]  # fmt: skip
        assert browser.value("document.querySelectorAll('pre.text')[1].textContent") == HOSTILE
        healthy(browser)


@browser_only
def test_in_a_browser_keys_work_from_the_first_moment_and_tokens_show_what_they_were_drawn_from(tmp_path):
    hard = sample("hard", ["one", " two", "2"])
    for s in hard["thoughts"]:
        s["drawn"] = True
    page = inspect_page(run_of(tmp_path / "run", [hard, sample("gumbel", ["one", " 2", "2"])]), tmp_path / "p.html")
    chosen = "[...document.querySelectorAll('.step[aria-current]')].map(b => Number(b.dataset.step))"
    with chromium.Browser(tmp_path / "profile") as browser:
        browser.open(address(page))
        assert browser.value("document.activeElement === document.body") and browser.value(chosen) == [1, 1]
        for key, code, expected in (("ArrowLeft", 37, 0), ("ArrowRight", 39, 1), ("End", 35, 2), ("Home", 36, 0)):
            browser.press(key, code)
            assert browser.value(chosen) == [expected, expected]
        panels = "[...document.querySelectorAll('.dock .panel p')].map(p => p.textContent)"
        assert [text.rpartition(" · ")[2] for text in browser.value(panels)] == [
            "hard thought, drawn from", "thought of 2 candidates",
        ]  # fmt: skip
        assert browser.value("[...document.querySelectorAll('.dock tr.drawn th')].map(h => h.textContent)") == [
            "one drawn"
        ]
        # Only a mixture has a line that splits by weights.
        mixed = "[...document.querySelectorAll('.side')].map(s => s.querySelectorAll('.mix').length)"
        assert browser.value(mixed) == [0, 2]
        # The keys of a menu are the menu's.
        browser.value("document.getElementById('choose-sample').focus()")
        browser.press("End", 35)
        assert browser.value(chosen) == [0, 0]
        healthy(browser)


@browser_only
def test_in_a_browser_a_page_inside_another_works(tmp_path):
    """As trackers show it: in a frame that has no address of its own."""
    lines = [sample(d, [token, "2"], problem=n) for n in (0, 1) for d, token in (("hard", "a"), ("gumbel", "b"))]
    page = inspect_page(run_of(tmp_path / "run", lines), tmp_path / "p.html")
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe srcdoc="{html.escape(page.read_text(encoding="utf-8"))}"></iframe>', encoding="utf-8")
    inner = "document.querySelector('iframe').contentDocument"
    with chromium.Browser(tmp_path / "profile") as browser:
        browser.open(outer.resolve().as_uri())
        assert browser.value(f"{inner}.documentElement.dataset.error ?? null") is None
        browser.value(f"{inner}.querySelectorAll('.step')[1].click()")
        chosen = f"[...{inner}.querySelectorAll('.step[aria-current]')].map(b => Number(b.dataset.step))"
        assert browser.value(chosen) == [1, 1]
        changed = f"new Promise(r => {inner}.defaultView.addEventListener('hashchange', () => r(1), {{once: true}}) || {inner}.getElementById('next').click())"
        browser.value(changed)
        assert browser.value(f"{inner}.documentElement.dataset.ready") == "b/1/0"


@browser_only
def test_in_a_browser_nothing_is_wider_than_a_phone(tmp_path):
    wide = "x" * 90
    lines = [sample(d, [wide, " two", "</think>", wide], prompt=wide * 3, answer=wide) for d in ("hard", "gumbel")]
    lines[1]["thoughts"][0]["candidates"] = [[wide, 0.7], ["y" * 50, 0.3]]
    page = inspect_page(run_of(tmp_path / "run", lines), tmp_path / "p.html")
    with chromium.Browser(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=True)
        browser.open(address(page))
        assert browser.value("innerWidth") == 420 and browser.value("document.documentElement.scrollWidth") <= 420
        wider = "[...document.querySelectorAll('main *, header *')].filter(n => n.getBoundingClientRect().right > 420.5).length"
        assert browser.value(wider) == 0
        assert browser.value("[...document.querySelectorAll('.controls button')].every(b => b.offsetHeight >= 40)")
        healthy(browser)
