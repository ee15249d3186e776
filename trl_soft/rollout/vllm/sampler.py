# SPDX-License-Identifier: Apache-2.0
"""vLLM's sampler for hard requests, and the steps of the other engines for soft requests, in one batch."""

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import get_num_sampled_and_rejected
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.states import NO_LOGPROBS

from .served_table import ServedLogits


class SoftSampler:
    """
    Args:
        base: the sampler that vLLM made. It handles everything that this class does not define.
        state (`SoftModelState`).
    """

    def __init__(self, base, state):
        self.base, self.state = base, state

    def __getattr__(self, name: str):
        return getattr(self.base, name)

    def __call__(self, logits: torch.Tensor, input_batch):
        slots = input_batch.idx_mapping_np[: input_batch.num_reqs]
        members = self.state.members_of(input_batch)
        if not members.softs:
            return self.base(logits, input_batch)
        asked = self._logprobs_asked(slots)
        drawn = [(member.rows, *self._draw(logits, member, asked)) for member in members.drawn]
        if asked is None and not self.base.compute_nans and not members.hards:
            return self._output(input_batch, [(rows, tokens) for rows, tokens, _ in drawn])
        output = self.base(logits, input_batch)
        for rows, tokens, logprobs in drawn:
            output.sampled_token_ids[rows, 0] = tokens.to(output.sampled_token_ids.dtype)
            if logprobs is not None:
                self._put(output.logprobs_tensors, rows, *logprobs)
        return output

    def _draw(self, logits, member, asked: int | None):
        """The draws of rows of one kind, and their candidates if a request asks for them."""
        state = self.state
        thought = state.pool.ruled[member.number].group.thought
        hidden = state.model.soft_hidden if thought.needs_hidden else None
        nearest = state.nearest(thought.neighbours) if thought.neighbours else None
        project = state.model.soft_project
        tokens = None if state.graphs is None else state.graphs.draw(logits, member, hidden, project, nearest)
        if tokens is not None and asked is None:
            return tokens, None
        part = None if hidden is None else hidden[member.rows]
        view = ServedLogits(logits[member.rows], state.table, state.dtype, part, project, nearest)
        if tokens is None:
            tokens = state.pool.step(member.number, member.slots, member.index, view)
        if asked is None:
            return tokens, None
        return tokens, state.pool.candidates(member.number, member.index, view, tokens, asked)

    def _logprobs_asked(self, slots: np.ndarray) -> int | None:
        """How many log-probabilities the base sampler will return for some slots. `None` if no request asks for any."""
        most = self.base.sampling_states.max_num_logprobs(slots)
        if most != NO_LOGPROBS:
            return most
        return 0 if self.base.logprob_token_ids_state.max_num_token_ids(slots) > 0 else None

    def _output(self, batch, drawn):
        """The output of the base sampler for a batch without hard requests: rows and their tokens, of each member."""
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            batch.seq_lens.new_ones(batch.num_reqs),
            batch.seq_lens,
            batch.cu_num_logits,
            batch.idx_mapping,
            self.base.req_states.prefill_len.gpu,
        )
        if len(drawn) == 1 and isinstance(drawn[0][0], slice):
            tokens = drawn[0][1]
        else:
            tokens = torch.zeros(batch.num_reqs, dtype=torch.int64, device=batch.seq_lens.device)
            for rows, values in drawn:
                tokens[rows] = values
        return SamplerOutput(
            sampled_token_ids=tokens.unsqueeze(-1),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )

    @staticmethod
    def _put(tensors: LogprobsTensors, rows, ids: torch.Tensor, log_p: torch.Tensor) -> None:
        """Overwrite the base sampler's values for some rows, with the same number of columns. The token comes first."""
        width = ids.size(-1)
        tensors.logprob_token_ids[rows, :width] = ids.to(tensors.logprob_token_ids.dtype)
        tensors.logprobs[rows, :width] = log_p.to(tensors.logprobs.dtype)
        tensors.selected_token_ranks[rows] = 1 + (log_p[:, 1:] > log_p[:, :1]).sum(-1)
