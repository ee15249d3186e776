# SPDX-License-Identifier: Apache-2.0
"""The thinking settings: the soft fields, once, for trainer configs, `soft_generate` and the JSON beside the weights."""

import os
from dataclasses import dataclass, field, fields
from typing import Any

from . import saved_settings
from .ranges import RANGES, check, check_text, shown
from .thoughts import (
    DENSITIES,
    PLACEMENTS,
    RATIOS,
    THOUGHTS,
    WEIGHTS,
    Dirichlet,
    Gumbel,
    Hard,
    Latent,
    Mixture,
    Multiplex,
    Soft,
    Thought,
)


# What `None` means for each thought. gumbel: SofT-GRPO's scripts; soft: Soft Thinking's defaults (top-30, top-p and min-p,
# then `soft_width`, its n = 10 largest); gaussian: 2509.19170's "soft", and on probabilities SofT-GRPO's ablation. A hard
# thought takes the answer's sampling.
_DEFAULTS = {
    "gumbel": {"thinking_temperature": 1.0, "thinking_top_k": 5, "thinking_top_p": 0.95, "noise_scale": 1.0},
    "soft": {
        "thinking_temperature": 0.6,
        "thinking_top_k": 30,
        "thinking_top_p": 0.95,
        "thinking_min_p": 0.001,
    },
    "gaussian": {"thinking_temperature": 0.5, "noise_scale": 0.33},
    "gaussian-logits": {"thinking_temperature": 0.5, "noise_scale": 1.0, "thinking_top_k": 50},
    "gaussian-probabilities": {
        "noise_scale": 0.05,
        "thinking_temperature": 1.0,
        "thinking_top_k": 5,
        "thinking_top_p": 0.95,
    },
    "dirichlet": {"thinking_temperature": 0.6, "thinking_top_k": 5, "thinking_top_p": 0.95},
    "mixture": {"thinking_temperature": 1.0, "thinking_top_k": 20, "thinking_top_p": 1.0},
    "multiplex": {"thinking_temperature": 1.0},
    "latent": {"thinking_temperature": 1.0},
}

# Thoughts of the whole vocabulary: a truncation would be ignored, so it is refused.
_UNTRUNCATED = {
    "gaussian": "mixes the whole vocabulary (arXiv 2509.19170, Eq. 6), or with `noise_placement: logits` its "
    "`thinking_top_k` candidates; `noise_placement: probabilities` truncates every way",
    "multiplex": "draws from the whole vocabulary (arXiv 2601.08808)",
    "latent": "feeds the hidden state back and mixes nothing (arXiv 2412.06769)",
}


_TRUNCATIONS = ("thinking_temperature", "thinking_top_k", "thinking_top_p", "thinking_min_p")
_NEVER_GREEDY = ("dirichlet", "mixture", "multiplex")
# Which thoughts read an option of one kind; set for another it would be ignored, so it is refused.
_READERS = {
    "gumbel_temperature": ("gumbel",),
    "gumbel_density": ("gumbel",),
    "noise_scale": ("gumbel", "gaussian"),
    "noise_placement": ("gaussian",),
    "noise_rms": ("gaussian",),
    "dirichlet_concentration": ("dirichlet",),
    "mixture_beta": ("mixture",),
    "soft_width": ("soft",),
    "multiplex_width": ("multiplex",),
    "multiplex_weights": ("multiplex",),
    "multiplex_ratio": ("multiplex",),
}


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ThinkingSettings:
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

    > Parameters that shape the distribution a thought is made from (the answer keeps `temperature`, `top_k`, ...)

    Args:
        thinking_temperature (`float`, *optional*):
            At least 1e-6. `None`: 1.0 for gumbel, mixture and multiplex, 0.5 for gaussian (1.0 on probabilities), 0.6 for soft and dirichlet, the
            answer's for hard.
        thinking_top_k (`int`, *optional*):
            Number of candidates K, in `[1, V]`. `None`: 5 for gumbel and dirichlet, 30 for soft, 20 for mixture, 50 for
            gaussian on logits and 5 on probabilities, V if that is less, the answer's for hard. gaussian (on embeddings), multiplex and latent use the whole vocabulary.
        thinking_top_p (`float`, *optional*):
            In `[1e-6, 1]`, applied to the renormalised top-k. `None`: 0.95 for gumbel, soft and dirichlet, 1 for mixture,
            the answer's for hard.
        thinking_min_p (`float`, *optional*):
            In `[0, 1]`: candidates below this share of the most likely one are dropped. `None`: 0.001 for soft, off for
            all others.

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

    > Parameters of one kind of thought

    Args:
        gumbel_temperature (`float`, *optional*, defaults to `0.1`):
            tau_g of gumbel: towards 0 the mixture is one-hot. The ratio does not depend on it.
        gumbel_density (`str`, *optional*, defaults to `"gumbel"`):
            `gumbel` (the paper's sum), `concrete` (exact density of the mixture) or `softgrpo` (the released code, which
            also clamps the noise to [-1.5, 3], in evaluation too).
        noise_scale (`float`, *optional*):
            gaussian: sigma over the per-element RMS of the embedding table, `None` is 0.33; on logits and probabilities
            sigma itself, `None` is 1.0 (ours) and 0.05 (SofT-GRPO's ablation). gumbel: factor on the noise, `None` is
            1.0. At 0 nothing is drawn: greedy evaluation, refused in training.
        noise_placement (`str`, *optional*, defaults to `"embedding"`):
            gaussian: what the noise is added to, `embedding`, `hidden`, `logits` or `probabilities`.
        noise_rms (`float`, *optional*):
            gaussian, on embedding and hidden: the RMS that `noise_scale` is a share of. `None`: measured over the
            embedding table when training starts, and written beside the weights, so that a resumed run and an
            evaluation keep the sigma that was trained with.
        dirichlet_concentration (`float`, *optional*, defaults to `1.0`):
            alpha of dirichlet, above 0.
        mixture_beta (`float`, *optional*, defaults to `1.0`):
            beta of mixture, above 0; the larger, the closer to the sampled token.
        soft_width (`int`, *optional*, defaults to `10`):
            n of soft: how many of the candidates are mixed, the most likely ones (Soft Thinking: 5 to 20).
        multiplex_width (`int`, *optional*, defaults to `3`):
            Number of tokens a multiplex thought draws.
        multiplex_weights (`str`, *optional*, defaults to `"mean"`):
            `mean`, or `probability` for weights proportional to the tokens' probabilities.
        multiplex_ratio (`str`, *optional*, defaults to `"step"`):
            `step`: one policy ratio a thought, the product over its draws. `draw`: one for each draw, clipped by
            itself, as Multiplex Thinking's code does; each draw then counts as a token where a loss averages over a
            completion (`grpo`, `sapo`, `bnpo`), and as part of one position elsewhere.

    > Parameters of the update

    Args:
        detach_soft_inputs (`bool`, *optional*, defaults to `False`):
            Pass no gradient to the embedding table through the mixtures that are fed, as SofT-GRPO's released code
            does; a hard token's embedding has one.
    """

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
    gumbel_temperature: float = _help("tau_g: temperature of the Gumbel-softmax mixture, above 0.", 0.1)
    gumbel_density: str = _help("How a gumbel thought is scored: gumbel, concrete or softgrpo (no density).", "gumbel")
    noise_scale: float | None = _help("gaussian: sigma over the RMS of the table (0.33). gumbel: factor on the noise.")
    noise_placement: str = _help("gaussian: noise on the embedding, hidden, logits or probabilities.", "embedding")
    noise_rms: float | None = _help("gaussian: the RMS noise_scale is a share of; unset: of the table at the start.")
    dirichlet_concentration: float = _help("dirichlet: alpha, above 0.", 1.0)
    mixture_beta: float = _help("mixture: beta, above 0; the larger, the closer to the sampled token.", 1.0)
    soft_width: int = _help("soft: number of candidates mixed, the most likely of those that are kept.", 10)
    multiplex_width: int = _help("multiplex: number of tokens drawn.", 3)
    multiplex_weights: str = _help("multiplex: mean, or probability for weights proportional to p.", "mean")
    multiplex_ratio: str = _help("multiplex: one policy ratio a step, or one a draw.", "step")
    detach_soft_inputs: bool = _help("Pass no gradient to the embedding table through what thoughts feed.", False)

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Raise a `ValueError` in a sentence for a value that no thought can use."""
        for name in ("thought", "eval_thought"):
            value = getattr(self, name)
            if value is None and name == "eval_thought":
                continue
            if not isinstance(value, str) or value not in THOUGHTS:
                raise ValueError(
                    f"`{name}` is {shown(value)}, which is no kind of thought. Choose one of {', '.join(THOUGHTS)}"
                    + (" (fuzzy is gaussian with thinking_temperature 1e-4)." if value == "fuzzy" else ".")
                )
        choices = {"gumbel_density": DENSITIES, "noise_placement": PLACEMENTS}
        choices |= {"multiplex_weights": WEIGHTS, "multiplex_ratio": RATIOS}
        for name, known in choices.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"`{name}` is {shown(value)}. Choose one of {', '.join(known)}.")
        for name in ("eval_greedy", "detach_soft_inputs"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` is {shown(getattr(self, name))}, but it must be true or false.")
        for name in ThinkingSettings.__dataclass_fields__:
            if name in RANGES:
                check(name, getattr(self, name), optional=_FIELD_DEFAULTS[name] is None)
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
        evaluated = self.eval_thought or self.thought
        if self.eval_greedy and evaluated in _NEVER_GREEDY:
            raise ValueError(
                f"`eval_greedy` is set, but a {evaluated} thought is a draw and has no noise to leave out. Unset it, or set "
                "`eval_thought` to hard or soft."
            )
        placed = {"logits": _TRUNCATIONS[2:], "probabilities": ()}.get(self.noise_placement, _TRUNCATIONS[1:])
        ignored = {"multiplex": _TRUNCATIONS[1:], "latent": _TRUNCATIONS[1:], "gaussian": placed}
        for option in ignored.get(self.thought, ()):
            if getattr(self, option) is not None:
                raise ValueError(
                    f"`{option}` is set with `thought: {self.thought}`, but a {self.thought} thought "
                    f"{_UNTRUNCATED[self.thought]}. Leave `{option}` unset, or choose another thought."
                )
        for option, readers in _READERS.items():
            unread = not {self.thought, self.eval_thought} & set(readers)
            if unread and getattr(self, option) != _FIELD_DEFAULTS[option]:
                raise ValueError(
                    f"`{option}` is {shown(getattr(self, option))} with `thought: {self.thought}`, which does not read it; "
                    f"{' and '.join(readers)} thoughts do. Leave it unset, or choose such a thought."
                )

        if self.noise_rms is not None and not self.reads_noise_rms:
            raise ValueError(
                f"`noise_rms` is {self.noise_rms} with `noise_placement: {self.noise_placement}`, where `noise_scale` is "
                "sigma itself. Leave it unset."
            )

    @property
    def reads_noise_rms(self) -> bool:
        """Whether sigma is a share of the embedding table's RMS."""
        return "gaussian" in (self.thought, self.eval_thought) and self.noise_placement in ("embedding", "hidden")

    def resolved(self, kind: str, name: str):
        """The value of a field for a kind of thought: its default where the field is unset or meant for another."""
        value = getattr(self, name) if kind == self.thought else None
        if value is not None:
            return value
        placed = f"{kind}-{self.noise_placement}"
        return _DEFAULTS.get(placed if placed in _DEFAULTS else kind, {}).get(name)

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
        thought = self._make(kind, answer, table_rms, greedy=evaluation and self.eval_greedy)
        thought.detach_inputs = self.detach_soft_inputs
        return thought

    def _make(self, kind: str, answer: Hard, table_rms: float | None, greedy: bool) -> Thought:
        temperature = self.resolved(kind, "thinking_temperature")
        top_k, top_p = self.resolved(kind, "thinking_top_k"), self.resolved(kind, "thinking_top_p")
        min_p = self.resolved(kind, "thinking_min_p")
        if kind == "hard" and greedy:
            return Hard(0.0)
        if kind == "hard":
            return Hard(
                answer.temperature if temperature is None else temperature,
                answer.top_k if top_k is None else top_k,
                answer.top_p if top_p is None else top_p,
                answer.min_p if min_p is None else min_p,
            )
        if kind == "soft":
            return Soft(temperature, top_k, top_p, min_p or 0.0, self.soft_width)
        if kind == "latent":
            return Latent(temperature)
        if kind == "multiplex":
            return Multiplex(temperature, self.multiplex_width, self.multiplex_weights, self.multiplex_ratio)
        if kind == "mixture":
            return Mixture(temperature, top_k, top_p, min_p or 0.0, self.mixture_beta)
        if kind == "dirichlet":
            return Dirichlet(temperature, top_k, top_p, min_p or 0.0, self.dirichlet_concentration)
        scale = 0.0 if greedy else self.resolved(kind, "noise_scale")
        if kind == "gaussian":
            placement: Any = PLACEMENTS[self.noise_placement]
            if self.noise_placement == "logits":
                return placement(temperature, scale, top_k)
            if self.noise_placement == "probabilities":
                return placement(temperature, scale, top_k, top_p, min_p or 0.0)
            table_rms = table_rms if self.noise_rms is None else self.noise_rms
            if table_rms is None:
                raise ValueError("A gaussian thought's sigma is a share of the embedding table's RMS: pass table_rms.")
            return placement(temperature, scale * table_rms)
        return Gumbel(temperature, top_k, top_p, min_p or 0.0, self.gumbel_temperature, scale, self.gumbel_density)

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
            stored = {name: value for name, value in stored.items() if name not in (*_TRUNCATIONS, *_READERS)}
        if changes.get("noise_placement") in ("logits", "probabilities"):
            stored = {name: value for name, value in stored.items() if name != "noise_rms"}
        return ThinkingSettings(**{**stored, **changes})


_FIELD_DEFAULTS = {f.name: f.default for f in fields(ThinkingSettings)}
