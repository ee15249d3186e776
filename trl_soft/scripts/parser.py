# SPDX-License-Identifier: Apache-2.0
"""`SoftParser`: YAML files and flags in which every key is known and stands once."""

import difflib
import sys

import yaml
from trl import TrlParser

from ..training.config import SoftGRPOConfig, SoftRLOOConfig


class _StrictLoader(yaml.SafeLoader):
    """YAML whose mappings have each key once, and text for keys."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise ValueError(f"The YAML file has the key {key!r}, which YAML does not read as text. Quote it.")
            if keys.count(key) > 1:
                raise ValueError(f"The YAML file has the key `{key}` {keys.count(key)} times. Keep one of them.")
        return super().construct_mapping(node, deep)


class SoftParser(TrlParser):
    """[`~trl.TrlParser`] that takes no unknown key, from YAML or command line, and names the nearest known one."""

    def __init__(self, dataclass_types=None, **kwargs):
        # An abbreviated flag reads well until a longer one is added.
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def parse_args_and_config(self, args=None, *positional, **kwargs):
        args = list(sys.argv[1:] if args is None else args)
        if "--config" in args[:-1]:
            with open(args[args.index("--config") + 1], encoding="utf-8") as file:
                yaml.load(file, _StrictLoader)
        return super().parse_args_and_config(args, *positional, **kwargs)

    def set_defaults_with_config(self, **config) -> list[str]:
        self._refuse_unknown([key for key in config if key not in self._known()], "The YAML file has the key")
        return super().set_defaults_with_config(**config)

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
            nearest = difflib.get_close_matches(key, self._known(), n=1, cutoff=0.0)[0]
            raise ValueError(f"{where} `{key}`, which nothing reads. The nearest known name is `{nearest}`.")
