# SPDX-License-Identifier: Apache-2.0
"""The overrides that make a TRL trainer think in soft tokens, for every algorithm that generates online.

These are all differences from plain GRPO and RLOO:

1. During a rollout, `generate` is ours: thinking steps feed mixtures back and leave a record.
2. The record is a part of the batch, under `soft_*` keys. TRL shuffles, splits, buffers and replays it.
3. The model is called with the record, so that mixtures are fed again and thoughts are scored by their density.

Rewards, advantages, every loss type, the reference model and logging are TRL's, through `super()`. `runs/resume.py` saves and
continues a run. `runs/nonfinite.py` handles a NaN. `refill.py` replaces groups without an advantage.
"""

import functools
import inspect
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.utils import logging

from ..forward import add_soft_tokens
from ..record import SoftTokens
from ..rollout import ENGINES, Key, assemble
from ..rollout.cache import check_slots
from ..rollout.completion_text import answer_phase, completion_texts
from ..rollout.dropout import switch_off_dropout
from ..rollout.gather import unsharded
from ..rollout.make_plan import check_ids, check_prompts, make_plan, table_rms
from ..rollout.matcher import looked_up
from ..rollout.vllm.client import Ask
from ..rollout.vllm.trl import SoftVLLM, engine_arguments
from ..runs.replay import ReplayWatch, is_exact, shadow_of, tolerance
from ..runs.rollout_numbers import RolloutNumbers
from ..settings import ThinkingSettings
from ..thoughts import Hard
from .attention_gradients import sound_gradients
from .check_arguments import check_arguments
from .in_flight import InFlight, Phase, Replay
from .metrics import LENGTH, rollout_metrics, update_metrics
from .per_draw_ratios import gather
from .progress_table import show_progress_table
from .rollout_precision import RolloutWeights, as_vllm
from .thought_log import ThoughtLog
from .trl_trainers import GRPOTrainer


logger = logging.get_logger(__name__)


if TYPE_CHECKING:
    _Host = GRPOTrainer  # the type checker sees the class that the mixin is mixed into
else:
    _Host = object


class SoftTokensMixin(_Host):
    """The overrides, over a TRL trainer that generates online (`GRPOTrainer`, `RLOOTrainer`)."""

    _config_class: type
    _completions: int  # place of the completions in the result of TRL's `_generate`
    args: Any
    model: Any
    thinking: ThinkingSettings  # as trained, with the RMS that was measured when training started

    def __init__(self, *args, **kwargs):
        bound = inspect.signature(super().__init__).bind(*args, **kwargs)
        given = bound.arguments
        if given.get("args") is None:
            model = given["model"]
            name = model if isinstance(model, str) else model.config._name_or_path
            given["args"] = self._config_class(f"{name.split('/')[-1]}-{self._name}")
        check_arguments(type(self).__name__, self._config_class, given)
        self._flight: InFlight | None = None
        self._numbers = RolloutNumbers(given["args"].seed)
        with engine_arguments(given["args"]):
            super().__init__(*bound.args, **bound.kwargs)
        if self._is_vlm:
            raise ValueError(
                "The processing class handles images, but image placeholders and soft tokens cannot share a prompt yet. "
                "Pass a tokenizer and a text-only causal language model."
            )
        self._add_soft_tokens()
        self._progress = show_progress_table(self)
        self._thought_log = ThoughtLog(self)

    def _bare(self, model):
        """The model without accelerate's wrappers and `torch.compile`: rollouts run eagerly, as `generate` does."""
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def _add_soft_tokens(self) -> None:
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if self.args.rollout_engine == "slots" and not self.use_vllm:
            check_slots(base)
        add_soft_tokens(base, self.temperature)
        self._takes_position_ids = "position_ids" in inspect.signature(base.forward).parameters
        if self.ref_model is not None:
            add_soft_tokens(self._bare(self.ref_model))
        self._vocab_size = base.config.get_text_config().vocab_size
        check_ids("The padding", [self._tokenizer.pad_token_id], self._vocab_size, self._tokenizer)
        self._take_noise_rms(table_rms(base) if self.args.noise_rms is None else self.args.noise_rms)
        self._weights = RolloutWeights(self.args, self.model, self.accelerator)
        exact = is_exact(self.args, base, self.accelerator) and self._weights.dtype is None
        limit = self.args.replay_tolerance
        if limit is None:
            limit = tolerance(self.thinking, base.config.get_text_config().hidden_size, exact)
        self._watch = ReplayWatch(self.thinking, self.args.replay_disagreement, limit, exact, self.accelerator)
        self._check_dropout()
        if (surrogate := self._plans["train"].thought.surrogate) is not None:
            logger.warning_once(
                f"{surrogate}. Its gradient times the advantage is no policy gradient. It serves to compare with the code that it is from."
            )
        if self.use_vllm or self.args.rollout_engine == "slots":
            looked_up(self._plans["train"], self._vocab_size)  # or refuse, before anything is generated
        if self.use_vllm:
            self._serve()

    def _check_dropout(self) -> None:
        """Switch dropout off for soft thoughts, so that one policy draws and is scored. Hard thoughts are TRL's."""
        if self._plans["train"].thought.is_token:
            return
        found = switch_off_dropout(self.model)
        if found:
            told = ", ".join(f"{name} ({value:g})" for name, value in sorted(found.items()))
            logger.warning(
                f"Dropout is switched off: {told}. The policy that draws a thought and the policy that is scored must be the same: the "
                "network without dropout. Set it to 0 to avoid this message."
            )

    def _take_noise_rms(self, rms: float | None) -> None:
        """Plan rollouts with an RMS that sigma is a multiple of. `None` changes nothing."""
        if rms is None:
            return
        settings = self.args.thinking_dict()
        self.thinking = ThinkingSettings(**settings | ({"noise_rms": rms} if self.args.reads_noise_rms else {}))
        self.thinking.attach(self.accelerator.unwrap_model(self.model))
        answer = Hard(self.temperature, self.top_k, self.top_p, self.min_p)
        self._plans = {
            mode: make_plan(
                self.thinking,
                self._tokenizer,
                answer,
                vocab_size=self._vocab_size,
                max_completion_length=cast(int, self.max_completion_length),  # the config refuses None
                eos_token_ids=self.eos_token_ids,
                evaluation=mode == "eval",
                repetition_penalty=self.repetition_penalty,
            )
            for mode in ("train", "eval")
        }

    def _serve(self) -> None:
        """Let TRL's vLLM think softly."""

        def ask(rows: int) -> Ask:
            seed, generation, first = self._next_key(rows)
            # The main process asks a server for all processes. Each colocated engine is asked by its own process. An engine
            # that is split over several processes draws the prompts of all of them, on each.
            if self.args.vllm_mode != "server":
                width = self.args.vllm_tensor_parallel_size
                first += self.accelerator.process_index // width * width * rows
            plan, evaluation = self._plans[self._mode], self._mode == "eval"
            return Ask(plan, self.thinking, seed, generation, first, evaluation)

        def keep(rollout) -> None:
            self._in_flight.rollout = rollout.to(self.accelerator.device)

        urls = (self.args.vllm_server_base_urls or [])[1:]
        self.vllm_generation: Any = SoftVLLM(
            self.vllm_generation, ask, keep, urls, timeout=self.args.vllm_request_timeout
        )

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def _in_flight(self) -> InFlight:
        """The current [`InFlight`]. Rollouts, scorings and losses start one with `_flying`."""
        assert self._flight is not None
        return self._flight

    @contextmanager
    def _flying(self, phase: Phase, record: SoftTokens | None = None, batch: dict | None = None):
        """Hold an [`InFlight`] of these arguments, only for the calls inside the block."""
        outer, flight = self._flight, InFlight(phase, record, batch)
        self._flight = flight
        try:
            with flight.exits:
                yield flight
        finally:
            self._flight = outer

    def train(self, *args, **kwargs):
        # Around all of training, because a backward happens in the code of TRL, accelerate and DeepSpeed.
        with sound_gradients(self.model, self.accelerator.device), closing(self._progress):
            return super().train(*args, **kwargs)

    # Rollout

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self._check_prompts(prompt_ids)
        # TRL pads the prompts, gathers the weights and calls `generate`. Only that call is ours. With vLLM it is
        # `SoftVLLM.generate`.
        if self.use_vllm:
            output = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        else:
            model = self.accelerator.unwrap_model(self.model_wrapped)
            before = vars(model).get("generate")  # transformers sets one on a model that FSDP2 shards
            model.generate = functools.partial(self._soft_generate, model)
            try:
                output = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            finally:
                del model.generate
                if before is not None:
                    model.generate = before
        # TRL cuts a completion at its end of sequence. The cap of an answer can end one too, and then padding follows.
        drawn = self._in_flight.rollout
        ids = [row[mask].tolist() for row, mask in zip(drawn.completion_ids, drawn.completion_mask, strict=True)]
        return (ids, *output[1:]) if isinstance(output, tuple) else ids

    def _check_prompts(self, prompts: list[list[int]]) -> None:
        """Refuse prompts that the model cannot read, and warn if prompts have closed their thought."""
        check_prompts(prompts, self._vocab_size, self._tokenizer)
        plan = self._plans[self._mode]
        if not plan.thought.is_token and any(plan.closed(prompts)):
            logger.warning_once(
                f"Prompts end with {plan.stop.end.text!r}, which closes their thought (`enable_thinking: false` in "
                "`chat_template_kwargs`, for some templates). Their completions begin with the answer and hold no soft "
                "thought, so they train as in TRL. To train thoughts, let the template leave the thought open."
            )

    def _soft_generate(self, model, input_ids, attention_mask, generation_config) -> torch.Tensor:
        """Our `generate`: (B, P) left-padded prompts -> (B, P+C) ids. The record goes into the [`InFlight`]."""
        rows = input_ids.size(0)
        seed, generation, first = self._next_key(rows)
        first += self.accelerator.process_index * rows
        sample = torch.arange(first, first + rows, device=input_ids.device)
        plan = self._plans[self._mode]
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        key, options, model = Key(seed, generation, sample), self.args.engine_options(rows), self._bare(model)
        with unsharded(model), self._weights.of(model):
            with closing(ENGINES[self.args.rollout_engine](model, prompts, plan, key, options)) as parts:
                self._in_flight.rollout = drawn = assemble(parts, rows, plan)
        return torch.cat([input_ids, drawn.completion_ids], dim=1)

    def _next_key(self, rows: int) -> tuple[int, int, int]:
        """Seed and number of the next rollout, and the first sample of this process. Each process has `rows` samples."""
        if self._mode == "train":
            return self._numbers.training()
        return self._numbers.evaluation(self.state.global_step, rows * self.accelerator.num_processes)

    def _generate(self, prompts: list):
        if self._flight is None:  # a rollout on its own, whose record is not scored
            with self._flying(Phase.ROLLOUT):
                return self._generate(prompts)
        outputs = self._draw(prompts)
        if self._weights.corrects:
            # From here on TRL scores the completions, as it does after a rollout in vLLM.
            self._flight.exits.enter_context(as_vllm(self))
        return outputs

    def _draw(self, prompts: list) -> list:
        """What TRL's `_generate` returns, with its record in the [`InFlight`]. `refill.py` draws more than once."""
        flight = self._in_flight
        outputs = list(super()._generate(prompts))
        flight.score()
        self._note_rollout(flight, outputs[1])
        outputs[self._completions] = self._judged(outputs[1], outputs[self._completions])
        return outputs

    def _note_rollout(self, flight: InFlight, completion_ids: list[list[int]]) -> None:
        """Note where answers begin, for the rewards, and the metrics of the rollout."""
        drawn, plan = flight.rollout, self._plans[self._mode]
        lengths = zip(completion_ids, drawn.thinking_length.tolist(), drawn.thinking_surplus.tolist(), strict=True)
        flight.answer_phases = [answer_phase(self._tokenizer, *of_row, plan) for of_row in lengths]
        for name, value in rollout_metrics(drawn, self.accelerator, plan.gate is not None).items():
            self._metrics[self._mode][name].append(value)

    def _judged(self, completion_ids: list[list[int]], completions: list) -> list:
        """Completions for the rewards, with the text that an evaluation judges. TRL's text has no special tokens."""
        texts = completion_texts(self._tokenizer, completion_ids, self._plans[self._mode])
        return [
            text if isinstance(completion, str) else [{**completion[-1], "content": text}]
            for text, completion in zip(texts, completions, strict=True)
        ]

    def _calculate_rewards(self, inputs, *args, **kwargs):
        if self.log_completions:
            self._thought_log.add_column(self._in_flight.rollout)
        if self._plans[self._mode].begins_answers:
            # A column for the rewards, because the text of a completion does not show where the answer begins.
            phases = self._in_flight.answer_phases
            inputs = [{**row, "answer_phase": phase} for row, phase in zip(inputs, phases, strict=True)]
        return super()._calculate_rewards(inputs, *args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        with self._flying(Phase.ROLLOUT) as flight:
            flight.inputs = inputs = list(inputs)  # refill replaces rows of this list
            output = super()._generate_and_score_completions(inputs)
            if self._mode == "train":
                self._thought_log.note(flight.rollout, output)
            return {**output, **self._to_batch(flight, output)}

    def _to_batch(self, flight: InFlight, output: dict) -> dict:
        """Add the record of thoughts to TRL's batch `output`."""
        batch = flight.record.to_length(output["completion_ids"].size(1)).to_batch()
        gated = self._plans[self._mode].gate is not None
        return batch | ({LENGTH: flight.rollout.thinking_length} if gated else {})

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._numbers.begin_evaluation(metric_key_prefix)
        return super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)

    # Update

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        flight = self._flight
        if flight is None:
            self._refuse_ids_alone()
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        in_loss, draws = flight.phase is Phase.LOSS, flight.record.thought.draws
        if in_loss and draws > 1:
            input_ids, attention_mask = (gather(x, logits_to_keep, draws) for x in (input_ids, attention_mask))
            logits_to_keep //= draws
        record = flight.record.to_length(logits_to_keep)
        if not record.thought.is_token:
            model = Replay(model, record, self._takes_position_ids)
        logps, entropies, *rest = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        # A forced token is certain: log 1, whatever the model predicts.
        forced = record.forced_mask
        logps = logps.masked_fill(forced if logps.dim() == 2 else forced.unsqueeze(-1), 0.0)
        if in_loss:
            if draws > 1:
                logps, entropies = logps.flatten(1), entropies.repeat_interleave(draws, dim=1)
            flight.see(logps)
            if not record.thought.is_token:
                logps = self._bound(logps, flight)
        return logps, entropies, *rest

    def _refuse_ids_alone(self) -> None:
        """Refuse soft thoughts outside a rollout and a loss, where there is no record. Hard thoughts need none."""
        thought = self._plans[self._mode].thought
        if not thought.is_token:
            raise ValueError(
                f"Log-probabilities of {thought.name} thoughts were asked for outside a rollout or a loss, but token ids do "
                "not say which mixtures were fed. Call the model with the record of the rollout: `model(input_ids=..., "
                "attention_mask=..., labels=..., fused_lm_head=True, soft_tokens=record).log_probs`."
            )

    def _bound(self, logps: torch.Tensor, flight: InFlight) -> torch.Tensor:
        """Bound the log-ratios that the loss exponentiates: move the other policies, and cut gradients beyond the bound."""
        raise NotImplementedError

    def _compute_loss(self, model, inputs):
        record = SoftTokens.from_batch(inputs, self._plans[self._mode].thought)
        training, own = self._mode == "train", inputs["completion_mask"].bool()
        shadow = self._score_shadow(model, inputs, record) if training and self._watch.wants_contrast else None
        corrected = as_vllm(self) if "importance_sampling_ratio" in inputs else nullcontext()
        with self._flying(Phase.LOSS, record, inputs) as flight, corrected:
            loss = super()._compute_loss(model, flight.batch)
        metrics = update_metrics(flight, (self.epsilon_low, self.epsilon_high), self.accelerator)
        if training:
            self._watch.note(flight.difference, own & record.thinking_mask, shadow)
            if self.accelerator.sync_gradients:
                self._watch.judge(self.state.global_step)
        for name, value in metrics.items():
            self._metrics[self._mode][name].append(value)
        return loss

    @torch.no_grad()
    def _score_shadow(self, model, inputs: dict, record: SoftTokens) -> torch.Tensor:
        """|drawn - re-scored| (B, C) of the record, with its shadow tokens fed instead of its mixtures."""
        ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
        devices = [ids.device] if ids.is_cuda else []
        # A resumed run scores the shadow tokens again. Its later draws must be those of the uninterrupted run.
        with torch.random.fork_rng(devices), self._flying(Phase.SCORING, shadow_of(record), inputs):
            logps, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, record.shape[1])
        return ((logps if logps.dim() == 2 else logps.sum(-1)) - record.log_probs).abs()
