# SPDX-License-Identifier: Apache-2.0
"""Stock `vllm serve` over HTTP: requests as anybody would send them, and whole trainer steps."""

import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
import torch
from safetensors.torch import save_file

from tests import tiny
from tests.test_vllm_limits import HOSTILE
from tests.vllm import served
from tests.vllm.served import PROMPTS, needs_vllm
from tests.vllm.test_colocate import SHARED, assert_moved_alike, steps
from tests.vllm.test_served import assert_same
from trl_soft import ThinkingSettings
from trl_soft.rollout.vllm import client
from trl_soft.rollout.vllm.client import Ask, ServerLost, complete
from trl_soft.rollout.vllm.records import rollout_of


pytestmark = needs_vllm
ENDS = 16  # texts that end thoughts, of a client that uses each once
DEFAULTS = {"thought": "dirichlet", "max_thinking_length": 9}


class Server:
    """A `vllm serve` process, to be killed and started again."""

    def __init__(self, folder: str, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.log, self.url = folder, log, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        options = {
            "dtype": "float32", "max-model-len": 64, "max-num-seqs": 8, "block-size": 32, "kv-cache-memory-bytes": 2**21,
            "port": self.port, "host": "127.0.0.1", "logprobs-mode": "processed_logprobs", "max-logprobs": -1,
            "worker-extension-cls": "tests.vllm.push.Pushed", "served-model-name": "tiny",
            "additional-config": '{"trl_soft": {"record_bytes": 512}}',
        }  # fmt: skip
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        code = "import sys; from vllm.entrypoints.cli.main import main; main()"
        command = [sys.executable, "-c", code, "serve", self.folder, "--enforce-eager", "--disable-log-stats", *flags]
        env = served.environment() | {"VLLM_SERVER_DEV_MODE": "1"}
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log, start_new_session=True)

    def wait(self) -> None:
        while True:
            assert self.process is not None and self.process.poll() is None, "the server ended by itself; see its log"
            try:
                if requests.get(self.url + "/health", timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.2)

    def kill(self) -> None:
        import os
        import signal

        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)  # the engine is a process of its own
        self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    ThinkingSettings(**DEFAULTS).save_thinking(folder)
    return served.save(served.model(), folder)


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with open(tmp_path_factory.mktemp("log") / "server.log", "wb") as log:
        made = Server(folder, log)
        made.start()
        made.wait()
        yield made
        made.kill()


def post(server, path, **body):
    return requests.post(server.url + path, json={"model": "tiny", **body})


def test_a_request_by_hand(server):
    """Nothing but `soft_thinking`: how to think stands beside the weights. The record is had by name."""
    net = served.model()
    body = {"prompt": PROMPTS[1], "max_tokens": 20, "temperature": 1.0, "n": 2, "return_token_ids": True}
    extra = {"soft_thinking": True, "soft_seed": 3, "soft_sample": 4, "soft_record": "by hand"}
    answer = post(server, "/v1/completions", vllm_xargs=extra, **body)
    assert answer.status_code == 200, answer.text
    (bulk,) = post(server, "/collective_rpc", method="pop_soft_records", args=[["by hand"], True]).json()["results"][0]
    made = served.plan(net, DEFAULTS)
    ours = rollout_of(bulk, made, [("by hand", 0), ("by hand", 1)])
    theirs = served.by_oracle(net, made, [PROMPTS[1]] * 2, [4, 5])
    for i, choice in enumerate(answer.json()["choices"]):
        one = ours[i : i + 1].columns(slice(0, int(ours.completion_mask[i].sum())))
        assert_same(one, theirs[i : i + 1])
        assert choice["token_ids"] == one.completion_ids[0].tolist()


def test_other_requests_are_as_ever(server):
    body = {"prompt": PROMPTS[1], "max_tokens": 12, "temperature": 0.0, "return_token_ids": True}
    net = served.model()
    batch = torch.tensor([served.ids_of(PROMPTS[1])])
    theirs = net.generate(batch, do_sample=False, max_new_tokens=12)[0, batch.size(1) :].tolist()
    assert post(server, "/v1/completions", **body).json()["choices"][0]["token_ids"] == theirs


def test_candidates_through_the_api(server):
    body = {"prompt": PROMPTS[2], "max_tokens": 20, "logprobs": 5, "return_tokens_as_token_ids": True}
    answer = post(
        server, "/v1/completions", vllm_xargs={"soft_thought": "gumbel", "soft_max_thinking_length": 8}, **body
    )
    top = answer.json()["choices"][0]["logprobs"]["top_logprobs"]
    for entry in top[:2]:
        assert sum(torch.tensor(value).exp().item() for value in entry.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "extra, sentence",
    [
        ({"soft_thinking": True, "soft_thougt": "soft"}, "nearest known is `soft_thought`"),
        ({"soft_seed": 3}, "`soft_thinking` is not"),
        ({"soft_thought": "gumbel", "soft_max_thinking_length": 60}, "no room is left for an answer"),
    ],
)
def test_what_is_refused_is_told_the_client(server, extra, sentence):
    answer = post(server, "/v1/completions", prompt="1+2=", max_tokens=20, vllm_xargs=extra)
    assert answer.status_code == 400 and sentence in answer.json()["error"]["message"]


def test_a_hostile_client_beside_an_ordinary_one(server):
    """
    What strangers send is refused in a short sentence; records that nobody asks for and texts that end thoughts do not
    crowd out the ordinary client, whose completions and records are those it gets alone.
    """
    net = served.model()
    settings = {"max_thinking_length": 12}
    made, ask = served.plan(net, {}), Ask(served.plan(net, {}), ThinkingSettings(**settings), 3, 0, 10)
    prompts, over, answers = [served.ids_of(prompt) for prompt in PROMPTS[:3]], threading.Event(), []

    def hostile():
        sent = [extra for extra, _ in HOSTILE if not any(isinstance(v, list) and len(v) > 2 for v in extra.values())]
        sent = [extra for extra in sent if not any(isinstance(v, int) and v > 2**64 for v in extra.values())]
        sent += [{"soft_thought": "gumbel", "soft_end_of_thinking": f"{i}+"} for i in range(ENDS)]
        for extra in sent:
            body = {"soft_thinking": True, "soft_thought": "gumbel", "soft_max_thinking_length": 4} | extra
            if "soft_settings" in extra:
                del body["soft_thought"], body["soft_max_thinking_length"]
            answers.append((extra, post(server, "/v1/completions", prompt="1+2=", max_tokens=8, vllm_xargs=body)))
        for i in range(4):
            body = {"soft_thought": "gumbel", "soft_max_thinking_length": 4, "soft_record": f"never fetched {i}"}
            answers.append((body, post(server, "/v1/completions", prompt="1+2=", max_tokens=8, vllm_xargs=body)))
        over.set()

    thread = threading.Thread(target=hostile)
    thread.start()
    rollouts = [complete([server.url], "tiny", prompts, 2, ask)]
    thread.join()
    rollouts.append(complete([server.url], "tiny", prompts, 2, ask))
    theirs = served.by_oracle(net, made, [p for p in PROMPTS[:3] for _ in range(2)], [10 + i for i in range(6)])
    for parts in rollouts:
        for i, part in enumerate(parts):
            assert_same(part, theirs[i : i + 1])
    refused = [answer for _, answer in answers if answer.status_code == 400]
    assert over.is_set() and all(len(answer.content) < 2000 for answer in refused)
    assert {answer.status_code for _, answer in answers} == {200, 400}
    ended = [a.status_code for extra, a in answers if extra.get("soft_end_of_thinking", "").endswith("+")]
    assert ended == [200] * ENDS
    assert len(refused) == len(answers) - ENDS - 4


def test_several_addresses_and_records_that_are_gone(server):
    net = served.model()
    made = served.plan(net, {})
    ask = Ask(made, ThinkingSettings(max_thinking_length=12), 3, 0, 10)
    prompts = [served.ids_of(prompt) for prompt in PROMPTS[:3]]
    parts = complete([server.url, server.url], "tiny", prompts, 2, ask)
    theirs = served.by_oracle(net, made, [p for p in PROMPTS[:3] for _ in range(2)], [10 + i for i in range(6)])
    for i, part in enumerate(parts):
        assert_same(part, theirs[i : i + 1])
    with pytest.raises(ServerLost, match="did not answer to the end"):
        complete(["http://127.0.0.1:9"], "tiny", prompts, 1, ask)
    with pytest.raises(ValueError, match="does not exist"):
        complete([server.url], "another", prompts, 1, ask)


@pytest.fixture
def pushed(server, monkeypatch, tmp_path):
    """TRL's weight push, through a file."""
    from trl.generation.vllm_client import VLLMClient

    pushes = []

    def update_named_params(self, metadata, named_params):
        path = str(tmp_path / "weights.safetensors")
        save_file({name: weights.detach().clone().contiguous() for name, weights in named_params}, path)
        answer = requests.post(self.base_url + "/collective_rpc", json={"method": "load_from", "args": [path]})
        assert answer.status_code == 200, answer.text
        pushes.append(path)

    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device=0: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", update_named_params)
    return pushes


def test_served_steps_are_in_process_steps(server, folder, pushed, monkeypatch, tmp_path):
    """With the server killed in the middle of the second rollout, and started again with the weights of the beginning."""
    their_logs, their_parameters = steps(folder, tmp_path / "theirs")
    calls, restarts = [], []
    original = client.post

    def restart():
        server.start()
        server.wait()

    def killed_in_the_middle(url, path, body, timeout):
        calls.append(path)
        if calls.count("/v1/completions") == 4 and not restarts:
            restarts.append(threading.Thread(target=restart))
            threading.Timer(0.3, lambda: (server.kill(), restarts[0].start())).start()
        return original(url, path, body, timeout)

    monkeypatch.setattr(client, "post", killed_in_the_middle)
    urls = {"vllm_server_base_urls": [server.url, server.url], "vllm_server_timeout": 300}
    our_logs, our_parameters = steps(folder, tmp_path / "ours", use_vllm=True, vllm_mode="server", **urls)
    restarts[0].join()
    # Two servers: two pushes each for three steps and an evaluation, and two more after the server was lost.
    assert len(pushed) == 10
    for our_log, their_log in zip(our_logs, their_logs, strict=True):
        assert our_log.get("reward") == pytest.approx(their_log.get("reward"), abs=2e-4)
        assert our_log.get("thinking/mean_length") == their_log.get("thinking/mean_length")
    assert_moved_alike(our_parameters, their_parameters)


def test_a_server_that_does_not_come_back(server, folder, pushed, monkeypatch, tmp_path):
    from trl.generation.vllm_client import VLLMClient

    trainer = tiny.trainer(
        tmp_path, folder, use_vllm=True, vllm_mode="server", vllm_server_base_url=server.url, **SHARED
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    def gone(url, path, body, timeout):
        raise ServerLost("cut off")

    monkeypatch.setattr(client, "post", gone)
    with pytest.raises(
        ServerLost, match=r"drawn 2 times, and its server was lost each time\. Nothing was trained on it"
    ):
        trainer.train()

    def refuses(self, *rest):
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(VLLMClient, "check_server", refuses)
    with pytest.raises(ServerLost, match="did not come back: nobody is there"):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
