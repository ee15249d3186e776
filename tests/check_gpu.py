# SPDX-License-Identifier: Apache-2.0
"""Does this device do what the CPU does? Needs torch, transformers and TRL; with no CUDA device the CPU's part alone.

    make check-gpu          (PYTHONPATH=. python -m tests.check_gpu; with names of groups, these alone)

    thoughts   every thought in float32 on the device against the CPU: the same ids, log-probabilities to 1e-4, step by step
               and from CUDA graphs. On the CPU: the slots against the simple engine
    trainer    three updates in float32 on the device against the CPU: loss, gradient norm and reward to 1e-3 of themselves.
               On the CPU: by either engine
    scoring    log-probabilities, entropies, mixtures and gradients over a vocabulary in tiles, whose kernels run, against float64
               of the same numbers: values to 1e-5, gradients to 1e-4 in float32 and to 2e-2 in bfloat16
    gradient   a batch padded to 192 = 128 + 64 tokens in bfloat16, an attention head with a logsumexp far below -88.7: every
               gradient is finite (docs/gpu.md); and how many are not where cuDNN's attention is left on
    attention  a decode step by each kernel that can run here, in bfloat16 and float32, with a window and a cap, eagerly and captured,
               against the mask (docs/gpu.md); a kernel that cannot says why. On the CPU: FlexAttention, not compiled
    replay     drawn against re-scored in bfloat16, mean within the limits of docs/replay.md, and not better with the shadow
               tokens fed

Prints a table, and one JSON object last. Ends with 1 where a check fails. Random models of 20k parameters; no network.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers

from tests import tiny
from tests.rescored import logp_difference
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer, ThinkingSettings, soft_generate
from trl_soft.rollout import decode_attention
from trl_soft.rollout.decode_attention import Step
from trl_soft.runs.replay import tolerance
from trl_soft.thoughts import THOUGHTS
from trl_soft.training.attention_gradients import sound_gradients
from trl_soft.vocabulary.head_logits import DenseLogits, HeadLogits, transformed
from trl_soft.vocabulary.tiles import LOWEST, TILE


CPU = torch.device("cpu")
# Ways to end a thought, beside every kind of it.
ENDS = [
    {"thought": "gaussian", "thinking_temperature": 1e-4},
    {"thought": "gumbel", "cold_stop_entropy": 1.0, "cold_stop_length": 2, "answer_prefill": ["12", "34"]},
    {"thought": "gumbel", "end_of_thinking": "3-"},
]
GATED = [
    {"thought": "gumbel", "thinking_gate": "first", "gate_length": 3},
    {"thought": "gaussian", "thinking_gate": "random", "gate_probability": 0.5},
    {"thought": "gumbel", "thinking_gate": "entropy", "gate_entropy": 3.0, "gate_dwell": 2},
    {"thought": "mixture", "thinking_gate": "entropy_trend", "gate_dwell": 2},
    {"thought": "multiplex", "thinking_gate": "confidence", "gate_confidence": 0.1},
]
TRAINED = [settings for settings in tiny.THOUGHTS if THOUGHTS[settings["thought"]].has_density]
STEPS = [
    ({"thought": "hard"}, (SoftGRPOTrainer, SoftGRPOConfig)),
    ({"thought": "gumbel"}, (SoftGRPOTrainer, SoftGRPOConfig)),
    ({"thought": "multiplex"}, (SoftGRPOTrainer, SoftGRPOConfig)),
    ({"thought": "gaussian", "noise_scale": 1.0}, (SoftRLOOTrainer, SoftRLOOConfig)),
]
# Type of the weights; temperature, scale and cap of the logits.
SCORED = [
    ("float32", torch.float32, (1.0, 1.0, None)),
    ("float32, capped, T = 0.1", torch.float32, (0.1, 0.5, 4.0)),
    ("bfloat16", torch.bfloat16, (1.0, 1.0, None)),
    ("bfloat16, capped, T = 0.1", torch.bfloat16, (0.1, 0.5, 4.0)),
]
LENGTH = 192  # 128 + 64

Result = tuple[bool, dict[str, Any]]


def prompts() -> list[list[int]]:
    """Twenty-four of 3 to 29 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 30, (24,), generator=generator).tolist()
    return [torch.randint(4, 24, (length,), generator=generator).tolist() for length in lengths]


def drawn(settings: dict, device: torch.device, dtype=torch.float32, **options):
    """A small rollout, with its model."""
    net = tiny.model().to(device, dtype)
    thinking = ThinkingSettings(max_thinking_length=20, **settings)
    options = {"num_generations": 2, "max_completion_length": 32, "seed": 3, "slots": 16, "progress": False} | options
    return net, soft_generate(net, tiny.tokenizer(), prompts(), thinking, **options)


def same_thoughts(settings: dict, device: torch.device | None, **options) -> Result:
    """Against the slots on the CPU; `device` None is the simple engine there."""
    _, reference = drawn(settings, CPU)
    _, other = drawn(settings, CPU, engine="simple") if device is None else drawn(settings, device, **options)
    pairs = list(zip(reference.completion_ids, other.completion_ids, strict=True))
    apart = [
        abs(x - y)
        for (ours, theirs), a, b in zip(pairs, reference.log_probs, other.log_probs, strict=True)
        if ours == theirs
        for x, y in zip(a, b, strict=True)
    ]
    same, largest = sum(a == b for a, b in pairs), max(apart, default=float("inf"))
    return same == len(pairs) and largest <= 1e-4, {"same": f"{same} of {len(pairs)}", "logp": largest}


def trained(settings: dict, classes, device: torch.device, **options) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = tiny.trainer(folder, None, *classes, use_cpu=device == CPU, beta=0.0, **settings, **options)
        trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def same_steps(settings: dict, classes, device: torch.device | None) -> Result:
    reference = trained(settings, classes, CPU)
    other = trained(settings, classes, device or CPU, **({} if device else {"rollout_engine": "simple"}))
    apart = {
        name: max(abs(a[name] - b[name]) / max(abs(a[name]), 1e-2) for a, b in zip(reference, other, strict=True))
        for name in ("loss", "grad_norm", "reward")
    }
    return max(apart.values()) <= 1e-3, apart


def same_scores(device: torch.device, dtype: torch.dtype, temperature: float, scale: float, softcap) -> Result:
    """300 positions, 5,000 tokens of which three are suppressed, 12 candidates of which two are the same, five tiles."""
    draw = torch.Generator().manual_seed(0)
    n, vocabulary, size = 300, 5000, 64
    shapes = ((n, size), (vocabulary, size), (vocabulary, size))
    hidden, head, table = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    bias = torch.zeros(vocabulary, dtype=dtype).index_fill(0, torch.tensor([0, 77, vocabulary - 1]), -torch.inf)
    ids = torch.randint(78, vocabulary - 1, (n, 12), generator=draw)
    ids[:, 5] = ids[:, 3]
    of_loss = [torch.randn(shape, generator=draw) for shape in ((n, size), (n,), (n, 12), (n,))]

    def run(
        view_of: Callable, where: torch.device, dtype: torch.dtype
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        leaves = [x.to(where, dtype, copy=True).requires_grad_() for x in (hidden, head / 4, table)]
        view = view_of(*leaves, bias.to(where, dtype))
        values = [*view.mixture(temperature), *view.log_prob(ids.to(where), temperature)]
        sum((value * w.to(where)).sum() for value, w in zip(values, of_loss, strict=True)).backward()  # type: ignore[union-attr]
        return [x.detach().cpu().double() for x in values], [
            x.grad.cpu().double() for x in leaves if x.grad is not None
        ]

    def tiled(h, w, e, b):
        return HeadLogits(h, SimpleNamespace(weight=w, bias=b), SimpleNamespace(weight=e), scale, softcap)

    def dense(h, w, e, b):
        return DenseLogits(transformed((h @ w.T + b).clamp(min=LOWEST), scale, softcap), e)

    with mock.patch.dict(TILE, dict.fromkeys(TILE, n * 1024)):
        ours = run(tiled, device, dtype)
    values, gradients = (
        max(((a - b).norm() / b.norm()).item() for a, b in zip(have, want, strict=True))
        for have, want in zip(ours, run(dense, CPU, torch.float64), strict=True)
    )
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    return values <= 1e-5 and gradients <= limit, {"values": values, "gradients": gradients}


def finite_gradients(device: torch.device) -> Result:
    def not_finite(guarded: bool) -> int:
        net = tiny.model(max_position_embeddings=2 * LENGTH).to(device)
        attention: Any = net.model.layers[0].self_attn
        with torch.no_grad():
            # The pair of coordinates that rotates least of one head: q.k / sqrt(8) is about -20 * 20 * 2 / 2.8 = -280.
            for projection, value in ((attention.q_proj, 20.0), (attention.k_proj, -20.0)):
                projection.bias[[3, 7]] = value
        lengths = torch.tensor([LENGTH, LENGTH - 50, LENGTH - 100, 40], device=device)
        mask = (torch.arange(LENGTH, device=device) >= LENGTH - lengths.unsqueeze(1)).long()
        ids = torch.randint(4, 24, mask.shape, generator=torch.Generator().manual_seed(0)).to(device)
        with sound_gradients(net, device) if guarded else nullcontext():
            with torch.autocast(device.type, torch.bfloat16):
                z = net(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
            z.loss.backward()
        return sum(int((~p.grad.isfinite()).sum()) for p in net.parameters() if p.grad is not None)

    guarded = not_finite(True)
    return guarded == 0, {"not_finite": guarded, "with_cudnn": not_finite(False)}


def attends(kernel: str, dtype: torch.dtype, device: torch.device, **asked) -> Result:
    """Heads in groups of six, as Qwen2.5 has them."""
    like = Step(
        torch.zeros(1, 12, 1, 64, dtype=dtype, device=device),
        *(torch.zeros(1, 1, 2, 64, dtype=dtype, device=device) for _ in "kv"),
        torch.zeros(1, dtype=torch.long, device=device), **asked,
    )  # fmt: skip
    features = decode_attention.Features(dtype, 64, 64, softcap="softcap" in asked, window="window" in asked)
    if device.type == "cuda":
        reason = decode_attention.why_not(kernel, decode_attention.installed(device), features)
        if reason is not None:
            return True, {"cannot": reason}
    reason = decode_attention.try_out(kernel, like)
    return reason is None, {} if reason is None else {"reason": reason}


def attends_uncompiled() -> Result:
    kernels, own = decode_attention.KERNELS, decode_attention.KERNELS["FlexAttention"]
    kernels["FlexAttention"] = partial(decode_attention._flex, compiled=False)
    try:
        return attends("FlexAttention", torch.float32, CPU, window=100, softcap=5.0)
    finally:
        kernels["FlexAttention"] = own


def replayed(settings: dict, device: torch.device) -> Result:
    net, out = drawn(settings, device, torch.bfloat16)
    rows = [prompt for prompt in prompts() for _ in range(2)]
    mean = logp_difference(net, rows, out)["thinking"].mean().item()
    limit = tolerance(ThinkingSettings(**settings), net.config.hidden_size, exact=False)
    figures = {"mean": mean, "limit": limit}
    if settings["thought"] != "hard":
        figures["hard_fed"] = logp_difference(net, rows, out, shadow=True)["thinking"].mean().item()
    return mean <= limit and mean < figures.get("hard_fed", float("inf")), figures


def checks(device: torch.device | None) -> Iterator[tuple[str, str, str, Callable[[], Result] | None]]:
    """Group, case, where, and the check; `None` where there is no device for it."""
    on_device = "cuda"
    for settings in tiny.THOUGHTS + GATED + ENDS:
        case = tiny.name(settings)
        if device is None:
            yield "thoughts", case, "cpu", lambda s=settings: same_thoughts(s, None)
        for where, graphs in ((on_device, False), (f"{on_device} graphs", True)):
            yield (
                "thoughts", case, where,
                device and (lambda s=settings, g=graphs: same_thoughts(s, device, cuda_graphs=g)),
            )  # fmt: skip
    for settings, classes in STEPS:
        case = f"{classes[0]._name} {tiny.name(settings)}"
        if device is None:
            yield "trainer", case, "cpu", lambda s=settings, c=classes: same_steps(s, c, None)
        yield "trainer", case, on_device, device and (lambda s=settings, c=classes: same_steps(s, c, device))
    for case, dtype, form in SCORED:
        if device is None:
            yield "scoring", case, "cpu", lambda d=dtype, f=form: same_scores(CPU, d, *f)
        yield "scoring", case, on_device, device and (lambda d=dtype, f=form: same_scores(device, d, *f))
    yield "gradient", f"{LENGTH} tokens", "cpu", lambda: finite_gradients(CPU)
    yield "gradient", f"{LENGTH} tokens", on_device, device and (lambda: finite_gradients(device))
    yield "attention", "FlexAttention, not compiled", "cpu", attends_uncompiled
    for kernel in decode_attention.KERNELS:
        for dtype in (torch.bfloat16, torch.float32):
            for asked in ({}, {"window": 100}, {"window": 100, "softcap": 5.0}):
                yield (
                    "attention", f"{kernel} {str(dtype)[6:]} {' '.join(asked)}", on_device,
                    device and (lambda k=kernel, d=dtype, a=asked: attends(k, d, device, **a)),
                )  # fmt: skip
    for settings in TRAINED:
        case = tiny.name(settings)
        if device is None:
            yield "replay", case, "cpu", lambda s=settings: replayed(s, CPU)
        yield "replay", case, on_device, device and (lambda s=settings: replayed(s, device))


def main(groups: list[str]) -> int:
    device = torch.device("cuda") if torch.cuda.is_available() else None
    start, rows = time.perf_counter(), []
    for group, case, where, check in checks(device):
        if groups and group not in groups:
            continue
        verdict, figures = "not run", {}
        if check is not None:
            try:
                passed, figures = check()
                verdict = "ok" if passed else "FAILED"
            except Exception as error:  # one check that breaks says so, and the others run
                verdict, figures = "FAILED", {"error": f"{type(error).__name__}: {error}"[:300]}
        rows.append({"group": group, "case": case, "where": where, "verdict": verdict, **figures})
        shown = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        print(f"{group:9} {case:38} {where:12} {verdict:8} {shown}", flush=True)
    verdicts = [row["verdict"] for row in rows]
    told = {
        "device": torch.cuda.get_device_name() if device else None,
        "capability": list(torch.cuda.get_device_capability()) if device else None,
        "torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0],
        "seconds": round(time.perf_counter() - start, 1),
        **{name: verdicts.count(key) for name, key in (("ok", "ok"), ("failed", "FAILED"), ("not_run", "not run"))},
        "checks": rows,
    }  # fmt: skip
    print(json.dumps(told))
    return int("FAILED" in verdicts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
