# SPDX-License-Identifier: Apache-2.0
"""Checks of the density of any kind of thought, without a model. Use them in the tests of your own kind.

finite differences    the gradient of log q in the logits fits the values of log q
score of mean zero    E[ d log q / dz ] = 0 over draws from q: the score is the density of the draw, on the same support
"""

import math

import torch

from ..noise import KeyedNoise
from ..vocabulary.dense_logits import DenseLogits
from ..vocabulary.neighbours import nearest_tokens
from .protocol import Thought


VOCAB, HIDDEN = 12, 6
_DRAWS = 40_000
_ERRORS = 5  # standard errors that the mean of each of VOCAB coordinates may be off: by chance once in 100,000 checks
_LEAST_ERROR = 1e-7  # standard error of a coordinate that no draw moves


def drawn_from(z: torch.Tensor, thought: Thought) -> DenseLogits:
    """The logits that a thought draws from."""
    table = some_table().float()
    nearest = nearest_tokens(table, thought.neighbours) if thought.neighbours else None
    return DenseLogits(z, table, nearest=nearest)


class Float64Logits(DenseLogits):
    """Dense logits and a table in float64, for finite differences."""

    def __init__(self, logits, table=None):
        super().__init__(logits, table, dtype=torch.float64)


def check_density(thought: Thought) -> None:
    """
    Compare a thought's `score` with its `sample`: for an ordinary step and, if it `closes_one_hot`, for the closing step.

    It works for thoughts made of logits. A thought that `needs_hidden` needs a model. It takes a second on a CPU.

    Raises:
        AssertionError: if the score does not have mean zero. The message is a sentence.
        torch.autograd.gradcheck.GradcheckError: if the gradient differs from finite differences.
    """
    for closing in (False, True) if thought.closes_one_hot and thought.scores_closing else (False,):
        finite_differences(thought, closing)
        score_of_mean_zero(thought, closing)


def finite_differences(thought: Thought, closing: bool = False) -> None:
    """Compare the gradients of log-density and entropy in the logits with central differences of step 1e-6, in float64."""
    z = some_logits(5).requires_grad_()
    action, token = thought.sample(drawn_from(z.detach().float(), thought), some_noise(5))
    if closing:
        action = thought.close(action, torch.tensor([True, False, True, False, False]), token)
    action = in_float64(action)
    torch.autograd.gradcheck(
        lambda z: thought.score(Float64Logits(z, some_table()), action), (z,), eps=1e-6, atol=1e-6, rtol=1e-5
    )


def score_of_mean_zero(thought: Thought, closing: bool = False) -> None:
    """Check that d log q / dz has mean zero over 40,000 draws, within five standard errors.

    `closing`: the most likely token ends the thought.
    """
    # The logits are halved, so that every token occurs often enough to estimate its standard error.
    z = (some_logits(1) / 2).expand(_DRAWS, VOCAB).clone().requires_grad_()
    action, token = thought.sample(drawn_from(z.detach(), thought), some_noise(_DRAWS))
    if closing:
        action = thought.close(action, token == z[0].argmax(), token)
    thought.log_prob(Float64Logits(z, some_table()), in_float64(action)).sum().backward()
    assert z.grad is not None
    mean, error = z.grad.mean(0), z.grad.std(0) / math.sqrt(_DRAWS)
    if not z.grad.abs().max() > 0:
        raise AssertionError(
            "The log-density has no gradient in the logits, so training could learn nothing from a draw."
        )
    off = mean.abs() / (_ERRORS * error + _LEAST_ERROR)
    if not (off <= 1).all():
        worst = int(off.argmax())
        raise AssertionError(
            f"The score of a {thought.name} thought has the mean {mean[worst]:.3g} in the logit of token {worst}, with a standard "
            f"error of {error[worst]:.2g} over {_DRAWS} draws. It is 0 for a density: `score` is not the density of `sample`."
        )


def some_logits(n: int, seed: int = 0) -> torch.Tensor:
    """(n, VOCAB) float64."""
    return torch.randn(n, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def some_table() -> torch.Tensor:
    """An embedding table, (VOCAB, HIDDEN) float64."""
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def some_noise(n: int, generation: int = 0) -> KeyedNoise:
    return KeyedNoise(0, generation, torch.arange(n), torch.zeros(n, dtype=torch.long))


def in_float64(action: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The action with its real numbers in float64."""
    return {name: value.double() if value.is_floating_point() else value for name, value in action.items()}
