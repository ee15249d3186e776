# SPDX-License-Identifier: Apache-2.0
"""`SoftGRPOTrainer` and `SoftRLOOTrainer`: TRL's trainers with thoughts made of soft tokens.

What differs from plain GRPO and RLOO, and all of it:

1. `generate` is ours for the length of a rollout: thinking steps feed back mixtures and leave a record.
2. The record rides in the batch under `soft_*` keys; TRL shuffles, splits, buffers and replays it.
3. The model is called with the record, so that mixtures are fed again and thoughts are scored by their density.

Rewards, advantages, every loss type, the reference model and logging are TRL's, through `super()`. What a run saves and
how it goes on is in `runs/resume.py`, what it does about a NaN in `runs/nonfinite.py`.
"""

import functools
import inspect
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset, IterableDataset
from transformers import ProcessorMixin
from transformers.utils import logging
from trl import GRPOTrainer, RLOOTrainer

from ..forward import add_soft_tokens
from ..record import SoftTokens
from ..rollout import ENGINES, Key, assemble
from ..rollout.cache import check_slots
from ..rollout.completion_text import answer_phase, completion_texts
from ..rollout.dropout import switch_off_dropout
from ..rollout.gather import unsharded
from ..rollout.interface import positions
from ..rollout.make_plan import check_ids, check_prompts, make_plan, table_rms
from ..rollout.matcher import EndMatcher
from ..rollout.vllm.client import Ask
from ..rollout.vllm.trl import SoftVLLM, engine_arguments
from ..runs.nonfinite import NonfiniteMixin
from ..runs.replay import ReplayWatch, is_exact, shadow_of, tolerance
from ..runs.resume import ResumableMixin
from ..runs.rollout_numbers import RolloutNumbers
from ..settings import ThinkingSettings
from ..thoughts import Hard
from .attention_gradients import sound_gradients
from .config import SoftGRPOConfig, SoftRLOOConfig
from .metrics import logp_difference, own_lengths, rollout_metrics, share, update_metrics
from .per_draw_ratios import gather, spread
from .ratio_bound import LOG_RATIO_BOUND, bounded, bounded_mean, cut
from .rollout_precision import RolloutWeights, as_vllm


logger = logging.get_logger(__name__)

# Losses whose weight is detached: a thought whose ratio is held keeps its gradient there.
_DETACHED_WEIGHTS = ("cispo", "vespo")


if TYPE_CHECKING:
    _Host = GRPOTrainer  # what the mixin is mixed into, for the type checker
else:
    _Host = object


class SoftTokensMixin(_Host):
    """The overrides, over a TRL trainer that generates online (`GRPOTrainer`, `RLOOTrainer`)."""

    _config_class: type
    _completions: int  # where the completions are in what TRL's `_generate` returns
    args: Any
    model: Any
    thinking: ThinkingSettings  # as trained: what was measured when training started is filled in

    def __init__(self, *args, **kwargs):
        bound = inspect.signature(super().__init__).bind(*args, **kwargs)
        given = bound.arguments
        if given.get("args") is None:
            model = given["model"]
            name = model if isinstance(model, str) else model.config._name_or_path
            given["args"] = self._config_class(f"{name.split('/')[-1]}-{self._name}")
        self._refuse(given)
        self._record: Any = None  # the SoftTokens in flight, inside `_replaying` alone
        self._rollout: Any = None  # the Rollout between `generate` and the return of `_generate`
        self._loss_inputs: Any = None  # the batch as the loss sees it
        self._scoring: Any = None  # an ExitStack, inside `_generate_and_score_completions` alone
        self._answer_phases: list[str | None] = []  # of the completions that are rewarded next
        self._old_logps: Any = None
        self._numbers = RolloutNumbers(given["args"].seed)
        with engine_arguments(given["args"]):
            super().__init__(*bound.args, **bound.kwargs)
        if self._is_vlm:
            raise ValueError(
                "The processing class handles images, but image placeholders and soft tokens cannot share a prompt yet. "
                "Pass a tokenizer and a text-only causal language model."
            )
        self._add_soft_tokens()

    def _refuse(self, given: dict) -> None:
        """What was passed that cannot be soft, before any model is loaded."""
        args = given["args"]
        if not isinstance(args, self._config_class):
            raise TypeError(
                f"`args` is a {type(args).__name__}, which holds no thinking settings, and {type(self).__name__} does "
                f"not guess them. Pass a {self._config_class.__name__}; it takes the same fields and more."
            )
        for name in ("tools", "rollout_func", "environment_factory"):
            if given.get(name):
                raise ValueError(
                    f"`{name}` was passed, but turns that others write would shift the record of thoughts against the "
                    f"completion. Leave `{name}` out, or use TRL's own trainer with hard tokens."
                )
        if isinstance(given.get("processing_class"), ProcessorMixin):
            raise ValueError(
                "`processing_class` is a processor for images, but image placeholders and soft tokens cannot share a "
                "prompt yet. Pass a tokenizer and a text-only causal language model."
            )
        peft_config = given.get("peft_config") or getattr(given["model"], "active_peft_config", None)
        if getattr(peft_config, "is_prompt_learning", False):
            raise ValueError(
                f"`peft_config` is a {type(peft_config).__name__}, which puts virtual tokens before the prompt and so "
                "shifts the record of thoughts. Use LoRA or full fine-tuning."
            )
        for name in ("train_dataset", "eval_dataset"):
            datasets = given.get(name)
            for dataset in datasets.values() if isinstance(datasets, dict) else [datasets]:
                _check_dataset(name, dataset)

    def _bare(self, model):
        """Without what accelerate wraps around it, `torch.compile` among it: rollouts run eagerly, as `generate` does."""
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
        if self.use_vllm:
            self._serve()

    def _check_dropout(self) -> None:
        """Soft thoughts have one policy, the network without dropout. Hard ones are scored as TRL scores them."""
        if self._plans["train"].thought.is_token:
            return
        found = switch_off_dropout(self.model)
        if found:
            told = ", ".join(f"{name} ({value:g})" for name, value in sorted(found.items()))
            logger.warning(
                f"Dropout is switched off: {told}. A thought is drawn and scored by one policy, the network without it. "
                "Set it to 0 to be rid of this message."
            )

    def _take_noise_rms(self, rms: float | None) -> None:
        """Plan rollouts with an RMS that sigma is a share of; `None` changes nothing."""
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
        end = self._plans["train"].stop.end
        if not end.is_token:
            EndMatcher(end, self._vocab_size)  # or refuse, before anything is generated

        def ask(rows: int) -> Ask:
            seed, generation, first = self._next_key(rows)
            # A server is asked by the main process for all of them, and each colocated engine by its own.
            # One that is cut over several processes draws all of their prompts, on each of them.
            if self.args.vllm_mode != "server":
                width = self.args.vllm_tensor_parallel_size
                first += self.accelerator.process_index // width * width * rows
            plan, evaluation = self._plans[self._mode], self._mode == "eval"
            return Ask(plan, self.thinking, seed, generation, first, evaluation)

        def keep(rollout) -> None:
            self._rollout = rollout.to(self.accelerator.device)

        urls = (self.args.vllm_server_base_urls or [])[1:]
        self.vllm_generation: Any = SoftVLLM(
            self.vllm_generation, ask, keep, urls, timeout=self.args.vllm_request_timeout
        )

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @contextmanager
    def _replaying(self, record: SoftTokens | None, loss_inputs: dict | None = None):
        """The record (and the loss's inputs) for the calls inside, which TRL's signatures do not carry."""
        self._record, self._loss_inputs = record, loss_inputs
        try:
            yield
        finally:
            self._record = self._loss_inputs = None

    def train(self, *args, **kwargs):
        # The whole of it: a backward happens in TRL's, accelerate's and DeepSpeed's own code.
        with sound_gradients(self.model, self.accelerator.device):
            return super().train(*args, **kwargs)

    # Rollout

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self._check_prompts(prompt_ids)
        # TRL pads the prompts, gathers or summons the weights and calls `generate`. Only the call in the middle is ours;
        # with vLLM it is `SoftVLLM.generate`.
        if self.use_vllm:
            output = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        else:
            model = self.accelerator.unwrap_model(self.model_wrapped)
            before = vars(model).get("generate")  # transformers leaves one on a model that FSDP2 shards
            model.generate = functools.partial(self._soft_generate, model)
            try:
                output = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            finally:
                del model.generate
                if before is not None:
                    model.generate = before
        # TRL cuts a completion at its end of sequence, and a cap of the answer can end one too: what follows it is padding.
        drawn = self._rollout
        ids = [row[mask].tolist() for row, mask in zip(drawn.completion_ids, drawn.completion_mask, strict=True)]
        return (ids, *output[1:]) if isinstance(output, tuple) else ids

    def _check_prompts(self, prompts: list[list[int]]) -> None:
        """Refuse prompts that the model cannot read, and say where a prompt leaves no room for thoughts."""
        check_prompts(prompts, self._vocab_size, self._tokenizer)
        plan = self._plans[self._mode]
        if not plan.thought.is_token and any(plan.closed(prompts)):
            logger.warning_once(
                f"Prompts end with {plan.stop.end.text!r}, which closes their thought (`enable_thinking: false` in "
                "`chat_template_kwargs`, for some templates). Their completions begin with the answer and hold no soft "
                "thought, so they train as in TRL. Let the template leave the thought open if they are to think."
            )

    def _soft_generate(self, model, input_ids, attention_mask, generation_config) -> torch.Tensor:
        """In place of `generate`: (B, P) left-padded prompts -> (B, P+C) ids, the record kept aside."""
        rows = input_ids.size(0)
        seed, generation, first = self._next_key(rows)
        first += self.accelerator.process_index * rows
        sample = torch.arange(first, first + rows, device=input_ids.device)
        plan = self._plans[self._mode]
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        key, options, model = Key(seed, generation, sample), self.args.engine_options(rows), self._bare(model)
        with unsharded(model), self._weights.of(model):
            with closing(ENGINES[self.args.rollout_engine](model, prompts, plan, key, options)) as parts:
                self._rollout = assemble(parts, rows, plan)
        return torch.cat([input_ids, self._rollout.completion_ids], dim=1)

    def _next_key(self, rows: int) -> tuple[int, int, int]:
        """Seed and number of a rollout that begins, and its first sample over all processes, each of which has `rows`."""
        if self._mode == "train":
            return self._numbers.training()
        return self._numbers.evaluation(self.state.global_step, rows * self.accelerator.num_processes)

    def _generate(self, prompts: list):
        self._rollout = None
        outputs = list(super()._generate(prompts))
        outputs[self._completions] = self._judged(outputs[1], outputs[self._completions])
        drawn, self._rollout = self._rollout, None
        self._record = drawn.record
        lengths = zip(outputs[1], drawn.thinking_length.tolist(), drawn.thinking_surplus.tolist(), strict=True)
        plan = self._plans[self._mode]
        self._answer_phases = [answer_phase(self._tokenizer, *of_row, plan) for of_row in lengths]
        for name, value in rollout_metrics(drawn, self.accelerator).items():
            self._metrics[self._mode][name].append(value)
        if self._weights.corrects and self._scoring is not None:
            # From here on TRL scores what was drawn, as it scores what vLLM has drawn.
            self._scoring.enter_context(as_vllm(self))
        return outputs

    def _judged(self, completion_ids: list[list[int]], completions: list) -> list:
        """Completions for the rewards, with the text that an evaluation judges: TRL's has no special tokens."""
        texts = completion_texts(self._tokenizer, completion_ids, self._plans[self._mode])
        return [
            text if isinstance(completion, str) else [{**completion[-1], "content": text}]
            for text, completion in zip(texts, completions, strict=True)
        ]

    def _calculate_rewards(self, inputs, *args, **kwargs):
        if self._plans[self._mode].begins_answers:
            # A column for the rewards: where the answer begins cannot be told from the text of a completion.
            inputs = [{**row, "answer_phase": phase} for row, phase in zip(inputs, self._answer_phases, strict=True)]
        return super()._calculate_rewards(inputs, *args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        with self._replaying(None), ExitStack() as self._scoring:
            self._scoring.callback(setattr, self, "_scoring", None)
            output = super()._generate_and_score_completions(inputs)
            record = self._record.to_length(output["completion_ids"].size(1))
        return {**output, **record.to_batch()}

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._numbers.begin_evaluation(metric_key_prefix)
        return super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)

    # Update

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        record = self._record
        if record is None:
            thought = self._plans[self._mode].thought
            if not thought.is_token:
                raise ValueError(
                    f"Log-probabilities of {thought.name} thoughts were asked for outside a rollout or a loss, and token ids do "
                    "not say what was fed. Call the model with the record of the rollout: `model(input_ids=..., "
                    "attention_mask=..., labels=..., fused_lm_head=True, soft_tokens=record).log_probs`."
                )
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        draws = record.thought.draws
        if draws > 1 and self._loss_inputs is not None:
            input_ids, attention_mask = (gather(x, logits_to_keep, draws) for x in (input_ids, attention_mask))
            logits_to_keep //= draws
        record = record.to_length(logits_to_keep)
        if not record.thought.is_token:
            model = _Replay(model, record, self._takes_position_ids)
        logps, entropies, *rest = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        # A forced token is certain: log 1, whatever the model would have said.
        forced = record.forced_mask
        logps = logps.masked_fill(forced if logps.dim() == 2 else forced.unsqueeze(-1), 0.0)
        if self._loss_inputs is not None:
            if draws > 1:
                logps, entropies = logps.flatten(1), entropies.repeat_interleave(draws, dim=1)
            if isinstance(model, _Replay):
                self._loss_inputs["score_variance"] = model.score_variance()
            self._loss_inputs["seen_per_token_logps"] = logps.detach()
            self._loss_inputs["bounded_per_token"] = torch.zeros_like(logps, dtype=torch.bool)
            if not record.thought.is_token:
                logps = self._bound(logps, self._loss_inputs)
        return logps, entropies, *rest

    def _bound(self, logps: torch.Tensor, inputs: dict) -> torch.Tensor:
        """Bound what the loss exponentiates: the policies that it compares with are moved, gradients cut beyond."""
        raise NotImplementedError

    def _compute_loss(self, model, inputs):
        inputs = dict(inputs)
        record = SoftTokens.from_batch(inputs, self._plans[self._mode].thought)
        if record.shape != inputs["completion_ids"].shape:
            raise ValueError(
                f"The record of thoughts is {tuple(record.shape)} and the completions are "
                f"{tuple(inputs['completion_ids'].shape)}: something reshaped the batch without its soft_* keys."
            )
        training, own = self._mode == "train", inputs["completion_mask"].bool()
        shadow = self._score_shadow(model, inputs, record) if training and self._watch.wants_contrast else None
        if record.thought.draws > 1:
            inputs = spread(inputs, record)
        given = inputs
        inputs = dict(given)  # the loss's own, in which the policies that it compares with can be moved
        corrected = as_vllm(self) if "importance_sampling_ratio" in inputs else nullcontext()
        with self._replaying(record, inputs), corrected:
            loss = super()._compute_loss(model, inputs)
        if "old_per_token_logps" in given:
            inputs["old_per_token_logps"] = given["old_per_token_logps"]
        metrics = update_metrics(record, inputs, (self.epsilon_low, self.epsilon_high), self.accelerator)
        if training:
            self._watch.note(logp_difference(record, inputs), own & record.thinking_mask, shadow)
            if self.accelerator.sync_gradients:
                self._watch.judge(self.state.global_step)
        for name, value in metrics.items():
            self._metrics[self._mode][name].append(value)
        return loss

    @torch.no_grad()
    def _score_shadow(self, model, inputs: dict, record: SoftTokens) -> torch.Tensor:
        """|drawn - re-scored| (B, C) of the record with its shadow tokens fed in the place of its mixtures."""
        ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
        devices = [ids.device] if ids.is_cuda else []
        # A resumed run looks again, and what it draws afterwards must be what the other one drew.
        with torch.random.fork_rng(devices), self._replaying(shadow_of(record)):
            logps, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, record.shape[1])
        return ((logps if logps.dim() == 2 else logps.sum(-1)) - record.log_probs).abs()


class SoftGRPOTrainer(ResumableMixin, NonfiniteMixin, SoftTokensMixin, GRPOTrainer):
    """
    Drop-in for [`~trl.GRPOTrainer`] whose policy thinks in soft tokens: the same arguments in the same order, with
    `args` a [`SoftGRPOConfig`].

    ```python
    from datasets import Dataset
    from trl.rewards import accuracy_reward
    from trl_soft import SoftGRPOConfig, SoftGRPOTrainer

    trainer = SoftGRPOTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=accuracy_reward,
        args=SoftGRPOConfig("outputs/soft", thought="gumbel"),
        train_dataset=dataset,  # with a `prompt` column
    )
    trainer.train()
    ```

    Raises:
        ValueError, TypeError: for anything that cannot be soft, before anything is generated.
    """

    _config_class = SoftGRPOConfig
    _tag_names = ["trl", "grpo", "trl_soft"]  # noqa: RUF012 (as TRL declares it)
    _name = "SoftGRPO"
    _completions = 3

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    __init__.__signature__ = inspect.signature(GRPOTrainer.__init__)  # type: ignore[attr-defined]

    def _add_soft_tokens(self) -> None:
        super()._add_soft_tokens()
        # Forced tokens are the environment's, in TRL's words: fed, but neither scored nor counted. A rollout function is
        # what may say so.
        self.rollout_func = self._roll_out

    def _roll_out(self, prompts: list, trainer) -> dict:
        """What TRL does without a rollout function, and which tokens are the policy's own where some are not."""
        mode = self._mode
        prompt_ids, images, fields = self._tokenize_prompts(prompts)
        count = self.num_generations if mode == "train" else self.num_generations_eval
        completion_ids, logprobs = self._generate_single_turn(prompt_ids, images, fields, count)
        if self._weights.dtype is not None:
            drawn = self._rollout.record.log_probs.tolist()
            logprobs = [row[: len(ids)] for row, ids in zip(drawn, completion_ids, strict=True)]
        output = {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}
        if any(self._plans[mode].forced):
            own = (~self._rollout.record.forced_mask).int().tolist()
            output["env_mask"] = [mask[: len(ids)] for mask, ids in zip(own, completion_ids, strict=True)]
        return output

    def _bound(self, logps: torch.Tensor, inputs: dict) -> torch.Tensor:
        thoughts = self._record.thinking_mask.repeat_interleave(self._record.thought.draws, dim=1)
        old, ref = inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")
        keeps = self.loss_type in _DETACHED_WEIGHTS
        far = torch.zeros_like(thoughts)
        if old is not None:
            inputs["true_old_per_token_logps"] = old
            if self.importance_sampling_level == "sequence":
                own = inputs["completion_mask"] * inputs.get("tool_mask", 1)
                old, far = bounded_mean(logps, old, own)
            else:
                old, far = bounded(logps, old, thoughts)
            inputs["old_per_token_logps"], inputs["bounded_per_token"] = old, far
            logps = logps if keeps else cut(logps, far)
        if ref is not None:
            delta = ref - logps.detach()
            # A constant distance: the estimate exp(delta) - delta - 1 stays finite and has no gradient out there.
            near = logps + delta.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
            ref = torch.where(thoughts & (delta.abs() > LOG_RATIO_BOUND), near, ref)
            # A gradient that is kept beyond the bound is kept for the policy's loss, not for KL's exp(10).
            inputs["ref_per_token_logps"] = torch.where(far, logps, ref) if keeps else ref
        return logps

    # What sums log-ratios and bounds them by itself sees the true ones.

    def get_off_policy_mask(self, **given):  # type: ignore[override]
        old = self._loss_inputs.get("true_old_per_token_logps")
        if old is not None and "sampling_per_token_logps" not in self._loss_inputs:
            given["sampling_per_token_logps"] = old
        return super().get_off_policy_mask(**given)

    def get_gamma_weights(self, **given):  # type: ignore[override]
        old = self._loss_inputs.get("true_old_per_token_logps")
        if old is not None:
            given["log_ratio_per_token"] = self._loss_inputs["seen_per_token_logps"] - old
        return super().get_gamma_weights(**given)


class SoftRLOOTrainer(ResumableMixin, NonfiniteMixin, SoftTokensMixin, RLOOTrainer):
    """
    Drop-in for [`~trl.RLOOTrainer`] whose policy thinks in soft tokens, with `args` a [`SoftRLOOConfig`].

    RLOO's action is the whole completion: its log-ratio is the sum over thoughts and answer tokens, forced tokens
    left out. The objective of Soft Tokens, Hard Truths (arXiv 2509.19170, Eq. 12-14) is `beta=0`,
    `normalize_advantages=False` and one update a rollout: the ratio is then 1 and unclipped, and the gradient that of
    `-mean_g A_g * sum_t log pi_t` with the leave-one-out advantage.

    Raises:
        ValueError, TypeError: for anything that cannot be soft, before anything is generated.
    """

    _config_class = SoftRLOOConfig
    _tag_names = ["trl", "rloo", "trl_soft"]  # noqa: RUF012 (as TRL declares it)
    _name = "SoftRLOO"
    _completions = 2

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    __init__.__signature__ = inspect.signature(RLOOTrainer.__init__)  # type: ignore[attr-defined]

    # TRL's RLOO knows no tokens but the policy's, so lengths, entropy and KL would count what was forced. (GRPO has its
    # `tool_mask` for that; with one of its own here, these overrides can go.)

    def _generate(self, prompts: list):
        prompt_ids, completion_ids, completions = super()._generate(prompts)
        if any(self._plans[self._mode].forced):
            own = (~self._record.forced_mask).int().tolist()
            lengths = [sum(mask[: len(ids)]) for mask, ids in zip(own, completion_ids, strict=True)]
            ended = [ids[-1] in (*self.eos_token_ids, self._tokenizer.pad_token_id) for ids in completion_ids]
            metrics = self._metrics[self._mode]
            for name, value in own_lengths(lengths, ended, self.accelerator).items():
                metrics[name][-1] = value
            if self._mode == "train":
                forced = torch.tensor(sum(map(len, completion_ids)) - sum(lengths), device=self.accelerator.device)
                self.state.num_input_tokens_seen -= self.accelerator.reduce(forced, reduction="sum").item()
                metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        return prompt_ids, completion_ids, completions

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        if self._record is not None:
            # `_compute_loss` takes forced tokens out of the mask, and they were fed all the same.
            mask = attention_mask[:, -logits_to_keep:]
            fed = self._record.to_length(logits_to_keep).forced_mask & mask.any(1, keepdim=True)
            attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], mask | fed.to(mask.dtype)], dim=1)
        logps, *rest = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if self._record is not None and self._loss_inputs is None and self._old_logps is None:
            # TRL asks for the old log-probs first, then for the reference's, and keeps only sums of the old.
            self._old_logps = logps
        return logps, *rest

    def _generate_and_score_completions(self, inputs):
        self._old_logps, mode = None, self._mode
        output = super()._generate_and_score_completions(inputs)
        own = output["completion_mask"] * ~output["soft_forced_mask"]
        if self.beta != 0.0 and any(self._plans[mode].forced):
            counted = share(own, output["completion_mask"], self.accelerator)
            self._metrics[mode]["kl"][-1] /= counted
        return {**output, "old_per_token_logps": self._old_logps}

    def _compute_loss(self, model, inputs):
        return super()._compute_loss(
            model, inputs | {"completion_mask": inputs["completion_mask"] * ~inputs["soft_forced_mask"]}
        )

    def _bound(self, logps: torch.Tensor, inputs: dict) -> torch.Tensor:
        total = (logps * inputs["completion_mask"]).sum(1)  # as TRL sums it
        inputs["old_logps"], far = bounded(total, inputs["old_logps"])
        inputs["bounded_per_token"] = far.unsqueeze(1).expand_as(logps)
        return cut(logps, inputs["bounded_per_token"])


class _Replay:
    """A model that is called on consecutive rows of a batch, as TRL chunks it, and given those rows of the record."""

    def __init__(self, model, record: SoftTokens, takes_position_ids: bool):
        self.model, self.record, self.takes_position_ids = model, record, takes_position_ids
        self.start = 0
        self.records: list[SoftTokens] = []

    def __call__(self, input_ids, attention_mask, **kwargs):
        rows = slice(self.start, self.start + input_ids.size(0))
        self.start = rows.stop
        if self.takes_position_ids:
            # The rollout's positions: TRL counts the padding on the left, which learned positions do not forgive.
            kwargs["position_ids"] = positions(attention_mask)
        self.records.append(self.record[rows])
        return self.model(input_ids=input_ids, attention_mask=attention_mask, soft_tokens=self.records[-1], **kwargs)

    def score_variance(self) -> torch.Tensor | None:
        """Sum and number over the positions looked at, of thoughts and of answers: (2, 2)."""
        seen = [record.score_variance for record in self.records if record.score_variance is not None]
        return torch.stack(seen).sum(0) if seen else None


def _check_dataset(name: str, dataset) -> None:
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return  # None, or what TRL refuses itself
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(
            f"`{name}` is empty, so there is no prompt to complete. Check the file, the split and filters."
        )
    if "prompt" not in row:
        raise ValueError(
            f"`{name}` has the columns {sorted(row)} and no `prompt`. Rename the column that holds the prompt, or "
            "build it with `dataset.map`."
        )
    if {"image", "images"} & set(row):
        raise ValueError(
            f"`{name}` has images, but image placeholders and soft tokens cannot share a prompt yet. Drop the column."
        )
