# SPDX-License-Identifier: Apache-2.0
"""The thinking settings, defined once for trainer configs, `soft_generate` and the JSON beside the weights.

A setting that only one kind of thought reads is declared in the file of the kind (`trl_soft.thoughts`) and collected here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from types import SimpleNamespace
from typing import Any

from . import saved_settings
from .gates import GATES, Gate, check_gate, gate_options_for_settings, values_of
from .option_docs import docs_of_options
from .ranges import RANGES, check, check_number, check_text, shown
from .thoughts import THOUGHTS, Thought, token_class
from .thoughts.hard import Hard
from .thoughts.option import TRUNCATION
from .thoughts.registry import options_for_settings, readers


_OPTIONS = options_for_settings()
_GATE_OPTIONS = gate_options_for_settings()


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SharedSettings:
    """The fields that do not belong to one kind of thought. [`ThinkingSettings`] documents them."""

    thought: str = _help(f"What a thinking step feeds back: {', '.join(THOUGHTS)}.", "gumbel")
    eval_thought: str | None = _help("The thought during evaluation; unset: as trained.")
    eval_greedy: bool = _help("Evaluate without noise and with greedy answers.", False)
    thinking_temperature: float | None = _help("Temperature of the distribution of a thought, above 0.")
    thinking_top_k: int | None = _help("Number of candidates of a thought, from 1 to the size of the vocabulary.")
    thinking_top_p: float | None = _help("Nucleus of a thought, in (0, 1], on the renormalised top-k.")
    thinking_min_p: float | None = _help("Drop candidates below this share of the most likely one, in [0, 1].")
    thinking_gate: str = _help(f"Which steps of a thought are soft: {', '.join(GATES)}.", "always")
    hard_tokens: list[str] | None = _help("Tokens that stay hard in any mixture, by the texts that they write.")
    hard_token_pattern: str | None = _help("Regular expression: tokens in whose text it is found stay hard.")
    max_thinking_length: int | None = _help("Cap of the thought in tokens, below max_completion_length.")
    end_of_thinking: str = _help("Token or text that ends the thought.", "</think>")
    answer_prefill: list[str] | None = _help("Two texts to force: after a thought that ended itself, after a cut one.")
    cold_stop_entropy: float | None = _help("End the thought when its entropy (nats) stays below this; unset: off.")
    cold_stop_length: int = _help("Steps in a row below cold_stop_entropy that end the thought.", 256)
    max_answer_length: int | None = _help("Cap of the answer's own tokens; unset: what max_completion_length leaves.")
    detach_soft_inputs: bool = _help(
        "Pass no gradient to the embedding table through the mixtures of thoughts.", False
    )


for _names in (set(SharedSettings.__dataclass_fields__), set(_GATE_OPTIONS)):
    if _twice := sorted(set(_OPTIONS) & _names):
        raise ValueError(
            f"A kind of thought has the option `{_twice[0]}`, which belongs to something else. Rename it."
        )
if _twice := sorted(set(_GATE_OPTIONS) & set(SharedSettings.__dataclass_fields__)):
    raise ValueError(f"A gate has the option `{_twice[0]}`, which belongs to something else. Rename it.")
_ALL_OPTIONS = _OPTIONS | _GATE_OPTIONS
_Options: Any = make_dataclass(
    "_Options", [(name, option.type, _help(option.help, option.default)) for name, option in _ALL_OPTIONS.items()]
)


@dataclass
class ThinkingSettings(_Options, SharedSettings):
    """
    How the model thinks. All fields except `eval_thought` also serve generation without a trainer.

    > Parameters that choose the thought

    Args:
        thought (`str`, *optional*, defaults to `"gumbel"`):
            What a thinking step feeds back: `hard`, `gumbel`, `gaussian`, `dirichlet`, `mixture`, `multiplex`, `neighbour`, or,
            for evaluation only, `soft` and `latent`. `fuzzy` of 2509.19170 is `gaussian` at `thinking_temperature=1e-4`.
        eval_thought (`str`, *optional*):
            The thought during evaluation. `None` means as trained. "Train soft, infer hard" is the headline setting of
            2509.19170. The `thinking_*` fields and `noise_scale` belong to the trained thought. If `eval_thought` is another
            kind, it has its own defaults, and a hard thought has the answer's sampling.
        eval_greedy (`bool`, *optional*, defaults to `False`):
            Evaluate during training without noise and with greedy answers, as in 2509.19170's choice of checkpoints. A hard
            thought then has temperature 0, and a gaussian or gumbel thought has `noise_scale` 0. The steps that
            `thinking_gate: random` makes soft are drawn all the same.

    > Parameters that shape the distribution of a thought (`temperature`, `top_k`, ... shape the answer). `None` means the
    default of the kind, below

    Args:
        thinking_temperature (`float`, *optional*):
            At least 1e-6.
        thinking_top_k (`int`, *optional*):
            Number of candidates K, in `[1, V]`. A default above V becomes V.
        thinking_top_p (`float`, *optional*):
            In `[1e-6, 1]`, applied to the renormalised top-k.
        thinking_min_p (`float`, *optional*):
            In `[0, 1]`: candidates below this share of the most likely one are dropped.

    > Parameters that choose when a step of the thought is soft

    Args:
        thinking_gate (`str`, *optional*, defaults to `"always"`):
            `always`, `first`, `random`, `entropy`, `entropy_trend` or `confidence`. A step that the gate makes hard is a token, drawn
            and scored as in the answer. See [`Gate`] and docs/gates.md. The gate serves `eval_thought` too, unless it is hard.

    > Parameters that keep tokens hard

    Args:
        hard_tokens (`list[str]`, *optional*):
            Texts of tokens that stay hard, with their blanks. A step with such a shadow token is fed as this token. Others mix without it.
        hard_token_pattern (`str`, *optional*):
            A regular expression: tokens in whose text it is found stay hard too (`[0-9+*/=-]`: digits and operators).

    > Parameters that end the thought

    Args:
        max_thinking_length (`int`, *optional*):
            Cap of the thought in tokens, below `max_completion_length`. `None`: no separate cap.
        end_of_thinking (`str`, *optional*, defaults to `"</think>"`):
            A token or a text. The thought closes with the token that completes the text in its shadow (the text of the shadow
            tokens, one for each step). If this token writes more than the text, the additional characters are the first ones of
            the answer (`thinking_surplus`). A prompt that ends with the text (and blanks) has closed its thought and is answered
            at once.
        answer_prefill (`list[str]`, *optional*):
            Two forced texts: one after a thought that ended itself, and one after a thought that its cap or Cold Stop cut
            (2509.19170: `["\\\\boxed{", "The final answer is: \\\\boxed{"]`). The model reads forced tokens, but they are not
            scored and do not count as the policy's. If the token that closed the thought has already written a part of the
            first text, only the rest is forced. `None`: nothing after a thought that ended itself, and `end_of_thinking` after
            a cut one.
        cold_stop_entropy (`float`, *optional*):
            Soft Thinking's Cold Stop: if the entropy (nats, whole vocabulary, at `thinking_temperature`) is below this value for
            `cold_stop_length` steps in a row, the thought is cut, as by its cap. `None` means off.
        cold_stop_length (`int`, *optional*, defaults to `256`).
        max_answer_length (`int`, *optional*):
            Cap of the answer's own tokens, after the thought and the forced tokens (2509.19170: 32). A completion that this cap
            ends has no end of sequence. It counts as truncated, and `mask_truncated_completions` leaves it out of the loss.
            `None`: the rest of `max_completion_length`.

    > Parameters of the update

    Args:
        detach_soft_inputs (`bool`, *optional*, defaults to `False`):
            Pass no gradient to the embedding table through the mixtures, as in SofT-GRPO's released code. The embedding of a
            hard token still has one.
    """

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Raise a `ValueError`, one sentence, for a value that no thought can use."""
        self._check_kinds()
        self._check_values()
        self._check_texts()
        self._check_reading()

    def _check_kinds(self) -> None:
        for name in ("thought", "eval_thought"):
            value = getattr(self, name)
            if value is None and name == "eval_thought":
                continue
            if not isinstance(value, str) or value not in THOUGHTS:
                raise ValueError(
                    f"`{name}` is {shown(value)}, which is no kind of thought. Choose one of {', '.join(THOUGHTS)}"
                    + (" (fuzzy is gaussian with thinking_temperature 1e-4)." if value == "fuzzy" else ".")
                )
        if not isinstance(self.thinking_gate, str) or self.thinking_gate not in GATES:
            raise ValueError(
                f"`thinking_gate` is {shown(self.thinking_gate)}, which is no gate. Choose one of {', '.join(GATES)}."
            )

    def _check_values(self) -> None:
        for name, option in _ALL_OPTIONS.items():
            value = getattr(self, name)
            if option.range is None and option.type in (int, float):
                check_number(name, value, None, None, whole=option.type is int)
            if option.choices and (not isinstance(value, str) or value not in option.choices):
                raise ValueError(f"`{name}` is {shown(value)}. Choose one of {', '.join(option.choices)}.")
        for name, default in _DEFAULTS.items():
            if isinstance(default, bool) and not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` is {shown(getattr(self, name))}, but it must be true or false.")
            if name in RANGES:
                check(name, getattr(self, name), optional=default is None)

    def _check_texts(self) -> None:
        check_text("end_of_thinking", self.end_of_thinking)
        token_class.check_names(self.hard_tokens, self.hard_token_pattern)
        texts = self.answer_prefill
        if texts is not None and (
            not isinstance(texts, (list, tuple)) or len(texts) != 2 or not all(isinstance(text, str) for text in texts)
        ):
            raise ValueError(
                f"`answer_prefill` is {shown(texts)}. It takes two texts: the one forced after a thought that "
                "ended itself, and the one forced after a thought that was cut. An empty text forces nothing."
            )
        for text in texts or ():
            check_text("answer_prefill", text)

    def _check_reading(self) -> None:
        """Check that a thought reads every field that is set."""
        trained, *_ = kinds = self.kinds()
        if self.eval_greedy and not kinds[-1].can_be_greedy:
            raise ValueError(
                f"`eval_greedy` is set, but a {kinds[-1].name} thought is a draw and has no noise to leave out. Unset it, or "
                "set `eval_thought` to hard or soft."
            )
        for name in TRUNCATION:
            if name not in trained.truncations and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` is set with `thought: {self.thought}`, but a {self.thought} thought {trained.untruncated}. "
                    f"Leave `{name}` unset, or choose another thought."
                )
        for name in _OPTIONS:
            names = readers(name)
            if not {self.thought, self.eval_thought} & set(names) and getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(
                    f"`{name}` is {shown(getattr(self, name))} with `thought: {self.thought}`, which does not read it; "
                    f"{' and '.join(names)} thoughts do. Leave it unset, or choose such a thought."
                )
        for kind in kinds:
            kind.check(self)
        if self.keeps_tokens_hard:
            token_class.check(kinds)
        check_gate(self, kinds, _DEFAULTS)

    def make_gate(self, evaluation: bool = False) -> Gate | None:
        """The gate of these settings for a rollout. `None` if every step of the thought is of one kind."""
        kind = (self.eval_thought if evaluation else None) or self.thought
        if self.thinking_gate == "always" or THOUGHTS[kind].is_token:
            return None
        return GATES[self.thinking_gate](**vars(values_of(self)))

    def kinds(self) -> list[type[Thought]]:
        """The classes of the trained thought and, if it is set, of `eval_thought`."""
        return kinds_of(vars(self))

    @property
    def reads_noise_rms(self) -> bool:
        """Whether sigma is a multiple of the embedding table's RMS."""
        return any("noise_rms" in kind.options for kind in self.kinds())

    def several_ratios(self) -> tuple[str, str] | None:
        """If a thought has several policy ratios at a position: the setting, as a clause, and what to set instead."""
        for kind in self.kinds():
            if kind.several_ratios is not None:
                name, several, single = kind.several_ratios
                if getattr(self, name) == several:
                    return f"`{name}` is {several}", f"`{name}: {single}`"
        return None

    def values(self, kind: str) -> SimpleNamespace:
        """
        The values that a kind of thought reads: the fields of `TRUNCATION` and its options. A field that is unset, or that belongs
        to another kind, has the default of this kind.
        """
        made = THOUGHTS[kind].variant(self)
        values = {name: getattr(self, name) for name in (*TRUNCATION, *made.options)}
        for name in (*TRUNCATION, *made.defaults):
            if kind != self.thought or values[name] is None:
                values[name] = made.defaults.get(name)
        return SimpleNamespace(**values)

    def resolved(self, evaluation: bool = False) -> dict[str, Any]:
        """
        The values of the fields that the thought reads. Unset fields have the kind's defaults. A field without a value is left
        out: a hard thought takes its sampling from the answer, and a cap can be off.

        Args:
            evaluation (`bool`): for `eval_thought`, if it is set.
        """
        kind = (self.eval_thought if evaluation else None) or self.thought
        made, values = THOUGHTS[kind].variant(self), vars(self.values(kind))
        read = {"thought": kind} | {name: values[name] for name in (*made.truncations, *made.options)}
        gate = self.make_gate(evaluation)
        read |= {} if gate is None else {"thinking_gate": self.thinking_gate} | vars(values_of(self))
        ends = ["end_of_thinking", "max_thinking_length", "answer_prefill", "max_answer_length", "cold_stop_entropy"]
        ends += [] if self.cold_stop_entropy is None else ["cold_stop_length"]
        ends += token_class.SETTINGS if token_class.can_keep(made) else ()
        read |= {name: getattr(self, name) for name in ends}
        return {name: value for name, value in read.items() if value is not None}

    @property
    def keeps_tokens_hard(self) -> bool:
        """Whether some tokens stay hard in mixtures."""
        return any(getattr(self, name) is not None for name in token_class.SETTINGS)

    def make_thought(
        self, answer: Hard, table_rms: float | None = None, evaluation: bool = False, members=None
    ) -> Thought:
        """
        The thought of these settings.

        Args:
            answer (`Hard`): how answers are sampled. A hard thought takes unset values from it.
            table_rms (`float`, *optional*):
                Per-element RMS of the embedding table. A gaussian thought needs it if `noise_rms` is unset.
            evaluation (`bool`): make `eval_thought`, without noise under `eval_greedy`.
            members (`torch.Tensor` of shape `(V,)`, bool, *optional*):
                The tokens that stay hard (`hard_members`). Without it no token does, and a thought has the size of its actions.
        """
        kind = (self.eval_thought if evaluation else None) or self.thought
        greedy = evaluation and self.eval_greedy
        thought = THOUGHTS[kind].variant(self).build(self.values(kind), answer, table_rms, greedy)
        if self.keeps_tokens_hard and token_class.can_keep(type(thought)):
            thought = token_class.HardTokens(thought, members)
        thought.detach_inputs = self.detach_soft_inputs
        return thought

    def thinking_dict(self) -> dict:
        """
        Only the soft fields, as plain JSON values. An option that neither a thought nor the gate reads is left out, so a model that
        was saved beside a thought or a gate of one's own loads elsewhere.
        """
        read = {name for kind in self.kinds() for name in THOUGHTS[kind.name].options} | set(vars(values_of(self)))
        names = [f.name for f in fields(ThinkingSettings)]
        return {name: getattr(self, name) for name in names if name in read or name not in _ALL_OPTIONS}

    def attach(self, model) -> None:
        """
        Put these settings on a model or its active adapters. Saving the weights then saves the settings, and `soft_generate`
        finds them.
        """
        saved_settings.attach(model, self.thinking_dict())

    def save_thinking(self, directory: str | os.PathLike) -> str:
        """Write the settings into the folder of a model or an adapter and into its config. Returns the path of the file."""
        return saved_settings.write(directory, self.thinking_dict())

    @classmethod
    def load_thinking(cls, directory: str | os.PathLike, **changes) -> "ThinkingSettings":
        """
        Read the settings from the folder of a model or an adapter, with some fields changed. Another kind of thought starts from
        its own defaults, without the saved values for the saved kind (`thinking_*`, `noise_scale`, the options of one kind).
        """
        stored = saved_settings.read(directory)
        if stored is None:
            raise FileNotFoundError(
                f"{os.path.join(directory, saved_settings.FILE_NAME)} does not exist, and no config beside it holds thinking "
                "settings: this model was not saved by a soft trainer. Pass the thinking settings yourself."
            )
        return cls.of_stored(stored, str(directory), **changes)

    @classmethod
    def of_stored(cls, stored: dict[str, Any], place: str, **changes) -> "ThinkingSettings":
        """Settings from the result of `thinking_dict`, as `load_thinking` reads them. Errors name `place`."""
        unknown = sorted(set(stored) - {f.name for f in fields(ThinkingSettings)})
        if unknown:
            raise ValueError(
                f"{place} holds {unknown}, which nothing here reads. If a thought or a gate of your own reads them, import its file "
                "first. Otherwise update trl_soft, or remove them."
            )
        if changes.get("thought", stored.get("thought")) != stored.get("thought"):
            stored = {name: value for name, value in stored.items() if name not in (*TRUNCATION, *_OPTIONS)}
        # With changed options, a kind may read fewer fields than the saved settings have.
        kinds = kinds_of({**stored, **changes})
        left = {name for kind in kinds for name in THOUGHTS[kind.name].options} - {n for k in kinds for n in k.options}
        if changes.get("thinking_gate", stored.get("thinking_gate")) != stored.get("thinking_gate"):
            left |= set(_GATE_OPTIONS)
        if kinds and all(kind.is_token for kind in kinds):
            left |= {"thinking_gate", *_GATE_OPTIONS}
        if not token_class.read_by(kinds):
            left |= set(token_class.SETTINGS)
        stored = {name: value for name, value in stored.items() if name not in left}
        return ThinkingSettings(**{**stored, **changes})


_DEFAULTS = {f.name: f.default for f in fields(ThinkingSettings)}


def kinds_of(given: Mapping[str, Any]) -> list[type[Thought]]:
    """
    The classes for `thought` and, if it is set, `eval_thought`.

    `given` holds fields of `ThinkingSettings`. A missing field has its default. A name that is not a kind is left out.
    """
    settings = SimpleNamespace(**{**_DEFAULTS, **given})
    names = [settings.thought] if settings.eval_thought is None else [settings.thought, settings.eval_thought]
    return [THOUGHTS[name].variant(settings) for name in names if isinstance(name, str) and name in THOUGHTS]


ThinkingSettings.__doc__ = (ThinkingSettings.__doc__ or "").rstrip() + "\n" + docs_of_options(_OPTIONS, _GATE_OPTIONS)
