# SPDX-License-Identifier: Apache-2.0
"""The plugin's state for Model Runner V2: the input of a step, and the record of a request that leaves its slot.

There is one rule: a position that the record knows as a thought is fed as that thought. It holds for the latest position, for a
part of a chunk, and for a position that is read again after a preemption. Nothing here waits for the device.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import torch
from transformers.utils import logging
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from ...vocabulary.neighbours import kept_nearest_tokens
from .engine_support import options, why_not_captured, why_off
from .graphs import Graphs, cuda_recorder
from .layout import layout_of
from .members import Member, Members
from .pool import Parked, Pool
from .record_store import Kept
from .request import SPEC, plan_of
from .sampler import SoftSampler
from .served_table import Table


logger = logging.get_logger(__name__)


class SoftModelState(DefaultModelState):
    """
    vLLM's state of a decoder, with the thoughts of its soft requests.

    Attributes:
        off (`str` or `None`): why this engine cannot think softly. It then behaves as plain vLLM.
        pool (`Pool`): the records of the requests in flight.
        kept: records of finished requests, by the name and the number of the completion.
    """

    def __init__(self, vllm_config, model, encoder_cache, device):
        super().__init__(vllm_config, model, encoder_cache, device)
        self.off = why_off(vllm_config)
        if self.off is not None:
            return
        sizes = options(vllm_config)
        self.vocab_size = self.model_config.get_vocab_size()
        # One buffer for all steps, because a captured graph reads the memory that it was captured with.
        # The last row is no token's (`Graphs`).
        self.fed = torch.zeros(self.max_num_tokens + 1, self.inputs_embeds_size, dtype=self.dtype, device=device)
        self.every = torch.arange(self.max_num_tokens, device=device)
        self.pool = Pool(
            self.max_num_reqs, sizes["record_length"], sizes["record_bytes"], self.vocab_size, torch.device(device)
        )
        self.members = Members(self.pool)
        self.table = _table(model)
        self.graphs = self._graphs(vllm_config)
        self._rms: float | None = None
        self._nearest: dict[int, torch.Tensor] = {}
        self._loads = -1
        self.slot_of: dict[str, int] = {}
        self.spec_of: dict[str, dict] = {}
        self.prompt_length = np.zeros(self.max_num_reqs, dtype=np.int64)
        # Requests that were preempted or have finished. vLLM does not say which.
        self.parked: OrderedDict[str, Parked] = OrderedDict()
        self.kept = Kept(int(sizes["record_gb"] * 1e9))
        self._begun: list[tuple] = []

    def _graphs(self, vllm_config) -> Graphs | None:
        """The graphs of the plugin's part of a step. `None` where they cannot run."""
        if self.device.type != "cuda":
            return None
        why = why_not_captured(vllm_config)
        if why is not None:
            logger.warning(
                "Soft requests: %s, so the plugin launches its kernels one by one. This takes the host about 1 ms more a step.",
                why,
            )
            return None
        sizes = vllm_config.compilation_config.cudagraph_capture_sizes
        return Graphs(self.pool, self.table, sizes, self.dtype, self.model.embed_input_ids, self.fed, cuda_recorder())

    def custom_sampler(self, sampler):
        if self.off is not None:
            return super().custom_sampler(sampler)
        return SoftSampler(sampler, self), None

    # Requests

    def add_request(self, req_index: int, new_req_data) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        spec = (params.extra_args or {}).get(SPEC) if params is not None else None
        if self.off is not None:
            if spec is not None:
                raise RuntimeError(f"This engine cannot think softly: {self.off}.")
            return
        self.pool.clear(req_index)
        if spec is None:
            return
        request, tokens = new_req_data.req_id, new_req_data.prefill_token_ids
        prompt_length = len(new_req_data.prompt_token_ids)
        self.slot_of[request], self.spec_of[request] = req_index, {**spec, "child": params.seed}
        self.prompt_length[req_index] = prompt_length
        parked = self.parked.pop(request, None)
        drawn = len(tokens) - prompt_length
        if parked is not None:
            self.kept.pop(self._name(request))
            self.pool.restore(req_index, self._number(spec["rules"]), parked, drawn)
            self.pool.see(req_index, tokens)
            return
        if drawn > 0:
            raise RuntimeError(
                f"Request {request} comes back with {drawn} tokens, but its record is gone. Its thoughts cannot be read again."
            )
        number = self._number(spec["rules"])
        # A request that is added and restored in one step finds its slot ready. The others begin together, below.
        self.pool.number[req_index], self.pool.drawn[req_index] = number, 0
        seed, generation, sample = spec["key"]
        limit = min(spec["limit"], self.pool.length)
        key = seed, generation, sample + params.seed
        self._begun.append((req_index, number, key, prompt_length, limit, spec["closed"], tokens))

    def apply_staged_writes(self) -> None:
        super().apply_staged_writes()
        if self.off is not None or not self._begun:
            return
        slots, numbers, keys, lengths, limits, closed, texts = zip(*self._begun, strict=True)
        self.pool.admit(slots, numbers, keys, lengths, limits, closed)
        for slot, text in zip(slots, texts, strict=True):
            self.pool.see(slot, text)
        self._begun = []

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        if self.off is not None or req_id not in self.slot_of:
            return
        slot = self.slot_of.pop(req_id)
        parked = self.pool.park(slot, "cpu")
        self.pool.clear(slot)
        self.parked[req_id] = parked
        if self.spec_of[req_id]["keep"]:
            self.kept.put(self._name(req_id), parked)
        # First come, first served: a preempted request is the next to be admitted. So at most as many requests as there are
        # slots end before it returns, and at most as many wait with it.
        while len(self.parked) > 2 * self.max_num_reqs:
            gone, _ = self.parked.popitem(last=False)
            del self.spec_of[gone]

    def _name(self, request: str) -> tuple[str, int]:
        spec = self.spec_of[request]
        return spec["name"], spec["child"]

    def take(self, names: Iterable[str]) -> list[tuple[str, int, Parked]]:
        """
        Remove and return the records of some requests. A finished request may still be in its slot, where vLLM leaves it until
        the next step. Running requests stay.
        """
        wanted = set(names)
        found = self.kept.take(wanted)
        for request, slot in self.slot_of.items():
            spec = self.spec_of[request]
            if spec["keep"] and spec["name"] in wanted and not self.pool.columns.active[slot]:
                found[self._name(request)] = self.pool.park(slot, "cpu")
                spec["keep"] = False
        if self.device.type != "cpu":
            torch.accelerator.synchronize()  # the copies above run in the stream
        order = {name: i for i, name in enumerate(names)}
        return [(*key, found[key]) for key in sorted(found, key=lambda key: (order[key[0]], key[1]))]

    def _number(self, rules: str) -> int:
        number = self.pool.known(rules)
        if number is None:
            plan = plan_of(
                rules, vocab_size=self.vocab_size, max_length=self.pool.length, rms=self.rms, tokenizer=self.tokenizer
            )
            layout = layout_of(plan.thought, self.vocab_size, self.inputs_embeds_size, self.dtype)
            number = self.pool.add(rules, plan, layout)
        return number

    @functools.cache  # noqa: B019 (there is one state in a process)
    def tokenizer(self):
        """The tokenizer. It is read when the first text that ends thoughts needs it."""
        from transformers import AutoTokenizer

        config = self.model_config
        return AutoTokenizer.from_pretrained(
            config.tokenizer, revision=config.tokenizer_revision, trust_remote_code=config.trust_remote_code
        )

    def rms(self) -> float:
        """RMS of the embedding table, at the time when the first thought needed it."""
        if self._rms is None:
            self._rms = self.table.rms()
        return self._rms

    def nearest(self, count: int) -> torch.Tensor:
        """The neighbours of tokens (V, count) under the present weights, made when a thought needs them."""
        if self._loads != self.model.soft_loads:
            self._nearest, self._loads = {}, self.model.soft_loads
        if count not in self._nearest:
            self._nearest[count] = kept_nearest_tokens(self.table.whole(), count)
        return self._nearest[count]

    # Steps

    def prepare_inputs(self, input_batch, req_states) -> dict:
        inputs = super().prepare_inputs(input_batch, req_states)
        if self.off is not None:
            return inputs
        count, graphs = input_batch.num_tokens, self.graphs
        if graphs is None or not graphs.embed(input_batch.input_ids):
            self.fed[:count].copy_(self.model.embed_input_ids(input_batch.input_ids[:count]))
        decodes = count == input_batch.num_reqs  # row i belongs to request i
        for member in self.members_of(input_batch).fed:
            if graphs is None or not decodes or not graphs.feed(member, input_batch.positions):
                self._feed(input_batch, member, decodes)
        inputs["inputs_embeds"] = self.fed[: input_batch.num_tokens_after_padding]
        return inputs

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict:
        inputs = super().prepare_dummy_inputs(num_reqs, num_tokens)
        if self.off is None:
            inputs["inputs_embeds"] = self.fed[:num_tokens]
        return inputs

    def members_of(self, batch) -> Members:
        """The members of a batch. Requests in the middle of their prompt have logits but draw nothing."""
        count = batch.num_reqs
        reached = batch.num_computed_tokens_np[:count] + batch.num_scheduled_tokens[:count]
        return self.members.of(batch.idx_mapping_np[:count], reached >= batch.prefill_len_np[:count])

    def _feed(self, batch, member: Member, decodes: bool) -> None:
        """
        Write the thoughts of a member's rows over the embeddings of their tokens. The places are those where thoughts may be. Which of
        them are thoughts, the record decides on the device.
        """
        if decodes:
            rows = self.every[member.rows] if isinstance(member.rows, slice) else member.rows
            index = member.index
        else:
            places, owners = self._after_prompts(batch, member)
            if not len(places):
                return
            rows, index = self.pool.on_device(places), self.pool.on_device(owners)
        self.pool.feed(member.number, index, rows, batch.positions, self.table, self.fed)

    def _after_prompts(self, batch, member: Member) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a batch's tokens that follow the prompts of some requests, and their slots."""
        at = member.places
        first = np.maximum(self.prompt_length[member.slots] - batch.num_computed_tokens_np[at], 0)
        counts = np.maximum(batch.num_scheduled_tokens[at] - first, 0)
        starts = batch.query_start_loc_np[at] + first
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return np.repeat(starts, counts) + within, np.repeat(member.slots, counts)


def _table(model) -> Table:
    """The embedding table of a supported architecture."""
    backbone = model.model
    embedding = getattr(backbone.embed_tokens, "base_layer", backbone.embed_tokens)  # under an adapter
    method = type(getattr(embedding, "quant_method", None)).__name__
    if method != "UnquantizedEmbeddingMethod":
        raise RuntimeError(
            f"The embedding table of {type(model).__name__} is stored by {method}, but mixtures are made of plain rows. Serve "
            "the model with an unquantised embedding table, or without trl_soft (`VLLM_PLUGINS`)."
        )
    shard, add = embedding.shard_indices, None
    if embedding.tp_size > 1:
        from vllm.distributed import tensor_model_parallel_all_reduce as add  # type: ignore[no-redef]
    scale = float(getattr(backbone, "normalizer", 1.0))
    return Table(lambda: embedding.weight, shard.org_vocab_start_index, shard.org_vocab_end_index, scale, add)
