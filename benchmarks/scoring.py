# SPDX-License-Identifier: Apache-2.0
"""What scoring over the vocabulary costs in the update on a GPU: bfloat16, 8192 positions, V = 151,936, K = 10.

    python benchmarks/scoring.py                 one GPU, under four minutes
    python benchmarks/scoring.py --count         launches and bytes of the same calls, without a device
    python benchmarks/scoring.py --device cpu --positions 64 --vocabulary 1000 --hidden 64     a dry run

Forward and backward. Prints one JSON object last:

    scoring_time_vs_trl_k1   log p of K candidates and the entropy, against TRL's fused head: one candidate and the entropy
    scoring_time_vs_naive, scoring_peak_vs_naive    the same against log_softmax of N x V logits and a gather
    frozen_time_vs_trl_k1    both with a head that takes no gradient, as under LoRA
    mixture_time_vs_trl_k1, mixture_peak_vs_naive   softmax(z/T) E of a gaussian thought, and the entropy
    at_ids_time_vs_trl_k1    K rows of the head a position, as gumbel thoughts are scored
    milliseconds             of each call
    log_p_error              largest difference from float64 logits of the same bfloat16 numbers, in nats
    gradient_error           largest difference of dL/dh from float64's, over the sum of |dL/dz_v| |w_v| (rounding: 2**-8)

`--count` prints for each call its launches, the gigabytes that they read and write, and `passes`: the bytes of logits, of
their gradient and of exp(x) that they read and write, in multiples of N x V float32 numbers.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock


if "--count" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trl_soft import kernels
from trl_soft.vocabulary.head_logits import HeadLogits
from trl_soft.vocabulary.tiles import TILE


K, TRL_TILE = 10, 32_768


def calls(positions: int, vocabulary: int, hidden_size: int, device: str, frozen: bool = False) -> SimpleNamespace:
    """The calls to compare by name, and what they are of."""
    torch.manual_seed(0)
    kind = {"device": device, "dtype": torch.bfloat16}
    hidden = torch.empty(positions, hidden_size, **kind).normal_().requires_grad_()
    head = nn.Linear(hidden_size, vocabulary, bias=False, **kind)
    head.weight.requires_grad_(not frozen)
    embedding = nn.Embedding(vocabulary, hidden_size, **kind)
    embedding.weight.requires_grad_(not frozen)
    ids = torch.empty(positions, K, device=device).uniform_(0, vocabulary).long()
    c, a = torch.empty(positions, K, device=device).normal_(), torch.empty(positions, device=device).normal_()
    lazy = HeadLogits(hidden, head, embedding)

    def backward(loss):
        loss.backward()
        hidden.grad = head.weight.grad = embedding.weight.grad = None

    def naive():
        log_p = torch.log_softmax((hidden @ head.weight.T).float(), -1)
        backward((log_p.gather(-1, ids) * c).sum() - ((log_p.exp() * log_p).sum(-1) * a).sum())

    def scoring():
        log_p, entropy = lazy.log_prob(ids, 1.0)
        backward((log_p * c).sum() + (entropy * a).sum())

    def mixture():
        mean, entropy = lazy.mixture(1.0)
        backward(mean.square().sum() + (entropy * a).sum())

    def at_ids():
        log_p = torch.log_softmax(lazy.at(ids), -1)
        backward((log_p * c).sum())

    def trl_k1():
        from trl.kernels import ChunkedLogProbFunction

        log_p, entropy, *_ = ChunkedLogProbFunction.apply(
            hidden, head.weight, None, ids[:, 0], 1.0, TRL_TILE, None, 1.0, ("log_probs", "entropy")
        )
        backward((log_p * c[:, 0]).sum() + (entropy * a).sum())

    by_name = {f.__name__: f for f in (naive, scoring, mixture, at_ids, trl_k1)}
    return SimpleNamespace(by_name=by_name, hidden=hidden, head=head, ids=ids, c=c, a=a, lazy=lazy)


def measured(by_name: dict[str, Callable], repeats: int, cuda: bool) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds of each call, the calls one after the other in each round, and the most bytes that each one held."""
    seconds: dict[str, list[float]] = {name: [] for name in by_name}
    peaks: dict[str, int] = {}
    for round_ in range(repeats + 2):
        for name, call in by_name.items():
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            call()
            if cuda:
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() - before
            if round_ > 1:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, peaks


def errors(things: SimpleNamespace, rows: int = 64) -> dict[str, float]:
    """Of log p and dL/dh at the first positions, against float64."""
    hidden, ids, c, a = (x[:rows].detach() for x in (things.hidden, things.ids, things.c, things.a))
    leaf, weight = hidden.clone().requires_grad_(), things.head.weight.detach().double()
    log_p, entropy = HeadLogits(leaf, things.head, things.lazy.embedding).log_prob(ids, 1.0)
    ((log_p * c).sum() + (entropy * a).sum()).backward()
    things.head.weight.grad = None
    z = (hidden.double() @ weight.T).requires_grad_()
    exact = torch.log_softmax(z, -1)
    ((exact.gather(-1, ids) * c).sum() - ((exact.exp() * exact).sum(-1) * a).sum()).backward()
    d_z = z.grad
    assert leaf.grad is not None and d_z is not None
    error = (leaf.grad.double() - d_z @ weight).norm(dim=-1) / (d_z.abs() @ weight.norm(dim=-1))
    return {
        "log_p_error": (log_p - exact.gather(-1, ids)).abs().max().item(),
        "gradient_error": error.max().item(),
    }


def timed(sizes: tuple[int, int, int], repeats: int, device: str) -> dict:
    """The figures of this page."""
    cuda = device == "cuda"
    things = calls(*sizes, device)
    seconds, peaks = measured(things.by_name, repeats, cuda)
    frozen = calls(*sizes, device, frozen=True).by_name
    of_frozen, _ = measured({name: frozen[name] for name in ("scoring", "trl_k1")}, repeats, cuda)
    results = {
        "scoring_time_vs_trl_k1": seconds["scoring"] / seconds["trl_k1"],
        "scoring_time_vs_naive": seconds["scoring"] / seconds["naive"],
        "frozen_time_vs_trl_k1": of_frozen["scoring"] / of_frozen["trl_k1"],
        "mixture_time_vs_trl_k1": seconds["mixture"] / seconds["trl_k1"],
        "at_ids_time_vs_trl_k1": seconds["at_ids"] / seconds["trl_k1"],
        "milliseconds": {name: 1000 * value for name, value in seconds.items()},
        **errors(things),
    }
    for name in ("scoring", "mixture") if cuda else ():
        results[f"{name}_peak_vs_naive"] = peaks[name] / peaks["naive"]
    return results


class Counter(TorchDispatchMode):
    """
    Launches, and the bytes that they read and write: each tensor of an operation once, views and allocations left out.

    Args:
        positions: a matrix of so many rows, or columns, that is none of `others` wide, is of logits.
    """

    _FREE = frozenset(("empty", "empty_like", "new_empty", "alias", "detach", "lift_fresh"))

    def __init__(self, positions: tuple[int, ...], others: tuple[int, ...]):
        super().__init__()
        self.positions, self.others = positions, others
        self.launches = self.bytes = self.of_logits = 0

    def launched(self, name: str, moved: int) -> None:
        self.launches += 1
        self.bytes += moved
        self.of_logits += moved if name in ("_fold", "_gradient", "trl") else 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if view or func._schema.name.split("::")[1] in self._FREE:
            return out
        self.launches += 1
        # What is written to is not read, but for what is added to.
        for x in tree_leaves((args, {name: x for name, x in (kwargs or {}).items() if name != "out"})):
            self._add(x)
        for x in tree_leaves(out):
            self._add(x)
        return out

    def _add(self, x) -> None:
        if not isinstance(x, torch.Tensor):
            return
        moved = x.numel() * x.element_size()
        self.bytes += moved
        if x.dim() == 2 and any(x.size(i) in self.positions and x.size(1 - i) not in self.others for i in (0, 1)):
            self.of_logits += moved


@contextmanager
def trl_as_on_cuda(counter: Counter):
    """TRL's head takes its CUDA road on meta tensors too; its kernels are told to the counter and not run."""
    from trl.kernels import chunked_logprob

    class Launch:
        def __init__(self, passes: int):
            self.passes = passes

        def __getitem__(self, grid):
            return lambda tile, *args, **kwargs: counter.launched(
                "trl", self.passes * tile.numel() * tile.element_size()
            )

    def addmm(acc, a, b):
        torch.addmm(acc, a, b, out_dtype=torch.float32, out=acc)

    # Meta tensors know no autocast.
    autocast = mock.patch.object(torch, "is_autocast_enabled", lambda kind: False)
    road = mock.patch.multiple(
        chunked_logprob,
        _use_triton=lambda device: True,
        _forward_kernel=Launch(1),
        _backward_kernel=Launch(2),
        _addmm_fp32=addmm,
        triton=SimpleNamespace(cdiv=lambda a, b: -(-a // b)),
    )
    with autocast, road:
        yield


def counted(call: Callable, sizes: tuple[int, int, int], context) -> dict[str, float]:
    """What one call launches, reads and writes."""
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

    positions, vocabulary, hidden_size = sizes
    counter = Counter((positions, min(positions, TOKEN_CHUNK_SIZE)), (hidden_size, K, 1))
    kernels.watchers.append(counter.launched)
    try:
        with context, trl_as_on_cuda(counter), counter:
            call()
    finally:
        kernels.watchers.remove(counter.launched)
    return {
        "launches": counter.launches,
        "gigabytes": round(counter.bytes / 1e9, 2),
        "passes": round(counter.of_logits / (4 * positions * vocabulary), 2),
    }


def counts(sizes: tuple[int, int, int]) -> dict[str, dict[str, float]]:
    """Of each call with the kernels; of our own with plain torch too, in these tiles and in a CPU's."""
    by_name = calls(*sizes, "meta").by_name
    # Its backward reads from the device how many tokens occur, which meta tensors do not know: counted with a frozen head.
    del by_name["at_ids"]
    results = {name: counted(call, sizes, kernels.interpreted()) for name, call in by_name.items()}
    frozen = calls(*sizes, "meta", frozen=True).by_name
    for name in ("scoring", "trl_k1", "at_ids"):
        results[f"{name}, frozen"] = counted(frozen[name], sizes, kernels.interpreted())
    results["at_ids, frozen, plain"] = counted(frozen["at_ids"], sizes, kernels.plain())
    for name in ("scoring", "mixture"):
        results[f"{name}, plain"] = counted(by_name[name], sizes, kernels.plain())
        with mock.patch.dict(TILE, cuda=TILE["cpu"]):
            results[f"{name}, plain, tiles of a CPU"] = counted(by_name[name], sizes, kernels.plain())
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count, without a device")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    sizes = (options.positions, options.vocabulary, options.hidden)
    results: dict = dict(zip(("positions", "vocabulary", "hidden"), sizes, strict=True)) | {"K": K}
    if options.count:
        print(json.dumps(results | counts(sizes)))
        return
    if options.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit(
                "This benchmark measures a CUDA device and there is none. `--count` counts what one would do, and `--device "
                "cpu` with a small size runs the calls."
            )
        results["device"] = torch.cuda.get_device_name()
    print(json.dumps(results | {"torch": torch.__version__} | timed(sizes, options.repeats, options.device)))


if __name__ == "__main__":
    main()
