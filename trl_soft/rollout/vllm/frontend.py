# SPDX-License-Identifier: Apache-2.0
"""The place where requests arrive: soft requests are checked here and get a spec for the worker.

This file wraps `InputProcessor.process_inputs`, which every way into vLLM calls (`LLM.generate`, the servers). Hard requests
pass unchanged.
"""

import functools
import os
import pydoc
import secrets

from ... import saved_settings
from ...files import printable
from .engine_support import options, stored_of, why_off
from .layout import layout_of
from .models import SoftMixin
from .request import SPEC, spec_of, wants


def install() -> None:
    """Wrap `InputProcessor.process_inputs`."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    class Refused(VLLMValidationError, ValueError):
        """A mistake of the client: status 400 from a server, a `ValueError` from `LLM`."""

    original = InputProcessor.process_inputs
    if hasattr(original, "soft"):
        return

    @functools.wraps(original)
    def process_inputs(self, request_id, prompt, params, *args, **kwargs):
        request = original(self, request_id, prompt, params, *args, **kwargs)
        try:
            _refuse_spec(request.sampling_params)
            # Pooling requests have no such parameters.
            if request.sampling_params is not None and wants(request.sampling_params.extra_args):
                _make_soft(self, request_id, request)
        except (ValueError, TypeError, OverflowError) as error:
            raise Refused(printable(str(error))) from error
        return request

    process_inputs.soft = True  # type: ignore[attr-defined]
    InputProcessor.process_inputs = process_inputs


def _refuse_spec(params) -> None:
    """Refuse a spec in a request: only this file writes it, because the worker trusts it."""
    if params is not None and SPEC in (params.extra_args or {}):
        raise ValueError(f"The request has the key `{SPEC}`, which only the plugin may set. Use the `soft_*` keys.")


def _not_ours(model_config) -> str | None:
    """Why the class of the model is not the plugin's. `None` if it is."""
    from vllm.model_executor.model_loader.utils import get_model_architecture

    found, _ = get_model_architecture(model_config)
    if issubclass(found, SoftMixin):
        return None
    return (
        f"the model is served by {found.__module__}.{found.__qualname__}, which was set before trl_soft was registered, or "
        "by another plugin after it. Leave `VLLM_PLUGINS` unset, or name trl_soft in it"
    )


def _make_soft(processor, request_id: str, request) -> None:
    if not hasattr(processor, "soft_engine"):
        config = processor.vllm_config
        off = why_off(config) or _not_ours(config.model_config)
        stored, sizes = stored_of(config.model_config), options(config)
        processor.soft_engine = off, stored, sizes
    off, stored, sizes = processor.soft_engine
    model, params = processor.model_config, request.sampling_params
    if off is not None:
        raise ValueError(f"This engine cannot think softly: {off}.")
    if request.prompt_embeds is not None or request.resumable:
        raise ValueError("A soft request takes its prompt as tokens, all at once. Send text or token ids.")
    if request.lora_request is not None:
        _refuse_lora(request.lora_request)
        stored = saved_settings.read(request.lora_request.lora_path) or stored
    spec, plan = spec_of(
        params, request_id, processor.tokenizer, stored,
        vocab_size=model.get_vocab_size(), max_length=sizes["record_length"], prompt=request.prompt_token_ids,
    )  # fmt: skip
    if spec["keep"] and not can_fetch(processor.vllm_config.parallel_config.worker_extension_cls):
        raise ValueError(
            "`soft_record` asks to keep the record, but no client can fetch it from this engine. Leave it out, or start the engine "
            "with `--worker-extension-cls trl_soft.rollout.vllm.worker.SoftWorker`."
        )
    width = layout_of(plan.thought, model.get_vocab_size(), model.get_hidden_size(), model.dtype).width
    if width > sizes["record_bytes"]:
        raise ValueError(
            f"An action of this {plan.thought.name} thought takes {width} bytes a token, but the engine's record has room "
            f'for {sizes["record_bytes"]}. Start it with `additional_config={{"trl_soft": {{"record_bytes": {width}}}}}`.'
        )
    params.extra_args = {**params.extra_args, SPEC: spec}
    # The draws of n completions differ only by their number, and vLLM distinguishes them by their seeds.
    params.seed = 0
    # vLLM finds cached blocks by token ids, and a thought is not its token. So a soft request does not read the cache, and
    # its own blocks have a name that no other request could ask for.
    params.skip_reading_prefix_cache = True
    request.cache_salt = f"{request.cache_salt or ''}trl_soft-{secrets.token_hex(16)}"


@functools.cache
def can_fetch(extension: str) -> bool:
    """Whether a client can fetch records from a worker with this extension (full name of a class)."""
    return bool(extension) and hasattr(pydoc.locate(extension), "pop_soft_records")


def _refuse_lora(lora) -> None:
    import json

    path = os.path.join(lora.lora_path, "adapter_config.json")
    if not os.path.isfile(path):
        return  # vLLM itself raises the error
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    targets = config.get("target_modules") or []
    named = ([targets] if isinstance(targets, str) else list(targets)) + list(config.get("modules_to_save") or [])
    if any("embed" in name for name in named):
        raise ValueError(
            f"The adapter {lora.lora_name!r} changes the input embeddings, and a mixture of the base model's rows is not what "
            "it would feed. Take it off the embeddings, or merge it into the weights."
        )
