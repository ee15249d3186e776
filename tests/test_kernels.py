# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels, in Triton's interpreter, against the plain torch functions.

Both compute in float64 where a number is a difference or a logarithm of sums, and round it once to float32: 1 ulp apart. Sums
within a block of 256 logits are float32, so a log-probability over the vocabulary is compared at 4 ulps of its largest term.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from tests.test_engine import assert_same, plan, run
from trl_soft import kernels
from trl_soft.noise import KeyedNoise
from trl_soft.rollout.vllm.served_table import Table
from trl_soft.thoughts import Gaussian, Gumbel, Hard, Mixture
from trl_soft.thoughts.candidates import candidates, renormalised, softmax_on
from trl_soft.thoughts.gaussian import _centred
from trl_soft.thoughts.gumbel import DENSITIES
from trl_soft.vocabulary.categorical import inverse_cdf, pick
from trl_soft.vocabulary.dense_logits import DenseLogits, entropy_of, tempered
from trl_soft.vocabulary.embedding_table import Lookup
from trl_soft.vocabulary.row_sums import mix_rows


ULP = 2.0**-23
# Rows and vocabularies: one block and a part of it, a whole number of blocks, a block that a program's eighth ends in.
# With a temperature that divides nothing, one that does, and one whose logits are 1e5.
CASES = [(1, 5, 0.7), (3, 256, 1.0), (2, 300, 1e-4), (2, 2048, 1.0), (2, 2305, 0.7)]


def logits(n: int, V: int, dtype=torch.float32) -> torch.Tensor:
    """A row of large differences, rows with tokens suppressed, and numbers of both signs near zero."""
    z = torch.randn(n, V, generator=torch.Generator().manual_seed(V)) * 4
    z[0, 1::3] = -torch.inf
    z[-1, ::5] = 0.0
    z[-1, ::10] = -0.0
    return z.to(dtype)


def noise(n: int) -> KeyedNoise:
    return KeyedNoise(5, 2, torch.arange(n) + 3, torch.arange(n) * 7)


def close(ours, theirs, ulps: int = 1, atol: float = 0.0):
    torch.testing.assert_close(ours, theirs, rtol=ulps * ULP, atol=atol, equal_nan=True)


def ways(function):
    """By the kernels, and by plain torch."""
    with kernels.interpreted():
        ours = function()
    return ours, function()


@pytest.mark.parametrize(
    "seed, generation",
    [
        (0, 0),
        (2**63 - 5, 2**32 - 1),
        (-3, 1),
        (torch.tensor([-(2**62), 1, 2**40]), torch.tensor([0, 2**31, 2**32 - 1])),
    ],
    ids=["zero", "largest", "negative", "rows"],
)
def test_noise_is_the_same_bit_by_bit(seed, generation):
    here = KeyedNoise(seed, generation, torch.tensor([0, 2**40, 17]), torch.tensor([2**28 - 1, 0, 5]))
    ids = torch.tensor([[0, 151_935, 7], [1, 2, 3], [2**24 - 1, 0, 9]])
    shape = torch.tensor([[1e-30, 1e-6, 0.3], [1.0, 5.0, 100.0], [0.5, 0.5, 2.0]])
    for name, arguments in {
        "gumbel": (ids,),
        "normal": (7,),
        "uniform": (2,),
        "gate": (),
        "log_gamma": (ids, shape),
    }.items():
        ours, theirs = ways(lambda name=name, arguments=arguments: getattr(here, name)(*arguments))
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


@pytest.mark.parametrize("n, V, temperature", CASES)
def test_candidates(n, V, temperature):
    # No two finite logits agree here but zeros; torch states no order of those.
    z = logits(n, V).masked_fill(logits(n, V) == 0, -20.0)
    for K in (1, min(V, 6)):
        for top_p, min_p in ((1.0, 0.0), (0.9, 0.0), (0.8, 0.05), (1.0, 0.4)):
            (ids, log_p), (their_ids, theirs) = ways(
                lambda K=K, p=top_p, m=min_p: candidates(DenseLogits(z), temperature, K, p, m)
            )
            finite = z.gather(-1, their_ids).isfinite()
            assert torch.equal(ids[finite], their_ids[finite]) and torch.equal(log_p.isneginf(), theirs.isneginf())
            close(log_p, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_equal_logits_the_lower_id_is_the_candidate(dtype):
    z = logits(3, 700, dtype).round()  # hundreds of ties
    z[1] = torch.where(z[1].abs() < 3, z[1] * 0, -z[1].abs())  # of 0.0 and -0.0, which are equal
    with kernels.interpreted():
        values, ids = DenseLogits(z).topk(40)
    expected, order = z.float().sort(descending=True, stable=True)
    assert torch.equal(values, expected[:, :40]) and torch.equal(ids, order[:, :40])


def test_above_the_largest_k_torch_serves():
    from trl_soft.kernels.tournament import LARGEST_K

    z, seen = logits(1, 300), []
    kernels.watchers.append(lambda name, moved: seen.append(name))
    try:
        with kernels.interpreted():
            candidates(DenseLogits(z), 1.0, LARGEST_K)
            assert seen
            seen.clear()
            candidates(DenseLogits(z), 1.0, LARGEST_K + 1)
            assert not seen
    finally:
        kernels.watchers.clear()


@pytest.mark.parametrize("n, V, temperature", CASES)
def test_draws_log_probs_and_entropies_over_the_vocabulary(n, V, temperature):
    z = logits(n, V)
    u = torch.rand(n, 12, dtype=torch.float64)
    u[:, 0], u[:, 1] = 2.0**-53, 1 - 2.0**-53
    drawn, theirs = ways(lambda: DenseLogits(z).draw(u, temperature))
    assert torch.equal(drawn, theirs)
    assert torch.equal(*ways(lambda: DenseLogits(z).argmax()))
    (log_p, entropy), _ = ways(lambda: DenseLogits(z).log_prob(drawn, temperature))
    exact = torch.log_softmax(tempered(z.double(), temperature), -1)
    close(log_p.double(), exact.gather(-1, drawn), 4, atol=4 * ULP)
    close(entropy.double(), entropy_of(exact), 4, atol=4 * ULP)
    for dtype, bits in ((torch.float32, 22), (torch.bfloat16, 14), (torch.float16, 20)):
        with kernels.interpreted():
            p, _ = DenseLogits(z).softmax(temperature, dtype)
        # A device rounds to bfloat16 and keeps 16 bits, the interpreter cuts off. Float16 has no number from 0 to 6e-8.
        rounding = 2.0**-bits + 100 * ULP  # of exp, of logarithms down to -100
        torch.testing.assert_close(p.double().sum(0), exact.exp(), rtol=rounding, atol=6e-8)


@pytest.mark.parametrize("n, V, temperature", CASES)
def test_an_answer_is_drawn_and_scored_at_once(n, V, temperature):
    """The token that its uniform number draws, the score of that token."""
    z, answer = logits(n, V), Hard(temperature)
    with kernels.interpreted():
        action, token, score = answer.sample_and_score(DenseLogits(z), noise(n))
        apart = answer.score(DenseLogits(z), action)
    their_action, their_token, _ = answer.sample_and_score(DenseLogits(z), noise(n))
    assert torch.equal(token, their_token) and torch.equal(action["ids"], their_action["ids"])
    for ours, theirs in zip(score, apart, strict=True):
        close(ours, theirs, 1)


@pytest.mark.parametrize("n", [1, 7, 600])
def test_noise_around_a_mean_and_its_density(n):
    """The interpreter multiplies and adds with two roundings where a device has one; a density sums n squares in float32."""
    thought, mean = Gaussian(sigma=0.3), torch.randn(3, 2 * n, generator=torch.Generator().manual_seed(n))[:, :n]
    ours, theirs = ways(lambda: thought._around(mean, noise(3), torch.float32, kernels.fused(mean.device)))
    close(ours, theirs, 1, atol=4 * ULP)
    ours, theirs = ways(lambda: thought._density(theirs, mean, kernels.fused(mean.device)))
    close(ours, theirs, 64)


def test_a_low_precision_is_read_as_it_is():
    for dtype in (torch.bfloat16, torch.float16):
        z = logits(2, 300, dtype)
        view, wide = DenseLogits(z), DenseLogits(z.float())
        with kernels.interpreted():
            for name, arguments in {
                "log_prob": (torch.tensor([[2], [3]]), 0.7),
                "entropy": (1.0,),
                "topk": (3,),
            }.items():
                for ours, theirs in zip(getattr(view, name)(*arguments), getattr(wide, name)(*arguments), strict=True):
                    assert torch.equal(ours, theirs)
            assert view._dense is None


@pytest.mark.parametrize("fill", [torch.nan, -torch.nan, torch.inf, -torch.inf])  # a NaN has a sign
def test_logits_of_a_diverged_policy_give_ids_of_the_vocabulary(fill):
    """An index past the vocabulary would end the process, and on a device every other completion with it."""
    for z in (torch.full((2, 300), fill), logits(2, 300).masked_fill(torch.arange(300) == 299, fill)):
        with kernels.interpreted():
            view = DenseLogits(z)
            for ids in (
                view.argmax(),
                view.topk(9)[1],
                view.draw(torch.rand(2, 5, dtype=torch.float64), 1.0),
                *(Hard(**options).sample(view, noise(2))[1] for options in ({}, {"top_k": 5}, {"temperature": 0.0})),
                Gumbel(top_k=5).sample(view, noise(2))[1],
            ):
                assert ((ids >= 0) & (ids < 300)).all()
    if fill != -torch.inf:
        assert (view.argmax() == 299).all()  # as torch has it


def test_picks_in_the_order_of_ranks_and_of_ids():
    p = torch.softmax(logits(3, 7), -1)
    ids = torch.stack([torch.randperm(50)[:7] for _ in range(3)])
    for u in torch.rand(10, 3, 1, dtype=torch.float64):
        for order in (None, ids):
            assert torch.equal(*ways(lambda u=u, order=order: pick(p, u, order)))
    # The slices in the order of ids are those of the whole vocabulary.
    whole = torch.zeros(3, 50).scatter(-1, ids, p)
    u = torch.rand(3, 1, dtype=torch.float64)
    assert torch.equal(ids.gather(-1, pick(p, u, ids).unsqueeze(-1)), inverse_cdf(whole, u))
    with kernels.interpreted():
        assert pick(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1 - 2.0**-53]]).double()).tolist() == [1]
        assert pick(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[2.0**-53]]).double()).tolist() == [1]


@pytest.mark.parametrize("closing", ["none", "some"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(
    "options", [{}, {"noise_scale": 0.7, "temperature": 0.3, "top_p": 1.0}, {"top_k": 1}], ids=str
)
def test_gumbel_thoughts(density, options, closing):
    """g' is float32 arithmetic in both; a density sums K numbers, each rounded, so it is compared at K ulps of their size."""
    thought = Gumbel(density=density, **options)
    view = DenseLogits(logits(4, 300))
    (ours, token), (theirs, their_token) = ways(lambda: thought.sample(view, noise(4)))
    assert torch.equal(token, their_token) and ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if value.is_floating_point():
            close(ours[name], value, 2, atol=2 * ULP)
        else:
            assert torch.equal(ours[name], value), name
    action = theirs
    close(*ways(lambda: thought.weights(action)), 4)
    if closing == "some":
        closed = torch.tensor([True, False, True, False])
        assert torch.equal(*ways(lambda: thought.close(action, closed, token)["perturbed"]))
        action = thought.close(action, torch.tensor([True, False, True, False]), token)
    scored, plain = ways(lambda: thought.score(view, action))
    close(scored[0], plain[0], 8, atol=32 * ULP)
    close(scored[1], plain[1], 4, atol=4 * ULP)


def test_no_gradient_is_lost_to_a_kernel():
    z = logits(2, 300).requires_grad_()
    action, _ = Gumbel().sample(DenseLogits(z.detach()), noise(2))
    with kernels.interpreted():
        Gumbel().log_prob(DenseLogits(z), action).sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_support():
    from trl_soft.kernels.support import centred, support

    z = logits(3, 300)
    ids = torch.stack([torch.randperm(300)[:6] for _ in range(3)])
    kept = (torch.rand(3, 6) > 0.3) | (torch.arange(6) == 0)
    for temperature in (1.0, 0.3, 1e-4):
        log_p, entropy = support(z, ids, kept, temperature)
        theirs = renormalised(z.gather(-1, ids), kept, temperature)
        close(log_p, theirs)
        close(entropy, entropy_of(theirs), 8, atol=8 * ULP)
        z_k = z.gather(-1, ids)
        close(*ways(lambda z=z_k, T=temperature: softmax_on(z, kept, T)), 4)
    ours, theirs = centred(z_k, kept), _centred(z_k, kept, False)
    close(ours, theirs, 4, atol=64 * ULP)  # of logits up to 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("H", [5, 64, 1100])
def test_rows(dtype, H):
    """K products and sums in float32, in one order; a device may contract each product with its sum."""
    table = torch.randn(40, H).to(dtype)
    weights, ids = torch.rand(3, 4), torch.randint(0, 40, (3, 4))
    ours, theirs = ways(lambda: mix_rows(weights, ids, table))
    close(ours, theirs, 4, atol=4 * ULP)
    # The gradient is plain torch's, whichever way the sum was made.
    table = table.requires_grad_()
    gradients = []
    for mixed in ways(lambda: mix_rows(weights, ids, table)):
        gradients += torch.autograd.grad(mixed.square().sum(), table)
    close(*gradients, 4, atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_rows_in_the_place_of_a_tokens(scale):
    """What is fed is rounded to the model's precision, by a device; the interpreter cuts off."""
    embedding = torch.nn.Embedding(40, 70).bfloat16()
    embedding.embed_scale = scale
    tokens, thinks = torch.randn(3, 70).bfloat16(), torch.tensor([True, False, True])
    action = {"ids": torch.randint(0, 40, (3, 4)), "weights": torch.rand(3, 4)}
    with torch.no_grad():
        ours, theirs = ways(lambda: Lookup(embedding).fed(Mixture(), action, thinks, tokens))
    assert torch.equal(ours[1], tokens[1]) and ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2.0**-7, atol=0)
    # As vLLM's steps do, into rows of the batch.
    rows, served = torch.tensor([4, 0, 1]), Table(lambda: embedding.weight, 0, 40, scale)
    targets = [torch.full((5, 70), 7.0).bfloat16() for _ in "ot"]
    with torch.no_grad(), kernels.interpreted():
        served.feed(Mixture(), action, thinks, rows, targets[0])
    with torch.no_grad():
        served.feed(Mixture(), action, thinks, rows, targets[1])
    torch.testing.assert_close(*targets, rtol=2.0**-7, atol=0)
    assert torch.equal(targets[0][[4, 1]], ours[[0, 2]]) and (targets[0][[0, 2, 3]] == 7).all()


def test_a_mixture_keeps_sixteen_bits_of_each_probability_and_is_one_number():
    """Against float64: 2**-14 of sum_v p_v |e_v|, on a device 2**-16. Rounded to bfloat16 once, p would keep 2**-8."""
    z, table = logits(3, 700), torch.randn(700, 16).bfloat16()
    exact = torch.softmax(z.double(), -1)
    with kernels.interpreted():
        view = DenseLogits(z, table, 2.0, torch.bfloat16)
        mean, _ = view.mixture(1.0)
    size = 2 * exact @ table.double().abs()
    error = (mean - 2 * exact @ table.double()).abs() / size
    assert error.max() < 2.0**-14
    once = 2 * (exact.float().bfloat16().double() @ table.double())
    assert ((once - 2 * exact @ table.double()).abs() / size).max() > 2.0**-12
    assert view.mixture(1.0)[0] is mean  # of whoever draws and of whoever scores


@pytest.mark.parametrize(
    "settings",
    [
        *tiny.THOUGHTS,
        {"thought": "hard", "thinking_top_k": 5, "thinking_top_p": 0.95},
        {"thought": "gumbel", "cold_stop_entropy": 1.0, "cold_stop_length": 2},
    ],
    ids=tiny.name,
)
def test_rollouts_of_both_engines(settings):
    net = tiny.model()
    made = plan(net, {"max_thinking_length": 3, **settings}, max_completion_length=5)
    for engine in ("slots", "simple"):
        ours, theirs = ways(lambda engine=engine: run(net, made, engine, prompts=["1+2=", "5-6="]))
        assert_same(ours, theirs, settings["thought"] == "gaussian")


def test_every_kernel_compiles_for_a_device():
    """For Ampere and Hopper, with no device: what only the interpreter understands would be found by users."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compiled_kernels", "90", "80"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"_blocks", "_candidates", "_mix"} <= {line.split()[0] for line in done.stdout.splitlines()}


@pytest.fixture
def told(monkeypatch):
    """What the log says of the kernels."""
    made: list[str] = []
    monkeypatch.setattr(kernels.logger, "warning_once", made.append)
    return made


def _penalised():
    net = tiny.model()
    made = plan(net, {"max_thinking_length": 1}, max_completion_length=3, repetition_penalty=1.2)
    run(net, made, "slots", prompts=["1+2="])


@pytest.mark.parametrize(
    "draw, words",
    [
        (lambda: Hard(top_p=0.9).sample(DenseLogits(logits(2, 300)), noise(2)), "top-p or min-p and without top-k"),
        (lambda: Hard(min_p=0.1).sample(DenseLogits(logits(2, 300)), noise(2)), "top-p or min-p and without top-k"),
        (lambda: candidates(DenseLogits(logits(2, 300)), 1.0, 129), "129 candidates"),
        (lambda: DenseLogits(logits(2, 300)).topk(129), "The 129 most likely tokens"),
        (lambda: pick(torch.rand(2, 129), torch.full((2, 1), 0.5, dtype=torch.float64)), "A draw from 129 candidates"),
        (_penalised, "A repetition penalty"),
    ],
    ids=["top-p", "min-p", "candidates", "topk", "pick", "penalty"],
)
def test_the_log_says_where_plain_torch_runs_though_kernels_are_on(draw, words, told):
    with kernels.interpreted():
        draw()
    assert any(words in said and "plain torch" in said for said in told)
    told.clear()
    draw()  # without kernels there is nothing to pass over
    assert not told


def test_what_the_kernels_take_is_not_logged(told):
    with kernels.interpreted():
        Hard(top_k=20, top_p=0.9, min_p=0.1).sample(DenseLogits(logits(2, 300)), noise(2))
        DenseLogits(logits(2, 300)).topk(128)
    assert not told


def test_kernels_can_be_switched_off(monkeypatch, told):
    device = torch.device("cuda")  # not used, only asked about
    monkeypatch.setenv("TRL_SOFT_KERNELS", "1")
    assert kernels.fused(device) and not told
    monkeypatch.setenv("TRL_SOFT_KERNELS", "0")
    assert not kernels.fused(device)
    assert "TRL_SOFT_KERNELS is 0" in told[0] and "hundreds of small kernels" in told[0]
    monkeypatch.setenv("TRL_SOFT_KERNELS", "off")
    with pytest.raises(ValueError, match=r"'off'.*Set it to 0"):
        kernels.fused(device)


def test_a_kernel_that_does_not_compile_names_the_way_out():
    class Broken:
        fn = SimpleNamespace(__name__="_broken")

        def __getitem__(self, grid):
            raise OSError("Failed to find C compiler.")

    with pytest.raises(RuntimeError, match=r"The kernel _broken could not be compiled.*TRL_SOFT_KERNELS=0") as raised:
        kernels.launch(Broken(), (1,), torch.zeros(1))
    assert "C compiler" in str(raised.value.__cause__)
