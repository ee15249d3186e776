# SPDX-License-Identifier: Apache-2.0
"""Real vLLM against the in-process engine and against Hugging Face, token by token, however vLLM arranges its batches."""

import pytest
import torch

from tests import tiny
from tests.vllm import served
from tests.vllm.served import PROMPTS, needs_vllm
from trl_soft.rollout.vllm.records import rollout_of


pytestmark = needs_vllm
STOPS = [
    {"answer_prefill": ["=a", "b+"], "max_thinking_length": 5},
    {"cold_stop_entropy": 2.0, "cold_stop_length": 2, "thinking_temperature": 1.0},
    {"max_answer_length": 3, "max_thinking_length": 5},
    {"end_of_thinking": "1;", "thinking_top_k": 20, "thinking_top_p": 1.0},
]


GATED = [
    {"thinking_gate": "random", "gate_probability": 0.5, "gumbel_temperature": 0.5},
    {"thinking_gate": "entropy_trend", "gate_dwell": 2, "thought": "gaussian"},
    {"thinking_gate": "first", "gate_length": 3, "thought": "multiplex"},
    {"thought": "gumbel", "thinking_gate": "entropy", "gate_entropy": 3.0, "gate_dwell": 2},
    {"thinking_gate": "confidence", "gate_confidence": 0.1, "thought": "mixture"},
]


@pytest.fixture(scope="module")
def net():
    return served.model()


@pytest.fixture(scope="module")
def llm(net, tmp_path_factory):
    """Prompts in pieces of 16 tokens at most, and a cache in which four requests do not fit."""
    folder = served.save(net, tmp_path_factory.mktemp("model"))
    made = served.engine(folder, max_num_batched_tokens=16, num_gpu_blocks_override=5)
    yield made
    served.shut(made)


@pytest.fixture
def resumed(llm, monkeypatch):
    """How many tokens each request had that came back from a preemption."""
    pool, seen = served.state(llm).pool, []
    restore = pool.restore
    monkeypatch.setattr(
        pool,
        "restore",
        lambda slot, number, parked, drawn: (seen.append(drawn), restore(slot, number, parked, drawn)),
    )
    return seen


def rollouts(out, bulks, made):
    """Each request's completions as a `Rollout`."""
    found = {}
    for bulk in bulks:
        for request, child in zip(bulk["requests"], bulk["children"], strict=True):
            found[request, child] = bulk

    def one(key):
        rollout = rollout_of(found[key], made, [key])
        return rollout.columns(slice(0, int(rollout.completion_mask.sum())))

    return [[one((o.request_id, child)) for child in range(len(o.outputs))] for o in out]


def assert_same(ours, theirs, gaussian=False):
    """As between the in-process engines: ids and masks exactly, floats to the rounding of two forwards."""
    length = int(theirs.completion_mask.sum())
    assert ours.completion_ids.size(1) == length
    theirs = theirs.columns(slice(0, length))
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    for mask in ("thinking_mask", "forced_mask"):
        assert torch.equal(getattr(ours.record, mask), getattr(theirs.record, mask))
    assert torch.equal(ours.thinking_length, theirs.thinking_length)
    assert torch.equal(ours.thinking_cut, theirs.thinking_cut)
    tolerance = {"rtol": 1e-4, "atol": 5e-5} if gaussian else {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(ours.record.log_probs, theirs.record.log_probs, **tolerance)
    torch.testing.assert_close(ours.entropies, theirs.entropies, rtol=0, atol=1e-5)
    thoughts = theirs.record.thinking_mask
    for key, value in ours.record.flat_action(thoughts).items():
        torch.testing.assert_close(value, theirs.record.flat_action(thoughts)[key], rtol=1e-4, atol=5e-5)


def test_both_engines_think_the_same(llm, net, resumed):
    """Every kind of thought and of end, all in one queue: the same tokens, records and log-probabilities."""
    cases = [(kind, i) for i, kind in enumerate(tiny.THOUGHTS + STOPS + GATED)]
    prompts, params = [], []
    for settings, i in cases:
        for j in range(2):
            prompts.append(PROMPTS[(i + j) % len(PROMPTS)])
            params.append(served.soft(settings, sample=10 * i + 2 * j, n=2))
    out, bulks = served.generate(llm, prompts, params)
    assert len(resumed) > 5 and max(resumed) > 3
    for settings, i in cases:
        made = served.plan(net, settings)
        rows = slice(2 * i, 2 * i + 2)
        doubled = [prompt for prompt in prompts[rows] for _ in range(2)]
        theirs = served.by_oracle(net, made, doubled, [10 * i + k for k in range(4)])
        ours = [one for of in rollouts(out[rows], bulks, made) for one in of]
        for k, one in enumerate(ours):
            assert_same(one, theirs[k : k + 1], settings.get("thought") == "gaussian")
        texts = [list(c.token_ids) for o in out[rows] for c in o.outputs]
        for text, one in zip(texts, ours, strict=True):
            # vLLM leaves out nothing but may be told of an end that only the record knows.
            assert text[: one.completion_ids.size(1)] == one.completion_ids[0].tolist()
            assert len(text) - one.completion_ids.size(1) in ((0, 1) if "max_answer_length" in settings else (0,))


@pytest.mark.parametrize(
    "settings",
    [tiny.THOUGHTS[i] for i in (2, 3, 9, 10, 11, 12)],
    ids=tiny.name,
)
def test_hugging_face_scores_what_was_drawn(llm, net, settings, resumed):
    made = served.plan(net, settings)
    params = [served.soft(settings, sample=2 * i, n=2) for i in range(len(PROMPTS))]
    out, bulks = served.generate(llm, PROMPTS, params)
    apart, controls = 0.0, []
    for prompt, of in zip(PROMPTS, rollouts(out, bulks, made), strict=True):
        for one in of:
            log_probs, candidates = served.rescored(net, served.ids_of(prompt), one, made)
            apart = max(apart, (log_probs - one.record.log_probs[0]).abs().max().item())
            if candidates is not None:
                thoughts = one.record.thinking_mask[0]
                drawn = one.record.action["ids"][0][thoughts].long().sort(-1).values
                assert torch.equal(drawn, candidates[thoughts].sort(-1).values)
            hard, _ = served.rescored(net, served.ids_of(prompt), one, made, feed_hard=True)
            controls.append((hard - one.record.log_probs[0]).abs().max().item())
    print(f"{tiny.name(settings)}: {apart:.1e}, control {max(controls):.2f}, resumed {len(resumed)}")
    assert resumed and apart <= 1e-5 and max(controls) >= 0.1


def test_hard_requests_beside_soft_ones(llm, net):
    """A hard request is vLLM's own whatever runs beside it, and one that says no is hard."""
    from vllm import SamplingParams

    hard = SamplingParams(temperature=0.0, max_tokens=12)
    says_no = SamplingParams(
        temperature=0.0, max_tokens=12, extra_args={"soft_thinking": False, "soft_thought": "gumbel"}
    )
    alone, none = served.generate(llm, PROMPTS[:3], [hard] * 3)
    assert none == []
    kinds = [hard, served.soft({}), says_no, served.soft({"thought": "mixture"}), hard, served.soft({}, sample=9)]
    mixed, bulks = served.generate(llm, [PROMPTS[i // 2] for i in range(6)], kinds)
    for i, position in enumerate((0, 2, 4)):
        assert list(mixed[position].outputs[0].token_ids) == list(alone[i].outputs[0].token_ids)
        batch = torch.tensor([served.ids_of(PROMPTS[i])])
        theirs = net.generate(batch, do_sample=False, max_new_tokens=12)[0, batch.size(1) :].tolist()
        assert list(alone[i].outputs[0].token_ids) == theirs
    assert sorted(request for bulk in bulks for request in bulk["requests"]) == sorted(
        mixed[i].request_id for i in (1, 3, 5)
    )


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"temperature": 0.0},
        {"repetition_penalty": 1.7},
    ],
    ids=tiny.name,
)
def test_answers_have_their_own_sampling(llm, net, sampling):
    from trl_soft.thoughts import Hard

    names = ("temperature", "top_k", "top_p", "min_p")
    answer = Hard(**{"temperature": 1.0} | {key: sampling[key] for key in names if key in sampling})
    made = served.plan(net, {}, answer, repetition_penalty=sampling.get("repetition_penalty", 1.0))
    out, bulks = served.generate(llm, PROMPTS[:4], [served.soft({}, sample=i, **sampling) for i in range(4)])
    theirs = served.by_oracle(net, made, PROMPTS[:4], list(range(4)))
    for k, (one,) in enumerate(rollouts(out, bulks, made)):
        assert_same(one, theirs[k : k + 1])


@pytest.mark.parametrize("settings", [{}, {"thought": "neighbour"}], ids=["gumbel", "neighbour"])
def test_weights_that_were_loaded_anew(llm, net, settings):
    """As TRL loads them, one at a time; mixtures are made of the new table at once, and neighbours found in it."""
    other, made = served.model(seed=5), served.plan(net, settings)
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner

    def load(source):
        for key, value in source.named_parameters():
            runner.model.load_weights([(key, value.data)])
        llm.reset_prefix_cache()

    try:
        served.generate(llm, PROMPTS[:1], served.soft(settings))  # of the table before
        load(other)
        out, bulks = served.generate(llm, PROMPTS[:2], [served.soft(settings, sample=i) for i in range(2)])
        theirs = served.by_oracle(other, made, PROMPTS[:2], [0, 1])
        for k, (one,) in enumerate(rollouts(out, bulks, made)):
            assert_same(one, theirs[k : k + 1])
    finally:
        load(net)


def test_candidates_as_log_probs(llm, net):
    """`logprobs=K`: the candidates of a thought with the logarithms of their weights, through vLLM's own output."""
    made = served.plan(net, {})
    out, bulks = served.generate(llm, PROMPTS[:2], [served.soft({}, sample=i, logprobs=5) for i in range(2)])
    for o, (one,) in zip(out, rollouts(out, bulks, made), strict=True):
        weights = made.thought.weights({key: value[0] for key, value in one.record.action.items()})
        for t, entry in enumerate(o.outputs[0].logprobs):
            token = o.outputs[0].token_ids[t]
            assert token in entry
            if one.record.thinking_mask[0, t]:
                for token_id, weight in zip(one.record.action["ids"][0, t].tolist(), weights[t].tolist(), strict=True):
                    assert pytest.approx(weight, abs=1e-6) == torch.tensor(entry[token_id].logprob).exp().item()
            else:
                assert entry[token].logprob == pytest.approx(one.record.log_probs[0, t].item(), abs=1e-5)


def test_records_leave_once_and_only_if_asked_for(llm):
    params = served.soft({})
    out, bulks = served.generate(llm, PROMPTS[:1], params)
    assert len(bulks) == 1
    assert llm.collective_rpc("pop_soft_records", args=([out[0].request_id],))[0] == []
    params = served.soft({})
    params.extra_args["soft_record"] = "a name"
    served.generate(llm, PROMPTS[:1], params)
    served.generate(llm, PROMPTS[1:2], served.soft({}))  # so that the first has left its slot
    assert llm.collective_rpc("pop_soft_records", args=(["a name"],))[0][0]["requests"] == ["a name"]
    params = served.soft({})
    del params.extra_args["soft_record"]
    served.generate(llm, PROMPTS[:1], params)
    served.generate(llm, PROMPTS[1:2], served.soft({}))
    assert not len(served.state(llm).kept)


def test_a_record_that_nobody_could_fetch_is_refused(llm, monkeypatch):
    """Strangers' records take no room on a server whose worker hands none out."""
    monkeypatch.setattr(llm.llm_engine.vllm_config.parallel_config, "worker_extension_cls", "")
    with pytest.raises(ValueError, match="no client can fetch it from this engine"):
        llm.generate(PROMPTS[:1], served.soft({}), use_tqdm=False)
    params = served.soft({})
    params.extra_args["soft_record"] = False
    assert llm.generate(PROMPTS[:1], params, use_tqdm=False)[0].outputs[0].token_ids


REFUSED = [
    ({"soft_thougt": "gumbel"}, {}, "nearest known is `soft_thought`"),
    ({"soft_thought": "gumble"}, {}, "no kind of thought"),
    ({"soft_max_thinking_length": 100}, {}, "no room is left for an answer"),
    ({}, {"presence_penalty": 0.5}, "`presence_penalty` is 0.5"),
    ({}, {"min_tokens": 3}, "`min_tokens` is 3"),
    ({}, {"logit_bias": {3: 1.0}}, "`logit_bias`"),
    ({}, {"max_tokens": 65}, "have room for 64 tokens"),
    ({"soft_thought": "mixture", "soft_thinking_top_k": 26}, {}, None),
]


@pytest.mark.parametrize("extra, params, sentence", REFUSED, ids=[str(case[2]) for case in REFUSED])
def test_refusals_come_before_anything_is_generated(llm, extra, params, sentence):
    given = served.soft({}, **params)
    given.extra_args |= {"soft_thought": "gumbel", **extra}
    if sentence is None:
        served.generate(llm, PROMPTS[:1], given)  # as many candidates as there are tokens
        return
    with pytest.raises(ValueError, match=sentence):
        served.generate(llm, PROMPTS[:1], given)


def test_the_prefix_cache_is_not_poisoned(llm, net, monkeypatch):
    """
    Keys and values of thoughts stand in blocks known by the tokens' ids. Who asks for those tokens must not be given them;
    and would be, if soft requests were cached like others.
    """
    from vllm import SamplingParams

    from trl_soft.rollout.vllm import frontend

    prompt, hard = PROMPTS[5], SamplingParams(temperature=0.0, max_tokens=1, logprobs=0)

    def asked_after(sample: int):
        """A hard request for what a soft one has written: tokens it found cached, and how far off its prediction is."""
        llm.reset_prefix_cache()
        out, _ = served.generate(llm, [prompt], served.soft({"max_thinking_length": 18}, sample=sample))
        text = served.ids_of(prompt) + list(out[0].outputs[0].token_ids)
        after, _ = served.generate(llm, [text], hard)
        token, entry = next(iter(after[0].outputs[0].logprobs[0].items()))
        with torch.no_grad():
            expected = torch.log_softmax(net(torch.tensor([text])).logits[0, -1], -1)[token].item()
        return after[0].num_cached_tokens, abs(entry.logprob - expected)

    clean = [asked_after(sample) for sample in range(3)]
    assert all(cached == 0 and apart < 1e-5 for cached, apart in clean)
    make_soft = frontend._make_soft

    def cached_like_others(processor, request_id, request):
        make_soft(processor, request_id, request)
        request.cache_salt = None

    monkeypatch.setattr(frontend, "_make_soft", cached_like_others)
    poisoned = [asked_after(sample) for sample in range(3)]
    assert all(cached == 32 for cached, _ in poisoned) and max(apart for _, apart in poisoned) > 1e-2


def test_the_contract_holds():
    from trl_soft.rollout.vllm import compat

    assert compat.vllm_version() == (0, 31) and compat.moved(compat.hooks_of(compat.installed())) == []
    compat.check()
