# SPDX-License-Identifier: Apache-2.0
"""`SoftParser`: YAML files and flags in which every key is known and occurs once."""

import difflib
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import yaml
from trl import TrlParser

from ..command_line import MISTAKE, is_sentence
from ..gates import GATES, gate_options
from ..settings import SharedSettings
from ..thoughts import THOUGHTS, token_class
from ..thoughts.option import TRUNCATION
from ..thoughts.registry import options
from ..training.config import SoftGRPOConfig, SoftRLOOConfig


logger = logging.getLogger(__name__)


class _StrictLoader(yaml.SafeLoader):
    """YAML whose mappings have each key once, and only texts as keys."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise ValueError(f"The YAML file has the key {key!r}, which YAML does not read as text. Quote it.")
            if keys.count(key) > 1:
                raise ValueError(f"The YAML file has the key `{key}` {keys.count(key)} times. Keep one of them.")
        return super().construct_mapping(node, deep)


def read_recipe_file(flags: list[str]) -> dict[str, Any]:
    """
    The content of the YAML file that `--config` names. Empty without `--config`.

    Raises:
        ValueError: for a key that occurs twice or is not a text, and for a file without a mapping.
    """
    if "--config" not in flags:
        return {}
    path = next(iter(flags[flags.index("--config") + 1 :]), "--")
    if path.startswith("--"):
        raise ValueError("`--config` has no value. Give the path of a YAML file behind it.")
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise FileNotFoundError(
            f"`--config` is {path}, which {what}. Give the path of a YAML file. `trl-soft recipes copy NAME` puts a recipe of this "
            "package into your folder."
        )
    with open(path, encoding="utf-8") as file:
        try:
            config = yaml.load(file, _StrictLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}. Correct it.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no keys with values. Write one `key: value` in each line.")
    return config


def algorithm_of(flags: list[str]) -> str:
    """`rloo` if only `SoftRLOOConfig` reads a key of the recipe or a flag, otherwise `grpo`."""
    keys = {flag.partition("=")[0].lstrip("-") for flag in flags if flag.startswith("--")} | set(
        read_recipe_file(flags)
    )
    only = set(SoftRLOOConfig.__dataclass_fields__) - set(SoftGRPOConfig.__dataclass_fields__)
    return "rloo" if keys & only else "grpo"


def _left_behind(config: dict[str, Any], args: list[str], unset: list[str]) -> list[str]:
    """Keys of the YAML file that the thought and the gate of the command line do not read. `unset` has the keys that it takes back."""
    default = vars(SharedSettings())
    names = ("thought", "eval_thought", "thinking_gate")
    texts = {name: value for name, value in config.items() if isinstance(value, str)}
    asked = {name: default[name] if name in unset else _value(args, f"--{name}") or texts.get(name) for name in names}
    of_thought = _left_by_thought(config, asked)
    return of_thought + _left_by_gate({k: v for k, v in config.items() if k not in of_thought}, asked)


def _left_by_thought(config: dict[str, Any], asked: dict[str, str | None]) -> list[str]:
    """Keys that shape the thought of the YAML file. Another kind has its own defaults. What `eval_thought` alone reads stays."""
    kind = asked["thought"]
    if kind not in THOUGHTS or config.get("thought") in (None, kind):
        return []
    evaluated = asked["eval_thought"]
    stays = set(THOUGHTS[evaluated].options) if evaluated in THOUGHTS else set()
    left = {*TRUNCATION, *options()} - stays
    if THOUGHTS[kind].is_token and (evaluated not in THOUGHTS or THOUGHTS[evaluated].is_token):
        left |= {"thinking_gate", *gate_options()}
    if not token_class.read_by([THOUGHTS[name] for name in (kind, evaluated) if name in THOUGHTS]):
        left |= set(token_class.SETTINGS)
    names = [name for name in config if name in left]
    if names:
        logger.warning(
            f"`--thought {kind}` takes the place of `thought: {config['thought']}`, so the recipe's {', '.join(names)} are left "
            f"out. A {kind} thought has its own defaults; set them on the command line."
        )
    return names


def _left_by_gate(config: dict[str, Any], asked: dict[str, str | None]) -> list[str]:
    """Keys that the gate of the YAML file reads and the gate of the command line does not."""
    gate, old = asked["thinking_gate"], config.get("thinking_gate")
    if gate not in GATES or not isinstance(old, str) or old not in GATES:
        return []
    left = set(GATES[old].options) - set(GATES[gate].options)
    names = [name for name in config if name in left]
    if names:
        logger.warning(
            f"The gate {gate} of the command line takes the place of `thinking_gate: {old}`. It does not read these keys of the "
            f"recipe, which are left out: {', '.join(names)}."
        )
    return names


def _value(args: list[str], flag: str) -> str | None:
    """The last value of a flag among these words."""
    value = None
    for word, following in zip(args, [*args[1:], ""]):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _without_nulls(args: list[str]) -> tuple[list[str], list[str]]:
    """The names of flags whose value is `null`, and the other words."""
    names, others, skip = [], [], False
    for word, following in zip(args, [*args[1:], ""]):
        if skip:
            skip = False
        elif word.startswith("--") and word.partition("=")[2] == "null":
            names.append(word[2:].partition("=")[0])
        elif word.startswith("--") and following == "null":
            names.append(word[2:])
            skip = True
        else:
            others.append(word)
    return names, others


def _positional(args: Sequence[str]) -> list[str]:
    """Words that follow neither a flag nor a value: all before the first flag."""
    return list(itertools.takewhile(lambda word: not word.startswith("-"), args))


class SoftParser(TrlParser):
    """
    [`~trl.TrlParser`] that refuses unknown keys, from YAML or command line, and names the nearest known one.

    `--key null` on the command line removes a key of the YAML file: the field then has its default. `--thought KIND` takes back
    what shaped another kind of thought, and `--thinking_gate GATE` what only another gate reads.
    """

    def __init__(self, dataclass_types=None, **kwargs):
        texts = {
            # argparse would begin with 250 lines of flags.
            "usage": "%(prog)s --config RECIPE.yaml [--KEY VALUE ...]",
            "description": "The keys of a recipe are the flags below. A flag overrides the recipe, and `--KEY null` takes a key back.",
        }
        # No abbreviated flags: they would break when a longer flag is added.
        super().__init__(dataclass_types, allow_abbrev=False, **{**texts, **kwargs})
        self.others: set[str] = set()  # flags that the command takes before these words are parsed
        self._unset: list[str] = []  # keys of the YAML file that the command line removes

    def parse_args_and_config(self, args=None, *positional, **kwargs):
        args = list(sys.argv[1:] if args is None else args)
        # Recipes use the name that every supported transformers knows. Newer ones call it `activation_checkpointing` too.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing` is deprecated", FutureWarning)
        self._unset, args = _without_nulls(args)
        self._refuse_unknown([key for key in self._unset if key not in self._known()], "The command line has the flag")
        self._unset += _left_behind(read_recipe_file(args), args, self._unset)
        try:
            return super().parse_args_and_config(args, *positional, **kwargs)
        except (ValueError, TypeError, ZeroDivisionError, OSError) as error:
            # Values that TRL or transformers cannot work with; their own words say which.
            if is_sentence(error):
                raise
            words = _positional(args)
            if words and "not used by the HfArgumentParser" in str(error):
                raise ValueError(
                    f"`{words[0]}` stands alone, but every word belongs to a flag. A recipe follows `--config`."
                ) from error
            raise ValueError(f"These settings cannot work together: {error}") from error

    def set_defaults_with_config(self, **config) -> list[str]:
        self._refuse_unknown([key for key in config if key not in self._known()], "The YAML file has the key")
        return super().set_defaults_with_config(**{k: v for k, v in config.items() if k not in self._unset})

    def error(self, message: str):
        """Print one sentence. argparse would print some 250 lines of usage first."""
        self.exit(MISTAKE, f"error: {message}. `--help` lists all flags.\n")

    def parse_known_args(self, args=None, namespace=None):
        parsed, unknown = super().parse_known_args(args, namespace)
        flags = [word.partition("=")[0].lstrip("-") for word in unknown if word.startswith("--")]
        self._refuse_unknown(flags, "The command line has the flag")
        return parsed, unknown

    def _known(self) -> set[str]:
        return {action.dest for action in self._actions} - {"help"}

    def _refuse_unknown(self, keys: list[str], where: str) -> None:
        for key in keys:
            for kind, script in ((SoftGRPOConfig, "grpo_soft.py"), (SoftRLOOConfig, "rloo_soft.py")):
                if "generation_batch_size" in self._known() and key in kind.__dataclass_fields__:
                    raise ValueError(
                        f"{where} `{key}`, which {kind.__name__} alone reads. Run `examples/{script}` with this recipe, or leave "
                        "the key out."
                    )
            nearest = difflib.get_close_matches(key, self._known() | self.others, n=1, cutoff=0.0)[0]
            raise ValueError(f"{where} `{key}`, which nothing reads. The nearest known name is `{nearest}`.")
