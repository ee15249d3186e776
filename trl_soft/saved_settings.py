# SPDX-License-Identifier: Apache-2.0
"""Thinking settings that travel with weights: on the config of the model that was trained, and in its folder.

Every library that saves weights also saves their config. So the settings are a plain dict on the config:

    model.config.soft_thinking                  in config.json; it stays however often the model is loaded and saved
    peft_config.auto_mapping["soft_thinking"]   in adapter_config.json; a merge hands it to the model's config
    thinking_config.json                        the same settings for people and tools, beside either config

If the files of a folder have different settings, reading them is an error, because nothing tells which settings the weights
were trained with.
"""

import copy
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from .files import parse_json, replace_text


FILE_NAME = "thinking_config.json"
KEY = "soft_thinking"
# The configs that libraries save beside weights, and the part of each config that keeps keys unknown to the library.
_CONFIGS: dict[str, tuple[str, ...]] = {"config.json": (), "adapter_config.json": ("auto_mapping",)}
# Far larger than any settings, and still quick to read.
_MOST_BYTES = 2**24


def attach(model, stored: dict[str, Any]) -> None:
    """
    Put settings on the configs of a model's active adapters, or on the model's own config if it has no adapter.

    Saving the model then saves the settings. An adapter without a `task_type` gets `CAUSAL_LM`, because PEFT replaces
    `auto_mapping` of an adapter without one.
    """
    follow_merges()
    adapters = _active_adapters(model)
    for name in adapters:
        # A copy, because the user's own config may serve another run.
        config = copy.deepcopy(model.peft_config[name])
        config.auto_mapping = {**(config.auto_mapping or {}), KEY: copy.deepcopy(stored)}
        config.task_type = config.task_type or "CAUSAL_LM"
        model.peft_config[name] = config
    if not adapters:
        setattr(model.config, KEY, copy.deepcopy(stored))


def of_model(model) -> dict[str, Any] | None:
    """
    The settings on a model, or `None`.

    The settings of its active adapters come first, then those of its own config, then those in the folder that it was loaded
    from.

    Raises:
        ValueError: if active adapters, or the files of the folder, have different settings.
    """
    follow_merges()
    mappings = {name: model.peft_config[name].auto_mapping or {} for name in _active_adapters(model)}
    of_adapters = {name: mapping[KEY] for name, mapping in mappings.items() if mapping.get(KEY) is not None}
    if of_adapters:
        (first, stored), *others = of_adapters.items()
        for name, other in others:
            _agree({f"adapter {first!r}": stored, f"adapter {name!r}": other})
        return stored
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = getattr(base.config, KEY, None)
    folder = getattr(base, "name_or_path", None) or getattr(base.config, "_name_or_path", None)
    if not folder or not os.path.isdir(folder):
        return own
    if own is not None and _part(_load(os.path.join(folder, "config.json")), ()).get(KEY) != own:
        return own  # the model was trained after it was loaded
    return read(folder)


def read(path: str | os.PathLike, revision: str | None = None) -> dict[str, Any] | None:
    """
    The settings beside the weights in a folder, or of a model on the hub that can be reached. `None` if there are none.

    Raises:
        ValueError: if a file does not hold settings, or if the files have different settings.
    """
    by_file = {}
    if (file := _file(path, FILE_NAME, revision)) is not None:
        by_file[file] = _load(file)
    for name, within in _CONFIGS.items():
        if (file := _file(path, name, revision)) is not None:
            stored = _part(_load(file), within).get(KEY)
            if stored is not None:
                by_file[file] = stored
    for file, stored in by_file.items():
        if not isinstance(stored, dict):
            raise ValueError(
                f"{file} holds a {type(stored).__name__} where the thinking settings should be an object."
            )
    if not by_file:
        return None
    _agree(by_file)
    return next(iter(by_file.values()))


def write(folder: str | os.PathLike, stored: dict[str, Any]) -> str:
    """Write settings into a model's or an adapter's folder and its config. Returns the path of `thinking_config.json`."""
    for name, within in _CONFIGS.items():
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            config = _load(path)
            part = config
            for key in within:
                part[key] = part.get(key) or {}
                part = part[key]
            if part.get(KEY) != stored:
                part[KEY] = stored
                _dump(path, config)
    path = os.path.join(folder, FILE_NAME)
    _dump(path, stored)
    return path


def follow_merges() -> None:
    """
    Make PEFT's `merge_and_unload` copy an adapter's settings to the config of the model that it merges into.

    PEFT drops an adapter's config in the merge and offers no hook for it. So this function wraps PEFT's method, once, if PEFT
    has been imported.
    """
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return
    original = tuners.BaseTuner.merge_and_unload
    if hasattr(original, "soft"):
        return

    @functools.wraps(original)
    def merge_and_unload(self, *args, **kwargs):
        names = kwargs.get("adapter_names") or (args[2] if len(args) > 2 else None) or self.active_adapters
        stored = [(self.peft_config[name].auto_mapping or {}).get(KEY) for name in names]
        model = original(self, *args, **kwargs)
        for settings in stored:
            if settings is not None:
                setattr(model.config, KEY, copy.deepcopy(settings))
        return model

    merge_and_unload.soft = True  # type: ignore[attr-defined]
    tuners.BaseTuner.merge_and_unload = merge_and_unload


def _active_adapters(model) -> list[str]:
    if not getattr(model, "peft_config", None):
        return []
    active = model.active_adapters
    return list(active() if callable(active) else active)


def _agree(by_place: dict[str, dict]) -> None:
    """Raise a `ValueError` if two places have different values for a field. The message names the field."""
    (first, stored), *others = by_place.items()
    for place, other in others:
        # Which other fields there are follows from the thought.
        for name in sorted(set(stored) | set(other), key=lambda name: (name != "thought", name)):
            if name not in stored or name not in other or stored[name] != other[name]:
                values = [repr(of[name]) if name in of else "nothing" for of in (stored, other)]
                raise ValueError(
                    f"The thinking settings of {first} and of {place} differ: `{name}` is {values[0]} and {values[1]}. Write "
                    "them with `ThinkingSettings(...).save_thinking(folder)`, which keeps both equal, or pass the settings yourself."
                )


def _file(path: str | os.PathLike, name: str, revision: str | None) -> str | None:
    if os.path.isdir(path):
        file = os.path.join(path, name)
        return file if os.path.isfile(file) else None
    from transformers.utils import cached_file

    try:
        return cached_file(
            str(path), name, revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False, _raise_exceptions_for_gated_repo=False,
        )  # fmt: skip
    except OSError:
        return None  # the model cannot be reached; loading its weights will raise the error


def _load(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    if os.path.getsize(path) > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES} bytes, so it does not hold the settings of a model.")
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Write it again, or remove it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, but settings are a JSON object. Write it again.")
    return content


def _part(config: dict, within: tuple[str, ...]) -> dict:
    for key in within:
        config = config.get(key) or {}
    return config


def _dump(path: str, content: dict) -> None:
    replace_text(Path(path), json.dumps(content, indent=2) + "\n")
