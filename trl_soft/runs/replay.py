# SPDX-License-Identifier: Apache-2.0
"""Replay agreement: whether what a rollout drew is what the update scores.

A rollout notes the log-probability of each thought as it draws it, and the update computes it again from the record. With
the same weights both differ by rounding alone: |drawn - re-scored| is `thinking/logp_difference`. A rollout that fed anything
else than its record says (hard tokens where the trainer believes in mixtures, other weights, another temperature) differs
by more, and what is trained are thoughts that nobody had. Two looks, over the thoughts of all processes:

    range      the mean of |drawn - re-scored| is at most `tolerance`, in nats
    contrast   at the start of a run: the record replays better with its mixtures fed than with its shadow tokens fed. In
               low precision this tells soft from hard where mixtures are nearly one token, which the range cannot.
"""

from dataclasses import dataclass

import torch
from transformers.utils import logging

from ..record import SoftTokens
from ..settings import ThinkingSettings


logger = logging.get_logger(__name__)

ACTIONS = ("warn", "stop", "ignore")
_FEWEST = 64  # thoughts of a look: a mean over fewer is a matter of luck
# By how much better the shadow tokens must fit than the mixtures: where both are nearly the same, rounding decides.
_CONTRAST = 1.25


class ReplayError(RuntimeError):
    """A rollout's log-probabilities are not those of the update, and `replay_disagreement` is `stop`."""


@dataclass(frozen=True)
class Tolerance:
    """
    Largest healthy mean of |drawn - re-scored| in nats, and what it grows with.

    Args:
        exact (`float`): everything in float32. rounded (`float`): see `is_exact`.
        size (`int`): terms of the density it was measured with: candidates, coordinates or draws. 1: it has no terms.
        noise (`float`), power (`int`): `noise_scale` it was measured with, and which power of it rounding is divided by.
    """

    exact: float
    rounded: float
    size: int = 1
    noise: float = 1.0
    power: int = 0

    def of(self, exact: bool, size: int, noise: float) -> float:
        return (self.exact if exact else self.rounded) * size / self.size * (self.noise / noise) ** self.power


# Each lies between a healthy run and one that was fed hard tokens, as docs/replay.md has measured them. A gaussian density
# multiplies what rounding has done to H coordinates by 1/sigma^2; `hidden` compares hidden states themselves.
TOLERANCES = {
    "hard": Tolerance(1e-3, 0.15),
    "gumbel": Tolerance(1e-3, 0.2, size=5, power=1),
    "gumbel-concrete": Tolerance(1e-3, 0.1, size=5, power=1),
    "gumbel-softgrpo": Tolerance(1e-3, 0.06, power=1),
    "gaussian": Tolerance(1e-2, 20.0, size=576, noise=0.33, power=2),
    "gaussian-hidden": Tolerance(0.1, 2000.0, size=576, noise=0.33, power=2),
    "gaussian-logits": Tolerance(1e-3, 4.0, size=50, power=2),
    "gaussian-probabilities": Tolerance(1e-3, 3.0, size=5, noise=0.05, power=2),
    "dirichlet": Tolerance(1e-3, 0.4, size=5),
    "mixture": Tolerance(1e-3, 0.1),
    "multiplex": Tolerance(1e-3, 0.5, size=3),
}


def kind_of(settings: ThinkingSettings) -> str:
    """The row of `TOLERANCES` that the trained thought belongs to."""
    if settings.thought == "gumbel" and settings.gumbel_density != "gumbel":
        return f"gumbel-{settings.gumbel_density}"
    if settings.thought == "gaussian" and settings.noise_placement != "embedding":
        return f"gaussian-{settings.noise_placement}"
    return settings.thought


def tolerance(settings: ThinkingSettings, hidden_size: int, exact: bool) -> float:
    """Largest healthy mean of `thinking/logp_difference`, in nats, for the trained thought."""
    kind = kind_of(settings)
    row = TOLERANCES[kind]
    terms = {"gaussian": hidden_size, "gaussian-hidden": hidden_size, "multiplex": settings.multiplex_width}
    size = terms.get(kind, 1 if row.size == 1 else settings.resolved(settings.thought, "thinking_top_k"))
    noise = row.noise if row.power == 0 else settings.resolved(settings.thought, "noise_scale")
    return row.of(exact, size, noise)


def is_exact(args, model, accelerator) -> bool:
    """Whether rollout and update compute in float32 and by the same kernels."""
    if args.use_vllm or args.bf16 or args.fp16 or args.tf32 or accelerator.mixed_precision != "no":
        return False
    if getattr(model, "is_quantized", False):
        return False
    return model.get_input_embeddings().weight.dtype in (torch.float32, torch.float64)


class ShadowTokens(SoftTokens):
    """The same thoughts, scored as they are, and fed as their shadow tokens: what a rollout that decodes hard has seen."""

    def feed(self, input_ids, embeddings, embed):
        return embeddings


def shadow_of(record: SoftTokens) -> ShadowTokens:
    return ShadowTokens(record.thought, record.thinking_mask, record.action, record.log_probs, record.forced_mask)


class ReplayWatch:
    """
    Sums what the losses of an update have seen, and judges it before the update is made.

    Args:
        settings (`ThinkingSettings`): how the model thinks in training.
        action (`str`): one of `ACTIONS`. limit (`float`): largest healthy mean, in nats.
        exact (`bool`): for the message. accelerator: sums over processes.

    Attributes:
        wants_contrast (`bool`): whether the next loss is to score the shadow too; the same on all processes.
    """

    def __init__(self, settings: ThinkingSettings, action: str, limit: float, exact: bool, accelerator):
        self.kind, self.action, self.limit, self.exact = kind_of(settings), action, limit, exact
        self.accelerator = accelerator
        self.told = action == "ignore"
        self._contrasted = settings.thought == "hard"  # its shadow is what it feeds
        self._noted = False  # whether this update has scored its shadow
        # Sum of |drawn - re-scored| and number of thoughts; the same of those whose shadow was scored, and its sum.
        self._sums = torch.zeros(5)

    @property
    def wants_contrast(self) -> bool:
        return not (self.told or self._contrasted or self._noted)

    def note(self, difference: torch.Tensor, thoughts: torch.Tensor, of_shadow: torch.Tensor | None) -> None:
        """
        What one loss has seen.

        Args:
            difference (`torch.Tensor` of shape `(B, C)`): |drawn - re-scored|.
            thoughts (`torch.Tensor` of shape `(B, C)`, bool): where to look.
            of_shadow (`torch.Tensor` of shape `(B, C)`, *optional*): the same with the shadow tokens fed.
        """
        if self.told:
            return
        soft, count = difference[thoughts].float().sum(), thoughts.sum().float()
        seen = [soft, count, *([torch.zeros_like(soft)] * 3)]
        if of_shadow is not None:
            self._noted = True
            seen[2:] = soft, count, of_shadow[thoughts].float().sum()
        self._sums = self._sums.to(soft.device) + torch.stack(seen)

    def judge(self, step: int) -> None:
        """Before update `step`: warn once or raise a `ReplayError`, on all processes alike."""
        if self.told:
            return
        self._noted = False
        total, count, soft, contrasted, shadow = self.accelerator.reduce(self._sums.clone(), reduction="sum").tolist()
        found = []
        if contrasted >= _FEWEST and not self._contrasted:
            self._contrasted = True
            self._sums[2:] = 0
            if soft > _CONTRAST * shadow:
                found.append(
                    f"the thoughts' log-probabilities fit their shadow tokens ({shadow / contrasted:.3g} nats off) better "
                    f"than the mixtures of the record ({soft / contrasted:.3g}): the rollout has fed hard tokens where the "
                    "update feeds mixtures"
                )
        if count >= _FEWEST:
            self._sums[:2] = 0
            if total / count > self.limit:  # a NaN is the business of `nonfinite`
                found.append(
                    f"the mean of `thinking/logp_difference` is {total / count:.3g} nats over {count:.0f} thoughts, and stays "
                    f"below {self.limit:.3g} in a healthy run of {self.kind} thoughts in "
                    f"{'float32' if self.exact else 'rounded precision'}. Likely reasons: the rollout has fed something "
                    "else than its record says (hard tokens, another kind of thought); it ran with other weights than the "
                    "trainer's (a push to vLLM that failed, an adapter that was not merged); another temperature, "
                    "truncation or dropout on one of the two sides; quantised weights, keys or values"
                )
        if found:
            self._tell(step, found)

    def _tell(self, step: int, found: list[str]) -> None:
        self.told = True
        sentence = (
            f"Update {step}: {'; and '.join(found)}. What is trained is not what was drawn. docs/replay.md says how to look; "
            "`replay_tolerance` sets another limit"
        )
        if self.action == "stop":
            raise ReplayError(f"{sentence}, `replay_disagreement: warn` goes on.")
        if self.accelerator.is_main_process:
            logger.warning(f"{sentence}, `replay_disagreement: stop` ends the run.")
