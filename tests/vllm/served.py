# SPDX-License-Identifier: Apache-2.0
"""The tiny world behind a real vLLM, in this process, on a CPU (`make test-vllm`)."""

import gc
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.naive_rollout import naive
from trl_soft import ThinkingSettings
from trl_soft.forward import soft_tokens_added
from trl_soft.record import SoftTokens
from trl_soft.rollout import EngineOptions, Key, assemble
from trl_soft.rollout.make_plan import make_plan, table_rms
from trl_soft.thoughts import Hard
from trl_soft.vocabulary.head_logits import DenseLogits


READY = importlib.util.find_spec("vllm") is not None and os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
needs_vllm = pytest.mark.skipif(not READY, reason="real vLLM has an environment of its own: make test-vllm")
PROMPTS = ["1+2=", "3+44=", "5-6=", "7777-8=", "9", "12345678+87654321-1111="]


def model(seed: int = 0, **config):
    """Like the other tests', with heads as wide as vLLM's CPU attention wants them."""
    return tiny.model(seed, **{"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, **config})


def save(net, folder) -> str:
    net.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def engine(folder: str, **options):
    """An `LLM` whose worker can be asked for records."""
    from vllm import LLM

    plain_linear()
    defaults = {
        "dtype": "float32",
        "max_model_len": 64,
        "max_num_seqs": 4,
        "block_size": 32,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**20,
        "seed": 0,
        "additional_config": {"trl_soft": {"record_bytes": 512}},
        "worker_extension_cls": "trl_soft.rollout.vllm.worker.SoftWorker",
    }
    return LLM(model=folder, **{**defaults, **options})


def plain_linear() -> None:
    """Linear layers from their own weights; vLLM's packed copies for CPUs would not see weights that are loaded anew."""
    import vllm._custom_ops
    import vllm.model_executor.layers.utils as layers

    vllm._custom_ops._supports_onednn = False
    layers.check_cpu_sgl_kernel = lambda *sizes: False


def state(llm):
    """The worker's `SoftModelState`."""
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.model_state


def shut(llm) -> None:
    """Make room for another engine in this process."""
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


def ids_of(prompt: str) -> list[int]:
    return tiny.tokenizer()(prompt)["input_ids"]


def soft(settings: dict, sample: int = 0, seed: int = 3, n: int = 1, max_tokens: int = 20, **params):
    """Sampling parameters of a soft request."""
    from vllm import SamplingParams

    settings = {"thought": "gumbel", "max_thinking_length": 12} | settings
    extra = {f"soft_{name}": value for name, value in settings.items()}
    extra |= {"soft_thinking": True, "soft_seed": seed, "soft_sample": sample, "soft_record": True}
    params = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **params}
    return SamplingParams(max_tokens=max_tokens, n=n, extra_args=extra, **params)


def generate(llm, prompts, params):
    """Completions, and each one's record as a bulk of its own kind."""
    rows = [{"prompt_token_ids": ids_of(p) if isinstance(p, str) else list(p)} for p in prompts]
    out = llm.generate(rows, params, use_tqdm=False)
    return out, llm.collective_rpc("pop_soft_records", args=([o.request_id for o in out],))[0]


def plan(net, settings: dict, answer=None, max_tokens: int = 20, **changes):
    settings = ThinkingSettings(**{"max_thinking_length": 12} | settings)
    return make_plan(
        settings, tiny.tokenizer(), answer or Hard(), vocab_size=net.config.vocab_size,
        max_completion_length=max_tokens, eos_token_ids=[1], rms=table_rms(net), **changes,
    )  # fmt: skip


def by_oracle(net, made, prompts, samples, seed: int = 3, generation: int = 0):
    """What the naive oracle makes of the same prompts and keys, with Hugging Face's model."""
    ids = [ids_of(p) if isinstance(p, str) else list(p) for p in prompts]
    key = Key(seed, generation, torch.tensor(samples))
    with soft_tokens_added(net):
        return assemble(naive(net, ids, made, key, EngineOptions()), len(ids), made)


@torch.no_grad()
def rescored(net, prompt: list[int], rollout, made, feed_hard: bool = False):
    """
    Log-probabilities (C,) of one completion under Hugging Face's model, fed the record; and the candidates (C, K) it has
    at each position, where the thought has any. `feed_hard`: feed the shadow's tokens in the thoughts' place.
    """
    length = int(rollout.completion_mask.sum())
    record = rollout.record.to_length(length)
    ids = torch.cat([torch.tensor(prompt), rollout.completion_ids[0, :length]]).unsqueeze(0)
    fed = record
    if feed_hard:
        fed = SoftTokens(record.thought, torch.zeros_like(record.thinking_mask), record.action, record.log_probs)
    with soft_tokens_added(net):
        z = net(input_ids=ids, soft_tokens=fed).logits[0, len(prompt) - 1 : -1].float()
    table = net.get_input_embeddings().weight.float()
    logits = DenseLogits(z, table)
    thoughts = record.thinking_mask[0]
    log_probs = made.answer.score(logits, {"ids": rollout.completion_ids[0, :length]})[0]
    if made.thought.is_token:
        return log_probs.masked_fill(record.forced_mask[0], 0.0), None
    action = {name: value[0] for name, value in record.action.items()}
    of_thoughts = made.thought.score(logits[thoughts], {name: value[thoughts] for name, value in action.items()})[0]
    log_probs[thoughts] = of_thoughts
    candidates = None
    if "kept" in action:
        candidates = z.topk(action["ids"].size(-1), -1).indices
    return log_probs.masked_fill(record.forced_mask[0], 0.0), candidates


def environment() -> dict:
    """What a process needs that serves on a CPU."""
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here / 'site'}{os.pathsep}{here.parent.parent}", "PYTHONUNBUFFERED": "1"}


assert sys.version_info >= (3, 11)
