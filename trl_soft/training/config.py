# SPDX-License-Identifier: Apache-2.0
"""`SoftGRPOConfig`, `SoftRLOOConfig`: TRL's configs with the thinking settings, and every check that needs no model."""

from dataclasses import dataclass, field

from trl import GRPOConfig, RLOOConfig

from ..ranges import check, check_number
from ..rollout import ENGINES, EngineOptions
from ..runs.replay import ACTIONS
from ..settings import ThinkingSettings
from ..thoughts import THOUGHTS
from ..thoughts.registry import options
from .before_trl import prepare
from .rollout_precision import CHOICES, corrects, no_correction


NONFINITE = ("stop", "skip")
if _twice := sorted(set(options()) & {*GRPOConfig.__dataclass_fields__, *RLOOConfig.__dataclass_fields__}):
    raise ValueError(f"A kind of thought has the option `{_twice[0]}`, which TRL's configs have too. Rename it.")


@dataclass
class RolloutSettings:
    """
    > Parameters that control how rollouts run. None of them changes a completion, except for rounding

    Args:
        rollout_engine (`str`, *optional*, defaults to `"slots"`):
            `slots`: each completion has its own length, a finished one is replaced by the next prompt, and the batch shrinks
            at the end. `simple`: one padded batch, for models whose layers keep more than keys and values.
        rollout_slots (`int`, *optional*):
            Completions in flight at once on each device. `None`: all of them.
        rollout_cache_gb (`float`, *optional*):
            Most gigabytes of keys and values on each device. `None`: half of the memory that is free.
        rollout_cuda_graphs (`bool`, *optional*, defaults to `True`):
            Replay a captured step on CUDA. False runs every step eagerly.
        rollout_dtype (`str`, *optional*, defaults to `"auto"`):
            The weights that a rollout runs on, in training and evaluation. `training`: the training weights, as training runs
            them. `bfloat16`, `float16`: a copy in that type, without autocast, made for each rollout and deleted after it.
            `auto`: a copy in autocast's type if autocast would cast wider weights at every token (`bf16` or `fp16` on CUDA, one
            process or DDP, `rollout_engine: slots`) and the mismatch can be corrected (no gaussian thought). Otherwise
            `training`. TRL corrects the mismatch between the copy and the update, as it does for vLLM
            (`vllm_importance_sampling_correction`, its mode and bounds; RLOO has no correction). The correction takes one more
            forward for each batch. See docs/gpu.md.
        vllm_server_base_urls (`list[str]`, *optional*):
            With `use_vllm` and `vllm_mode: server`: several servers that share the prompts. They use the group ports from
            `vllm_group_port` on. `None`: the one server that `vllm_server_base_url` or `vllm_server_host` names.
        vllm_request_timeout (`float`, *optional*, defaults to `3600`):
            With `vllm_mode: server`: seconds that a server has to answer one request (for example the completions of one
            prompt) and to take the weights. A server that takes longer is lost.

    With `use_vllm`, rollouts run in vLLM, by the plugin in `trl_soft.rollout.vllm`. The other fields then have no effect.
    """

    rollout_engine: str = field(default="slots", metadata={"help": "Rollout engine: slots or simple."})
    rollout_slots: int | None = field(default=None, metadata={"help": "Completions in flight on each device."})
    rollout_cache_gb: float | None = field(
        default=None, metadata={"help": "Gigabytes of keys and values on each device."}
    )
    rollout_cuda_graphs: bool = field(default=True, metadata={"help": "Replay a captured step on CUDA."})
    rollout_dtype: str = field(
        default="auto",
        metadata={"help": "Weights of a rollout: auto, training, or a copy of them in bfloat16 or float16."},
    )
    vllm_server_base_urls: list[str] | None = field(
        default=None, metadata={"help": "Addresses of several vLLM servers that share a rollout."}
    )
    vllm_request_timeout: float = field(
        default=3600.0, metadata={"help": "Seconds a vLLM server has to answer one request."}
    )

    def engine_options(self, rows: int) -> EngineOptions:
        """The options of a rollout of `rows` completions on this device."""
        return EngineOptions(self.rollout_slots or rows, self.rollout_cache_gb, cuda_graphs=self.rollout_cuda_graphs)


@dataclass
class NonfiniteSettings:
    """
    > Parameters that decide what happens at a NaN

    Args:
        nonfinite (`str`, *optional*, defaults to `"stop"`):
            What happens if a reward, a loss or a gradient is NaN or infinite. `stop`: an error, before any weight changes.
            `skip`: the update is skipped; weights, moments and the learning rate stay as they were, and `nonfinite/skipped` is
            the share of skipped updates. One bad reward skips every update of its rollout. In both cases the batch is written
            to `output_dir/nonfinite/step-N-rank-R.safetensors` and `.json`, for the first 32 such batches. A reward function
            returns `None` where it does not apply, as in TRL.
    """

    nonfinite: str = field(
        default="stop", metadata={"help": "What a NaN in reward, loss or gradient does: stop or skip."}
    )


@dataclass
class ReplaySettings:
    """
    > Parameters that decide what happens if thoughts are not scored as they were drawn

    Args:
        replay_disagreement (`str`, *optional*, defaults to `"warn"`):
            What happens if the mean of `thinking/logp_difference` leaves its healthy range, or if the record of the first updates
            fits hard tokens better than its mixtures. `warn`: one warning with the likely reasons. `stop`: a `ReplayError`
            before the update. `ignore`: no check.
        replay_tolerance (`float`, *optional*):
            Largest healthy mean, in nats. `None`: it depends on thought and precision, see `docs/replay.md`.
    """

    replay_disagreement: str = field(
        default="warn", metadata={"help": "Thoughts that are not scored as they were drawn: warn, stop or ignore."}
    )
    replay_tolerance: float | None = field(
        default=None, metadata={"help": "Largest healthy mean of thinking/logp_difference; unset: by thought."}
    )


@dataclass
class RefillSettings:
    """
    > Parameters that replace groups without an advantage (dynamic sampling, DAPO, arXiv 2503.14476, section 3.2)

    Args:
        max_refill_rollouts (`int`, *optional*, defaults to `0`):
            Largest number of further rollouts for one batch. A group whose completions all have the same reward has no
            advantage, so it teaches nothing. Each further rollout draws one fresh prompt for each such group, and each fresh
            group with an advantage takes the place of one without. Groups that are left when the number is reached stay
            in the batch, with advantage 0. A rollout of a fresh group costs what the rollout of any group costs: if a share
            d of the groups has no advantage, k further rollouts draw about d + d^2 + ... + d^k more batches. The training
            set must be a `Dataset` with more different prompts than one batch. 0: no group is replaced. See docs/trainers.md.
    """

    max_refill_rollouts: int = field(
        default=0,
        metadata={"help": "Further rollouts for one batch, to replace groups whose rewards are all equal; 0: none."},
    )


@dataclass
class ThoughtLogSettings:
    """
    > Parameters that decide which thoughts a run shows

    With `log_completions`, TRL's table of completions has a column `candidates` too, with their weights. Without a terminal it is not
    printed, unless `num_completions_to_print` is set.

    Args:
        log_thoughts_steps (`int`, *optional*, defaults to `50`):
            Every so many updates, beginning with the first rollout, show a few thoughts of the rollout:
            `output_dir/thoughts/step-N.html` is a page with each step's candidates and weights, after N updates. With
            `report_to: wandb` the page and a table are logged as `thoughts/page` and `thoughts/table`, with `report_to:
            tensorboard` the table as the text `thoughts`. 0 shows none.
        log_thoughts_prompts (`int`, *optional*, defaults to `4`):
            Number of prompts to show. Of each, the completions with the highest and the lowest advantage are shown.
    """

    log_thoughts_steps: int = field(
        default=50, metadata={"help": "Updates between two pages of thoughts; 0 writes none."}
    )
    log_thoughts_prompts: int = field(default=4, metadata={"help": "Prompts on a page of thoughts."})


@dataclass
class SoftGRPOConfig(
    ThinkingSettings,
    RolloutSettings,
    RefillSettings,
    NonfiniteSettings,
    ReplaySettings,
    ThoughtLogSettings,
    GRPOConfig,
):
    """
    Configuration of [`SoftGRPOTrainer`]: every field of [`~trl.GRPOConfig`], and those of [`ThinkingSettings`],
    [`RolloutSettings`], [`RefillSettings`], [`NonfiniteSettings`], [`ReplaySettings`] and [`ThoughtLogSettings`].

    `temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty` shape the answer; the `thinking_*` fields shape
    the thought. `bf16` is on if the device has it, unless it is set. A setting that cannot work with soft thoughts raises a
    `ValueError` here or when the trainer is built, before anything is generated.
    """

    def __post_init__(self):
        prepare(self)
        GRPOConfig.__post_init__(self)
        ThinkingSettings.__post_init__(self)
        refuse(self)


@dataclass
class SoftRLOOConfig(
    ThinkingSettings,
    RolloutSettings,
    RefillSettings,
    NonfiniteSettings,
    ReplaySettings,
    ThoughtLogSettings,
    RLOOConfig,
):
    """
    Configuration of [`SoftRLOOTrainer`]: every field of [`~trl.RLOOConfig`], and those of [`ThinkingSettings`],
    [`RolloutSettings`], [`RefillSettings`], [`NonfiniteSettings`], [`ReplaySettings`] and [`ThoughtLogSettings`].
    """

    def __post_init__(self):
        prepare(self)
        RLOOConfig.__post_init__(self)
        ThinkingSettings.__post_init__(self)
        refuse(self)


def refuse(args) -> None:
    """Refuse what TRL supports but a soft policy does not. Each error says what to do instead."""
    refuse_numbers(args)
    refuse_rollout_weights(args)
    refuse_vllm(args)
    refuse_rollout(args)
    refuse_training(args)
    refuse_thought(args)


def refuse_numbers(args) -> None:
    """Refuse numbers out of range and unknown names."""
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        check(name, getattr(args, name), optional=args.__dataclass_fields__[name].default is None)
    check_number("seed", args.seed, 0, 2**32 - 1, whole=True)
    check_number("rollout_cache_gb", args.rollout_cache_gb, 0, None, open_low=True, optional=True)
    check_number("rollout_slots", args.rollout_slots, 1, None, whole=True, optional=True)
    check_number("max_refill_rollouts", args.max_refill_rollouts, 0, None, whole=True)
    check_number("vllm_request_timeout", args.vllm_request_timeout, 0, None, open_low=True)
    check_number("log_thoughts_steps", args.log_thoughts_steps, 0, None, whole=True)
    check_number("log_thoughts_prompts", args.log_thoughts_prompts, 1, None, whole=True)
    check_number("replay_tolerance", args.replay_tolerance, 0, None, open_low=True, optional=True)
    choices = {
        "rollout_engine": ENGINES,
        "rollout_dtype": CHOICES,
        "nonfinite": NONFINITE,
        "replay_disagreement": ACTIONS,
    }
    for name, known in choices.items():
        if getattr(args, name) not in known:
            raise ValueError(f"`{name}` is {getattr(args, name)!r}. Choose one of {', '.join(known)}.")
    if args.temperature <= 0:
        raise ValueError(
            f"`temperature` is {args.temperature}, but answers are sampled and scored at this temperature, so it must be above 0."
        )
    if args.max_completion_length is None:
        raise ValueError(
            "`max_completion_length` is unset, but a soft rollout keeps a record of that length. Set it to the longest "
            "thought and answer together, in tokens."
        )
    check_number("max_completion_length", args.max_completion_length, 1, None, whole=True)


def refuse_rollout_weights(args) -> None:
    """Refuse a copy of the weights that cannot be made, or whose mismatch cannot be corrected."""
    if args.rollout_dtype not in ("auto", "training") and args.use_vllm:
        raise ValueError(
            f"`rollout_dtype` is {args.rollout_dtype}, but with `use_vllm` rollouts run on vLLM's own weights, and vLLM "
            "chooses their type (`--dtype` of a server). Leave it unset."
        )
    if args.rollout_dtype not in ("auto", "training") and (reason := no_correction(args)):
        raise ValueError(
            f"`rollout_dtype` is {args.rollout_dtype}, but {reason}. Change that setting, or set "
            "`vllm_importance_sampling_correction: false` or `rollout_dtype: training`."
        )


def refuse_rollout(args) -> None:
    """Refuse ways of generating that cannot think softly."""
    if args.use_transformers_continuous_batching:
        raise ValueError(
            "`use_transformers_continuous_batching` is set, but continuous batching takes token ids only and cannot "
            "feed a mixture back. Set it to false."
        )
    if not args.ds3_gather_for_generation:
        raise ValueError(
            "`ds3_gather_for_generation` is false, but ranks end their thoughts at different steps, so gathering "
            "each layer at every step would wait forever. Set it to true."
        )
    if args.cache_implementation not in (None, "dynamic"):
        raise ValueError(
            f"`cache_implementation` is {args.cache_implementation!r}, but soft rollouts have their own cache. Leave it "
            "unset. `rollout_cache_gb` bounds the size of that cache."
        )
    if args.generation_kwargs:
        raise ValueError(
            f"`generation_kwargs` is {args.generation_kwargs}, but soft rollouts do not go through `generate` and "
            "would ignore it. Use `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty`."
        )
    if args.max_thinking_length is not None and args.max_thinking_length >= args.max_completion_length:
        raise ValueError(
            f"`max_thinking_length` is {args.max_thinking_length} and `max_completion_length` is "
            f"{args.max_completion_length}, so a thought could leave no room for an answer. Set "
            "`max_thinking_length` below `max_completion_length`."
        )


def refuse_training(args) -> None:
    """Refuse settings that change or save weights in the middle of a step."""
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer in ("lomo", "adalomo") or "layerwise" in optimizer:
        raise ValueError(
            f"`optim` is {optimizer}, which changes weights during the backward, before the gradient can be checked for NaN and "
            "infinity. Choose an optimiser that steps after the backward."
        )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "`enable_jit_checkpoint` is set, but it saves in the middle of a step, at another time on each process, so a run "
            "could not continue exactly. Leave it unset: SIGTERM saves at the end of the step and exits."
        )


def refuse_thought(args) -> None:
    """Refuse thoughts that this config cannot train."""
    kind = THOUGHTS[args.thought]
    if not kind.has_density:
        raise ValueError(
            f"`thought` is {args.thought!r}, which draws nothing, so it has no density and no policy gradient. Train with "
            f"`thought: gumbel` or `gaussian`, and set `eval_thought: {args.thought}` to evaluate with it."
        )
    if "noise_scale" in kind.options and args.noise_scale == 0:
        raise ValueError(
            "`noise_scale` is 0, so a thought draws nothing and has no density and no policy gradient. Set it "
            "above 0 for training."
        )
    if (several := args.several_ratios()) and (
        isinstance(args, RLOOConfig) or args.importance_sampling_level == "sequence"
    ):
        raise ValueError(
            f"{several[0]}, but RLOO and `importance_sampling_level: sequence` take one ratio for the whole completion. Set "
            f"{several[1]}."
        )
    if (reason := kind.no_ratio(args)) and (needs := _needs_a_ratio(args)):
        raise ValueError(f"{reason}, so it has no policy ratio, but {needs[0]}. Set {needs[1]}, or another score.")
    kind.check_training(args)


def _needs_a_ratio(args) -> tuple[str, str] | None:
    """If a loss of these settings compares two policies: where, as a clause, and what to set instead."""
    updates, accumulated = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    if accumulated % updates != 0:
        return (
            f"a rollout serves several updates (`num_iterations` {args.num_iterations}, `steps_per_generation` "
            f"{args.steps_per_generation}), whose loss has the ratio to the policy that drew",
            f"`num_iterations: 1` and `steps_per_generation: {accumulated}`",
        )
    if args.beta != 0.0:
        return f"`beta` is {args.beta:g}, whose KL compares it with the reference", "`beta: 0`"
    if args.use_vllm and corrects(args):
        return "vLLM's mismatch is corrected by a ratio", "`vllm_importance_sampling_correction: false`"
    return None


def refuse_vllm(args) -> None:
    """Refuse what vLLM cannot do for a soft policy. vLLM itself refuses settings of a request with the first request."""
    urls = args.vllm_server_base_urls
    if urls is not None and (isinstance(urls, str) or not urls or not all(isinstance(url, str) for url in urls)):
        raise ValueError(
            f"`vllm_server_base_urls` is {urls!r}. It takes a list of addresses, such as `http://host:8000`."
        )
    if urls and not (args.use_vllm and args.vllm_mode == "server"):
        raise ValueError(
            "`vllm_server_base_urls` is set, but no server is used. Set `use_vllm: true` and `vllm_mode: server`, or leave it "
            "out."
        )
    if urls and args.vllm_server_base_url not in (None, urls[0]):
        raise ValueError(
            "`vllm_server_base_url` and `vllm_server_base_urls` are both set. Put all addresses into the second."
        )
    if urls:
        args.vllm_server_base_url = urls[0]
    if not args.use_vllm:
        return
    if args.vllm_structured_outputs_regex is not None:
        raise ValueError(
            "`vllm_structured_outputs_regex` is set, but a grammar allows or forbids tokens, and a thought is not a token. Leave it out."
        )
    if (several := args.several_ratios()) and corrects(args):
        raise ValueError(
            f"{several[0]}, but the correction for vLLM's mismatch has one ratio for each position. Set {several[1]}, or "
            "`vllm_importance_sampling_correction: false`."
        )
