# SPDX-License-Identifier: Apache-2.0
"""The layout of a thought's action in a few bytes for each token, so that one block of memory serves every kind of thought."""

from dataclasses import dataclass

import torch

from ..blank_action import blank_action


_ALIGN = 8  # bytes: the widest number of an action


@dataclass(frozen=True)
class Field:
    """One tensor of an action. `shape` is the shape after (N,). `offset` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def type(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def size(self) -> int:
        """Bytes."""
        elements = 1
        for extent in self.shape:
            elements *= extent
        return elements * self.type.itemsize


@dataclass(frozen=True)
class Layout:
    """The tensors of an action, by name. `width` is in bytes."""

    fields: tuple[Field, ...]
    width: int

    def views(self, block: torch.Tensor) -> dict[str, torch.Tensor]:
        """The action's tensors (..., *shape) in a block of bytes (..., W)."""
        return {
            field.name: block[..., field.offset : field.offset + field.size]
            .view(field.type)
            .view(*block.shape[:-1], *field.shape)
            for field in self.fields
        }

    def to_json(self) -> list:
        return [[field.name, field.dtype, list(field.shape), field.offset] for field in self.fields]

    @classmethod
    def from_json(cls, fields: list) -> "Layout":
        made = tuple(Field(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in fields)
        return cls(made, _width(made))


def _width(fields: tuple[Field, ...]) -> int:
    return max((_aligned(field.offset + field.size) for field in fields), default=_ALIGN)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def layout_of(thought, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> Layout:
    """The layout of a thought's actions on a model of such sizes."""
    name = thought.key(), vocab_size, hidden_size, dtype
    if name not in _LAYOUTS:
        if len(_LAYOUTS) == _MOST:
            _LAYOUTS.clear()
        _LAYOUTS[name] = _laid_out(blank_action(thought, vocab_size, hidden_size, dtype))
    return _LAYOUTS[name]


_LAYOUTS: dict[tuple, Layout] = {}
_MOST = 256  # layouts: a blank action is drawn for each, which takes a millisecond


def _laid_out(action: dict[str, torch.Tensor]) -> Layout:
    fields: list[Field] = []
    for name, value in action.items():
        offset = _aligned(fields[-1].offset + fields[-1].size) if fields else 0
        fields.append(Field(name, str(value.dtype).removeprefix("torch."), tuple(value.shape[1:]), offset))
    return Layout(tuple(fields), _width(tuple(fields)))
