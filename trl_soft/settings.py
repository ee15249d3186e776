# SPDX-License-Identifier: Apache-2.0
"""The thinking settings: the soft fields, once, for trainer configs, `soft_generate` and the JSON beside the weights.

What one kind of thought alone reads stands in the file of the kind (`trl_soft.thoughts`) and is collected here.
"""

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from types import SimpleNamespace
from typing import Any

from . import saved_settings
from .ranges import RANGES, check, check_text, shown
from .thoughts import THOUGHTS, Thought
from .thoughts.hard import Hard
from .thoughts.option import TRUNCATION
from .thoughts.registry import options_for_settings, readers


_OPTIONS = options_for_settings()


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SharedSettings:
    """The fields that do not belong to one kind of thought. [`ThinkingSettings`] says what they mean."""

    thought: str = _help(f"What a thinking step feeds back: {', '.join(THOUGHTS)}.", "gumbel")
    eval_thought: str | None = _help("The thought used during evaluation; unset: as trained.")
    eval_greedy: bool = _help("Evaluate without noise and with greedy answers.", False)
    thinking_temperature: float | None = _help("Temperature of the distribution a thought is made from, above 0.")
    thinking_top_k: int | None = _help("Number of candidates of a thought, from 1 to the size of the vocabulary.")
    thinking_top_p: float | None = _help("Nucleus of a thought, in (0, 1], on the renormalised top-k.")
    thinking_min_p: float | None = _help("Drop candidates below this share of the most likely one, in [0, 1].")
    max_thinking_length: int | None = _help("Cap of the thought in tokens, below max_completion_length.")
    end_of_thinking: str = _help("Token or text that ends the thought.", "</think>")
    answer_prefill: list[str] | None = _help("Two texts forced after the thought: when it ended itself, when cut.")
    cold_stop_entropy: float | None = _help("End the thought when its entropy (nats) stays below this; unset: off.")
    cold_stop_length: int = _help("Steps in a row below cold_stop_entropy that end the thought.", 256)
    max_answer_length: int | None = _help("Cap of the answer's own tokens; unset: what max_completion_length leaves.")
    detach_soft_inputs: bool = _help("Pass no gradient to the embedding table through what thoughts feed.", False)


if _twice := sorted(set(_OPTIONS) & set(SharedSettings.__dataclass_fields__)):
    raise ValueError(f"A kind of thought has the option `{_twice[0]}`, which every kind reads. Rename it.")
_Options: Any = make_dataclass(
    "_Options", [(name, option.type, _help(option.help, option.default)) for name, option in _OPTIONS.items()]
)


@dataclass
class ThinkingSettings(_Options, SharedSettings):
    """
    How the model thinks. Every field but `eval_thought` also serves generation without a trainer.

    > Parameters that choose the thought

    Args:
        thought (`str`, *optional*, defaults to `"gumbel"`):
            What a thinking step feeds back: `hard`, `gumbel`, `gaussian`, `dirichlet`, `mixture`, `multiplex`, or, for
            evaluation only, `soft` and `latent`. `fuzzy` of 2509.19170 is `gaussian` at `thinking_temperature=1e-4`.
        eval_thought (`str`, *optional*):
            The same during evaluation; `None` is as trained. Train soft, infer hard is 2509.19170's headline setting.
            The `thinking_*` fields and `noise_scale` are the trained thought's: another kind of thought is evaluated
            at its own defaults, a hard one with the answer's sampling.
        eval_greedy (`bool`, *optional*, defaults to `False`):
            Evaluate during training without noise and with greedy answers, as 2509.19170 chooses its checkpoints: a hard
            thought at temperature 0, a gaussian or gumbel one at `noise_scale` 0.

    > Parameters that shape the distribution a thought is made from (the answer keeps `temperature`, `top_k`, ...). `None` is
    the default of the kind, below

    Args:
        thinking_temperature (`float`, *optional*):
            At least 1e-6.
        thinking_top_k (`int`, *optional*):
            Number of candidates K, in `[1, V]`; a default that is more than V is V.
        thinking_top_p (`float`, *optional*):
            In `[1e-6, 1]`, applied to the renormalised top-k.
        thinking_min_p (`float`, *optional*):
            In `[0, 1]`: candidates below this share of the most likely one are dropped.

    > Parameters that end the thought

    Args:
        max_thinking_length (`int`, *optional*):
            Cap of the thought in tokens, below `max_completion_length`. `None`: no cap of its own.
        end_of_thinking (`str`, *optional*, defaults to `"</think>"`):
            A token, or a text that the shadow comes to hold. A thought closes with the token in which the text is completed;
            what that token writes beyond it are the answer's first characters (`thinking_surplus`). A prompt whose text ends
            with it, blanks aside, has closed its thought and is answered at once.
        answer_prefill (`list[str]`, *optional*):
            Two texts forced after the thought: when it ended itself, and when it was cut, by its cap or Cold Stop
            (2509.19170: `["\\\\boxed{", "The final answer is: \\\\boxed{"]`). Forced tokens are fed but neither scored
            nor counted as the policy's. Where the token that closed the thought has written a part of the first text
            already, the rest of it is forced. `None`: nothing, and `end_of_thinking`.
        cold_stop_entropy (`float`, *optional*):
            Soft Thinking's Cold Stop: below this entropy in nats (whole vocabulary, at `thinking_temperature`) for
            `cold_stop_length` steps in a row the thought is cut, as by its cap. `None` is off.
        cold_stop_length (`int`, *optional*, defaults to `256`).
        max_answer_length (`int`, *optional*):
            Cap of the answer's own tokens, after the thought and what was forced (2509.19170: 32). A completion that it
            ends has no end of sequence: it counts as truncated, and `mask_truncated_completions` leaves it out of the loss.
            `None`: what `max_completion_length` leaves.

    > Parameters of the update

    Args:
        detach_soft_inputs (`bool`, *optional*, defaults to `False`):
            Pass no gradient to the embedding table through the mixtures that are fed, as SofT-GRPO's released code
            does; a hard token's embedding has one.
    """

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Raise a `ValueError` in a sentence for a value that no thought can use."""
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

    def _check_values(self) -> None:
        for name, option in _OPTIONS.items():
            value = getattr(self, name)
            if option.choices and (not isinstance(value, str) or value not in option.choices):
                raise ValueError(f"`{name}` is {shown(value)}. Choose one of {', '.join(option.choices)}.")
        for name, default in _DEFAULTS.items():
            if isinstance(default, bool) and not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` is {shown(getattr(self, name))}, but it must be true or false.")
            if name in RANGES:
                check(name, getattr(self, name), optional=default is None)

    def _check_texts(self) -> None:
        check_text("end_of_thinking", self.end_of_thinking)
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
        """What is set is read by one of the thoughts."""
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

    def kinds(self) -> list[type[Thought]]:
        """The classes of the trained thought and, where it is set, of `eval_thought`."""
        return kinds_of(vars(self))

    @property
    def reads_noise_rms(self) -> bool:
        """Whether sigma is a share of the embedding table's RMS."""
        return any("noise_rms" in kind.options for kind in self.kinds())

    def several_ratios(self) -> tuple[str, str] | None:
        """Where a thought takes several policy ratios a position: what is set, in a clause, and what to set instead."""
        for kind in self.kinds():
            if kind.several_ratios is not None:
                name, several, single = kind.several_ratios
                if getattr(self, name) == several:
                    return f"`{name}` is {several}", f"`{name}: {single}`"
        return None

    def values(self, kind: str) -> SimpleNamespace:
        """
        What a kind of thought reads: the fields of `TRUNCATION` and its options. A field that has a default for the kind takes
        it where the field is unset or meant for another kind.
        """
        made = THOUGHTS[kind].variant(self)
        values = {name: getattr(self, name) for name in (*TRUNCATION, *made.options)}
        for name in (*TRUNCATION, *made.defaults):
            if kind != self.thought or values[name] is None:
                values[name] = made.defaults.get(name)
        return SimpleNamespace(**values)

    def make_thought(self, answer: Hard, table_rms: float | None = None, evaluation: bool = False) -> Thought:
        """
        The thought these settings describe.

        Args:
            answer (`Hard`): how answers are sampled; a hard thought takes from it what is unset here.
            table_rms (`float`, *optional*):
                Per-element RMS of the embedding table, which a gaussian thought needs where `noise_rms` is unset.
            evaluation (`bool`): make `eval_thought`, without noise under `eval_greedy`.
        """
        kind = (self.eval_thought if evaluation else None) or self.thought
        greedy = evaluation and self.eval_greedy
        thought = THOUGHTS[kind].variant(self).build(self.values(kind), answer, table_rms, greedy)
        thought.detach_inputs = self.detach_soft_inputs
        return thought

    def thinking_dict(self) -> dict:
        """The soft fields alone, as plain JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(ThinkingSettings)}

    def attach(self, model) -> None:
        """
        Let these settings travel with a model or its active adapters: whoever saves the weights saves them too, and
        `soft_generate` finds them.
        """
        saved_settings.attach(model, self.thinking_dict())

    def save_thinking(self, directory: str | os.PathLike) -> str:
        """Write `thinking_config.json` into the folder of a model or an adapter, and into its config; returns the path."""
        return saved_settings.write(directory, self.thinking_dict())

    @classmethod
    def load_thinking(cls, directory: str | os.PathLike, **changes) -> "ThinkingSettings":
        """
        Read the settings from the folder of a model or an adapter, with some fields changed. Another kind of thought begins
        from its own defaults: what shaped the saved kind (`thinking_*`, `noise_scale`, the options of one kind) is left behind.
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
        """The settings that `thinking_dict` has made, as `load_thinking` reads them; `place` is named in errors."""
        unknown = sorted(set(stored) - {f.name for f in fields(ThinkingSettings)})
        if unknown:
            raise ValueError(
                f"{place} holds {unknown}, which this version does not know. Update trl_soft, or remove them."
            )
        if changes.get("thought", stored.get("thought")) != stored.get("thought"):
            stored = {name: value for name, value in stored.items() if name not in (*TRUNCATION, *_OPTIONS)}
        # Of a kind, what its changed options choose may read less than what was saved.
        kinds = kinds_of({**stored, **changes})
        left = {name for kind in kinds for name in THOUGHTS[kind.name].options} - {n for k in kinds for n in k.options}
        stored = {name: value for name, value in stored.items() if name not in left}
        return ThinkingSettings(**{**stored, **changes})


_DEFAULTS = {f.name: f.default for f in fields(ThinkingSettings)}


def kinds_of(given: Mapping[str, Any]) -> list[type[Thought]]:
    """
    The classes that serve `thought` and, where it is set, `eval_thought`.

    `given` holds fields of `ThinkingSettings`. One that it does not hold has its default; a name of no kind is left out.
    """
    settings = SimpleNamespace(**{**_DEFAULTS, **given})
    names = [settings.thought] if settings.eval_thought is None else [settings.thought, settings.eval_thought]
    return [THOUGHTS[name].variant(settings) for name in names if isinstance(name, str) and name in THOUGHTS]


def _docs_of_kinds() -> str:
    """The end of the docstring: the options of the kinds, and what `None` means for each kind."""
    lines = ["", "> Parameters of one kind of thought", "", "Args:"]
    for name, option in _OPTIONS.items():
        kind = getattr(option.type, "__name__", None)
        title = f"`{kind}`, *optional*, defaults to `{option.default!r}`" if kind else "`float`, *optional*"
        lines.append(f"    {name} ({title}):")
        lines += textwrap.wrap(option.doc or option.help, 119, initial_indent=" " * 8, subsequent_indent=" " * 8)
    lines += ["", "> What `None` means", ""]
    for kind in THOUGHTS.values():
        defaults = ", ".join(f"`{name}` {value:g}" for name, value in kind.defaults.items())
        lines.append(f"- {kind.name}: {defaults or 'as the answer is sampled'}")
    return textwrap.indent("\n".join(lines), " " * 4).rstrip() + "\n    "


ThinkingSettings.__doc__ = (ThinkingSettings.__doc__ or "").rstrip() + "\n" + _docs_of_kinds()
