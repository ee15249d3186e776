# SPDX-License-Identifier: Apache-2.0
"""The state of a completion in flight: the columns of a few blocks of memory, and their first values."""

import functools

import torch


# One entry for each slot.
NUMBERS = (
    "seed",  # key of the noise:
    "generation",  # seed, generation and sample;
    "sample",  # seed and generation are 0 if all slots share them
    "rule",  # row of its plan in `Rules`
    "prompt",  # last token of the prompt
    "prompt_length",
    "t",  # tokens drawn
    "limit",  # most tokens that may be drawn
    "cursor",  # forced tokens fed so far
    "answered",  # tokens of its answer
    "calm",  # cold steps in a row
    "thinking_length",  # thoughts drawn, with the closing step
    "matched",  # state of the matcher: bytes of the text that ends a thought, with which the shadow ends
    "surplus",  # characters that the token of the closing step writes beyond that text
    "script",  # row of the forced texts that follows the thought
    "run",  # memory of a gate: steps in a row of one kind, above 0 soft, below 0 hard,
    "reference",  # and the bits of the entropy, float64, at the step that began them
)
FLAGS = (
    "active",  # False once it has finished
    "thinking",  # inside its thought
    "done",  # ended by an end-of-sequence token
    "cut",  # its thought reached a cap
)
# C entries for each slot. The action has C entries too.
_MASKS = ("completion_mask", "thinking_mask", "forced_mask")
_VALUES = ("log_probs", "entropies")
_COLUMNS = {"numbers": NUMBERS, "flags": FLAGS, "masks": _MASKS, "values": _VALUES}


def block_shapes(count: int, length: int) -> dict[str, tuple[tuple, torch.dtype]]:
    """Shapes and types of the blocks for `count` completions of up to `length` tokens, without the thoughts' actions."""
    return {
        "numbers": ((count, len(NUMBERS)), torch.long),
        "flags": ((count, len(FLAGS)), torch.bool),
        "masks": ((count, length, len(_MASKS)), torch.bool),
        "values": ((count, length, len(_VALUES)), torch.float32),
        "ids": ((count, length), torch.long),
    }


def by_name(blocks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views of the columns of blocks, by name."""
    views = dict(blocks)
    for block, columns in _COLUMNS.items():
        views |= zip(columns, blocks[block].unbind(-1), strict=True)
    return views


def begin(blocks: dict[str, torch.Tensor], index: torch.Tensor, **values) -> None:
    """Reset rows `index` of the blocks to completions that begin to think. `values` are columns, by name."""
    for block in blocks.values():
        block[index] = 0
    columns = by_name(blocks)
    for name, value in {"active": True, "thinking": True, **values}.items():
        columns[name][index] = value


class Rows:
    """
    N rows before a step.

    Args:
        blocks: the blocks of `block_shapes`, for S completions.
        index (`torch.Tensor` of shape `(N,)`, int64): the places of the rows among the S completions.
        undo (*optional*): `numbers` (S, U, ...) and `flags`. A step stores there, at t modulo U, the values that it changes.
        seen (`torch.Tensor` of shape `(S, V)`, bool, *optional*): True for tokens in the prompt and the shadow.
    """

    def __init__(self, blocks: dict[str, torch.Tensor], index: torch.Tensor, undo=None, seen=None):
        self.blocks, self.index, self.undo, self.seen = blocks, index, undo, seen
        self.numbers = blocks["numbers"].index_select(0, index)
        self._of = dict(zip(NUMBERS, self.numbers.unbind(-1), strict=True))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, name: str) -> torch.Tensor:
        """A number of each row, (N,)."""
        return self._of[name]

    @functools.cached_property
    def flags(self) -> dict[str, torch.Tensor]:
        return dict(zip(FLAGS, self.blocks["flags"].index_select(0, self.index).unbind(-1), strict=True))
