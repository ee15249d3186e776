# SPDX-License-Identifier: Apache-2.0
"""The record of a rollout's thoughts, in a form that survives TRL's shuffling, splitting and buffering."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .thoughts import Thought
from .vocabulary.embedding_table import Lookup


if TYPE_CHECKING:
    import pandas


_PREFIX = "soft_"
_ACTION = "soft_action_"


class SoftTokens:
    """
    The thoughts of B completions of length C.

    Args:
        thought (`Thought`): the object that drew them, and that embeds and scores them.
        thinking_mask (`torch.Tensor` of shape `(B, C)`, bool):
            True where the position is a thought: fed as a mixture, scored by `thought.log_prob`.
        action (`dict` of `torch.Tensor` of shape `(B, C, ...)`):
            The thought's action at every position; arbitrary where `thinking_mask` is False.
        log_probs (`torch.Tensor` of shape `(B, C)`, float32):
            Log-probability of every position, thought or token, as drawn. Zero at positions that were not drawn.
        forced_mask (`torch.Tensor` of shape `(B, C)`, bool, *optional*):
            True at tokens that were forced and not drawn by the policy. `None` means nowhere.

    Attributes:
        variances (`list` of `torch.Tensor` of shape `(2, 2)`, *optional*):
            Where a forward with gradients appends the noise of the score, `||d log pi / d z||^2`: sum and number over a sample
            of positions, of thoughts and of answers. `None`: it is not measured. Wrappers rebuild a model's outputs, but
            they hand this object on.

    It is a plain class, not a dataclass: DDP and FSDP walk into dataclasses, dicts and tuples, and cast their floats to the
    compute dtype. A perturbed log-probability that is rounded to bf16 is another action.
    """

    def __init__(self, thought: Thought, thinking_mask, action: dict[str, torch.Tensor], log_probs, forced_mask=None):
        self.thought, self.thinking_mask, self.action, self.log_probs = thought, thinking_mask, action, log_probs
        self.variances: list[torch.Tensor] | None = None
        self.forced_mask = torch.zeros_like(thinking_mask) if forced_mask is None else forced_mask
        for name, value in action.items():
            if value.shape[:2] != thinking_mask.shape:
                raise ValueError(
                    f"The action {name!r} has shape {tuple(value.shape)}, which does not start with the shape "
                    f"{tuple(thinking_mask.shape)} of thinking_mask. Every tensor of a record is (B, C, ...)."
                )

    @property
    def shape(self) -> torch.Size:
        """(B, C)."""
        return self.thinking_mask.shape

    def __repr__(self) -> str:
        count = int(self.thinking_mask.sum())
        return f"SoftTokens(shape={tuple(self.shape)}, thought={self.thought.name!r}, thoughts={count})"

    def candidates(self, i: int) -> torch.Tensor:
        """
        The tokens that the thoughts of completion `i` are made of: ids (n, K) int64, for its n thoughts in their order. K is 0
        for a thought that keeps no candidates: one that is fed as an embedding.
        """
        return self._mixtures(i)[0]

    def weights(self, i: int) -> torch.Tensor:
        """The weights of `candidates(i)` in the mixture that was fed, (n, K) float32; 0 where a candidate is no part of it."""
        return self._mixtures(i)[1]

    def _mixtures(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        action = {name: value[i][self.thinking_mask[i]] for name, value in self.action.items()}
        if self.thought.is_token:
            ids = action["ids"].long().unsqueeze(-1)
            return ids, torch.ones_like(ids, dtype=torch.float32)
        weights = self.thought.weights(action)
        if weights is None:
            none = self.log_probs.new_zeros(int(self.thinking_mask[i].sum()), 0)
            return none.long(), none
        return action["ids"].long(), weights.float() + 0.0  # -0.0 becomes 0.0

    def to_pandas(self, entropies: list[list[float]] | None = None) -> "pandas.DataFrame":
        """
        The thoughts as a table with one row for each candidate that has a weight. A thought that keeps no candidates has one row,
        without a token and a weight.

        Args:
            entropies (`list[list[float]]`, *optional*):
                Entropy in nats of each position of each completion, as [`soft_generate`] returns them. The record does not hold
                them: without them the column is empty.

        Returns:
            Columns `completion`, `position` and `token_id` (integers), `weight`, `log_prob` (of the whole thought, in nats) and
            `entropy`.
        """
        import pandas

        rows: list[tuple] = []
        for i in range(self.shape[0]):
            ids, weights = self._mixtures(i)
            positions = self.thinking_mask[i].nonzero().squeeze(-1).tolist()
            log_probs = (self.log_probs[i] + 0.0).tolist()
            for t, tokens, shares in zip(positions, ids.tolist(), weights.tolist(), strict=True):
                entropy = None if entropies is None else entropies[i][t] + 0.0
                pairs = [pair for pair in zip(tokens, shares, strict=True) if pair[1] != 0.0] or [(None, None)]
                rows += [(i, t, token, weight, log_probs[t], entropy) for token, weight in pairs]
        columns = ["completion", "position", "token_id", "weight", "log_prob", "entropy"]
        types = dict.fromkeys(columns[:2], "int64") | {"token_id": "Int64"} | dict.fromkeys(columns[3:], "float64")
        return pandas.DataFrame(rows, columns=columns).astype(types)

    def map(self, function) -> "SoftTokens":
        """The record with `function` applied to each of its tensors."""
        action = {name: function(value) for name, value in self.action.items()}
        masks = function(self.thinking_mask), function(self.forced_mask)
        record = type(self)(self.thought, masks[0], action, function(self.log_probs), masks[1])
        record.variances = self.variances
        return record

    def __getitem__(self, rows) -> "SoftTokens":
        """Some of the B rows."""
        return self.map(lambda value: value[rows])

    def columns(self, part: slice) -> "SoftTokens":
        """Some of the C positions."""
        return self.map(lambda value: value[:, part])

    @classmethod
    def cat(cls, records: list["SoftTokens"]) -> "SoftTokens":
        """The rows of several records of one thought, padded to the longest."""
        length = max(record.shape[1] for record in records)
        records = [record.to_length(length) for record in records]

        def joined(read):
            return torch.cat([read(record) for record in records])

        action = {name: joined(lambda r, name=name: r.action[name]) for name in records[0].action}
        masks = joined(lambda r: r.thinking_mask), joined(lambda r: r.forced_mask)
        return cls(records[0].thought, masks[0], action, joined(lambda r: r.log_probs), masks[1])

    def to_length(self, length: int) -> "SoftTokens":
        """The record cut or padded (with non-thoughts) on the right to C = `length`."""

        def fit(value):
            missing = max(length - value.size(1), 0)
            return F.pad(value, (0, 0) * (value.dim() - 2) + (0, missing))[:, :length]

        return self.map(fit)

    def to_batch(self) -> dict[str, torch.Tensor]:
        """The record as `soft_*` entries of a trainer's batch."""
        batch = {_PREFIX + name: getattr(self, name) for name in ("thinking_mask", "log_probs", "forced_mask")}
        return batch | {_ACTION + name: value for name, value in self.action.items()}

    @classmethod
    def from_batch(cls, batch: dict, thought: Thought) -> "SoftTokens":
        """The record that `to_batch` put into the batch."""
        action = {key.removeprefix(_ACTION): value for key, value in batch.items() if key.startswith(_ACTION)}
        mask, log_probs, forced = (batch[_PREFIX + name] for name in ("thinking_mask", "log_probs", "forced_mask"))
        return cls(thought, mask, action, log_probs, forced)

    def flat_action(self, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """The action at the positions in `mask` (B, C) bool, as N flat rows."""
        return {name: value[mask] for name, value in self.action.items()}

    def feed(self, input_ids: torch.Tensor, embeddings: torch.Tensor, embed: Lookup) -> torch.Tensor:
        """
        Replace the embeddings of thoughts.

        Args:
            input_ids (`torch.Tensor` of shape `(B, S)`): ids whose last C columns are this record's positions.
            embeddings (`torch.Tensor` of shape `(B, S, H)`): their embeddings, from the embedding module.
            embed (`Lookup`): rows of the model's own table.

        Returns:
            (B, S, H): the mixtures at the positions of thoughts, and `embeddings` elsewhere.
        """
        if input_ids.size(0) != self.shape[0] or input_ids.size(1) < self.shape[1]:
            raise ValueError(
                f"The model was called with input_ids of shape {tuple(input_ids.shape)} and a record of shape "
                f"{tuple(self.shape)}. A record covers the last C columns of the same B rows; slice them together."
            )
        if input_ids.shape == self.shape and input_ids.size(1) == 1:
            # One step of a rollout: a mixture is made for every row and used for some, so that no count leaves the device.
            action, thinks = {name: value[:, 0] for name, value in self.action.items()}, self.thinking_mask[:, 0]
            return embed.fed(self.thought, action, thinks, embeddings[:, 0]).unsqueeze(1)
        mixed = self.thought.embed(self.flat_action(self.thinking_mask), embed)
        mixed = mixed.detach() if self.thought.detach_inputs else mixed
        positions = F.pad(self.thinking_mask, (input_ids.size(1) - self.shape[1], 0)).unsqueeze(-1)
        return embeddings.masked_scatter(positions, mixed.to(embeddings.dtype))
