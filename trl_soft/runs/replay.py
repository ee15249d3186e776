# SPDX-License-Identifier: Apache-2.0
"""Replay agreement: the update scores the thoughts that the rollout has drawn.

A rollout stores the log-probability of each thought when it draws the thought. The update computes it again from the record.
With the same weights both differ by rounding only. |drawn - re-scored| is the metric `thinking/logp_difference`. It is larger
if the rollout has fed something else than the record says: hard tokens instead of mixtures, other weights, another
temperature. Then the update trains thoughts that the model never had. Two checks, over the thoughts of all processes:

    range      the mean of |drawn - re-scored| is at most `tolerance`, in nats
    contrast   at the start of a run: the update scores the record twice, with its mixtures fed and with its shadow tokens
               fed, and the mixtures must fit better. (The shadow token of a thought is the token id that stands for it in
               `completion_ids`.) In low precision this finds hard decoding where a mixture is nearly one token. The range
               cannot find it there.
"""

import torch
from transformers.utils import logging

from ..record import SoftTokens
from ..settings import ThinkingSettings
from ..thoughts import THOUGHTS
from ..thoughts.tolerance import Tolerance


logger = logging.get_logger(__name__)

ACTIONS = ("warn", "stop", "ignore")
_FEWEST = 64  # thoughts of one check: a mean over fewer depends on chance
# The shadow tokens must fit better than the mixtures by this factor. If both fit nearly the same, rounding decides.
_CONTRAST = 1.25


class ReplayError(RuntimeError):
    """The log-probabilities of the rollout and of the update differ, and `replay_disagreement` is `stop`."""


# The tolerance of a kind without a measured one. Every other tolerance lies between the values of a healthy run and of a run
# that was fed hard tokens. docs/replay.md has both.
UNMEASURED = Tolerance(1e-3, 0.5)


def tolerances() -> dict[str, Tolerance]:
    """The tolerances of all kinds of thought, by the result of `kind_of`."""
    return {label: row for kind in THOUGHTS.values() for label, row in kind.tolerances.items()}


def kind_of(settings: ThinkingSettings) -> str:
    """The key of `tolerances` for the thought that training uses."""
    return settings.kinds()[0].label(settings.values(settings.thought))


def tolerance(settings: ThinkingSettings, hidden_size: int, exact: bool) -> float:
    """Largest healthy mean of `thinking/logp_difference`, in nats, for the thought that training uses."""
    kind, values = settings.kinds()[0], settings.values(settings.thought)
    row = kind.tolerances.get(kind.label(values), UNMEASURED)
    size = 1 if row.size == 1 else kind.terms(values, hidden_size)
    return row.of(exact, size, row.noise if row.power == 0 else values.noise_scale)


def is_exact(args, model, accelerator) -> bool:
    """Whether rollout and update compute in float32 and with the same kernels."""
    if args.use_vllm or args.bf16 or args.fp16 or args.tf32 or accelerator.mixed_precision != "no":
        return False
    if getattr(model, "is_quantized", False):
        return False
    return model.get_input_embeddings().weight.dtype in (torch.float32, torch.float64)


class ShadowTokens(SoftTokens):
    """A record that is scored as usual but feeds its shadow tokens, as a rollout that decodes hard would do."""

    def feed(self, input_ids, embeddings, embed):
        return embeddings


def shadow_of(record: SoftTokens) -> ShadowTokens:
    return ShadowTokens(record.thought, record.thinking_mask, record.action, record.log_probs, record.forced_mask)


class ReplayWatch:
    """
    Sums |drawn - re-scored| over the losses of an update, and checks it before the optimiser's step.

    Args:
        settings (`ThinkingSettings`): how the model thinks in training.
        action (`str`): one of `ACTIONS`.
        limit (`float`): largest healthy mean, in nats.
        exact (`bool`): see `is_exact`; only the message uses it.
        accelerator: sums over processes.

    Attributes:
        wants_contrast (`bool`): the next loss should also score the shadow tokens. It is the same on all processes.
    """

    def __init__(self, settings: ThinkingSettings, action: str, limit: float, exact: bool, accelerator):
        self.kind, self.action, self.limit, self.exact = kind_of(settings), action, limit, exact
        self.accelerator = accelerator
        self.off = action == "ignore"  # also after a warning: a run is warned once
        # A hard thought feeds its shadow token, so there is no contrast.
        self._contrast_made = settings.thought == "hard"
        self._shadow_seen = False  # this update has scored its shadow tokens
        # The sum of |drawn - re-scored| and the number of thoughts. For the losses that also scored the shadow tokens: the
        # same sum, the same number, and the sum with the shadow tokens fed.
        self._sums = torch.zeros(5)

    @property
    def wants_contrast(self) -> bool:
        return not (self.off or self._contrast_made or self._shadow_seen)

    def note(self, difference: torch.Tensor, thoughts: torch.Tensor, of_shadow: torch.Tensor | None) -> None:
        """
        Add what one loss has computed.

        Args:
            difference (`torch.Tensor` of shape `(B, C)`): |drawn - re-scored|.
            thoughts (`torch.Tensor` of shape `(B, C)`, bool): True where a position is a thought that counts.
            of_shadow (`torch.Tensor` of shape `(B, C)`, *optional*): |drawn - re-scored| with the shadow tokens fed.
        """
        if self.off:
            return
        soft, count = difference[thoughts].float().sum(), thoughts.sum().float()
        terms = [soft, count, *([torch.zeros_like(soft)] * 3)]
        if of_shadow is not None:
            self._shadow_seen = True
            terms[2:] = soft, count, of_shadow[thoughts].float().sum()
        self._sums = self._sums.to(soft.device) + torch.stack(terms)

    def judge(self, step: int) -> None:
        """
        Check before update `step`. Every process must call this; all of them warn or raise together.

        Raises:
            ReplayError: if a check fails and `action` is `stop`.
        """
        if self.off:
            return
        self._shadow_seen = False
        total, count, soft, contrasts, shadow = self.accelerator.reduce(self._sums.clone(), reduction="sum").tolist()
        problems = []
        if contrasts >= _FEWEST and not self._contrast_made:
            self._contrast_made = True
            self._sums[2:] = 0
            if soft > _CONTRAST * shadow:
                problems.append(
                    f"the thoughts' log-probabilities fit their shadow tokens ({shadow / contrasts:.3g} nats off) better "
                    f"than the mixtures of the record ({soft / contrasts:.3g}): the rollout has fed hard tokens where the "
                    "update feeds mixtures"
                )
        if count >= _FEWEST:
            self._sums[:2] = 0
            if total / count > self.limit:  # False for a NaN, which `nonfinite` handles
                problems.append(
                    f"the mean of `thinking/logp_difference` is {total / count:.3g} nats over {count:.0f} thoughts, and stays "
                    f"below {self.limit:.3g} in a healthy run of {self.kind} thoughts in "
                    f"{'float32' if self.exact else 'rounded precision'}. Likely reasons: the rollout has fed something "
                    "else than its record says (hard tokens, another kind of thought); it ran with other weights than the "
                    "trainer's (a push to vLLM that failed, an adapter that was not merged); another temperature, "
                    "truncation or dropout on one of the two sides; quantised weights, keys or values"
                )
        if problems:
            self._act(step, problems)

    def _act(self, step: int, problems: list[str]) -> None:
        self.off = True
        sentence = (
            f"Update {step}: {'; and '.join(problems)}. The update does not train the thoughts that the rollout drew. "
            "docs/replay.md says how to find the cause. `replay_tolerance` sets another limit"
        )
        if self.action == "stop":
            raise ReplayError(f"{sentence}, `replay_disagreement: warn` continues the run.")
        if self.accelerator.is_main_process:
            logger.warning(f"{sentence}, `replay_disagreement: stop` ends the run.")
