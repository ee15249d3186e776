# SPDX-License-Identifier: Apache-2.0
"""Which vLLM engines can think softly, and the settings of the plugin in them."""

from ... import saved_settings
from ...ranges import check_number
from ...settings import ThinkingSettings
from ...thoughts import Hard
from .layout import layout_of


# Architecture -> module of vllm.model_executor.models. Other architectures are refused by name.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
}
# Settings of the engine, in `additional_config={"trl_soft": {...}}`.
RECORD_LENGTH = 16384
RECORD_BYTES = 192


def options(vllm_config) -> dict:
    """
    The plugin's settings of the engine, with their defaults:

        record_length   C, most tokens of a soft completion: 16384, or the model's length if that is less
        record_bytes    W, bytes of a thought's action: 192, or more if the thought saved with the weights needs more
        record_gb       most gigabytes of the host's memory for records that no client has fetched yet: 4
    """
    given = vllm_config.additional_config
    given = dict(given.get("trl_soft") or {}) if isinstance(given, dict) else {}
    unknown = sorted(set(given) - {"record_length", "record_bytes", "record_gb"})
    if unknown:
        raise ValueError(
            f"`additional_config` has {unknown} under `trl_soft`. Known are record_length, record_bytes and record_gb."
        )
    check_number("record_gb", given.setdefault("record_gb", 4.0), 0, 1e6, open_low=True)
    for name in ("record_length", "record_bytes"):
        check_number(name, given.get(name), 1, 2**31 - 1, whole=True, optional=True)
    model_config = vllm_config.model_config
    given.setdefault("record_length", min(model_config.max_model_len, RECORD_LENGTH))
    if "record_bytes" not in given:
        given["record_bytes"] = max(RECORD_BYTES, _own_bytes(model_config))
    given["record_bytes"] = -(-given["record_bytes"] // 8) * 8
    return given


def _own_bytes(model_config) -> int:
    """Bytes of an action of the thoughts saved with the weights. 0 if none were saved."""
    stored = stored_of(model_config)
    if stored is None:
        return 0
    settings = ThinkingSettings.of_stored(stored, str(model_config.model))
    sizes = model_config.get_vocab_size(), model_config.get_hidden_size(), model_config.dtype
    kinds = [settings.make_thought(Hard(), 1.0, evaluation) for evaluation in (False, True)]
    return max(layout_of(kind.bound(sizes[0]), *sizes).width for kind in kinds)


def stored_of(model_config) -> dict | None:
    """The thinking settings saved with the weights, in a folder or in the hub's cache. `None` if there are none."""
    return saved_settings.read(model_config.model, model_config.revision)


def why_off(vllm_config) -> str | None:
    """Why an engine with this configuration cannot think softly. `None` if it can."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if model.architecture not in ARCHITECTURES:
        return (
            f"the model is served as {model.architecture}, but mixtures are tested only for "
            f"{', '.join(ARCHITECTURES)}. Serve one of those, with vLLM's own implementation (`model_impl`)"
        )
    cases = (
        (not vllm_config.use_v2_model_runner,
         "the engine runs Model Runner V1, which has no hook for the input of a step. "
        "Start it with VLLM_USE_V2_MODEL_RUNNER=1"),
        (parallel.pipeline_parallel_size > 1,
         "pipeline parallelism passes token ids from the last stage to the first, and a "
        "thought is not a token. Use tensor or data parallelism"),
        (vllm_config.speculative_config is not None,
         "a draft model guesses tokens, and a thought is not a token. Start the engine "
        "without `speculative_config`"),
        (getattr(parallel, "prefill_context_parallel_size", 1) > 1,
         "prefill context parallelism splits prompts by "
        "token. Leave `prefill_context_parallel_size` at 1"),
        (bool(getattr(parallel, "use_ubatching", False)),
         "dual batch overlap splits a batch after it was embedded. Leave "
        "`enable_dbo` off"),
        (bool(getattr(parallel, "enable_batch_sharded_sampling", False)),
         "batch-sharded sampling draws a request on one rank, "
        "and the others must feed its thought. Set `enable_batch_sharded_sampling` to false"),
        (bool(model.enable_prompt_embeds),
         "`enable_prompt_embeds` is on, and embeddings of a client take the place of "
        "thoughts. Start the engine without it"),
        (getattr(vllm_config, "watermark_config", None) is not None,
         "watermarks are put on tokens. Start the engine without "
        "one"),
        (vllm_config.kv_transfer_config is not None,
         "other engines find keys and values by token ids, and would take those of "
        "thoughts for those of tokens. Start the engine without `kv_transfer_config`"),
        (bool(getattr(model, "logits_processors", None)),
         "custom logits processors see only the logits of tokens. Start the engine "
        "without `logits_processors`"),
        (model.quantization == "gguf",
         "GGUF quantises the embedding table, and mixtures are made of its rows. Serve another format"),
        (getattr(vllm_config.scheduler_config, "policy", "fcfs") != "fcfs",
         "a preempted request may wait for any "
        "number of others, and its record with it. Use the scheduling policy fcfs"),
    )  # fmt: skip
    return next((why for applies, why in cases if applies), None)


def why_not_captured(vllm_config) -> str | None:
    """Why the plugin's part of a step cannot be a CUDA graph of its own. `None` if it can."""
    compilation, mode = vllm_config.compilation_config, vllm_config.compilation_config.cudagraph_mode
    cases = (
        (vllm_config.model_config.enforce_eager, "`enforce_eager` is on"),
        (mode is None or mode.name == "NONE", "`cudagraph_mode` is NONE"),
        (not compilation.cudagraph_capture_sizes, "`cudagraph_capture_sizes` is empty"),
        (vllm_config.parallel_config.tensor_parallel_size > 1,
         "tensor parallelism adds up parts of a mixture between the plugin's kernels"),
        (vllm_config.lora_config is not None, "the adapter of a request is chosen outside of a graph"),
    )  # fmt: skip
    return next((why for applies, why in cases if applies), None)
