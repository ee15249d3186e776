# SPDX-License-Identifier: Apache-2.0
"""How a model thinks goes where its trained weights go: thinking settings on configs and in folders, as plain dicts.

The settings lie on the config of what was trained, because every library that saves those weights saves that config:

    model.config.soft_thinking                  config.json: a whole model, loaded and saved again as often as one likes
    peft_config.auto_mapping["soft_thinking"]   adapter_config.json: an adapter; merging hands it to the model's config
    thinking_config.json                        the same for people and tools, beside either

A folder whose files say different things is an error, because nothing tells which of them the weights were trained with.
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
# The configs that libraries save beside weights, with the part of each that keeps what it does not know.
_CONFIGS: dict[str, tuple[str, ...]] = {"config.json": (), "adapter_config.json": ("auto_mapping",)}
# Far above any settings, and far below what would be a burden to read.
_MOST_BYTES = 2**24


def attach(model, stored: dict[str, Any]) -> None:
    """
    Let settings travel with a model, whoever saves it: on the configs of its active adapters, or on its own without any.

    An adapter without a `task_type` gets that of a causal language model, since PEFT writes `auto_mapping` anew without one.
    """
    follow_merges()
    adapters = _active_adapters(model)
    for name in adapters:
        # A copy: the user's own config may serve another run.
        config = copy.deepcopy(model.peft_config[name])
        config.auto_mapping = {**(config.auto_mapping or {}), KEY: copy.deepcopy(stored)}
        config.task_type = config.task_type or "CAUSAL_LM"
        model.peft_config[name] = config
    if not adapters:
        setattr(model.config, KEY, copy.deepcopy(stored))


def of_model(model) -> dict[str, Any] | None:
    """
    The settings that a model has brought along: its active adapters', then its own, then those in the folder that it was
    loaded from.

    Raises:
        ValueError: if active adapters, or the files of the folder, say different things.
    """
    follow_merges()
    found = {name: (model.peft_config[name].auto_mapping or {}).get(KEY) for name in _active_adapters(model)}
    of_adapters = {name: stored for name, stored in found.items() if stored is not None}
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
        return own  # trained since it was loaded
    return read(folder)


def read(path: str | os.PathLike, revision: str | None = None) -> dict[str, Any] | None:
    """
    The settings beside the weights in a folder, or of a model on the hub that is at hand; `None` where there are none.

    Raises:
        ValueError: if a file does not hold settings, or the files say different things.
    """
    found = {}
    if (file := _file(path, FILE_NAME, revision)) is not None:
        found[file] = _load(file)
    for name, within in _CONFIGS.items():
        if (file := _file(path, name, revision)) is not None:
            stored = _part(_load(file), within).get(KEY)
            if stored is not None:
                found[file] = stored
    for file, stored in found.items():
        if not isinstance(stored, dict):
            raise ValueError(f"{file} holds a {type(stored).__name__} where the thinking settings stand as an object.")
    if not found:
        return None
    _agree(found)
    return next(iter(found.values()))


def write(folder: str | os.PathLike, stored: dict[str, Any]) -> str:
    """Write settings into a model's or an adapter's folder, its config among them; returns the path of their own file."""
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
    Let `merge_and_unload` hand an adapter's settings to the config of the model that it merges into.

    PEFT forgets an adapter's config in the merge and has no seam for it, so its method is wrapped, once, where PEFT is in use.
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


def _agree(found: dict[str, dict]) -> None:
    """Raise a `ValueError` that names the first field that two places have different values for."""
    (first, stored), *others = found.items()
    for place, other in others:
        for name in sorted(set(stored) | set(other)):
            if name not in stored or name not in other or stored[name] != other[name]:
                values = [repr(of[name]) if name in of else "nothing" for of in (stored, other)]
                raise ValueError(
                    f"The thinking settings of {first} and of {place} differ: `{name}` is {values[0]} and {values[1]}. Write "
                    "them with `ThinkingSettings(...).save_thinking(folder)`, which keeps both alike, or pass the settings yourself."
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
        return None  # no model of that name is to be had; whoever loads its weights says so


def _load(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    if os.path.getsize(path) > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES} bytes, so it is no settings of a model.")
    try:
        found = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Write it again, or remove it.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, and settings are a JSON object. Write it again.")
    return found


def _part(config: dict, within: tuple[str, ...]) -> dict:
    for key in within:
        config = config.get(key) or {}
    return config


def _dump(path: str, content: dict) -> None:
    replace_text(Path(path), json.dumps(content, indent=2) + "\n")
