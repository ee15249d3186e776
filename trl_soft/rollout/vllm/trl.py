# SPDX-License-Identifier: Apache-2.0
"""TRL's `use_vllm` with soft thoughts: TRL's `VLLMGeneration`, with the calls to vLLM replaced.

TRL gathers the prompts, syncs the weights, sends each process its share, and corrects for the mismatch between the policy that
drew and the policy that scores. During a call, this module replaces `LLM.generate` (colocate) or the client's `generate`
(server): the request of each prompt has its own key, and records come back with the tokens.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import AutoConfig
from transformers.utils import logging

from ...files import printable
from ...thoughts import Hard
from .client import TIMEOUT, Ask, ServerLost, complete, joined, same_text, wait_for
from .layout import layout_of
from .timed_http import time_limit, watch


logger = logging.get_logger(__name__)
EXTENSION = "trl_soft.rollout.vllm.worker.SoftWorker"


@contextmanager
def engine_arguments(args) -> Iterator[None]:
    """
    While a trainer is built, give the engine that TRL starts (colocate) our worker, and records as long as completions.

    TRL has no other way to pass arguments to the engine.
    """
    if args.use_vllm and find_spec("vllm") is None:
        raise ImportError(
            "`use_vllm` is set, but vLLM is not installed. Install it, `pip install trl_soft[vllm]`, or set `use_vllm: false`: "
            "rollouts then run on the training model itself."
        )
    if args.use_vllm and args.vllm_mode == "server" and args.process_index == 0:
        own = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        for url in args.vllm_server_base_urls or [own]:
            wait_for(url, args.vllm_server_timeout)  # TRL itself would wait for a silent server for ever
    if not args.use_vllm or args.vllm_mode != "colocate":
        yield
        return
    import trl.generation.vllm_generation as module

    from .plugin import register

    register()  # if trl_soft is on the path but not installed, vLLM does not find the plugin itself
    original = module.LLM

    @functools.wraps(original, updated=())
    def engine(*positional, **options):
        sizes = {"record_length": args.max_completion_length}
        options.setdefault("additional_config", {"trl_soft": sizes | _record_bytes(args, options["model"])})
        options.setdefault("worker_extension_cls", EXTENSION)
        return original(*positional, **options)

    module.LLM = engine
    try:
        yield
    finally:
        module.LLM = original


def _record_bytes(args, folder: str) -> dict:
    config = AutoConfig.from_pretrained(folder).get_text_config()
    kinds = [args.make_thought(Hard(), 1.0, evaluation) for evaluation in (False, True)]
    # Enough for float32 embeddings, because the engine may run in another precision than the config names.
    sizes = config.vocab_size, config.hidden_size, torch.float32
    return {"record_bytes": max(layout_of(kind.bound(sizes[0]), *sizes).width for kind in kinds)}


class SoftVLLM:
    """
    A trainer's `vllm_generation`. Everything except `generate` is TRL's.

    Args:
        inner (`trl.generation.vllm_generation.VLLMGeneration`).
        ask: a function of the number of prompts on this process. It returns the `Ask` of a rollout over all processes.
        keep: a function that gets the `Rollout` of this process's completions.
        urls: further servers, besides the one that TRL uses.
        retries (`int`): how often a rollout is drawn again after its server was lost.
        timeout (`float`): seconds that a server has to answer one request. It applies to TRL's own requests too.
    """

    def __init__(
        self, inner, ask: Callable[[int], Ask], keep: Callable[[Any], None], urls: Sequence[str] = (), retries=1,
        timeout: float = TIMEOUT,
    ):  # fmt: skip
        self.inner, self.ask, self.keep, self.retries, self.timeout = inner, ask, keep, retries, timeout
        self.clients = [inner.vllm_client] if inner.mode == "server" and inner.accelerator.is_main_process else []
        self.count = 1 + len(urls)
        if self.clients:
            self._limit(self.clients[0])
            kind, timeout = type(inner.vllm_client), inner.server_timeout
            for i, url in enumerate(urls):
                port = inner.group_port + 1 + i
                self.clients.append(kind(base_url=url, group_port=port, connection_timeout=timeout))
                self._limit(self.clients[-1])
                self.clients[-1].init_communicator(device=inner.accelerator.device)

    def _limit(self, client) -> None:
        """TRL's client has no time limit. Its requests get ours, for all tries of one request together."""
        watch(client.session)
        ask = functools.partial(client.session.request, timeout=self.timeout)

        def request(*args, **options):
            with time_limit(self.timeout):
                return ask(*args, **options)

        client.session.request = request

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def sync_weights(self) -> None:
        """Send the weights to every server in turn. Each pass gathers the weights again."""
        if self.inner.mode == "colocate":
            self.inner.sync_weights()
            return
        for i in range(self.count):
            with self._client(i):
                self.inner.sync_weights()

    @contextmanager
    def _client(self, i: int):
        if not self.clients:  # not the main process
            yield
            return
        own, self.inner.vllm_client = self.inner.vllm_client, self.clients[i]
        try:
            yield
        finally:
            self.inner.vllm_client = own

    def generate(self, prompts, images, num_generations: int, profiler=None):
        """As TRL's, but log-probabilities are those of thoughts and tokens as drawn, and the `Rollout` is kept."""
        ask = self.ask(len(prompts))
        if self.inner.mode == "colocate":
            prompt_ids, parts = self._colocate(ask, prompts, images, num_generations, profiler)
        else:
            prompt_ids, parts = self._serve(ask, prompts, images, num_generations, profiler)
        rollout = joined(parts, ask.plan)
        self.keep(rollout)
        ids = [part.completion_ids[0].tolist() for part in parts]
        logprobs = [[[value] for value in part.record.log_probs[0].tolist()] for part in parts]
        return prompt_ids, ids, logprobs, None

    def _colocate(self, ask: Ask, prompts, images, num_generations, profiler):
        llm, parts = self.inner.llm, []
        original = llm.generate

        def generate(rows, sampling_params, **options):
            params = []
            for number in range(len(rows)):
                own = sampling_params.clone()
                own.extra_args, own.logprobs = ask.keys(number, number), None
                own.ignore_eos, own.stop_token_ids = True, list(ask.plan.eos_token_ids)
                own._all_stop_token_ids = set(own.stop_token_ids)
                params.append(own)
            outputs = original(rows, sampling_params=params, **options)
            order = [(f"{ask.name}-{number}", 0) for number in range(len(rows))]
            (bulks,) = llm.collective_rpc("pop_soft_records", args=([name for name, _ in order],))
            parts.extend(ask.rollouts(bulks, order))
            return outputs

        llm.generate = generate
        try:
            prompt_ids, texts, *_ = self.inner.generate(prompts, images, num_generations, profiler)
        finally:
            del llm.generate
        if self.inner.tensor_parallel_size > 1:
            # Every rank of the group has drawn all prompts of the group. TRL takes those of this rank, and so do we.
            first = torch.distributed.get_rank(group=self.inner.tp_group) * len(prompts)
            parts = parts[first : first + len(prompts)]
        for text, part in zip(texts, parts, strict=True):
            if not same_text(text, part, ask.plan):
                raise RuntimeError("vLLM's text and its record differ, so the records belong to other requests.")
        return prompt_ids, parts

    def _serve(self, ask: Ask, prompts, images, num_generations, profiler):
        for attempt in range(self.retries + 1):
            prompt_ids, _, _, found = self._try(ask, prompts, images, num_generations, profiler)
            # An error of the main process goes to all processes instead of the records.
            wrong = next((part for part in found if isinstance(part, (ServerLost, ValueError))), None)
            if wrong is None:
                return prompt_ids, found
            if isinstance(wrong, ValueError):
                raise wrong
            if attempt == self.retries:
                raise ServerLost(
                    f"A rollout was drawn {attempt + 1} times, and its server was lost each time. Nothing was trained on it. "
                    f"Read the server's log. The last error was: {printable(str(wrong))}"
                ) from wrong
            logger.warning(
                f"The rollout's server was lost ({printable(str(wrong))}). The whole rollout is drawn again when the server is back."
            )
            self._wait()
            self.sync_weights()

    def _wait(self) -> None:
        """Wait until every server is up. A new server has its first weights, and no group to send it others."""
        problem: list = [None]
        for client in self.clients:
            try:
                wait_for(client.base_url, self.inner.server_timeout)
                client.close_communicator()
                client.check_server(self.inner.server_timeout)
                client.init_communicator(device=self.inner.accelerator.device)
            except Exception as error:
                problem = [ServerLost(f"{client.base_url} did not come back: {printable(str(error))}")]
                break
        broadcast_object_list(problem, from_process=0)
        if problem[0] is not None:
            raise problem[0]

    def _try(self, ask: Ask, prompts, images, num_generations, profiler):
        if not self.clients:
            return self.inner.generate(prompts, images, num_generations, profiler)
        client = self.inner.vllm_client
        urls = [of.base_url for of in self.clients]

        def generate(prompts, n, **ignored):
            try:
                parts: list = complete(urls, client.model, prompts, n, ask, self.timeout)
            except Exception as error:
                # An error raised here would leave the other processes waiting for their share.
                kind = ValueError if isinstance(error, ValueError) else ServerLost
                parts = [kind(printable(f"{type(error).__name__}: {error}"))] * (len(prompts) * n)
            nothing: list[list[int]] = [[]] * len(parts)
            return {"prompt_ids": prompts, "completion_ids": nothing, "logprobs": None, "logprob_token_ids": parts}

        client.generate = generate
        try:
            return self.inner.generate(prompts, images, num_generations, profiler)
        finally:
            del client.generate
