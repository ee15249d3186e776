# SPDX-License-Identifier: Apache-2.0
"""A trainer's client of vLLM servers: soft completions of prompts with their records. Both arrive whole, or an error is raised.

Each prompt is one HTTP request for n completions, to one of several servers. Its records are fetched when it is answered. Two
errors are different: a lost server can be tried again, a wrong request cannot.
"""

import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import requests

from ...files import parse_json, printable
from ...settings import ThinkingSettings
from ..interface import Plan, Rollout, assemble
from .records import rollout_of
from .timed_http import CONNECT, fetch


# Seconds that a server has to answer a request. The last completion of a rollout may take an hour.
TIMEOUT = 3600.0
_HEALTH_BYTES = 2**16  # of an answer whose content is not read
_SHORTEST = 0.1  # seconds: a server is asked once even if no time is left


class ServerLost(RuntimeError):
    """A server did not answer, or its answer is not complete."""


@dataclass
class Ask:
    """
    The request of one rollout to a server.

    Args:
        plan (`Plan`): the trainer's plan. The server must make the same one.
        settings (`ThinkingSettings`): the settings of the plan, with `noise_rms` if a thought reads it.
        seed, generation, sample (`int`): key of the noise. `sample` is the number of the first completion.
        evaluation (`bool`).
        name (`str`): unique name under which the server keeps the records.
    """

    plan: Plan
    settings: ThinkingSettings
    seed: int
    generation: int
    sample: int
    evaluation: bool = False
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def keys(self, number: int, first: int) -> dict:
        """`soft_*` keys of the request for prompt `number`. Its first completion is number `first` of the rollout."""
        return {
            "soft_thinking": 1,
            "soft_settings": json.dumps(ThinkingSettings.thinking_dict(self.settings)),
            "soft_seed": self.seed,
            "soft_generation": self.generation,
            "soft_sample": self.sample + first,
            "soft_evaluation": int(self.evaluation),
            "soft_record": f"{self.name}-{number}",
        }

    def sampling(self) -> dict:
        """Sampling parameters of the answers, with the trainer's ends of sequence."""
        answer = self.plan.answer
        return {
            "temperature": answer.temperature,
            "top_k": answer.top_k,
            "top_p": answer.top_p,
            "min_p": answer.min_p,
            "repetition_penalty": self.plan.repetition_penalty,
            "max_tokens": self.plan.max_completion_length,
            "ignore_eos": True,
            "stop_token_ids": self.plan.eos_token_ids,
        }

    def rollouts(self, bulks: Sequence[dict], names: Sequence[tuple[str, int]]) -> list[Rollout]:
        """
        A `Rollout` for each completion, of its own length.

        Raises:
            ServerLost: if a record is missing.
        """
        here = {request for request, _ in names}
        bulks = [bulk for bulk in bulks if here & set(bulk["requests"])]
        unfinished = [
            request
            for bulk in bulks
            for request, finished in zip(bulk["requests"], bulk["finished"], strict=True)
            if request in here and not finished
        ]
        if unfinished:
            raise ServerLost(
                f"The records of {len(unfinished)} completions are not finished; the first is {unfinished[0]}."
            )
        found: dict[tuple[str, int], Rollout] = {}
        for bulk in bulks:
            keys = [key for key in zip(bulk["requests"], bulk["children"], strict=True) if key[0] in here]
            try:
                whole = rollout_of(bulk, self.plan, keys)
            except ValueError as error:
                raise ServerLost(printable(str(error))) from error
            lengths = whole.completion_mask.sum(-1).tolist()
            found |= {key: whole[i : i + 1].columns(slice(0, lengths[i])) for i, key in enumerate(keys)}
        missing = [key for key in names if key not in found]
        if missing:
            raise ServerLost(
                f"{len(missing)} of {len(names)} records did not come back, for example that of request {missing[0][0]!r}, completion "
                f"{missing[0][1]}. They were fetched before, the server has dropped them for newer ones (`record_gb`), or it was "
                "restarted."
            )
        return [found[key] for key in names]


def same_text(text: Sequence[int], part: Rollout, plan: Plan) -> bool:
    """
    Whether a server's ids equal those of a record with one row. If `max_answer_length` ends a completion, the server's text has
    one end of sequence that the record does not have.
    """
    ids = part.completion_ids[0].tolist()
    surplus = (0, 1) if plan.max_answer_length is not None else (0,)
    return list(text)[: len(ids)] == ids and len(text) - len(ids) in surplus


def joined(parts: Sequence[Rollout], plan: Plan) -> Rollout:
    """Several completions as one `Rollout`, padded to the longest."""
    return assemble((([i], part) for i, part in enumerate(parts)), len(parts), plan)


def complete(
    urls: Sequence[str], model: str, prompts: Sequence[Sequence[int]], n: int, ask: Ask, timeout: float = TIMEOUT
) -> list[Rollout]:
    """
    n completions of each prompt, from stock `vllm serve` processes with the plugin: prompts x n, in the order of the prompts.

    Args:
        urls: of servers with the same weights. The prompts go to them in turn.
        timeout (`float`): seconds for each request. A server that has not answered by then counts as lost.

    Raises:
        ServerLost: if a server did not answer, or if its records do not fit its answer.
        ValueError: if a server refused a request. The sentence is the server's.
    """

    def send(number: int) -> list[list[int]]:
        url = urls[number % len(urls)]
        body = {"model": model, "prompt": list(prompts[number]), "n": n, "return_token_ids": True, **ask.sampling()}
        body["vllm_xargs"] = ask.keys(number, n * number)
        answer = post(url, "/v1/completions", body, timeout)
        with _as_agreed(url, answer):
            texts = [list(choice["token_ids"]) for choice in answer["choices"]]
            if len(texts) != n:
                raise LookupError(f"{len(texts)} completions of {n}")
            return texts

    records = [_Records(url, timeout) for url in urls]

    def whole(number: int) -> list[list[int]]:
        texts = send(number)
        records[number % len(urls)].fetch(f"{ask.name}-{number}")
        return texts

    # All requests at once: the server has a queue, and a rollout waits for its last completion anyway.
    with ThreadPoolExecutor(max_workers=max(len(prompts), 1)) as threads:
        texts = list(threads.map(whole, range(len(prompts))))
    out: list[Rollout | None] = [None] * (len(prompts) * n)
    for turn in range(min(len(urls), len(prompts))):
        numbers = range(turn, len(prompts), len(urls))
        order = [(f"{ask.name}-{number}", child) for number in numbers for child in range(n)]
        with _as_agreed(urls[turn], records[turn].bulks):
            rollouts = ask.rollouts(records[turn].bulks, order)
        for (number, child), rollout in zip(((i, c) for i in numbers for c in range(n)), rollouts, strict=True):
            if not same_text(texts[number][child], rollout, ask.plan):
                raise ServerLost(f"The text and the record of completion {child} of prompt {number} differ.")
            out[number * n + child] = rollout
    return out  # type: ignore[return-value]


class _Records:
    """
    The records of one server.

    A record is fetched as soon as the completions of its prompt are there, because records of other clients may push it out
    while it waits. There is one request at a time. It fetches all records that are ready then.
    """

    def __init__(self, url: str, timeout: float):
        self.url, self.timeout = url, timeout
        self.bulks: list[dict] = []
        self._names: deque[str] = deque()
        self._turn = threading.Lock()

    def fetch(self, name: str) -> None:
        """Return when the records of the request `name` are here. Many threads call this."""
        self._names.append(name)
        with self._turn:
            names = [self._names.popleft() for _ in range(len(self._names))]
            if not names:  # another thread has fetched it
                return
            body = {"method": "pop_soft_records", "args": [names, True]}
            answer = post(self.url, "/collective_rpc", body, self.timeout)
            with _as_agreed(self.url, answer):
                self.bulks += [result for result in answer["results"] if result is not None].pop()


@contextmanager
def _as_agreed(url: str, answer):
    """Inside the block, an answer that is not what the request asked for counts as a lost server."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, ServerLost):
            raise
        said = repr(answer)[:200]
        raise ServerLost(
            f"{url} answered with something else than the request asked for ({error!r}): {said}"
        ) from error


def post(url: str, path: str, body: dict, timeout: float = TIMEOUT) -> dict:
    """
    A server's answer to a request, a JSON object.

    Raises:
        ServerLost: if its whole answer did not come within `timeout` seconds, if the answer is larger than
            `timed_http.ANSWER_BYTES`, or if it is not a JSON object.
        ValueError: if it refused the request. The sentence is the server's.
    """
    try:
        status, text = fetch("POST", url + path, timeout, json=body)
    except requests.RequestException as error:
        raise ServerLost(
            f"{url}{path} did not answer to the end within {timeout:g} seconds: {printable(str(error))}"
        ) from error
    if status >= 500 and "not implemented" in text:
        raise ValueError(
            f"{url}{path} answered {status}: {printable(text[:500])}. Start the server with `--worker-extension-cls "
            "trl_soft.rollout.vllm.worker.SoftWorker`."
        )
    if status >= 500:
        raise ServerLost(f"{url}{path} answered {status}: {printable(text[:500])}")
    if status != 200:
        raise ValueError(f"{url}{path} refused the request ({status}): {printable(text[:1000])}")
    try:
        found = parse_json(text)
    except ValueError as error:
        raise ServerLost(f"{url}{path} answered with a text that is not JSON ({error}): {text[:200]!r}") from error
    if not isinstance(found, dict):
        raise ServerLost(f"{url}{path} answered with a {type(found).__name__}, and not with an object: {text[:200]!r}")
    return found


def wait_for(url: str, seconds: float, every: float = 1.0) -> None:
    """
    Wait until a server says that it is healthy.

    Raises:
        ServerLost: if it has not said so after `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        left = max(end - time.monotonic(), _SHORTEST)
        try:
            status, _ = fetch("GET", url + "/health", min(CONNECT, left), _HEALTH_BYTES)
            problem = f"it answered {status}"
            if status == 200:
                return
        except requests.RequestException as error:
            problem = str(error)
        left = end - time.monotonic()
        if left <= 0:
            raise ServerLost(f"{url}/health has not been well for {seconds:g} seconds: {printable(problem)}")
        time.sleep(min(every, left))
