# SPDX-License-Identifier: Apache-2.0
"""The engine `simple`: one padded batch after the other, in one loop with a cache. The tests compare `slots` with it.

Each row thinks until its stop rule applies. Then it is fed its forced tokens, if there are any, and answers in hard tokens until
an end of sequence. Mixtures enter through the same patched embedding as in the update. The engine runs every model with a
cache, also hybrids with recurrent layers.
"""

import inspect
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from transformers import RepetitionPenaltyLogitsProcessor
from transformers.utils import logging

from ..record import SoftTokens
from ..vocabulary.embedding_table import mixing_table
from ..vocabulary.head_logits import DenseLogits, logit_transform, transformed
from .dropout import evaluating
from .interface import EngineOptions, Key, Parts, Plan, Rollout, forced_row, left_padded, packed, positions


logger = logging.get_logger(__name__)


def simple(model, prompts: Sequence[Sequence[int]], plan: Plan, key: Key, options: EngineOptions) -> Parts:
    """The engine `simple`. See `trl_soft.rollout.interface`. It reads the options `slots` (rows of a batch) and `lengths`."""
    logger.warning_once("`rollout_engine` is simple: padded batches, which wait for their longest completion.")
    device, limits = model.device, options.limits(len(prompts), plan)
    for start in range(0, len(prompts), options.slots):
        numbers = list(range(start, min(start + options.slots, len(prompts))))
        ids, mask = left_padded([prompts[i] for i in numbers], plan.pad_token_id, device)
        limit = torch.tensor([limits[i] for i in numbers], device=device)
        with evaluating(model):
            batch = _batch(model, ids, mask, plan, key, torch.tensor(numbers, device=device), limit)
        yield numbers, batch


@torch.no_grad()
def _batch(model, input_ids, attention_mask, plan: Plan, key: Key, numbers, limit) -> Rollout:
    """Complete B left-padded prompts (B, P), each to at most its `limit` (B,)."""
    steps = _Steps(model, input_ids, attention_mask, plan.thought.needs_hidden)
    batch, length, device = input_ids.size(0), plan.max_completion_length, input_ids.device
    table = mixing_table(model.get_input_embeddings(), plan.thought.mixes_vocabulary)
    eos = torch.tensor(plan.eos_token_ids, device=device)
    script, script_length = plan.script(device)
    # Padding must not count as a repetition, so a copy of the first token replaces it.
    own_ids = torch.where(attention_mask.bool(), input_ids, input_ids.gather(1, attention_mask.argmax(1, True)))
    penalise = RepetitionPenaltyLogitsProcessor(plan.repetition_penalty) if plan.repetition_penalty != 1.0 else None

    ids = torch.full((batch, length), plan.pad_token_id, device=device)
    thinking_mask, forced_mask, completion_mask = (
        torch.zeros(batch, length, dtype=torch.bool, device=device) for _ in "123"
    )
    log_probs, entropies = (torch.zeros(batch, length, device=device) for _ in "12")
    actions: dict[str, torch.Tensor] = {}

    prompts = [row[own.bool()].tolist() for row, own in zip(input_ids, attention_mask, strict=True)]
    thinking = ~torch.tensor(plan.closed(prompts), device=device)
    done, full, cut = (torch.zeros_like(thinking) for _ in "123")
    cursor = script_length.new_zeros(batch)  # forced tokens fed to each row so far
    script_row, surplus = cursor.clone(), cursor.clone()
    answered = cursor.clone()
    calm = cursor.clone()  # cold steps in a row
    thinking_length = cursor.clone()
    step_record = None

    for t in range(length):
        z = steps(ids[:, t - 1 : t] if t else None, step_record)
        logits = DenseLogits(z, *table, hidden=steps.hidden, project=steps.project)
        step = torch.full((batch,), plan.pad_token_id, device=device)
        live = ~done & ~full
        thinks = thinking & live
        scripted = ~thinking & live & (cursor < script_length[script_row])
        answers = ~thinking & live & ~scripted
        completion_mask[:, t] = live

        if t == 0 and not thinks.any():
            # A record has the tensors of an action even if no completion thinks. This draw only makes the tensors.
            action, _ = plan.thought.sample(logits[:1], key.noise(numbers[:1], cursor[:1]))
            _remember(actions, {name: value[:0] for name, value in action.items()}, cursor[:0], t, (batch, length))
        if thinks.any():
            rows = thinks.nonzero().squeeze(-1)
            view, noise = logits[rows], key.noise(numbers[rows], torch.full_like(rows, t))
            drawn_from = view
            if plan.thought.is_token and penalise is not None:
                drawn_from = _penalised(penalise, view, own_ids[rows], ids[rows, :t])
            action, token = plan.thought.sample(drawn_from, noise)
            step[rows] = token
            ids[rows, t] = token
            ends_all = torch.isin(token, eos)
            ended = plan.stop.end(ids[rows, : t + 1]) & ~ends_all
            closed = ended | ends_all
            if plan.thought.closes_one_hot:
                action = plan.thought.close(action, closed, token)
            log_probs[rows, t], entropies[rows, t] = plan.thought.score(view, action)
            is_thought = torch.ones_like(closed)
            if plan.thought.closes_one_hot and not plan.thought.scores_closing:
                # The closing step is then a token, in the record and in the update.
                is_thought = ~closed
                as_token = plan.answer.score(view, {"ids": token})
                log_probs[rows, t] = torch.where(is_thought, log_probs[rows, t], as_token[0])
                entropies[rows, t] = torch.where(is_thought, entropies[rows, t], as_token[1])
            thinking_mask[rows, t] = is_thought
            thinking_length[rows] += 1
            _remember(actions, action, rows, t, (batch, length))

            too_long, calm[rows] = plan.stop.cut(thinking_length[rows], view, calm[rows])
            too_long &= ~closed
            cut[rows] = too_long
            script_row[rows] = too_long.long()
            for row in rows[ended].tolist():
                rest = plan.stop.end.rests([ids[row, : t + 1].tolist()])[0] or ""
                surplus[row], script_row[row] = len(rest), forced_row(rest, plan.prefill)
            thinking[rows] = ~(ended | too_long)
            done[rows] = ends_all

        if scripted.any():
            rows = scripted.nonzero().squeeze(-1)
            step[rows] = script[script_row[rows], cursor[rows]]
            forced_mask[rows, t] = True
            cursor[rows] += 1

        if answers.any():
            rows = answers.nonzero().squeeze(-1)
            view = logits[rows]
            if penalise is not None:
                view = _penalised(penalise, view, own_ids[rows], ids[rows, :t])
            action, step[rows] = plan.answer.sample(view, key.noise(numbers[rows], torch.full_like(rows, t)))
            log_probs[rows, t], entropies[rows, t] = plan.answer.score(logits[rows], action)
            done[rows] = torch.isin(step[rows], eos)
            answered[rows] += 1
            if plan.max_answer_length is not None:
                full |= answered >= plan.max_answer_length

        ids[:, t] = step
        full |= t + 1 >= limit
        if (done | full).all():
            break
        step_record = None
        if not plan.thought.is_token and actions:
            now = slice(t, t + 1)
            step_record = SoftTokens(
                plan.thought, thinking_mask[:, now], {k: v[:, now] for k, v in actions.items()}, log_probs[:, now]
            )

    used = int(completion_mask.sum(-1).max())
    record = SoftTokens(plan.thought, thinking_mask, actions, log_probs, forced_mask).to_length(used)
    return Rollout(
        ids[:, :used], completion_mask[:, :used], record, entropies[:, :used], thinking_length, surplus,
        cut | thinking & ~done,
    )  # fmt: skip


class _Steps:
    """The model. Each call feeds one more token and returns (B, V) float32 next-token logits."""

    def __init__(self, model, input_ids, attention_mask, needs_hidden: bool = False):
        self.model, self.input_ids, self.attention_mask = model, input_ids, attention_mask
        self.cache = self.hidden = None
        self.needs_hidden = needs_hidden
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.accepts = inspect.signature(base.forward).parameters

    def __call__(self, token: torch.Tensor | None, record: SoftTokens | None) -> torch.Tensor:
        if token is None:
            token = self.input_ids
        else:
            self.attention_mask = torch.cat([self.attention_mask, self.attention_mask.new_ones(len(token), 1)], dim=1)
        inputs = {"input_ids": token, "attention_mask": self.attention_mask, "use_cache": True}
        if "position_ids" in self.accepts:
            inputs["position_ids"] = positions(self.attention_mask)[:, -token.size(1) :]
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = 1
        if record is not None:
            inputs["soft_tokens"] = record
        with self._watching_the_head():
            output = self.model(**inputs, past_key_values=self.cache)
        self.cache = getattr(output, "past_key_values", None)
        if self.cache is None:
            raise ValueError(
                f"{type(self.model).__name__} returned no key-value cache, and a rollout needs one. Use "
                "a causal language model with a key-value cache."
            )
        return output.logits[:, -1].float()

    @contextmanager
    def _watching_the_head(self):
        """Keep the input of the LM head, for thoughts that need it."""
        if not self.needs_hidden:
            yield
            return

        def keep(module, args):
            self.hidden = args[0][:, -1]  # (B, H)

        hook = self.model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of other hidden states (N, H), through the model's own head."""
        config = self.model.config
        return transformed(self.model.get_output_embeddings()(hidden).float(), *logit_transform(config))


def _penalised(penalise, view: DenseLogits, prompt: torch.Tensor, shadow: torch.Tensor) -> DenseLogits:
    """Logits with the repetition penalty over prompt and shadow, as in `generate`. For sampling, not for scoring."""
    return DenseLogits(penalise(torch.cat([prompt, shadow], dim=1), view.dense().clone()))


def _remember(actions: dict, action: dict, rows: torch.Tensor, t: int, shape: tuple[int, int]) -> None:
    """Write the action of some rows at position t. The first call makes the (B, C, ...) tensors."""
    for name, value in packed(action).items():
        if name not in actions:
            actions[name] = value.new_zeros(*shape, *value.shape[1:])
        actions[name][rows, t] = value
