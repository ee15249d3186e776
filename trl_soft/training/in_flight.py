# SPDX-License-Identifier: Apache-2.0
"""The state of a rollout, a scoring or a loss while TRL's own code runs, because TRL's signatures do not carry it.

The trainer holds one [`InFlight`] at a time, inside a `with` block. Outside such a block it holds none.
"""

from contextlib import ExitStack
from enum import Enum

import torch

from ..record import SoftTokens
from ..rollout import Rollout
from ..rollout.interface import positions
from .per_draw_ratios import spread


class Phase(Enum):
    """
    ROLLOUT: completions are drawn.
    SCORING: TRL asks for the log-probabilities of the completions under the old policy or the reference.
    LOSS: TRL asks for the log-probabilities under the policy, and computes a loss from them.
    """

    ROLLOUT = "rollout"
    SCORING = "scoring"
    LOSS = "loss"


class InFlight:
    """
    Letters: B completions, C positions, D draws of a thought.

    Args:
        phase (`Phase`): what TRL is doing. A rollout becomes a scoring when `score` is called.
        record (`SoftTokens` of shape `(B, C)`, *optional*): the thoughts. A rollout has none yet.
        batch (`dict`, *optional*): the batch that the record belongs to. It is not changed.

    Attributes:
        inputs (`list`, *optional*): in a rollout: the rows of the data set that TRL completes and scores.
        rewards (`torch.Tensor` of shape `(N, F)`, *optional*):
            The rewards of the completions of all processes by each of F functions, if they are known before TRL asks for
            them.
        rollout (`Rollout`): the completions that were drawn.
        answer_phases (`list`): for each completion, the text of its answer, for the rewards; see `answer_phase`.
        old_logps (`torch.Tensor`, *optional*):
            Log-probabilities under the old policy. After a rollout: the first ones that TRL asked for. In a loss: those of
            the batch, `(B, C*D)`.
        exits (`ExitStack`): contexts that end with the flight.
        batch (`dict`):
            In a loss: a copy of the batch, with D columns for each position. TRL's loss reads it, so the log-probabilities of
            the old policy and of the reference can be moved in it.
        logps (`torch.Tensor` of shape `(B, C*D)`): in a loss: log-probabilities of the policy, without a gradient.
        held (`torch.Tensor` of shape `(B, C*D)`, bool): in a loss: where the log-ratio is held at its bound.

    Raises:
        ValueError: if the record and the batch are of different shapes.
    """

    record: SoftTokens
    rollout: Rollout
    batch: dict
    logps: torch.Tensor
    held: torch.Tensor

    def __init__(self, phase: Phase, record: SoftTokens | None = None, batch: dict | None = None):
        self.phase, self.exits = phase, ExitStack()
        self.answer_phases: list[str | None] = []
        self.old_logps: torch.Tensor | None = None
        self.inputs: list | None = None
        self.rewards: torch.Tensor | None = None
        if record is None or batch is None:
            return
        self.record = record
        if record.shape != batch["completion_ids"].shape:
            raise ValueError(
                f"The record of thoughts is {tuple(record.shape)} and the completions are "
                f"{tuple(batch['completion_ids'].shape)}: something reshaped the batch without its soft_* keys."
            )
        if phase is Phase.LOSS:
            self.batch = spread(batch, record) if record.thought.draws > 1 else dict(batch)
            self.old_logps = self.batch.get("old_per_token_logps")
            record.variances = []

    def score(self) -> None:
        """The rollout is over, and TRL scores what it has drawn."""
        self.phase, self.record = Phase.SCORING, self.rollout.record

    def see(self, logps: torch.Tensor) -> None:
        """Note the policy's log-probabilities (B, C*D) in a loss."""
        self.logps, self.held = logps.detach(), torch.zeros_like(logps, dtype=torch.bool)

    @property
    def thoughts(self) -> torch.Tensor:
        """True in columns of the loss that belong to thoughts, (B, C*D) bool."""
        return self.record.thinking_mask.repeat_interleave(self.record.thought.draws, dim=1)

    @property
    def difference(self) -> torch.Tensor:
        """|drawn - re-scored| of a loss, (B, C) in nats. The record holds the sum over a thought's draws."""
        old = self.logps if self.old_logps is None else self.old_logps
        return (old.unflatten(1, (-1, self.record.thought.draws)).sum(-1) - self.record.log_probs).abs()

    @property
    def score_variance(self) -> torch.Tensor | None:
        """Sum and number over the positions in the sample, for thoughts and for answers: (2, 2)."""
        return torch.stack(self.record.variances).sum(0) if self.record.variances else None


class Replay:
    """A model that TRL calls on consecutive rows of a batch. Each call gets the same rows of the record."""

    def __init__(self, model, record: SoftTokens, takes_position_ids: bool):
        self.model, self.record, self.takes_position_ids = model, record, takes_position_ids
        self.start = 0

    def __call__(self, input_ids, attention_mask, **kwargs):
        rows = slice(self.start, self.start + input_ids.size(0))
        self.start = rows.stop
        if self.takes_position_ids:
            # The rollout's positions. TRL counts the padding on the left, and learned positions differ then.
            kwargs["position_ids"] = positions(attention_mask)
        return self.model(input_ids=input_ids, attention_mask=attention_mask, soft_tokens=self.record[rows], **kwargs)
