# SPDX-License-Identifier: Apache-2.0
"""The thinking settings: the soft fields, once, for trainer configs, `soft_generate` and the JSON beside the weights."""

import json
import os
from dataclasses import dataclass, field, fields
from typing import Any

from .thoughts import DENSITIES, THOUGHTS, Gaussian, Gumbel, Hard, Soft, Thought


FILE_NAME = "thinking_config.json"

# What `None` means for each thought. gumbel: SofT-GRPO's scripts; soft: Soft Thinking's defaults (its n = 10 largest of
# the top 30); gaussian: 2509.19170's "soft". A hard thought takes the answer's sampling.
_DEFAULTS = {
    "gumbel": {"thinking_temperature": 1.0, "thinking_top_k": 5, "thinking_top_p": 0.95, "noise_scale": 1.0},
    "soft": {"thinking_temperature": 0.6, "thinking_top_k": 10, "thinking_top_p": 0.95},
    "gaussian": {"thinking_temperature": 0.5, "noise_scale": 0.33},
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
            What a thinking step feeds back: `hard`, `soft` (evaluation only), `gaussian` or `gumbel`. `fuzzy` of
            2509.19170 is `gaussian` at `thinking_temperature=1e-4`.
        eval_thought (`str`, *optional*):
            The same during evaluation; `None` is as trained. Train soft, infer hard is 2509.19170's headline setting.

    > Parameters that shape the distribution a thought is made from (the answer keeps `temperature`, `top_k`, ...)

    Args:
        thinking_temperature (`float`, *optional*):
            Above 0. `None`: 1.0 for gumbel, 0.5 for gaussian, 0.6 for soft, the answer's for hard.
        thinking_top_k (`int`, *optional*):
            Number of candidates K, in `[1, V]`. `None`: 5 for gumbel, 10 for soft, the answer's for hard. gaussian
            mixes the whole vocabulary.
        thinking_top_p (`float`, *optional*):
            In `(0, 1]`, applied to the renormalised top-k. `None`: 0.95 for gumbel and soft, the answer's for hard.
        thinking_min_p (`float`, *optional*):
            In `[0, 1]`: candidates below this share of the most likely one are dropped. `None` is off.

    > Parameters that end the thought

    Args:
        max_thinking_length (`int`, *optional*):
            Cap of the thought in tokens, below `max_completion_length`. `None`: no cap of its own.
        end_of_thinking (`str`, *optional*, defaults to `"</think>"`):
            A token, or a text the shadow must end with.
        answer_prefill (`list[str]`, *optional*):
            Two texts forced after the thought: when it ended itself, and when it was cut at `max_thinking_length`
            (2509.19170: `["\\\\boxed{", "The final answer is: \\\\boxed{"]`). Forced tokens are fed but neither scored
            nor counted as the policy's. `None`: nothing, and `end_of_thinking`.
        cold_stop_entropy (`float`, *optional*):
            Soft Thinking's Cold Stop: below this entropy in nats (whole vocabulary, at `thinking_temperature`) for
            `cold_stop_length` steps in a row, `end_of_thinking` is forced. `None` is off.
        cold_stop_length (`int`, *optional*, defaults to `256`).

    > Parameters of one kind of thought

    Args:
        gumbel_temperature (`float`, *optional*, defaults to `0.1`):
            tau_g of gumbel: towards 0 the mixture is one-hot. The ratio does not depend on it.
        gumbel_density (`str`, *optional*, defaults to `"gumbel"`):
            `gumbel` (the paper's sum), `concrete` (exact density of the mixture) or `softgrpo` (the released code).
        noise_scale (`float`, *optional*):
            gaussian: sigma over the per-element RMS of the embedding table, `None` is 0.33. gumbel: factor on the
            noise, `None` is 1.0. At 0 nothing is drawn: greedy evaluation, refused in training.
    """

    thought: str = _help(
        "What a thinking step feeds back: hard, soft (evaluation only), gaussian or gumbel.", "gumbel"
    )
    eval_thought: str | None = _help("The thought used during evaluation; unset: as trained.")
    thinking_temperature: float | None = _help("Temperature of the distribution a thought is made from, above 0.")
    thinking_top_k: int | None = _help("Number of candidates of a thought, from 1 to the size of the vocabulary.")
    thinking_top_p: float | None = _help("Nucleus of a thought, in (0, 1], on the renormalised top-k.")
    thinking_min_p: float | None = _help("Drop candidates below this share of the most likely one, in [0, 1].")
    max_thinking_length: int | None = _help("Cap of the thought in tokens, below max_completion_length.")
    end_of_thinking: str = _help("Token or text that ends the thought.", "</think>")
    answer_prefill: list[str] | None = _help("Two texts forced after the thought: when it ended itself, when cut.")
    cold_stop_entropy: float | None = _help("End the thought when its entropy (nats) stays below this; unset: off.")
    cold_stop_length: int = _help("Steps in a row below cold_stop_entropy that end the thought.", 256)
    gumbel_temperature: float = _help("tau_g: temperature of the Gumbel-softmax mixture, above 0.", 0.1)
    gumbel_density: str = _help("How a gumbel thought is scored: gumbel, concrete or softgrpo (no density).", "gumbel")
    noise_scale: float | None = _help("gaussian: sigma over the RMS of the table (0.33). gumbel: factor on the noise.")

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Raise a `ValueError` in a sentence for a value that no thought can use."""
        for name in ("thought", "eval_thought"):
            value = getattr(self, name)
            if value not in THOUGHTS and not (name == "eval_thought" and value is None):
                raise ValueError(
                    f"`{name}` is {value!r}, which is no kind of thought. Choose one of {', '.join(THOUGHTS)}"
                    + (" (fuzzy is gaussian with thinking_temperature 1e-4)." if value == "fuzzy" else ".")
                )
        if self.gumbel_density not in DENSITIES:
            raise ValueError(f"`gumbel_density` is {self.gumbel_density!r}. Choose one of {', '.join(DENSITIES)}.")
        _in_range(self, "thinking_temperature", 0, None, open_low=True)
        _in_range(self, "thinking_top_k", 1, None)
        _in_range(self, "thinking_top_p", 0, 1, open_low=True)
        _in_range(self, "thinking_min_p", 0, 1)
        _in_range(self, "max_thinking_length", 1, None)
        _in_range(self, "cold_stop_entropy", 0, None)
        _in_range(self, "cold_stop_length", 1, None)
        _in_range(self, "gumbel_temperature", 0, None, open_low=True)
        _in_range(self, "noise_scale", 0, None)
        if self.answer_prefill is not None and (isinstance(self.answer_prefill, str) or len(self.answer_prefill) != 2):
            raise ValueError(
                f"`answer_prefill` is {self.answer_prefill!r}. It takes two texts: the one forced after a thought that "
                "ended itself, and the one forced after a thought that was cut. An empty text forces nothing."
            )
        for name in ("thought", "eval_thought"):
            kind = getattr(self, name)
            if kind == "gaussian" and not getattr(self, "eval_thought", None):
                for option in ("thinking_top_k", "thinking_top_p", "thinking_min_p"):
                    if getattr(self, option) is not None:
                        raise ValueError(
                            f"`{option}` is set with `{name}: gaussian`, but a gaussian thought mixes the whole "
                            f"vocabulary (arXiv 2509.19170, Eq. 6). Leave `{option}` unset, or use `thought: gumbel`."
                        )

    def resolved(self, kind: str, name: str):
        """The value of a field for a kind of thought, its default where the field is unset."""
        value = getattr(self, name)
        return _DEFAULTS.get(kind, {}).get(name) if value is None else value

    def make_thought(self, answer: Hard, table_rms: float | None = None, evaluation: bool = False) -> Thought:
        """
        The thought these settings describe.

        Args:
            answer (`Hard`): how answers are sampled; a hard thought takes from it what is unset here.
            table_rms (`float`, *optional*): per-element RMS of the embedding table, which a gaussian thought needs.
            evaluation (`bool`): make `eval_thought`.
        """
        kind = (self.eval_thought if evaluation else None) or self.thought
        temperature = self.resolved(kind, "thinking_temperature")
        top_k, top_p = self.resolved(kind, "thinking_top_k"), self.resolved(kind, "thinking_top_p")
        min_p = self.thinking_min_p
        if kind == "hard":
            return Hard(
                answer.temperature if temperature is None else temperature,
                answer.top_k if top_k is None else top_k,
                answer.top_p if top_p is None else top_p,
                answer.min_p if min_p is None else min_p,
            )
        if kind == "soft":
            return Soft(temperature, top_k, top_p, min_p or 0.0)
        scale = self.resolved(kind, "noise_scale")
        if kind == "gaussian":
            if table_rms is None:
                raise ValueError("A gaussian thought's sigma is a share of the embedding table's RMS: pass table_rms.")
            return Gaussian(temperature, scale * table_rms)
        return Gumbel(temperature, top_k, top_p, min_p or 0.0, self.gumbel_temperature, scale, self.gumbel_density)

    def thinking_dict(self) -> dict:
        """The soft fields alone, as plain JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(ThinkingSettings)}

    def save_thinking(self, directory: str | os.PathLike) -> str:
        """Write `thinking_config.json` into a model's folder; returns the path."""
        path = os.path.join(directory, FILE_NAME)
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(self.thinking_dict(), file, indent=2)
            file.write("\n")
        os.replace(path + ".tmp", path)
        return path

    @classmethod
    def load_thinking(cls, directory: str | os.PathLike, **changes) -> "ThinkingSettings":
        """Read `thinking_config.json` from a model's folder, with some fields changed."""
        path = os.path.join(directory, FILE_NAME)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path} does not exist: this model was not saved by a soft trainer. Pass the thinking settings yourself."
            )
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
        known = {f.name for f in fields(ThinkingSettings)}
        unknown = sorted(set(saved) - known)
        if unknown:
            raise ValueError(
                f"{path} holds {unknown}, which this version does not know. Update trl_soft, or remove them."
            )
        return ThinkingSettings(**{**saved, **changes})


def _in_range(settings, name: str, low, high, open_low: bool = False) -> None:
    value = getattr(settings, name)
    if value is None:
        return
    if value < low or (open_low and value == low) or (high is not None and value > high):
        bounds = f"{'above' if open_low else 'at least'} {low}" + ("" if high is None else f" and at most {high}")
        raise ValueError(f"`{name}` is {value}, but it must be {bounds}.")
