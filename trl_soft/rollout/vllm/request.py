# SPDX-License-Identifier: Apache-2.0
"""The `soft_*` keys of a request: they are checked where the request arrives, and become a spec for the worker.

A request is soft if `soft_thinking` is true, or if it has `soft_thought` or `soft_settings`. Other keys are the fields of
`ThinkingSettings` with `soft_` before them, and these:

    soft_settings                             all fields at once, as the text of a JSON object. Nothing comes from elsewhere
    soft_seed, soft_generation, soft_sample   the key of the noise, as in the other engines. The n completions of a request
                                              are the samples `soft_sample`, `soft_sample + 1`, ...
    soft_evaluation                           think with `eval_thought`, if it is set
    soft_record                               keep the record until a client fetches it, under this name. true: the name of
                                              the request

The sampling parameters of the request apply to the answer. Unset fields are those saved with the weights (`saved_settings`).
"""

import difflib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from ...files import parse_json
from ...ranges import LENGTHS, LISTS, check, check_whole, shown
from ...settings import ThinkingSettings
from ...thoughts import Hard
from ...thoughts.registry import options
from ..interface import Plan
from ..make_plan import make_plan, members_of, plan_of_ids
from ..matcher import looked_up, matcher
from ..stop import EndToken


PREFIX = "soft_"
SPEC = "trl_soft"  # key of the spec on its way to the worker
_SETTINGS = {f.name: f.default for f in fields(ThinkingSettings)}
_OWN = (
    "thinking",
    "settings",
    "seed",
    "generation",
    "sample",
    "evaluation",
    "record",
)
_SWITCHES = ("thinking", "evaluation", *(name for name, value in _SETTINGS.items() if isinstance(value, bool)))
KEYS = tuple(PREFIX + name for name in (*_SETTINGS, *_OWN))
# Characters of a key, and of the text under a key (of each text in a list).
KEY_LENGTH, TEXT_LENGTH = 64, 256
TEXT_LENGTHS = {"settings": 2**16, **LENGTHS}
STOPS = 64  # tokens that end a completion
# Parameters that shape the logits of tokens and cannot shape a thought, each with the value that has no effect.
_UNHEARD = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "thinking_token_budget": None,
    "trace_decode_token_ids": None,
    "logprob_token_ids": None,
}


def switch(name: str, value) -> bool:
    """A truth value, as JSON, a command line or a form writes it."""
    if value in (True, 1, "true", "True", "1"):
        return True
    if value in (False, 0, None, "false", "False", "0"):
        return False
    raise ValueError(f"`{PREFIX}{name}` is {shown(value)}. It is true or false.")


def refuse_unreadable(extra: dict) -> None:
    """Refuse keys and texts that are too long, before anything reads, compares or repeats them."""
    for key, value in extra.items():
        if not key.startswith(PREFIX):
            continue
        if len(key) > KEY_LENGTH:
            raise ValueError(f"The request has the key {shown(key)}, but keys have at most {KEY_LENGTH} characters.")
        check_whole(shown(key), key)
        name = key.removeprefix(PREFIX)
        most, count = TEXT_LENGTHS.get(name, TEXT_LENGTH), LISTS.get(name, 2)
        texts = value if isinstance(value, (list, tuple)) else [value]
        if len(texts) > count:
            raise ValueError(f"`{key}` is {shown(value)}, but it takes at most {count} texts.")
        for text in texts:
            if isinstance(text, str) and len(text) > most:
                raise ValueError(f"`{key}` has {len(text)} characters, and at most {most} are read. Shorten it.")
            if isinstance(text, str):
                check_whole(key, text)


def wants(extra: dict | None) -> bool:
    """Whether a request asks for soft thoughts."""
    extra = extra or {}
    refuse_unreadable(extra)
    if switch("thinking", extra.get("soft_thinking")) or (
        "soft_thinking" not in extra and ("soft_thought" in extra or "soft_settings" in extra)
    ):
        return True
    given = sorted(key for key in extra if key.startswith(PREFIX) and key != "soft_thinking")
    if given and "soft_thinking" not in extra:
        raise ValueError(
            f"`{given[0]}` is set but `soft_thinking` is not, so nothing would read it. Add `soft_thinking: true`."
        )
    return False


def settings_of(extra: dict, stored: dict | None) -> ThinkingSettings:
    """The thinking settings of a soft request. Unset fields come from the settings saved with the weights."""
    for key in extra:
        if key.startswith(PREFIX) and key not in KEYS:
            nearest = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"The request has the key `{key}`, which nothing reads. The nearest known is `{nearest}`."
            )
    given: dict[str, Any] = {name: extra[PREFIX + name] for name in _SETTINGS if PREFIX + name in extra}
    for name in set(given) & set(_SWITCHES):
        given[name] = switch(name, given[name])
    if "soft_settings" in extra:
        if given:
            raise ValueError(
                f"`soft_settings` holds all settings, but `{PREFIX}{next(iter(given))}` is set too. Set one or the other."
            )
        return ThinkingSettings(**_object(extra["soft_settings"]))
    if stored is None:
        if "thought" not in given:
            raise ValueError(
                "The request asks for soft thoughts without a `soft_thought`, and no thinking settings were saved with "
                "the weights. Set `soft_thought`, and every field that differs from the defaults of `ThinkingSettings`."
            )
        return ThinkingSettings(**given)
    return ThinkingSettings.of_stored(stored, "What was saved with the weights", **given)


def _object(text) -> dict:
    """The fields in `soft_settings`."""
    try:
        found = parse_json(text)
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"`soft_settings` is {shown(text)}. It is the text of a JSON object with fields of `ThinkingSettings`."
        )
    if unknown := sorted(set(found) - set(_SETTINGS)):
        raise ValueError(f"`soft_settings` holds {shown(unknown[0])}, which nothing reads.")
    return found


def refuse_params(params) -> None:
    """Refuse sampling parameters that would apply only to hard tokens."""
    for name, silent in _UNHEARD.items():
        value = getattr(params, name, silent)
        if value and value != silent:
            raise ValueError(
                f"`{name}` is {shown(value)}, but it shapes the logits of tokens, and a thought is made of the model's own logits. Leave "
                "it out, or set `soft_thinking: false`."
            )
    if getattr(params, "structured_outputs", None) is not None:
        raise ValueError(
            "The request asks for structured output, but a grammar allows or forbids tokens, and a thought is not a token. "
            "Leave it out, or set `soft_thinking: false`."
        )


def _key(params) -> list[int]:
    """The key of the noise: seed, generation and sample. A request without a seed gets a random one."""
    unset = {"seed": secrets.randbits(63) if params.seed is None else params.seed, "generation": 0, "sample": 0}
    key = [params.extra_args.get(PREFIX + name, value) for name, value in unset.items()]
    for name, value in zip(unset, key, strict=True):
        check(name, value, called=PREFIX + name)
    return key


def _answer(params) -> list:
    """The sampling of answers, as the arguments of `Hard`."""
    answer = [params.temperature, max(params.top_k, 0), params.top_p, params.min_p]
    for name, value in zip(("temperature", "top_k", "top_p", "min_p"), answer, strict=True):
        check(name, value)
    check("repetition_penalty", params.repetition_penalty)
    return answer


def _ends(params) -> list[int]:
    """The tokens that end the completion. The model's own end of sequence comes first."""
    eos = sorted(params.all_stop_token_ids)
    if params.eos_token_id is not None:
        eos = [params.eos_token_id, *(token for token in eos if token != params.eos_token_id)]
    if len(eos) > STOPS:
        raise ValueError(
            f"{len(eos)} tokens end the completion (`stop_token_ids`), but a soft request takes at most {STOPS}. Name fewer."
        )
    return eos


def _refuse_sizes(params, settings: ThinkingSettings, eos: list[int], *, vocab_size: int, max_length: int) -> None:
    """Refuse lengths beyond the record, and counts beyond the vocabulary."""
    if params.max_tokens > max_length:
        raise ValueError(
            f"`max_tokens` is {params.max_tokens}, but the records of soft requests have room for {max_length} tokens. Lower "
            f'it, or start the engine with `additional_config={{"trl_soft": {{"record_length": {params.max_tokens}}}}}`.'
        )
    for name, option in options().items():
        if option.counts_tokens and getattr(settings, name) > vocab_size:
            raise ValueError(
                f"`{PREFIX}{name}` is {getattr(settings, name)}, but the model has only {vocab_size} tokens. Lower it."
            )
    if settings.max_answer_length is not None and not eos:
        raise ValueError(
            "`max_answer_length` is set, but no token ends a completion (`ignore_eos`), so vLLM would continue it. Leave "
            "one of the two out."
        )


def _rules(plan: Plan, settings: ThinkingSettings, answer: list, evaluation: bool) -> str:
    """The rules from which `plan_of` makes a plan. Requests with the same rules share the plan."""
    end = plan.stop.end
    rules = {
        "settings": {name: value for name, value in settings.thinking_dict().items() if value != _SETTINGS[name]},
        "evaluation": evaluation,
        "answer": answer,
        "repetition_penalty": plan.repetition_penalty,
        "end": end.ids[0] if end.is_token else end.text,
        "forced": [list(ids) for ids in plan.forced],
        "eos": plan.eos_token_ids,
        "pad": plan.pad_token_id,
    }
    return json.dumps(rules, sort_keys=True)


class _Plans:
    """The last plans that requests asked for, with their rules. Most requests of a server differ in their keys of noise alone."""

    MOST = 64

    def __init__(self):
        self.made: OrderedDict[str, tuple[Any, Plan, str]] = OrderedDict()
        self.lock = threading.Lock()

    def of(self, tokenizer, asked: list, make: Callable[[], tuple[Plan, str]]) -> tuple[Plan, str]:
        """What `make` returns for a request that asks for this, the first time."""
        try:
            name = f"{id(tokenizer)} {json.dumps(asked, sort_keys=True)}"
        except (TypeError, ValueError, RecursionError):
            return make()  # no JSON: `make` refuses the value in a sentence
        made = self.made.get(name)
        if made is None:
            made = tokenizer, *make()  # with the tokenizer, whose number nothing else may have meanwhile
        with self.lock:
            self.made[name] = made
            self.made.move_to_end(name)
            if len(self.made) > self.MOST:
                self.made.popitem(last=False)
        return made[1:]


_PLANS = _Plans()
# What belongs to one request and to no plan.
_OF_ONE = ("soft_seed", "soft_generation", "soft_sample", "soft_record")


def spec_of(
    params,
    request_id: str,
    tokenizer,
    stored: dict | None,
    *,
    vocab_size: int,
    max_length: int,
    prompt: Sequence[int] = (),
) -> tuple[dict, Plan]:
    """
    The spec of a soft request: plain values with everything that a worker needs; and its plan, with an RMS of 1 for the table if
    the request has none.

    Args:
        params: sampling parameters as vLLM resolved them, with ends of sequence and `max_tokens`.
        max_length (`int`): C, most tokens of a completion in a record.
        prompt (`list[int]`): the prompt of the request. A prompt that has closed its thought is answered at once.

    Raises:
        ValueError: for a setting that no thought can use. The message is a sentence.
    """
    extra = params.extra_args
    refuse_params(params)
    if tokenizer is None:
        raise ValueError(
            "The engine was started without a tokenizer, so the text that ends a thought cannot be found. Start it with one."
        )
    key = _key(params)
    answer, eos = _answer(params), _ends(params)

    def make() -> tuple[Plan, str]:
        settings, evaluation = settings_of(extra, stored), switch("evaluation", extra.get("soft_evaluation"))
        _refuse_sizes(params, settings, eos, vocab_size=vocab_size, max_length=max_length)
        plan = make_plan(
            settings,
            tokenizer,
            Hard(*answer),
            vocab_size=vocab_size,
            max_completion_length=params.max_tokens,
            eos_token_ids=eos,
            rms=1.0,
            evaluation=evaluation,
            repetition_penalty=params.repetition_penalty,
        )
        looked_up(plan, vocab_size)  # or refuse
        return plan, _rules(plan, settings, answer, evaluation)

    shared = {name: value for name, value in extra.items() if name.startswith(PREFIX) and name not in _OF_ONE}
    limits = [params.max_tokens, max_length, vocab_size, params.repetition_penalty]
    plan, rules = _PLANS.of(tokenizer, [shared, stored, answer, eos, limits], make)
    name, keep = _record(extra.get("soft_record"), request_id)
    closed = plan.closed([prompt])[0]
    return {
        "rules": rules, "key": key, "limit": params.max_tokens, "closed": closed, "name": name, "keep": keep,
    }, plan  # fmt: skip


def _record(asked, request_id: str) -> tuple[str, bool]:
    """Under which name a record is kept, and whether it is."""
    if isinstance(asked, str) and asked not in ("true", "false", "True", "False", "0", "1"):
        return asked, True
    return request_id, switch("record", asked)


def plan_of(rules: str, *, vocab_size: int, max_length: int, rms=None, tokenizer=None) -> Plan:
    """
    The plan of a spec's rules.

    Args:
        rms: a function that returns the RMS of the table. Called if the settings have none and a thought's sigma needs it.
        tokenizer: a function that returns the tokenizer. Called if a text ends thoughts, or if tokens stay hard.
    """
    of = json.loads(rules)
    settings = ThinkingSettings(**of["settings"])
    if isinstance(of["end"], str):
        assert tokenizer is not None
        prefill = settings.answer_prefill[0] if settings.answer_prefill is not None else ""
        end: Any = matcher(tokenizer(), of["end"], vocab_size, prefill)
    else:
        end = EndToken(of["end"])
    members = None
    if settings.keeps_tokens_hard:
        assert tokenizer is not None
        members = members_of(settings, tokenizer(), vocab_size)
    return plan_of_ids(
        settings,
        end,
        of["forced"],
        Hard(*of["answer"]),
        vocab_size=vocab_size,
        max_completion_length=max_length,
        eos_token_ids=of["eos"],
        pad_token_id=of["pad"],
        members=members,
        rms=rms() if settings.reads_noise_rms and settings.noise_rms is None and rms is not None else 1.0,
        evaluation=of["evaluation"],
        repetition_penalty=of["repetition_penalty"],
    )
