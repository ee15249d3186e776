# SPDX-License-Identifier: Apache-2.0
"""Entropy by position: the entropy of the next token at each token of a completion (2509.19170, appendix G.3, Figure 4).

    H_t = mean over completions of the entropy of softmax(z_t), in nats, over the whole vocabulary at temperature 1

A rollout stores the entropy of the distribution that it drew each step from. At temperature 1e-4 almost all of that
distribution lies on one token. So each completion is read once more, with the inputs of the rollout, and the entropies are
measured at temperature 1.
"""

import torch

from ..rollout import Rollout
from ..vocabulary.embedding_table import embedding_scale
from ..vocabulary.head_logits import HeadLogits, logit_transform


@torch.no_grad()
def read_again(model, prompt: list[int], rollout: Rollout) -> HeadLogits:
    """
    The logits from which one completion was drawn.

    Args:
        model: a causal language model that takes `soft_tokens=` (`trl_soft.forward`).
        prompt (`list[int]`): ids of the prompt.
        rollout (`Rollout`): of one row.

    Returns:
        `HeadLogits` of C rows. C is the length of the completion.
    """
    length = int(rollout.completion_mask.sum())
    ids = torch.tensor([prompt], device=rollout.completion_ids.device)
    ids = torch.cat([ids, rollout.completion_ids[:, :length]], dim=1)
    record = rollout.record.to_length(length)
    fed = {} if record.thought.is_token else {"soft_tokens": record}
    out = model(input_ids=ids, output_hidden_states=True, logits_to_keep=1, use_cache=False, **fed)
    hidden = out.hidden_states[-1][0, len(prompt) - 1 : -1]  # (C, H): the state before a token predicts it
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    scale, softcap = logit_transform(model.config)
    return HeadLogits(hidden, head, embedding, scale, softcap, embedding_scale(embedding))


@torch.no_grad()
def entropies(model, prompt: list[int], rollout: Rollout) -> torch.Tensor:
    """
    Entropies of the distributions from which one completion was drawn, (C,) float32: nats at temperature 1. The arguments are those
    of `read_again`.
    """
    return read_again(model, prompt, rollout).entropy(1.0)


class PositionMeans:
    """
    Means by position over completions of different lengths.

    Args:
        positions (`int`): number of positions, from the first.
    """

    def __init__(self, positions: int):
        self.sums = torch.zeros(positions, dtype=torch.float64)
        self.counts = torch.zeros(positions, dtype=torch.long)

    def add(self, values: torch.Tensor, mask: torch.Tensor) -> None:
        """Add the values (C,) of one completion where `mask` (C,) is true."""
        n = min(len(values), len(self.sums))
        values, mask = values[:n].double().cpu(), mask[:n].cpu()
        self.sums[:n] += values.masked_fill(~mask, 0.0)
        self.counts[:n] += mask

    def add_sums(self, sums: list[float], counts: list[int]) -> None:
        """Add the sums and counts that `to_json` of other means returned."""
        n = len(sums)
        if n > len(self.sums):
            missing = n - len(self.sums)
            self.sums = torch.cat([self.sums, self.sums.new_zeros(missing)])
            self.counts = torch.cat([self.counts, self.counts.new_zeros(missing)])
        self.sums[:n] += torch.tensor(sums, dtype=torch.float64)
        self.counts[:n] += torch.tensor(counts)

    def to_json(self) -> dict[str, list]:
        """Sums and counts, up to the last position with a value."""
        used = int(self.counts.nonzero().max()) + 1 if self.counts.any() else 0
        return {"sums": [round(x, 6) for x in self.sums[:used].tolist()], "counts": self.counts[:used].tolist()}

    def means(self) -> dict[str, list]:
        """`mean` by position, `None` without a value, and `completions`, the number of completions in each mean."""
        content = self.to_json()
        pairs = zip(content["sums"], content["counts"], strict=True)
        return {"mean": [round(s / n, 5) if n else None for s, n in pairs], "completions": content["counts"]}
