# SPDX-License-Identifier: Apache-2.0
"""Next-token logits as a view: only the logits that a thought asks for are computed.

    at(ids)           z at K candidates          K*H a position
    dense()           z over the vocabulary      V*H a position, N x V in memory: only for rollouts
    log_prob(ids, T)  log softmax(z/T) at K candidates and the entropy of softmax(z/T), in tiles: never N x V
    entropy(T)        the entropy alone, likewise
    mixture(T)        softmax(z/T) E and the entropy, likewise

Letters: N positions, K candidates, H hidden size, V vocabulary.

Every softmax here is one of (z - max z)/T. At T = 1e-4, z/T is 3e5, where neighbouring float32 numbers are 0.03 apart. The
difference of two close logits is exact.
"""

import torch
import torch.nn.functional as F

from .dense_logits import DenseLogits, Logits, entropy_of, tempered
from .row_sums import dot_rows
from .sharding import gathered, whole
from .tiled_softmax import OverVocabulary, without_autocast
from .tiles import Form, transform


__all__ = [
    "DenseLogits",
    "HeadLogits",
    "Logits",
    "entropy_of",
    "logit_transform",
    "tempered",
    "transformed",
]

# For more candidates, one product with the whole head is cheaper than single rows.
_MANY = 1024


def logit_transform(config) -> tuple[float, float | None]:
    """
    The transform of a model from `h W^T` to its logits: `(scale, softcap)`.

    Gemma caps them (`final_logit_softcapping`); Cohere, Muse, Falcon-H1 and HyperCLOVA X multiply them; Granite and
    MiniCPM3 divide them. TRL's fused LM head, which scores the answers, reads the config in the same way.
    """
    config = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"):
        value = getattr(config, name, None)
        if value is not None:
            scale = 1 / value if name == "logits_scaling" and config.model_type != "hyperclovax" else value
            break
    return scale, getattr(config, "final_logit_softcapping", None)


class HeadLogits(Logits):
    """
    The logits of the LM head, computed on demand and differentiable.

    Args:
        hidden (`torch.Tensor` of shape `(N, H)`): last hidden states.
        head (`torch.nn.Linear`): the LM head. Its weight may be a ZeRO-3 or FSDP2 shard.
        embedding (`torch.nn.Embedding`): the input embedding. Its table may be a shard too.
        scale, softcap: the result of `logit_transform`.
        table_scale (`float`): the factor of the embedding module on its table.
    """

    def __init__(self, hidden, head, embedding, scale: float = 1.0, softcap: float | None = None, table_scale=1.0):
        self.hidden, self.head, self.embedding = hidden, head, embedding
        self.scale, self.softcap, self.table_scale = scale, softcap, table_scale

    def __len__(self) -> int:
        return self.hidden.size(0)

    def at(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the candidates `ids` (N, K) -> (N, K) float32. It reads K rows of the head for each position, or all V if K is large."""
        weight, bias = whole(self.head.weight), None if self.head.bias is None else whole(self.head.bias)
        # Outside autocast, because the products are few and the density multiplies their rounding.
        with gathered(self.head.weight, self.head.bias), without_autocast(self.hidden.device):
            if ids.size(-1) > _MANY:
                # A copy. It stays whole for the backward; a shard does not.
                rows = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
                z = F.linear(self.hidden.to(rows.dtype), rows).gather(-1, ids.long())
            else:
                z = dot_rows(self.hidden, ids, weight, gathered)
            if bias is not None:
                z = z + F.embedding(ids, bias.unsqueeze(-1)).squeeze(-1).float()
        return transform(z, self.scale, self.softcap)[0]

    def dense(self) -> torch.Tensor:
        """All logits, (N, V) float32. For tests and small N."""
        with gathered(self.head.weight, self.head.bias):
            bias = None if self.head.bias is None else whole(self.head.bias)
            return transform(F.linear(self.hidden, whole(self.head.weight), bias).float(), self.scale, self.softcap)[0]

    def log_prob(self, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """log softmax(z/T) of the candidates `ids` (N, K), (N, K), and the entropy of softmax(z/T), (N,), both float32."""
        return self._over_vocabulary(None, ids, temperature)[1:]

    def entropy(self, temperature: float) -> torch.Tensor:
        """Entropy of softmax(z/T), (N,) float32."""
        return self._over_vocabulary(None, None, temperature)[2]

    def mixture(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`h = sum_v softmax(z/T)_v e_v` (N, H) and the entropy of softmax(z/T) (N,), both float32."""
        mean, _, entropy = self._over_vocabulary(self.embedding.weight, None, temperature)
        return mean * self.table_scale, entropy

    def _over_vocabulary(self, table, ids, temperature: float):
        weight, bias = self.head.weight, self.head.bias
        with gathered(weight, bias, table):
            return OverVocabulary.apply(
                self.hidden,
                whole(weight),
                None if bias is None else whole(bias),
                None if table is None else whole(table),
                None if ids is None else ids.long().contiguous(),
                Form(temperature, self.scale, self.softcap),
            )


def transformed(z: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Logits of `h W^T`: scaled, then capped."""
    if scale == 1.0 and softcap is None:
        return z  # most models: no pass over the logits
    return transform(z, scale, softcap)[0]
