# SPDX-License-Identifier: Apache-2.0
"""The embedding table of a served model. Each rank of a tensor-parallel group may hold a part of it.

A rank mixes the rows that it holds, and the group adds up the (N, H) results. Looking up K rows through the module would add
up N x K x H numbers.
"""

from collections.abc import Callable

import torch

from ... import kernels
from ...vocabulary.dense_logits import scaled, summed
from ...vocabulary.embedding_table import Lookup
from ...vocabulary.head_logits import DenseLogits, entropy_of
from ...vocabulary.row_sums import mix_rows
from .. import book


# Most numbers in a float32 copy of a part of the table.
_TILE_ELEMENTS = 2**24


class Table(Lookup):
    """
    Args:
        weight: a function that returns the part of the table held here, (V', H) or more rows. Weights may be loaded again.
        start (`int`), end (`int`): the tokens of this part.
        scale (`float`): the factor of the model on its rows.
        add: a function that adds up a tensor over the group. `None` without a group.
    """

    def __init__(self, weight: Callable[[], torch.Tensor], start: int, end: int, scale: float = 1.0, add=None):
        self.weight, self.start, self.end, self.scale, self.add = weight, start, end, scale, add

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.ones_like(ids, dtype=torch.float32).unsqueeze(-1), ids.unsqueeze(-1))

    def _summed(self, part: torch.Tensor) -> torch.Tensor:
        return part if self.add is None else self.add(part)

    def mix(self, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """`sum_k w_k e_{i_k}` in float32 at least: `weights`, `ids` (N, K) -> (N, H)."""
        if self.add is not None:
            here = (ids >= self.start) & (ids < self.end)
            ids, weights = torch.where(here, ids - self.start, 0), weights * here
        return scaled(self._summed(mix_rows(weights, ids, self.weight())), self.scale)

    def mix_all(self, p: torch.Tensor) -> torch.Tensor:
        """`sum_v p_v e_v` in float32, (N, V) -> (N, H). For p (parts, N, V) in the table's dtype, see `summed`."""
        weight, count = self.weight(), self.end - self.start
        if p.dim() == 3:
            return scaled(self._summed(summed(p[:, :, self.start : self.end], weight[:count])), self.scale)
        tile = max(1, _TILE_ELEMENTS // weight.size(1))
        mixed = torch.zeros(len(p), weight.size(1), dtype=torch.float32, device=p.device)
        for first in range(0, count, tile):
            last = min(first + tile, count)
            mixed += p[:, self.start + first : self.start + last] @ weight[first:last].float()
        return scaled(self._summed(mixed), self.scale)

    def feed(self, thought, action, thinks: torch.Tensor, rows: torch.Tensor, target: torch.Tensor) -> None:
        """The thoughts' embeddings at the N rows that think, (N,) bool, into rows (N,) of `target` (T, H)."""
        weights = thought.weights(action)
        if weights is not None and self.add is None and kernels.fused(target.device):
            from ...kernels.row_mixtures import mix_into

            return mix_into(weights, action["ids"], self.weight(), self.scale, thinks, rows, target)
        book.feed(target, thought.embed(action, self), rows, thinks)

    def whole(self) -> torch.Tensor:
        """The whole table (V, H). In a group each rank makes a copy, of V x H numbers, from all parts."""
        weight = self.weight()[: self.end - self.start]
        if self.add is None:
            return weight
        count = self._summed(torch.tensor([len(weight)], device=weight.device)).item()
        table = weight.new_zeros(int(count), weight.size(1))
        table[self.start : self.end] = weight
        return self._summed(table)

    def rms(self) -> float:
        """Per-element RMS of the embeddings, over the whole table."""
        weight = self.weight()[: self.end - self.start].float()
        sums = torch.stack([weight.square().sum(), torch.tensor(float(weight.numel()), device=weight.device)])
        total, count = self._summed(sums.double()).tolist()
        return (total / count) ** 0.5 * self.scale


class ServedLogits(DenseLogits):
    """Logits of a step, with the table and the head of a served model."""

    def __init__(self, logits, table: Table, dtype: torch.dtype, hidden=None, project=None, nearest=None):
        super().__init__(logits, dtype=dtype, hidden=hidden, project=project, nearest=nearest)
        self.served = table

    def __getitem__(self, rows) -> "ServedLogits":
        hidden = None if self.hidden is None else self.hidden[rows]
        return ServedLogits(self.logits[rows], self.served, self.dtype, hidden, self.project, self.nearest)

    def of_hidden(self, hidden: torch.Tensor) -> "ServedLogits":
        assert self.project is not None
        return ServedLogits(self.project(hidden), self.served, self.dtype, hidden, self.project, self.nearest)

    def _mixed(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        if self.fused:
            p, entropy = self.softmax(temperature, self.served.weight().dtype)
            return self.served.mix_all(p), entropy
        log_p = self.log_softmax(temperature)
        return self.served.mix_all(log_p.exp()), entropy_of(log_p)
