# SPDX-License-Identifier: Apache-2.0
"""Ceilings on what a captured step asks of a device, counted on tensors without memory (`make bench-steps`)."""

import pytest
import torch

from benchmarks.steps import ANSWERS, BATCHES, CASES, ENGINES, PHASES, Counter, Counts, count, counted


SIZES = {"rows": 64, "vocabulary": 151_936, "hidden": 1536}
LOGITS = SIZES["rows"] * SIZES["vocabulary"] * 2  # bytes, bfloat16


def of(case: str, way: str = "kernels", engine: str = "in_process", **sizes) -> Counts:
    return count(engine, case, way, **{**SIZES, **sizes})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_at_most_34_operations_and_nothing_waits_for_the_device(case, engine):
    counts = of(case, engine=engine)
    assert counts.total("host_reads") == 0
    assert counts.total("operations") <= 34, counts


@pytest.mark.parametrize(
    "case, most, passes",
    [
        ("answers with top-p", 64, 42.1),
        ("answers with min-p", 64, 29.1),
        ("answers with a repetition penalty", 34, 30.6),
        ("answers with top-k 200", 71, 6.1),
    ],
)
def test_what_answers_cost_that_plain_torch_draws(case, most, passes):
    """Most above 34 operations, and all above one pass over the logits, as `docs/gpu.md` has it; nothing waits for the device."""
    assert case in ANSWERS
    counts = of(case)
    assert counts.total("host_reads") == 0
    assert counts.total("operations") <= most and counts.total("logits") <= passes * LOGITS


@pytest.mark.parametrize("case, most", [("hard", 12), ("gumbel", 20), ("gaussian", 22)])
def test_a_step_is_as_short_as_it_was_made(case, most):
    assert of(case).total("operations") <= most


@pytest.mark.parametrize("engine", ENGINES)
def test_a_text_that_ends_thoughts_costs_no_kernel(engine):
    by_token, by_text = of("gumbel", engine=engine), of("gumbel-text", engine=engine)
    assert by_text.total("operations") == by_token.total("operations") and by_text.total("host_reads") == 0
    assert by_text.total("bytes") > by_token.total("bytes")  # it is looked up


@pytest.mark.parametrize("case", ["hard", "gumbel"])
def test_the_logits_are_read_once_by_gumbel_and_hard(case):
    """Thought and answer share one reading; the sums over blocks of 256 logits are 3 % of it."""
    assert of(case).total("logits") <= 1.05 * LOGITS


@pytest.mark.parametrize("case", CASES)
def test_only_mixtures_of_the_whole_vocabulary_read_the_logits_more_than_once(case):
    """
    Those write two bfloat16 numbers a probability and multiply them; and the answer has its own temperature. Noise on the hidden
    state has logits of its own, which are written by the head and again in float32.
    """
    passes = {"gaussian": 8.1, "gaussian-hidden": 14.1}.get(case, 1.05)
    assert of(case).total("logits") <= passes * LOGITS


@pytest.mark.parametrize("case, most", [("hard", 6), ("gumbel", 14), ("gaussian", 17)])
def test_a_step_in_vllm_is_as_short_as_it_was_made(case, most):
    assert of(case, engine="vllm").total("operations") <= most


@pytest.mark.parametrize("way", ["plain", "kernels"])
def test_plans_that_share_a_thought_cost_no_operation(way):
    """And each further thought in a batch costs its own; nothing waits for the device."""
    together, apart = BATCHES
    one, several = (of(case, way, "vllm", rows=48) for case in ("gumbel", together))
    assert one.total("operations") == several.total("operations") and one.total("bytes") == several.total("bytes")
    mixed = of(apart, way, "vllm", rows=48)
    assert mixed.total("host_reads") == several.total("host_reads") == 0
    each = sum(of(case, way, "vllm", rows=16).total("operations") for case in ("gumbel", "hard", "gaussian"))
    if way == "kernels":
        assert mixed.total("operations") <= min(each + 3, 40)  # rows of the logits
    else:
        assert mixed.total("operations") <= each + 3 + 2 * 2  # and of positions and of what is fed


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_operations_do_not_depend_on_the_number_of_rows(case, engine):
    many, few = of(case, engine=engine), of(case, engine=engine, rows=2)
    assert all(many[phase]["operations"] == few[phase]["operations"] for phase in PHASES)


def test_hard_and_soft_move_as_many_bytes():
    """A gumbel thought of 5 candidates in the in-process engine; `docs/gpu.md` says which others move more."""
    hard, soft = of("hard").total("bytes"), of("gumbel").total("bytes")
    assert 0.9 <= soft / hard <= 1.1


def test_the_counter_counts():
    """By hand: three operations of 12 float32 numbers, and what waits for the device."""
    counter, x = Counter(10**9), torch.ones(3, 4)
    with counted(counter), counter.within("sample"):
        y = (x + x).exp_()  # reads x twice and writes; reads and writes
        y.view(4, 3).sum()  # the view is free; reads 12, writes one
    assert counter.counts["sample"]["operations"] == 3
    assert counter.counts["sample"]["bytes"] == 4 * (3 * 12 + 2 * 12 + 12 + 1)
    for read in (
        lambda: x.sum().item(),
        lambda: x[x > 2],
        lambda: x.nonzero(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: bool(x.sum() > 0),
        lambda: x.masked_select(x > 2),
        lambda: x.index_put_((x > 2,), torch.tensor(0.0)),
    ):
        counter = Counter(10**9)
        with counted(counter):
            read()
        assert counter.counts.total("host_reads") >= 1
