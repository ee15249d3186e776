# SPDX-License-Identifier: Apache-2.0
"""Attention of a decode step: one query for each slot, up to the slot's own length. This module chooses and calls a kernel.

    flash-attn       `flash_attn_with_kvcache`, made for this: splits long slots, shares keys among the heads of a group
    varlen           torch's own flash attention with `seqused_k`, from torch 2.13 on
    FlexAttention    compiled by torch, with a block mask that ends with the slot: any precision, caps and sinks too
    mask             torch's attention over the longest slot, with the positions beyond each slot's length masked out

The first kernel that can run is used. Before that it must agree with the mask on a few slots on this device, captured in a
CUDA graph. The log says once which kernel runs, and why the earlier ones do not. A CPU uses the mask, cut at the longest slot.
No kernel reads anything back to the host: lengths are tensors, and shapes are those of the cache.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from packaging.version import Version
from transformers.utils import logging

from .compiled_attention import call_compiled


logger = logging.get_logger(__name__)

_BLOCK = 128  # keys in a block of FlexAttention's mask
_FLASH = "2.6"  # the first flash-attn that caps scores
_AMPERE = 8
_HALF = (torch.bfloat16, torch.float16)


@dataclass
class Step:
    """
    The attention of one layer in a decode step. Letters: S slots, T tokens that a slot can hold, D size of a head.

    Args:
        query (`torch.Tensor` of shape `(S, query heads, 1, D)`).
        keys, values (`torch.Tensor` of shape `(S, T, heads, D)`): as the cache holds them, with those of this step.
        position (`torch.Tensor` of shape `(S,)`, int64): position of the query in its slot. It sees `position + 1` tokens.
        scaling (`float`, *optional*): `None` means D ** -0.5. window (`int`, *optional*): most tokens that a query sees.
        softcap (`float`, *optional*), sinks (`torch.Tensor` of shape `(query heads,)`, *optional*).
        shared (`dict`): values that the layers of one step share. Each path keeps its own values there.
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    position: torch.Tensor
    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    shared: dict[Any, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens that each slot's query sees without a window, (S,) int32."""
        if "lengths" not in self.shared:
            self.shared["lengths"] = (self.position + 1).int()
        return self.shared["lengths"]


# The paths. Each: Step -> (S, 1, query heads, size of a value)


def masked(query, key, value, mask, scaling=None, softcap=None, sinks=None, dropout: float = 0.0) -> torch.Tensor:
    """
    Attention of `query` (S, query heads, tokens, D) to `key` and `value` (S, heads, reach, D) where `mask` is True.

    Heads that share keys are stacked as if they were tokens, so that a step never repeats keys and values.
    """
    rows, heads, tokens, size = query.shape
    group = heads // key.size(1)
    q = query.reshape(rows, key.size(1), group * tokens, size)
    if group > 1 and tokens > 1:
        mask = mask.repeat(1, 1, group, 1)
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(q, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    else:
        z = q @ key.transpose(-1, -2) * (scaling if scaling is not None else size**-0.5)
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        z = z.float().masked_fill(~mask, torch.finfo(torch.float32).min)
        if sinks is not None:
            sink = sinks.float().view(1, key.size(1), group, 1, 1).expand(rows, -1, -1, tokens, 1)
            z = torch.cat([z, sink.reshape(rows, key.size(1), group * tokens, 1)], dim=-1)
        p = F.dropout(torch.softmax(z, dim=-1)[..., : key.size(2)].to(query.dtype), dropout)
        out = p @ value
    return out.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous()


def _by_mask(step: Step) -> torch.Tensor:
    """The reference for the other paths."""
    past, now = torch.arange(step.keys.size(1), device=step.keys.device), step.position.view(-1, 1, 1, 1)
    seen = past <= now if step.window is None else (past <= now) & (past > now - step.window)
    key, value = step.keys.transpose(1, 2), step.values.transpose(1, 2)
    return masked(step.query, key, value, seen, step.scaling, step.softcap, step.sinks)


def _window(step: Step) -> tuple[int, int]:
    """The window as flash attention counts it: tokens before and after the query's own, -1 for all."""
    return (-1, -1) if step.window is None else (step.window - 1, 0)


def _flash(step: Step) -> torch.Tensor:
    from flash_attn import flash_attn_with_kvcache

    return flash_attn_with_kvcache(
        step.query.transpose(1, 2), step.keys, step.values, cache_seqlens=step.lengths, softmax_scale=step.scaling,
        causal=True, window_size=_window(step), softcap=step.softcap or 0.0,
    )  # fmt: skip


def _varlen(step: Step) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows, length = step.keys.shape[:2]
    if "starts" not in step.shared:
        starts = torch.arange(rows + 1, device=step.keys.device, dtype=torch.int32)
        step.shared["starts"] = starts, starts * length
    of_queries, of_keys = step.shared["starts"]
    out: Any = varlen_attn(
        step.query[:, :, 0].contiguous(), step.keys.flatten(0, 1), step.values.flatten(0, 1), of_queries, of_keys, 1,
        length, scale=step.scaling, window_size=_window(step), enable_gqa=True, seqused_k=step.lengths,
    )  # fmt: skip
    return out.unsqueeze(1)


def block_mask(position: torch.Tensor, length: int, window: int | None, queries: int):
    """
    FlexAttention's mask of a decode step: for each slot, the blocks from the first to the last key that it sees.

    Args:
        position (`torch.Tensor` of shape `(S,)`). length (`int`): T. queries (`int`): tokens of a slot in the call.
    """
    from torch.nn.attention.flex_attention import BlockMask

    last = position // _BLOCK
    first = torch.zeros_like(last) if window is None else (position - window + 1).clamp(min=0) // _BLOCK
    blocks = -(-length // _BLOCK)
    index = first.unsqueeze(-1) + torch.arange(blocks, device=position.device)

    if window is None:

        def seen(b, h, q, k):
            return k <= position[b]
    else:

        def seen(b, h, q, k):
            return (k <= position[b]) & (k > position[b] - window)

    # Only a backward needs blocks of queries. They cannot be left out before torch 2.10.
    options: dict = {"compute_q_blocks": False} if _takes(BlockMask.from_kv_blocks, "compute_q_blocks") else {}
    return BlockMask.from_kv_blocks(
        (last - first + 1).int().view(-1, 1, 1),
        index.clamp(max=blocks - 1).int().view(-1, 1, 1, blocks),
        BLOCK_SIZE=(_BLOCK, _BLOCK),
        mask_mod=seen,
        seq_lengths=(queries, length),
        **options,
    )


def _flex(step: Step, compiled: bool = True) -> torch.Tensor:
    from torch.nn.attention import flex_attention as module

    rows, heads, _, size = step.query.shape
    # Heads that share keys are stacked as if they were tokens: FlexAttention's own groups must be powers of two.
    query = step.query.reshape(rows, step.keys.size(2), -1, size)
    key, value = step.keys.transpose(1, 2), step.values.transpose(1, 2)
    name = ("blocks", step.window, query.size(2))
    if name not in step.shared:
        step.shared[name] = block_mask(step.position, key.size(2), step.window, query.size(2))
    blocks, cap = step.shared[name], step.softcap
    options: dict = {"scale": step.scaling, "block_mask": blocks}
    if cap is not None:
        options["score_mod"] = lambda score, b, h, q, k: cap * torch.tanh(score / cap)
    if step.sinks is not None:
        aux = getattr(module, "AuxRequest", None)
        options |= {"return_lse": True} if aux is None else {"return_aux": aux(lse=True)}
    if compiled:
        # The kernel for few queries needs a fixed number of slots. The length of a slot may differ.
        for tensor in (query, key, value, blocks.kv_num_blocks, blocks.kv_indices, step.position):
            torch._dynamo.mark_static(tensor, 0)
        found = call_compiled(_kind(step, query), (query, key, value), options)
    else:
        found = module.flex_attention(query, key, value, **options)
    if step.sinks is None:
        out = found
    else:
        out, rest = found
        lse = getattr(rest, "lse", rest)  # (S, heads, group)
        # A sink is one more key without a value: it adds exp(sink) to the sum.
        share = torch.sigmoid(lse.float() - step.sinks.float().view(1, *lse.shape[1:]))
        out = (out * share.unsqueeze(-1)).to(out.dtype)
    return out.reshape(rows, heads, 1, -1).transpose(1, 2)


def _kind(step: Step, query: torch.Tensor) -> tuple:
    """Everything that a compilation depends on, except the length of a slot."""
    return (
        *query.shape, *step.keys.shape[2:], step.values.size(3), query.dtype, query.device, step.scaling, step.window,
        step.softcap, step.sinks is not None, torch.is_grad_enabled(),
    )  # fmt: skip


def _takes(function, name: str) -> bool:
    return name in inspect.signature(function).parameters


# Which of them


KERNELS: dict[str, Callable[[Step], torch.Tensor]] = {"flash-attn": _flash, "varlen": _varlen, "FlexAttention": _flex}


@dataclass(frozen=True)
class Installed:
    """
    The attention kernels that are installed.

    Args:
        capability (`int`): major compute capability of the device.
        flash (`str`, *optional*): flash-attn's version. varlen (`bool`): torch's attention takes lengths. triton (`bool`).
    """

    capability: int
    flash: str | None
    varlen: bool
    triton: bool


@dataclass(frozen=True)
class Features:
    """The features that a layer's attention needs. Sizes are those of a key's and a value's head."""

    dtype: torch.dtype
    size: int
    value_size: int
    softcap: bool = False
    sinks: bool = False
    dropout: bool = False
    window: bool = False


def installed(device: torch.device) -> Installed:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        varlen = False
    else:
        varlen = _takes(varlen_attn, "seqused_k")
    try:
        flash = version("flash-attn") if find_spec("flash_attn") else None
    except PackageNotFoundError:  # a module of that name in another package
        flash = None
    return Installed(torch.cuda.get_device_capability(device)[0], flash, varlen, find_spec("triton") is not None)


def why_not(kernel: str, there: Installed, asked: Features) -> str | None:
    """Why a kernel cannot compute a layer's attention here, as a clause. `None` if it can."""
    flash = kernel != "FlexAttention"
    if kernel == "flash-attn" and there.flash is None:
        return "is not installed"
    if kernel == "flash-attn" and Version(there.flash or "0") < Version(_FLASH):
        return f"is {there.flash}, and {_FLASH} is needed"
    if kernel == "varlen" and not there.varlen:
        return f"takes lengths from torch 2.13 on, and this is {torch.__version__}"
    if kernel == "FlexAttention" and not there.triton:
        return "needs Triton, which is not installed"
    if there.capability < _AMPERE:
        return f"needs compute capability {_AMPERE}, and this device has {there.capability}"
    if asked.dropout:
        return "has no dropout"
    if flash and asked.dtype not in _HALF:
        return f"takes half precision, and keys are in {str(asked.dtype).removeprefix('torch.')}"
    if flash and (asked.size != asked.value_size or asked.size > 256 or asked.size % 8):
        return (
            f"takes heads of one size up to 256, a multiple of 8, and these have {asked.size} and {asked.value_size}"
        )
    if flash and asked.sinks:
        return "has no sinks"
    if kernel == "varlen" and asked.softcap:
        return "has no cap of the scores"
    if not flash and min(asked.size, asked.value_size) < 16:
        return f"takes heads of size 16 and more, and these have {min(asked.size, asked.value_size)}"
    return None


def choose(there: Installed, asked: Features, trial: Callable[[str], str | None]) -> tuple[str, dict[str, str]]:
    """
    The first kernel that can compute a layer's attention, or `mask` if none can; and why the earlier kernels cannot.

    Args:
        trial: a function of a kernel that should work. It returns what went wrong, as a clause, or `None`.
    """
    reasons: dict[str, str] = {}
    for kernel in KERNELS:
        reason = why_not(kernel, there, asked) or trial(kernel)
        if reason is None:
            return kernel, reasons
        reasons[kernel] = reason
    return "mask", reasons


def told(kernel: str, reasons: dict[str, str]) -> str:
    """The sentence for the log: the path, its cost, and why the earlier ones are not used."""
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    if kernel == "mask":
        return (
            "A decode step attends through a mask over the longest slot, so that each slot costs what the longest does: "
            f"{why}. docs/gpu.md"
        )
    return (
        f"A decode step attends by {kernel}, each slot up to its own length{f' ({why})' if why else ''}. docs/gpu.md"
    )


def try_out(kernel: str, like: Step) -> str | None:
    """
    What goes wrong if a kernel computes a step `like` this one, as a clause. `None` if nothing does.

    The trial has three slots of unequal lengths, the last one full. It runs eagerly and captured. The mask is the reference.
    """
    heads, size = like.query.size(1), like.query.size(-1)
    shared, wide, room = like.keys.size(2), like.values.size(-1), 2 * _BLOCK + 16

    def waves(
        of: torch.Tensor, *shape: int
    ) -> torch.Tensor:  # not random: a draw would change the later draws of the run
        count = torch.arange(torch.Size(shape).numel(), device=of.device, dtype=torch.float32)
        return torch.sin(count * 0.7 + count.square() * 1e-3).view(shape).to(of.dtype)

    position = torch.tensor([0, _BLOCK + 5, room - 1], device=like.query.device)
    window = None if like.window is None else min(like.window, _BLOCK + 3)
    step = Step(
        waves(like.query, 3, heads, 1, size), waves(like.keys, 3, room, shared, size),
        waves(like.values, 3, room, shared, wide), position, like.scaling, window, like.softcap, like.sinks,
    )  # fmt: skip
    attend, right = KERNELS[kernel], _by_mask(step)
    try:
        found = [attend(step)]
        if like.query.is_cuda:
            step.shared.clear()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found.append(attend(step))
            graph.replay()
    except Exception as error:  # a compiler, a driver or a package of another build can raise anything
        return f"failed when it was tried ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]})"
    # The values are up to 1, with 8 bits. float32 products may use TF32.
    limit = 0.02 if step.query.dtype in _HALF else 5e-3
    off = max((each.float() - right.float()).abs().max().item() for each in found)
    return None if off <= limit else f"was {off:.3g} off the mask when it was tried"


_chosen: dict[Any, str] = {}


def kernel_for(step: Step, dropout: float = 0.0) -> str:
    """The kernel of a step on a CUDA device. It is tried and logged once for each kind of layer."""
    asked = Features(
        step.query.dtype, step.query.size(-1), step.values.size(-1), step.softcap is not None, step.sinks is not None,
        bool(dropout), step.window is not None,
    )  # fmt: skip
    name = (step.query.device, step.query.size(1), step.keys.size(2), asked)
    if name not in _chosen:
        _chosen[name], reasons = choose(installed(step.query.device), asked, lambda kernel: try_out(kernel, step))
        logger.warning_once(told(_chosen[name], reasons))
    return _chosen[name]
