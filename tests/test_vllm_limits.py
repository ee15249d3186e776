# SPDX-License-Identifier: Apache-2.0
"""What a client may send and a server may hold, without a server: lengths, ranges, bytes and time."""

import json
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch

from tests import tiny
from tests.test_vllm_parts import STEPS, H, V, draw, params, plan, pool_of, served, spec
from trl_soft import ThinkingSettings
from trl_soft.ranges import LENGTHS, RANGES
from trl_soft.rollout import matcher
from trl_soft.rollout.columns import NUMBERS
from trl_soft.rollout.pieces import Pieces
from trl_soft.rollout.rules import Rules
from trl_soft.rollout.stop import EndOfThinking
from trl_soft.rollout.vllm import client, engine_support, frontend, pool, request, timed_http
from trl_soft.rollout.vllm.client import Ask, ServerLost, complete, post, wait_for
from trl_soft.rollout.vllm.layout import layout_of
from trl_soft.rollout.vllm.record_store import Kept
from trl_soft.rollout.vllm.records import bulks
from trl_soft.rollout.vllm.request import spec_of, wants


LONG = "x" * 5_000_000
# What strangers have sent, each with a word of the refusal.
HOSTILE = [
    ({"soft_record": LONG}, "5000000 characters"),
    ({"soft_" + LONG: 1}, "keys have at most 64"),
    ({"soft_thougt": LONG}, "5000000 characters"),
    ({"soft_settings": LONG}, "5000000 characters"),
    ({"soft_settings": "[" * 50_000}, "JSON object"),
    ({"soft_settings": '{"a":' * 10_000 + "1" + "}" * 10_000}, "JSON object"),
    ({"soft_settings": json.dumps({"x" * 60_000: 1})}, "nothing reads"),
    ({"soft_settings": '{"thinking_temperature": ' + "9" * 5000 + "}"}, "JSON object"),
    ({"soft_end_of_thinking": "ab" * 75}, "150 characters, and at most 64"),
    ({"soft_answer_prefill": ["a", LONG]}, "5000000 characters"),
    ({"soft_answer_prefill": ["a"] * 1_000_000}, "at most 2 texts"),
    ({"soft_thinking": LONG}, "5000000 characters"),
    ({"soft_evaluation": [LONG]}, "5000000 characters"),
    ({"soft_evaluation": "x" * 200}, "true or false"),
    ({"soft_thinking_temperature": 5e-324}, "at least 1e-06"),
    ({"soft_thought": "dirichlet", "soft_dirichlet_concentration": 1e308}, "at most 1e+06"),
    ({"soft_seed": 10**400}, "1329 bits"),
    ({"soft_thought": "multiplex", "soft_multiplex_width": 10**6}, "at most 1024"),
    ({"soft_end_of_thinking": "\ud800"}, "`soft_end_of_thinking` holds '.ud800', half of a surrogate pair"),
    ({"soft_settings": '{"end_of_thinking": "\\ud800"}'}, "`end_of_thinking` holds '.ud800'"),
    ({"soft_record": "a\udfff"}, "`soft_record` holds '.udfff'"),
    ({"soft_\ud800": 1}, "half of a surrogate pair"),
]


class Untouched:
    """A tokenizer that must not be asked: what is refused for its size is refused before."""

    def __getattr__(self, name):
        raise AssertionError(f"the tokenizer was asked for {name}")


@pytest.mark.parametrize("extra, word", HOSTILE, ids=[str(case[1]) for case in HOSTILE])
def test_what_is_too_large_is_refused_before_it_is_read(extra, word):
    extra = {"soft_thinking": True, "soft_thought": "gumbel"} | extra
    if "soft_settings" in extra:
        del extra["soft_thought"]
    with pytest.raises(ValueError, match=word.replace("+", r"\+")) as error:
        wants(extra)
        spec_of(params(extra_args=extra), "id", Untouched(), None, vocab_size=V, max_length=24)
    assert len(str(error.value)) < 1000


def test_sampling_parameters_and_ends_have_bounds():
    for changes, word in (
        ({"temperature": 5e-324}, "`temperature`"),
        ({"repetition_penalty": 1e-300}, "`repetition_penalty`"),
        ({"all_stop_token_ids": set(range(5, 100))}, "takes at most 64"),
        ({"bad_words": [LONG]}, "`bad_words` is a list of 1"),
        ({"logit_bias": dict.fromkeys(range(10**5), 1.0)}, "`logit_bias` is a dict of 100000"),
    ):
        with pytest.raises(ValueError, match=word) as error:
            spec({"soft_thought": "gumbel"}, **changes)
        assert len(str(error.value)) < 400


def test_an_ordinary_client_among_hostile_ones():
    """Its spec is the one it gets alone, whatever was refused before it, and however many texts that end thoughts were used."""
    ordinary = {"soft_thought": "gumbel", "soft_end_of_thinking": "1;", "soft_seed": 3}
    alone = spec(ordinary)[0]
    for extra, _ in HOSTILE:
        with pytest.raises(ValueError):
            wants({"soft_thinking": True, **extra})
            spec({"soft_thought": "gumbel", **extra})
    for number in range(20):
        spec({"soft_thought": "gumbel", "soft_end_of_thinking": f"{number:02d}+"})
    assert spec(ordinary)[0] == alone


class Decoding:
    """A tokenizer of one character a token that counts what it decodes, where it is `backwards` from the last token to the first."""

    tokenizer = tiny.tokenizer()
    unk_token_id = tokenizer.unk_token_id

    def __init__(self, length: int, backwards: bool):
        self.length, self.backwards, self.decoded = length, backwards, 0

    def __len__(self):
        return self.length

    def __call__(self, text, **options):
        ids = self.tokenizer(text, **options)["input_ids"]
        return {"input_ids": ids[::-1] if self.backwards else ids}

    def convert_tokens_to_ids(self, token):
        return self.tokenizer.convert_tokens_to_ids(token)

    def get_added_vocab(self):
        return {}

    def batch_decode(self, rows, **options):
        self.decoded += len(rows)
        rows = [[token % V for token in (row[::-1] if self.backwards else row)] for row in rows]
        return self.tokenizer.batch_decode(rows, **options)

    def decode(self, row, **options):
        return self.batch_decode([row], **options)[0]


@pytest.mark.parametrize("backwards", [False, True], ids=["accepted", "refused"])
def test_only_the_first_text_of_an_engine_walks_through_the_vocabulary(backwards):
    """As many texts as a client likes cost each a few hundred decodings, those that are refused as well."""
    tokenizer, counts = Decoding(5000, backwards), []
    for text in ("1;", "12", "3-4", "1;2;3;4"):
        end = EndOfThinking(tokenizer, text)
        tokenizer.decoded = 0
        if backwards:
            with pytest.raises(ValueError, match="do not write their characters one after the other"):
                matcher.EndMatcher(end, len(tokenizer))
        else:
            matcher.EndMatcher(end, len(tokenizer))
        counts.append(tokenizer.decoded)
    assert counts[0] > 5000 and max(counts[1:]) < 3000


def test_options_of_an_engine():
    config = SimpleNamespace(additional_config=None, model_config=SimpleNamespace(max_model_len=99))
    for given, word in (
        ({"end_texts": ["a"]}, r"\['end_texts'\] under `trl_soft`"),
        ({"record_gb": float("nan")}, "`record_gb` is nan"),
        ({"record_length": 0}, "`record_length` is 0"),
    ):
        config.additional_config = {"trl_soft": {"record_bytes": 8, **given}}
        with pytest.raises(ValueError, match=word):
            engine_support.options(config)


def test_records_are_kept_where_somebody_can_fetch_them():
    for extension, hands_out in (
        ("", False),
        ("trl_soft.rollout.vllm.worker.SoftWorker", True),
        ("trl_soft.rollout.vllm.records.Layout", False),
        ("nowhere.Nothing", False),
    ):
        assert frontend.can_fetch(extension) == hands_out


# What is held


class Counted:
    """A record of some bytes that counts how often it is asked for them."""

    asked = 0

    def __init__(self, size: int):
        self.size = size

    def bytes(self) -> int:
        Counted.asked += 1
        return self.size


def test_records_are_bounded_by_bytes_and_leave_in_constant_time():
    kept = Kept(100_000)
    Counted.asked = 0
    for number in range(5000):
        kept.put((f"name {number % 1700}", number % 3), Counted(number % 900))
        assert kept.held <= kept.room
    assert kept.held == sum(Kept._size(key, record) for key, record in kept._of.items())
    assert 50 < len(kept) < 100 and ("name 1599", 1) in kept  # 4999 % 1700, and 4999 % 3 is 1
    Counted.asked = 0
    kept.put(("another", 0), Counted(500))
    assert Counted.asked <= 6  # its own, and those few that left for it
    latest = kept.take(["another", "nobody"])
    assert list(latest) == [("another", 0)] and ("another", 0) not in kept and kept.take(["another"]) == {}
    kept.put(("too large", 0), Counted(10**6))
    assert len(kept) == 0 == kept.held and kept._children == {}


def test_a_record_in_the_place_of_one_of_its_name():
    kept = Kept(100_000)
    for size in (10, 2000, 30):
        kept.put(("name", 0), Counted(size))
    assert len(kept) == 1 and kept.held == Kept._size(("name", 0), Counted(30))


def test_a_record_takes_no_more_than_is_counted():
    """
    What the process grows by for 20,000 records of one token, against what is counted: the allocator's business too, so the
    process is a fresh one.
    """
    import subprocess
    import sys

    code = """
import os
from tests.test_vllm_parts import plan, pool_of, draw
from trl_soft.rollout.vllm.record_store import Kept
made = plan({})
pool, (number,) = pool_of(made)
pool.admit([0], [number], [(3, 0, 0)], [2], [16])
draw(pool, number, {0: 0}, 0)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
kept = Kept(10**9)
for i in range(2000):
    kept.put((f"before {i}", 0), pool.park(0, "cpu"))
before, held = resident(), kept.held
for i in range(20000):
    kept.put((f"name {i}", 0), pool.park(0, "cpu"))
print(resident() - before, kept.held - held)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, counted = map(int, done.stdout.split()[-2:])
    print(f"{grown / 20000:.0f} bytes a record, {counted / 20000:.0f} counted")
    assert grown <= counted


def test_records_that_wait_hold_no_plan():
    """A plan that was forgotten comes back with the rules of the request that needs it."""
    made = plan({})
    layout = layout_of(made.thought, V, H, torch.float32)
    slots, (number,) = pool_of(made)
    slots.admit([1], [number], [(3, 0, 0)], [2], [16])
    slots.step(number, *_slot(1), served([0], 0))
    parked = slots.park(1)
    slots.clear(1)
    for other in range(2 * pool._PLANS):
        slots.add(f"other {other}", plan({}), layout)
    assert number not in slots.ruled and len(slots.ruled) <= pool._PLANS + 1
    again = slots.add("again", made, layout)
    slots.restore(2, again, parked, 1)
    assert slots.number[2] == again and slots.drawn[2] == 1
    assert slots.columns.rule[2] == slots.ruled[again].rule != parked.rows["numbers"][NUMBERS.index("rule")]


def _slot(number: int):
    import numpy as np

    return np.array([number]), torch.tensor([number])


def test_plans_are_bounded_by_what_they_are_made_of(monkeypatch):
    monkeypatch.setattr(pool, "_PLAN_TEXT", 10_000)
    slots, (first,) = pool_of(plan({}))
    slots.number[0] = first
    layout = layout_of(plan({}).thought, V, H, torch.float32)
    for number in range(50):
        slots.add(f"{number:03d}" + "x" * 3000, plan({}), layout)
        assert sum(map(len, slots._numbers)) == slots._named <= 10_000
    assert first in slots.ruled and len(slots.ruled) == 4


def test_a_table_holds_classes_of_tokens_and_is_shared_by_plans():
    """However long the text and however many the tokens: those that hold nothing of the text are one class."""
    pieces = [b"ab", b"b", b"c", b"", b"abab", b"x" * 30, b"a"] + [b"no"] * 50_000 + [b"cab"] * 50_000
    classes, table = matcher.table_of(b"ab" * 32, Pieces(pieces), lambda tokens, lengths: lengths)
    assert classes.shape == (len(pieces),) and table.shape == (64, 7)
    one = matcher.EndMatcher(EndOfThinking(tiny.tokenizer(), "1;"), V)
    made = plan({})
    made.stop.end, rules = one, Rules("cpu")
    assert [rules.add(made) for _ in range(3)] == [0, 1, 2]
    assert len(rules.classes) == 1 + len(one.classes) and len(rules.kinds) == 1 + len(one.surplus)


# Time


@contextmanager
def server(answer: bytes | None):
    """A server that takes connections and says `answer` to each; `None`: it is silent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken, over = [], threading.Event()

        def serve():
            while not over.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                taken.append(connection)
                if answer is not None:
                    connection.recv(2**16)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


def http(body: str, status: int = 200) -> bytes:
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_a_server_that_is_silent_is_lost():
    with server(None) as url:
        with pytest.raises(ServerLost, match=r"did not answer to the end within 0\.05 seconds"):
            post(url, "/v1/completions", {}, 0.05)
        with pytest.raises(ServerLost, match="did not answer to the end"):
            complete([url], "m", [[1]], 1, Ask(plan({}), ThinkingSettings(), 3, 0, 0), 0.05)


def test_every_request_has_a_limit(monkeypatch):
    """Nobody has to ask for it."""
    given = []

    def asked(method, url, seconds, *args, **options):
        given.append(seconds)
        raise requests.ConnectionError("no")

    monkeypatch.setattr(client, "fetch", asked)
    with pytest.raises(ServerLost):
        complete(["http://a"], "m", [[1]], 1, Ask(plan({}), ThinkingSettings(), 3, 0, 0))
    with pytest.raises(ServerLost, match="has not been well for 0 seconds"):
        wait_for("http://a", 0)
    assert given == [client.TIMEOUT, client._SHORTEST] and client.TIMEOUT == 3600


@contextmanager
def dripping(head: bytes, drop: bytes):
    """A server that says `head`, and then `drop` every 20 ms until the connection ends."""
    over, threads = threading.Event(), []

    def drip(connection):
        with connection:
            try:
                connection.sendall(head)
                while not over.wait(0.02):
                    connection.sendall(drop)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=drip, args=(connection,)))
                threads[-1].start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            for each in (thread, *threads):
                each.join()


OK = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "status line": (b"", b"H"),
    "headers": (OK + b"x: ", b"a"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "content length": (OK + b"Content-Length: 100000\r\n\r\n", b"x"),
    "until close": (OK + b"Connection: close\r\n\r\n", b" "),
    "chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
}


@pytest.mark.parametrize("head, drop", DRIPS.values(), ids=DRIPS)
def test_a_server_that_drips_has_the_same_limit(head, drop):
    """A reader that waits for each byte anew would never return."""
    with dripping(head, drop) as url:
        with pytest.raises(ServerLost, match=r"did not answer to the end within 0\.2 seconds"):
            post(url, "/v1/completions", {}, 0.2)
        with pytest.raises(ServerLost, match=r"has not been well for 0\.2 seconds"):
            wait_for(url, 0.2)


def test_a_session_that_tries_again_has_one_limit_for_all_tries():
    """As TRL's session: it keeps its connections and its retries."""
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=5))
    timed_http.watch(session)
    for head, drop in (DRIPS["headers"], DRIPS["until close"]):
        with dripping(head, drop) as url, pytest.raises(requests.Timeout, match=r"after 0\.2 seconds"):
            with timed_http.time_limit(0.2):
                session.get(url)
    with server(http("{}")) as url:
        for _ in range(2):
            with timed_http.time_limit(60):
                assert session.get(url).json() == {}
    session.close()


def test_an_answer_has_no_more_bytes_than_a_bound(monkeypatch):
    with server(http("x" * 3000)) as url:
        assert timed_http.fetch("GET", url, 60, 3000) == (200, "x" * 3000)
        with pytest.raises(requests.RequestException, match="more than 2999 bytes"):
            timed_http.fetch("GET", url, 60, 2999)
        monkeypatch.setattr(client, "fetch", lambda *args, **options: timed_http.fetch(*args, most=100, **options))
        with pytest.raises(ServerLost, match="more than 100 bytes"):
            post(url, "/v1/completions", {}, 60)


def test_what_a_server_says_commands_no_terminal():
    with server(http("soft_\x1b[2J\x07 is unknown", 400)) as url, pytest.raises(ValueError) as error:
        post(url, "/v1/completions", {}, 60)
    assert "soft_\ufffd[2J\ufffd is unknown" in str(error.value)


@pytest.mark.parametrize(
    "body, word",
    [
        ("<html>gateway</html>", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "a list, and not with an object"),
        ("{}", "something else than the request asked for"),
        ('{"choices": [{}]}', "something else than the request asked for"),
        ('{"choices": []}', "0 completions of 1"),
        ('{"choices": 3}', "something else than the request asked for"),
    ],
)
def test_an_answer_that_is_none_is_a_lost_server(body, word):
    with server(http(body)) as url, pytest.raises(ServerLost, match=word) as error:
        complete([url], "m", [[1]], 1, Ask(plan({}), ThinkingSettings(), 3, 0, 0), 5)
    assert len(str(error.value)) < 1000


def test_records_that_are_none_are_a_lost_server():
    for answer in ('{"results": [null]}', '{"results": [[{"requests": ["x"]}]]}', '{"results": [[3]]}'):
        replies = iter(['{"choices": [{"token_ids": [1]}]}', answer])

        def reply(url, path, body, timeout, replies=replies):
            return json.loads(next(replies))

        with pytest.MonkeyPatch.context() as patch, pytest.raises(ServerLost):
            patch.setattr(client, "post", reply)
            complete(["http://a"], "m", [[1]], 1, Ask(plan({}), ThinkingSettings(), 3, 0, 0))


def test_records_are_fetched_as_completions_end(monkeypatch):
    """From a server that has room for one record: each is here before the next prompt is answered, so none is lost."""
    made, count = plan({}), 4
    slots, (number,) = pool_of(made)
    slots.admit(list(range(count)), [number] * count, [(3, 0, i) for i in range(count)], [2] * count, [STEPS] * count)
    for t in range(STEPS):
        draw(slots, number, {i: i for i in range(count)}, t)
    ask, parked = Ask(made, ThinkingSettings(), 3, 0, 0), [slots.park(i) for i in range(count)]
    kept = Kept(max(Kept._size((f"{ask.name}-{i}", 0), record) for i, record in enumerate(parked)))
    here = [threading.Event() for _ in range(count)]

    def answer(url, path, body, timeout):
        if path == "/v1/completions":
            name = body["vllm_xargs"]["soft_record"]
            i = int(name.rpartition("-")[2])
            assert i == 0 or here[i - 1].wait(5)
            kept.put((name, 0), parked[i])
            drawn = parked[i].rows["numbers"][NUMBERS.index("t")]
            return {"choices": [{"token_ids": parked[i].rows["ids"][:drawn].tolist()}]}
        found = kept.take(body["args"][0])
        for name in body["args"][0]:
            here[int(name.rpartition("-")[2])].set()
        return {"results": [bulks([(*key, record) for key, record in found.items()], True)]}

    monkeypatch.setattr(client, "post", answer)
    parts = complete(["http://a"], "m", [[1]] * count, 1, ask)
    assert [part.completion_ids[0].tolist() for part in parts] == [
        record.rows["ids"][: part.completion_ids.size(1)].tolist() for record, part in zip(parked, parts, strict=True)
    ]
    with pytest.raises(ServerLost, match=r"1 of 1 records did not come back.*`record_gb`"):
        ask.rollouts([], [("mine", 0)])


# The docs


def test_the_docs_say_every_limit():
    text = (Path(__file__).parent.parent / "docs" / "vllm.md").read_text()
    table = text[text.index("## Limits") :].split("\n## ")[0]
    for name, found in RANGES.items():
        if name in request.KEYS or f"soft_{name}" in request.KEYS or name in ("temperature", "top_k", "top_p"):
            assert f"`{name}`" in table or f"`soft_{name}`" in table, name
            assert str(found) in table, (name, str(found))
    for number in (*LENGTHS.values(), request.KEY_LENGTH, request.TEXT_LENGTH, request.STOPS):
        assert f"{number}" in table.replace(",", "")
    for number in (
        matcher.MATCHERS,
        pool._PLANS,
        int(client.TIMEOUT),
        int(timed_http.CONNECT),
        timed_http.ANSWER_BYTES,
    ):
        assert f"{number}" in table.replace(",", "")
