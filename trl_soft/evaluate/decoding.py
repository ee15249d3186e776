# SPDX-License-Identifier: Apache-2.0
"""Decodings: how a model thinks and answers in an evaluation. A YAML list or a grid names them."""

import difflib
from dataclasses import asdict, dataclass, fields
from typing import Any

from .. import saved_settings
from ..ranges import check, check_number
from ..settings import ThinkingSettings, kinds_of
from .presets import Preset


_THINKING = {f.name for f in fields(ThinkingSettings)} - {"eval_thought", "eval_greedy"}
_ANSWER = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_OTHERS = ("name", "num_samples", "max_completion_length", "model", "seed")


@dataclass(frozen=True)
class Decoding:
    """
    Args:
        name (`str`): unique in a run.
        thinking (`dict`): the fields of `ThinkingSettings` that were given.
        answer (`dict`): the fields of the answer's sampling that were given.
        num_samples (`int`, *optional*), max_completion_length (`int`, *optional*): `None` means the value of the preset.
        model (`str`, *optional*): path or hub id; `None` means the model of the run.
        seed (`int`): seed of the noise.
    """

    name: str
    thinking: dict[str, Any]
    answer: dict[str, Any]
    num_samples: int | None = None
    max_completion_length: int | None = None
    model: str | None = None
    seed: int = 0

    @classmethod
    def parse(cls, entry: dict, seed: int = 0) -> "Decoding":
        """A decoding from a flat mapping: `name`, and any fields of those three dicts. Raises `ValueError` for other keys."""
        if not isinstance(entry, dict) or "name" not in entry:
            raise ValueError(f"A decoding is {entry!r}, but it must be a mapping with a `name` and its settings.")
        names = {*_THINKING, *_ANSWER, *_OTHERS}
        for key in entry:
            if key not in names:
                nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"The decoding {entry['name']!r} has the key `{key}`, which nothing reads. The nearest known name is "
                    f"`{nearest}`."
                )
        thinking = {key: value for key, value in entry.items() if key in _THINKING}
        answer = {key: value for key, value in entry.items() if key in _ANSWER}
        others = {key: entry[key] for key in _OTHERS if key in entry}
        decoding = cls(**{"seed": seed, **others}, thinking=thinking, answer=answer)
        for name in ("num_samples", "max_completion_length"):
            check_number(name, getattr(decoding, name), 1, None, whole=True, optional=True)
        check_number("seed", decoding.seed, 0, 2**64 - 1, whole=True)
        return decoding

    def settings(self, preset: Preset, kind: str, saved: ThinkingSettings | None) -> ThinkingSettings:
        """
        The thinking settings for one kind of benchmark.

        The fields of this decoding come first. For the other fields:

        - The decoding names no thought: the settings saved with the model. Where the preset has caps and a prefill, these
          replace the saved ones. A model without saved settings gets those of the preset.
        - The decoding names a thought: the end of thinking, the caps and the prefill of the preset. A thought that
          reads `noise_rms` also takes the embedding RMS that the model was trained with.
        """
        of_preset = preset.thinking_settings(kind)
        caps = ("max_thinking_length", "answer_prefill", "max_answer_length")
        base = {name: of_preset[name] for name in ("end_of_thinking", *caps)}
        if "thought" not in self.thinking:
            if saved is not None:
                fields_saved = {k: v for k, v in asdict(saved).items() if k in _THINKING}
                # The papers evaluate with other caps and prefills than in training.
                base = fields_saved | {k: base[k] for k in caps if base[k] is not None}
            else:
                base |= of_preset
            # Another gate takes back the values of the one that is replaced.
            return ThinkingSettings.of_stored(base, f"The decoding {self.name!r}", **self.thinking)
        if saved is not None and any("noise_rms" in kind.options for kind in kinds_of(self.thinking)):
            base["noise_rms"] = saved.noise_rms  # sigma is relative to the RMS of training
        return ThinkingSettings(**base | self.thinking)

    def sampling(self, preset: Preset) -> dict[str, Any]:
        """The answer's sampling: the preset's, with the fields of this decoding. Raises `ValueError` out of range."""
        sampling = {**preset.sampling, **self.answer}
        try:
            for name in ("temperature", "top_k", "top_p"):
                check(name, sampling[name])
            check("min_p", sampling.get("min_p"), optional=True)
            check("repetition_penalty", sampling.get("repetition_penalty", 1.0))
        except ValueError as error:
            raise ValueError(f"The decoding {self.name!r}: {error}") from error
        return sampling


def saved_beside(path: str) -> ThinkingSettings | None:
    """The thinking settings in the folder of a model's weights. `None` if the folder has none."""
    stored = saved_settings.read(path)
    return None if stored is None else ThinkingSettings.of_stored(stored, path)


def soft_tokens_grid(models: dict[str, str], num_samples: int, seed: int = 0) -> list[Decoding]:
    """
    The grid of 2509.19170 (section 4): each trained model, by label, under six inference settings: hard, soft (T 0.5)
    and fuzzy (T 1e-4), greedy and sampled.

    A greedy setting is one completion without noise. All six settings answer greedily (section 4): a sample draws only
    its thought, a hard thought at temperature 1.
    """
    gaussian = {"thought": "gaussian", "noise_scale": 0.33}
    kinds: dict[str, tuple[dict, dict, int]] = {
        "hard greedy": ({"thought": "hard"}, {"temperature": 0.0}, 1),
        "hard sample": ({"thought": "hard", "thinking_temperature": 1.0}, {"temperature": 0.0}, num_samples),
    }
    for name, temperature in (("soft", 0.5), ("fuzzy", 1e-4)):
        thinking = {**gaussian, "thinking_temperature": temperature}
        kinds[f"{name} greedy"] = ({**thinking, "noise_scale": 0.0}, {"temperature": 0.0}, 1)
        kinds[f"{name} sample"] = (thinking, {"temperature": 0.0}, num_samples)
    return [
        Decoding(f"{label} / {name}", thinking, answer, samples, model=model, seed=seed)
        for label, model in models.items()
        for name, (thinking, answer, samples) in kinds.items()
    ]
