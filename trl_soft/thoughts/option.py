# SPDX-License-Identifier: Apache-2.0
"""The settings of a kind of thought: the fields that shape its distribution, and its own options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ranges import POSITIVE, RANGES, Range


# The fields that shape the distribution of a thought. Every kind reads some of them.
TRUNCATION = ("thinking_temperature", "thinking_top_k", "thinking_top_p", "thinking_min_p")


def truncation(values) -> tuple[Any, Any, Any, Any]:
    """Temperature, top_k, top_p and min_p, in the order in which `candidates` takes them."""
    return tuple(getattr(values, name) for name in TRUNCATION)


@dataclass(frozen=True)
class Option:
    """
    A field of `ThinkingSettings` that only some kinds of thought read. It is a YAML key, a flag, an entry of saved settings and,
    with `soft_` before it, a key of a vLLM request.

    Args:
        type: its type, as in a dataclass field. Flags are parsed by it.
        default: its value if it is unset.
        help (`str`): one line, for `--help`.
        doc (`str`): the full text, for the docstring of `ThinkingSettings`.
        range (`Range`, *optional*): the range of a number.
        choices (`tuple` of `str`): the values of a text.
        counts_tokens (`bool`): whether it is at most the number of tokens in the vocabulary.
    """

    type: Any
    default: Any
    help: str
    doc: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()
    counts_tokens: bool = False


NOISE_SCALE = Option(
    float | None,
    None,
    "gaussian: sigma over the RMS of the table (0.33). gumbel: factor on the noise.",
    "gaussian: sigma over the per-element RMS of the embedding table; on logits and probabilities sigma itself. gumbel: factor "
    "on the noise. 0 means no draw: greedy evaluation, refused in training.",
    range=Range(POSITIVE.low, POSITIVE.high, zero=True),
)


def add_options(added: Mapping[str, Option], owner: str, file: str, fields: Mapping[str, Option] | None) -> None:
    """
    Let the settings read further options, and know their ranges.

    Args:
        added: the options by name. owner (`str`): what has them, for errors. file (`str`): what its file is of.
        fields (*optional*): the options that `ThinkingSettings` was made with, once it is made.

    Raises:
        ValueError: if `ThinkingSettings` is already made, without a field for one of them.
    """
    for name in added:
        if fields is not None and name not in fields:
            raise ValueError(
                f"The {owner} has the option `{name}`, but `ThinkingSettings` is already made, without a field for it. "
                f"Import the file of your {file} before the configs of trl_soft."
            )
    RANGES.update({name: option.range for name, option in added.items() if option.range is not None})
