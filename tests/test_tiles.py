# SPDX-License-Identifier: Apache-2.0
"""The vocabulary in tiles: kernels against plain functions at the edges, what a call launches and holds, what bfloat16 keeps."""

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trl_soft import KeyedNoise, kernels
from trl_soft.thoughts import Gaussian
from trl_soft.vocabulary import tiled_softmax
from trl_soft.vocabulary.head_logits import DenseLogits, HeadLogits
from trl_soft.vocabulary.row_sums import dot_rows, mix_rows
from trl_soft.vocabulary.sharding import gathered
from trl_soft.vocabulary.tiles import TILE, tile_columns


# The benchmark on an H200: positions, vocabulary, hidden size.
FULL = (8192, 151_936, 1536)


@pytest.fixture(scope="module")
def benchmark():
    """Modules of benchmarks/, which lie in no package."""
    folder = str(Path(__file__).parent.parent / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(folder)


def world(n=3, vocabulary=90, size=8, bias=False, dtype=torch.float32, tied=False):
    """Hidden states, head and table, all leaves."""
    draw = torch.Generator().manual_seed(0)
    head, embedding = torch.nn.Linear(size, vocabulary, bias=bias), torch.nn.Embedding(vocabulary, size)
    for weight in (head.weight, embedding.weight, *([head.bias] if bias else [])):
        weight.data = torch.randn(weight.shape, generator=draw)
    if tied:
        embedding.weight = head.weight
    head, embedding = head.to(dtype), embedding.to(dtype)
    hidden = torch.randn(n, size, generator=draw).to(dtype).requires_grad_()
    return hidden, head, embedding


def scored(path, hidden, head, embedding, ids=None, mixes=False, temperature=0.7, scale=1.0, softcap=None):
    """Values and gradients of a loss that reads all of them."""
    view = HeadLogits(hidden, head, embedding, scale, softcap)
    leaves = [hidden, head.weight, *([head.bias] if head.bias is not None else []), *([embedding.weight] * mixes)]
    with path():
        values = view._over_vocabulary(embedding.weight if mixes else None, ids, temperature)
        values = [value for value in values if value is not None]
        draw = torch.Generator().manual_seed(1)
        loss = sum((value * torch.randn(value.shape, generator=draw)).sum() for value in values)
        return [value.detach() for value in values], torch.autograd.grad(loss, leaves)


def many_ids(n: int, vocabulary: int) -> torch.Tensor:
    """40 a row, more than a block of them: every one a few times, in no order, the first and the last token too."""
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, vocabulary, (n, 20), generator=draw)
    ids[:, 0], ids[:, 1] = 0, vocabulary - 1
    return torch.cat([ids, ids.flip(-1)], -1)


@pytest.mark.parametrize(
    "settings",
    [
        {"n": 2, "vocabulary": 9000},  # tiles of three of a kernel's blocks of columns
        {"vocabulary": 90, "bias": True, "scale": 0.5, "softcap": 2.0, "mixes": True},
        {"vocabulary": 90, "mixes": True, "tied": True, "temperature": 1.0},
        {"n": 0, "mixes": True},
        {"vocabulary": 1},
    ],
    ids=["wide", "all at once", "tied", "no position", "one token"],
)
def test_kernels_are_the_plain_functions(settings, monkeypatch):
    """Candidates and a mixture at once; values to float32's rounding, gradients to that of sums of a few terms."""
    settings = dict(settings)
    of_call = {name: settings.pop(name) for name in ("mixes", "temperature", "scale", "softcap") if name in settings}
    hidden, head, embedding = world(**settings)
    n, vocabulary = len(hidden), head.out_features
    monkeypatch.setitem(TILE, "cpu", max(n, 1) * (vocabulary // 2 + 1))
    ids = many_ids(n, vocabulary)
    ids[:, 2:3] = (hidden @ head.weight.T).argmax(-1, keepdim=True)
    of_call |= {"ids": ids}
    expected, ours = (
        scored(path, hidden, head, embedding, **of_call) for path in (kernels.plain, kernels.interpreted)
    )
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", [kernels.plain, kernels.interpreted], ids=["plain", "kernels"])
def test_a_number_that_is_none_stays_in_its_row(path):
    """A NaN among the logits is told by log-probability, entropy and mixture of its row, and by no other's."""
    hidden, head, embedding = world(dtype=torch.float32)
    hidden.data[1, 3] = math.nan
    with path():
        log_p, entropy = HeadLogits(hidden, head, embedding).log_prob(torch.zeros(3, 1, dtype=torch.long), 1.0)
        mean, _ = HeadLogits(hidden, head, embedding).mixture(1.0)
    for value in (log_p[:, 0], entropy, mean[:, 0]):
        assert value.isnan().tolist() == [False, True, False]


class Made(TorchDispatchMode):
    """Shapes of all that operations return, but for views of what was there before."""

    def __init__(self, *before):
        super().__init__()
        self.shapes, self.before = set(), {x.untyped_storage()._cdata for x in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata not in self.before:
            self.shapes.add(tuple(out.shape))
        return out


@pytest.mark.parametrize("mixes", [False, True])
def test_frozen_weights_get_no_gradient_and_none_is_made(mixes):
    size, vocabulary, n = 1536, 151_936, 64
    hidden = torch.empty(n, size, device="meta", dtype=torch.bfloat16, requires_grad=True)
    head = torch.nn.Linear(size, vocabulary, bias=False, device="meta", dtype=torch.bfloat16).requires_grad_(False)
    table = torch.nn.Embedding(vocabulary, size, device="meta", dtype=torch.bfloat16).requires_grad_(False)
    view = HeadLogits(hidden, head, table)
    with kernels.interpreted(), Made(head.weight, table.weight) as made:
        value, entropy = view.mixture(0.7) if mixes else view.log_prob(torch.empty(n, 3, device="meta").long(), 0.7)
        (value.sum() + entropy.sum()).backward()
    assert (n, size) in made.shapes and (vocabulary, size) not in made.shapes


@pytest.mark.parametrize("n", [0, 1, 64, 1000, 8192, 100_000])
def test_tiles_on_a_gpu_are_about_as_large(n):
    """Together the vocabulary, each within the budget or one step of columns wide, none much narrower than the others."""
    vocabulary = FULL[1]
    columns = tile_columns(n, vocabulary, "cuda")
    tiles = math.ceil(vocabulary / columns)
    assert n * columns <= TILE["cuda"] + n * 128
    assert columns == vocabulary or columns % 128 == 0
    assert vocabulary - (tiles - 1) * columns > columns / 2 or n > TILE["cuda"] // 2048


def test_what_a_call_launches_and_moves(benchmark):
    """
    log p of ten candidates and the entropy at 8192 positions of a vocabulary of 151,936, counted on meta tensors. A tile is a
    product and a kernel, and on the way back a product, a kernel and two products. Of float32 logits forward writes
    one and reads one; backward too, and writes half as many bytes of gradient, which two products read.
    """
    scoring = benchmark("scoring")
    by_name = scoring.calls(*FULL, "meta").by_name
    tiles = math.ceil(FULL[1] / tile_columns(FULL[0], FULL[1], "cuda"))
    assert tiles == 10
    counts = scoring.counted(by_name["scoring"], FULL, kernels.interpreted())
    assert counts["launches"] <= (2 + 4) * tiles + 45
    assert counts["passes"] <= 2 + 3.5 + 0.01
    # A mixture besides: exp(x) in two halves, written and read, for which the logits are read again; on the way back
    # <g, E_v>, written and read, and half as many bytes of exp(x), written and read. 0.2 is for R, H wide.
    counts = scoring.counted(by_name["mixture"], FULL, kernels.interpreted())
    assert counts["launches"] <= (4 + 6) * tiles + 60
    assert counts["passes"] <= 2 + 3 + 3.5 + 3 + 0.2 + 0.01


def test_the_most_that_a_call_holds(benchmark):
    """At most a fifth of what log_softmax of N x V logits holds: every storage, as torch's operations make and drop them."""
    held, scoring = benchmark("measure").Held, benchmark("scoring")
    by_name = scoring.calls(*FULL, "meta").by_name
    most = {}
    for name in ("naive", "scoring", "mixture"):
        with kernels.interpreted(), held() as counter:
            by_name[name]()
        most[name] = counter.most[""]
    assert most["scoring"] <= 0.1 * most["naive"] and most["mixture"] <= 0.2 * most["naive"]


def test_a_gaussian_thought_of_bfloat16_weights_is_scored_as_it_was_drawn():
    """
    Its density multiplies rounding by 1/sigma: drawn from float32 sums of the same bfloat16 numbers, re-scored by the kernels,
    at sigma = 0.33 RMS of the table. `docs/replay.md` limits the mean difference in float32 to 0.01, and exp(x) in one
    bfloat16 number would miss it.
    """
    size, n, temperature = 512, 8, 0.3
    hidden, head, embedding = world(n, 1000, size, dtype=torch.bfloat16)
    hidden = (hidden.detach() / math.sqrt(size)).float().mul(2).bfloat16()
    rms = embedding.weight.float().square().mean().sqrt().item()
    thought, view = Gaussian(temperature, 0.33 * rms), HeadLogits(hidden, head, embedding)
    z = hidden.float() @ head.weight.float().T
    noise = KeyedNoise(0, 0, torch.arange(n), torch.zeros(n, dtype=torch.long))
    with torch.no_grad():
        drawn_from = DenseLogits(z, embedding.weight.float())
        action, _ = thought.sample(drawn_from, noise)
        drawn = thought.log_prob(drawn_from, action)
        with kernels.interpreted():
            again = thought.log_prob(view, action)
        log_p = drawn_from.log_softmax(temperature)
        e = (log_p - log_p.amax(-1, keepdim=True)).exp()
        in_one = (e.bfloat16().float() @ embedding.weight.float()) / e.sum(-1, keepdim=True)
    assert (again - drawn).abs().mean() <= 0.001
    assert (thought._density(action["embedding"], in_one, False) - drawn).abs().mean() > 0.01


def test_small_probabilities_keep_their_digits():
    """
    Two tokens 40 to 80 temperatures apart: log p of the likelier is -exp(-gap/T) to float32's digits. A power of one product would
    be off by half an eps times its exponent, 5e-6.
    """
    hidden, temperature = torch.linspace(0.5, 1.0, 65)[1:, None], 0.0123
    head, table = torch.nn.Linear(1, 2, bias=False), torch.nn.Embedding(2, 1)
    head.weight.data = torch.tensor([[1.0], [0.0]])
    with kernels.interpreted():
        log_p, _ = HeadLogits(hidden, head, table).log_prob(torch.zeros(64, 1, dtype=torch.long), temperature)
    exact = -torch.log1p(torch.exp(-hidden.double() / temperature))
    torch.testing.assert_close(log_p.detach().double(), exact, rtol=1e-6, atol=0)


def test_an_incoming_gradient_is_rounded_once():
    """
    Rows of E that are alike: of <g, E_v - mean> almost all cancels, and what is left is that of one rounded g. Were g rounded
    in <g, E_v> and not in <g, mean>, 2**-8 of |g| |E_v| would stay, a hundred times this bound.
    """
    n, vocabulary, size, temperature = 4, 60, 16, 0.5
    hidden, head, table = world(n, vocabulary, size, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(5)
    table.weight.data = (16 + torch.randint(0, 4, (vocabulary, size), generator=draw) / 8).bfloat16()
    g = torch.randn(n, size, generator=draw)
    with kernels.interpreted():
        (HeadLogits(hidden, head, table).mixture(temperature)[0] * g).sum().backward()
    w, E = head.weight.detach().double(), table.weight.detach().double()
    z = (hidden.detach().double() @ w.T).requires_grad_()
    p = torch.softmax(z / temperature, -1)
    ((p @ E) * g).sum().backward()
    unsigned = g.double().norm(dim=1, keepdim=True) * p * (p @ torch.cdist(E, E)) / temperature
    want, rounding = z.grad @ w, 2.0**-7
    limit = (2 * rounding + 1e-5) * ((z.grad.abs() + unsigned) @ w.norm(dim=1)) + rounding * want.norm(dim=1)
    assert ((hidden.grad.double() - want).norm(dim=1) <= limit).all()


def test_float32_weights_under_autocast():
    """
    The kernels multiply what autocast would round to bfloat16; values are those of the rounded numbers, and the head's
    gradient stays float32. 2**-7 is what the interpreter's rounding of dL/dz leaves. On a CPU float32 stays float32.
    """
    rounded, low_head, table = world(dtype=torch.bfloat16)
    hidden, head, _ = world()
    ids = many_ids(3, 90)
    (low_p, _), (d_low, d_low_head) = scored(kernels.interpreted, rounded, low_head, table, ids)
    (plain_p, _), _ = scored(kernels.plain, hidden, head, table, ids)
    with torch.autocast("cpu", torch.bfloat16):
        (log_p, _), (d_hidden, d_head) = scored(kernels.interpreted, hidden, head, table, ids)
        (kept, _), _ = scored(kernels.plain, hidden, head, table, ids)
    assert torch.equal(log_p, low_p) and torch.equal(kept, plain_p) and not torch.equal(log_p, kept)
    assert d_head.dtype == d_hidden.dtype == torch.float32
    torch.testing.assert_close(d_hidden.bfloat16(), d_low)
    torch.testing.assert_close(d_head.bfloat16(), d_low_head)


def test_float16_gradients_do_not_overflow_at_a_low_temperature():
    """dL/dz of 1e5 fits no float16. Here it is of two tokens that have the same weights, and cancels."""
    hidden, head, embedding = world(dtype=torch.float16)
    head.weight.data[1] = head.weight.data[0]
    head.weight.requires_grad_(False)
    with kernels.interpreted():
        log_p, _ = HeadLogits(hidden, head, embedding).log_prob(torch.tensor([[0, 1]]).expand(3, -1), 1e-5)
        log_p.diff(dim=-1).sum().backward()
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_rows_by_a_kernel_are_those_of_the_plain_function(dtype):
    """K products a position, and their gradients: more columns than a block, ids that repeat, sums in float32."""
    hidden, head, _ = world(n=3, vocabulary=20, size=1100, dtype=dtype)
    ids, c = many_ids(3, 20)[:, :7], torch.randn(3, 7, generator=torch.Generator().manual_seed(3))
    results = []
    for path in (kernels.plain, kernels.interpreted):
        with path():
            z = dot_rows(hidden, ids, head.weight, gathered)
            results.append([z, *torch.autograd.grad((z * c).sum(), (hidden, head.weight))])
    # 1,100 products of about 1 are summed in another order.
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_rows_are_those_of_torch(dtype):
    """Of rows mixed and of rows multiplied, with ids that repeat, against a lookup in float64."""
    draw = torch.Generator().manual_seed(0)
    hidden, table = (torch.randn(n, 6, generator=draw).to(dtype).requires_grad_() for n in (5, 20))
    ids, weights = many_ids(5, 20)[:, :7], torch.rand(5, 7, generator=draw)
    c, g = torch.randn(5, 7, generator=draw), torch.randn(5, 6, generator=draw)
    h, rows = hidden.detach().double().requires_grad_(), table.detach().double().requires_grad_()
    z, mixed = dot_rows(hidden, ids, table, gathered), mix_rows(weights, ids, table, 3)
    ours = [*torch.autograd.grad((z * c).sum(), (hidden, table)), *torch.autograd.grad((mixed * g).sum(), table)]
    z = torch.einsum("nkh,nh->nk", rows[ids], h)
    mixed = torch.einsum("nk,nkh->nh", weights.double(), torch.nn.functional.embedding(ids, rows, 3))
    theirs = [*torch.autograd.grad((z * c).sum(), (h, rows)), *torch.autograd.grad((mixed * g).sum(), rows)]
    # Sums are in float32, and a gradient in bfloat16 is rounded to it once.
    tolerance = {"rtol": 2**-8, "atol": 1e-6} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)


def test_kernels_compile_for_devices_that_are_not_here():
    """For Ampere and Hopper: what only the interpreter understands would be found by users."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compiled_tiles", "80", "90"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 14


def test_the_log_says_that_float16_autocast_scores_in_float32(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(tiled_softmax.logger, "warning_once", told.append)
    weight = torch.zeros(4, 2)
    with kernels.interpreted(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiled_softmax.product_dtype(weight) == torch.bfloat16 and not told
    with kernels.interpreted(), torch.autocast("cpu", dtype=torch.float16):
        assert tiled_softmax.product_dtype(weight) == torch.float32
    assert "outside the tensor cores" in told[0]
