# SPDX-License-Identifier: Apache-2.0
"""The end of the docstring of `ThinkingSettings`: the options of kinds of thought and of gates."""

import textwrap
from collections.abc import Mapping

from .thoughts import THOUGHTS, Option


def docs_of_options(of_kinds: Mapping[str, Option], of_gates: Mapping[str, Option]) -> str:
    """The options, and the meaning of `None` for each kind."""
    lines: list[str] = []
    for title, options in (("one kind of thought", of_kinds), ("one gate", of_gates)):
        lines += ["", f"> Parameters of {title}", "", "Args:", *_lines(options)]
    lines += ["", "> What `None` means", ""]
    for kind in THOUGHTS.values():
        defaults = ", ".join(f"`{name}` {value:g}" for name, value in kind.defaults.items())
        lines.append(f"- {kind.name}: {defaults or 'as the answer is sampled'}")
    return textwrap.indent("\n".join(lines), " " * 4).rstrip() + "\n    "


def _lines(options: Mapping[str, Option]) -> list[str]:
    lines = []
    for name, option in options.items():
        kind = getattr(option.type, "__name__", None)
        title = f"`{kind}`, *optional*, defaults to `{option.default!r}`" if kind else "`float`, *optional*"
        lines.append(f"    {name} ({title}):")
        lines += textwrap.wrap(option.doc or option.help, 119, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return lines
