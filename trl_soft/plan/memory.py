# SPDX-License-Identifier: Apache-2.0
"""Bytes that one device holds in each phase of training, by arithmetic alone: without a model, a tensor or a device.

    always      weights, master copies, optimiser states, reference, the batch and its record
    rollout     the whole weights if they are sharded, keys and values, the record of the slots, a step's logits
    scoring     a forward without gradients (old and reference log-probabilities)
    update      gradients, activations, the logits' tiles, gathered layers
    optimizer   gradients and their copies

Letters: P parameters, T trained parameters, n devices, S tokens of a row, V vocabulary, H hidden, F width of the MLP, A width
of all query heads, KV of all key heads, L layers, K candidates, w bytes of a weight, c bytes of a number in a product. All
figures are bytes. The coefficients come from the saved tensors of transformers' gated decoders (Llama, Qwen2, Qwen3, Mistral).
They agree with `benchmarks/memory.py` to 15 %.
"""

from dataclasses import dataclass, replace

from ..vocabulary.neighbours import tile_rows
from ..vocabulary.tiles import tile_columns
from .run import FLOAT, Run
from .shape import Shape


_TRL_TILE = (4096, 32768)  # positions and columns of a tile of TRL's fused head
_PREFILL = 4096  # `EngineOptions.prefill_tokens`
# Parameters, DeepSpeed's defaults: `stage3_max_live_parameters` and `stage3_prefetch_bucket_size`, `reduce_bucket_size`,
# `sub_group_size`.
_LIVE, _BUCKET, _SUB_GROUP = 10**9 + 5 * 10**7, 5 * 10**8, 10**9

Parts = dict[str, float]


@dataclass
class Estimate:
    """
    Bytes of one device.

    Attributes:
        phases (`dict`): the parts of each phase, by name. Permanent parts are in every phase.
        host (`float`): bytes in the host's memory, with offloading.
        longest_slots (`float`): number of completions of full length that the cache holds at once. Below 1 a rollout is
            refused.
        reserve (`float`): for the CUDA context and communication. It is not a part of any phase.
        memory (`float`, *optional*): memory of the device.
    """

    phases: dict[str, Parts]
    host: float
    longest_slots: float
    reserve: float
    memory: float | None

    @property
    def peaks(self) -> dict[str, float]:
        return {phase: sum(parts.values()) for phase, parts in self.phases.items()}

    @property
    def largest(self) -> str:
        return max(self.peaks, key=lambda phase: self.peaks[phase])

    @property
    def peak(self) -> float:
        return self.peaks[self.largest]

    @property
    def fits(self) -> bool:
        """Whether the device holds the largest phase and the reserve, and the cache holds the longest completion."""
        return self.longest_slots >= 1 and (self.memory is None or self.peak + self.reserve <= self.memory)


def estimate_bytes(shape: Shape, run: Run, reserve: float = 0.0) -> Estimate:
    """All phases of one device."""
    base = always(shape, run)
    free = None if run.memory is None else run.memory - reserve - sum(base.values())
    rolling = rollout(shape, run, free)
    phases = {
        "rollout": rolling,
        "scoring": scoring(shape, run),
        "update": update(shape, run),
        "optimizer": optimizer_step(shape, run),
    }
    longest = rolling["keys and values"] / (run.length * per_token(shape, run))
    with_base = {name: base | parts for name, parts in phases.items()}
    return Estimate(with_base, host_bytes(shape, run), longest, reserve, run.memory)


# States: the permanent parts, and gradients
#
#                 weights    master     AdamW's moments   gradients
#     one, DDP    w P        -          2 w T             w T
#     ZeRO-1      c P        4 T / n    8 T / n           c T
#     ZeRO-2      c P        4 T / n    8 T / n           c T / n
#     ZeRO-3      c P / n    4 T / n    8 T / n           c T / n
#     FSDP2       4 P / n    -          8 T / n           4 T / n


def always(shape: Shape, run: Run) -> Parts:
    """The parts of every phase. ZeRO-3 keeps its part of the gradients and the bucket from beginning to end."""
    parts = {
        "weights": weights(shape, run),
        "master weights": master(shape, run),
        "optimiser states": optimiser(shape, run),
        "reference model": reference(shape, run),
        "batch and record": record(run),
    }
    if run.world.stage == 3:
        parts |= {"gradients": gradients(shape, run), "buckets": buckets(shape, run)}
    return parts


def weights(shape: Shape, run: Run) -> float:
    if run.world.offload_parameters and run.world.stage == 3:
        return 0.0
    return (run.weight * shape.parameters + FLOAT * shape.adapter) / (run.world.gpus if run.world.sharded else 1)


def master(shape: Shape, run: Run) -> float:
    """ZeRO's float32 copy of the trained weights."""
    return 0.0 if not run.world.stage or run.world.offload_optimizer else FLOAT * shape.trained / run.world.gpus


def optimiser(shape: Shape, run: Run) -> float:
    if run.world.offload_optimizer and run.world.stage:
        return 0.0
    return run.state * shape.trained / (run.world.gpus if run.world.stage or run.world.fsdp else 1)


def reference(shape: Shape, run: Run) -> float:
    """A second model if beta > 0 and there is no adapter to switch off. It is whole under ZeRO-1 and ZeRO-2."""
    if not run.reference or shape.adapter:
        return 0.0
    return run.weight * shape.parameters / (run.world.gpus if run.world.sharded else 1)


def record(run: Run) -> float:
    """TRL's ids and masks, and for each completion position an action, two masks and three log-probabilities."""
    return run.rows * (16 * run.length + ((0 if run.hard else run.action) + 2 + 3 * FLOAT) * run.completion)


def gradients(shape: Shape, run: Run) -> float:
    if run.world.stage >= 2 and run.world.offload_optimizer:
        return 0.0
    spread = run.world.stage >= 2 or run.world.fsdp
    return _trained_weight(shape, run) * shape.trained / (run.world.gpus if spread else 1)


def _trained_weight(shape: Shape, run: Run) -> int:
    """Bytes of a trained weight, and of its gradient."""
    return run.compute if run.world.deepspeed else FLOAT if shape.adapter else run.weight


def gradient(parameters: float, shape: Shape, run: Run) -> float:
    """The gradient of a table or a layer, before it is added up or sent."""
    if shape.adapter:
        return 0.0
    return parameters * (run.weight if run.world.replicated else run.compute)


def buckets(shape: Shape, run: Run) -> float:
    """Buffers for sending gradients: DDP's copy of all of them, or ZeRO's bucket of 5e8 numbers for any model."""
    if run.world.backend == "ddp" and run.world.gpus > 1:
        return _trained_weight(shape, run) * shape.trained
    if run.world.deepspeed:
        return run.compute * (_BUCKET if run.world.stage else min(_BUCKET, shape.trained))
    return 0.0


def gathered(shape: Shape, run: Run) -> float:
    """
    Weights that are whole at once in forward and backward. ZeRO-3: up to 1e9 live parameters and the next 5e7. FSDP2: the
    tables for the whole pass, the current layer and the next, and one layer's gradients on their way out.
    """
    if not run.world.sharded:
        return 0.0
    if run.world.stage == 3:
        return run.compute * min(shape.parameters, _LIVE)
    return run.compute * (shape.parameters - shape.layers * shape.layer + 3 * shape.layer)


def host_bytes(shape: Shape, run: Run) -> float:
    """Bytes that offloading moves to the host, for each device: masters, moments and gradients; and weights."""
    world, total = run.world, 0.0
    if world.stage and world.offload_optimizer:
        total += (FLOAT + run.state + run.compute) * shape.trained / world.gpus
    if world.stage == 3 and world.offload_parameters:
        total += run.compute * shape.parameters / world.gpus
    return total


# Activations


def mask_bytes(run: Run) -> float:
    """The additive mask that each layer's attention makes from the boolean mask: c S^2 for each row."""
    return run.micro_batch * run.length**2 * run.compute if run.attention == "sdpa" else 0.0


def cast_weights(parameters: float, run: Run) -> float:
    """Under autocast the products keep the weights they were cast to."""
    return run.compute * parameters if run.autocast else 0.0


def layer_activations(shape: Shape, run: Run) -> float:
    """
    Bytes that one layer keeps for the backward, with the rows of a micro-batch padded to one length.

        norms       2 x (4 H, and w H if they are trained), their output c H, once for each product under autocast
        attention   c 4 A: queries, output, and keys and values repeated for the mask; 4 bytes for each head; the mask
        MLP         c 4 F: gate, silu(gate), up and their product
        adapters    4 r each, and a float32 copy of each input instead of the linear layers' inputs
    """
    H, F, c = shape.hidden, shape.intermediate, run.compute
    A, KV = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    trained_norm = 0 if shape.adapter else FLOAT if run.autocast else c
    inputs = 0 if shape.adapter else c * (H * (5 if run.autocast else 2) + F)
    token = 2 * (FLOAT + trained_norm) * H + inputs
    if shape.qk_norm:
        token += (FLOAT + trained_norm) * (A + KV)
    token += c * 2 * (A + (KV if run.attention == "flash" else A)) + 4 * shape.heads
    token += c * 3 * F
    token += sum(FLOAT * (shape.lora_r + width) for width in shape.adapted)
    scores = run.micro_batch * shape.heads * run.length**2 * (FLOAT + c) if run.attention == "eager" else 0.0
    return token * run.tokens + mask_bytes(run) + scores + cast_weights(shape.layer, run)


def activations(shape: Shape, run: Run) -> float:
    """Activations of all layers (with checkpointing only the input of each), the embeddings, and the last norm with its output."""
    residual = (FLOAT if run.autocast else run.compute) * shape.hidden
    each = run.tokens * residual if run.checkpointing else layer_activations(shape, run)
    return run.tokens * (2 * residual + 2 * FLOAT * shape.hidden) + shape.layers * each


def layer_backward(shape: Shape, run: Run) -> float:
    """Further bytes of one layer's backward: gradients through the MLP, and with checkpointing the layer again."""
    through = run.tokens * 3 * run.compute * shape.intermediate
    return through + (layer_activations(shape, run) if run.checkpointing else 0.0)


# Scores


def answer_tile(shape: Shape, run: Run, backward: bool) -> float:
    """TRL's tile of logits: one of 4096 x 32768 in c, and on the CPU the further tensors of torch's operations."""
    rows, columns = min(run.answers, _TRL_TILE[0]), min(shape.vocab, _TRL_TILE[1])
    tile = run.compute * rows * _TRL_TILE[1]
    # Forward: z, e, and two on the way. Backward: y, z, log p, p, gradient, target, a difference, and where it is.
    return tile if run.cuda else tile + rows * columns * (29 if backward else 16)


def thought_tile(shape: Shape, run: Run, backward: bool) -> float:
    """
    The thoughts' part: K rows for each position, or a tile. In the forward a tile is z, and exp(x) if thoughts mix the
    vocabulary. In the backward it is z, its gradient, and <g, E_v> and exp(x). On the CPU it is three float32 numbers, and the
    rows of W and E behind them.
    """
    n, H = run.thoughts, shape.hidden
    if n == 0 or run.candidates:
        return n * (FLOAT * H * 3 + 80 * run.candidates)
    columns = tile_columns(n, shape.vocab, "cuda" if run.cuda else "cpu")
    if run.cuda:
        numbers = FLOAT * (1 + run.mixes)
        if backward:  # a gradient in float32 overwrites z
            numbers = FLOAT + (run.compute if run.compute < FLOAT else 0) + run.mixes * (FLOAT + run.weight)
        rows_of_tables = cast_weights(columns * H, run)
    else:
        numbers, rows_of_tables = 3 * FLOAT, FLOAT * columns * H * (2 if run.compute == FLOAT else 3)
    return n * (columns * numbers + FLOAT * H * 3) + rows_of_tables


def head_backward(shape: Shape, run: Run) -> float:
    """
    The backward of the scores. The thoughts' backward comes first and leaves the gradient of a table (of two if they mix
    the vocabulary). The answers' backward sums another in float32 and rounds it.
    """
    of_thoughts = gradient(shape.table * (1 + run.mixes), shape, run) if run.thoughts else 0.0
    of_answers = 0.0
    if not shape.adapter:
        of_answers = FLOAT * shape.table + (run.compute < FLOAT) * gradient(shape.table, shape, run)
    return of_thoughts + max(thought_tile(shape, run, True), of_answers + answer_tile(shape, run, True))


def neighbours(shape: Shape, run: Run) -> Parts:
    """For thoughts that ask for them: the nearest tokens, k int32 numbers a token, and the tile of cosines to find them in."""
    if not run.neighbours:
        return {}
    rows = min(tile_rows(shape.vocab, "cuda" if run.cuda else "cpu"), shape.vocab)
    return {"neighbours of tokens": FLOAT * shape.vocab * (run.neighbours + rows)}


# Phases


def per_token(shape: Shape, run: Run) -> float:
    """Keys and values of one token: 2 L KV c. As wide as a copy's weights; float32 under autocast, as rotated keys are."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * (run.copy or (FLOAT if run.autocast else run.compute))


def rollout(shape: Shape, run: Run, free: float | None = None) -> Parts:
    """
    The whole weights, the cache, and a step's logits or a piece of the prompts, whichever is larger.

    The cache holds slots x (prompt + completion) tokens within its budget: `rollout_cache_gb`, or half of the rest of `free`
    after whole weights or a copy. The record of the slots has ids, masks, values and actions, once in the slots and once in
    the rollout that is returned.
    """
    world, slots, compute = run.world, run.slots or run.rows, run.copy or run.compute
    whole = run.compute * shape.parameters if world.sharded else 0.0
    # An adapter is float32, so a copy has all of it, and also the other weights that are wider than the copy.
    whole += run.copy * ((shape.parameters if run.weight > run.copy else 0) + shape.adapter)
    budget = run.cache if run.cache is not None else None if free is None else max(free - whole, 0) / 2
    keys = slots * run.length * per_token(shape, run)
    step = slots * shape.vocab * (FLOAT * 5 + (compute if compute < FLOAT else 0))
    prompts = min(_PREFILL, run.rows * run.prompt) * compute * (3 * shape.intermediate + 4 * shape.hidden)
    return {
        "gathered and cast weights": whole + (0.0 if run.copy else cast_weights(shape.parameters, run)),
        "keys and values": keys if budget is None else min(keys, budget),
        "record of the slots": run.completion * ((0 if run.hard else run.action) + 19) * (slots + run.rows),
        "logits and prompts": max(step, prompts),
        **neighbours(shape, run),
    }


def scoring(shape: Shape, run: Run) -> Parts:
    """The forward of a micro-batch without gradients, while the batch is being reordered."""
    needed = run.old_logps or run.reference
    layer = run.tokens * (run.compute * 3 * shape.intermediate + 4 * FLOAT * shape.hidden)
    return {
        "activations": (layer + mask_bytes(run) + cast_weights(shape.parameters, run)) * needed,
        # Thoughts and answers are scored one after the other.
        "logits": max(answer_tile(shape, run, False), thought_tile(shape, run, False)) * needed,
        "gathered layers": gathered(shape, run) * needed,
        "record in another order": record(run),
    }


def update(shape: Shape, run: Run) -> Parts:
    """
    The largest of five moments of a micro-batch, the last of an accumulation:

        the forward's scores, the backward of the scores, the last layer's, the first layer's, the embedding's
    """
    saved, sums = activations(shape, run), gradients(shape, run)
    before = sums if run.accumulates or run.world.stage == 3 else 0.0
    table, layer = gradient(shape.table, shape, run), gradient(shape.layer, shape, run)
    # Without accumulation, a device without shards has the head's gradient first and the embedding's last.
    spread = run.accumulates or run.world.stage >= 2 or run.world.fsdp
    head, embedding = 0.0 if spread else table, 0.0 if spread or shape.tied else table
    scores = max(answer_tile(shape, run, False), thought_tile(shape, run, False))
    cast = cast_weights(shape.parameters, run) if run.checkpointing else 0.0
    first = activations(replace(shape, layers=1), run) + layer_backward(shape, run)
    moments = (
        (before, saved + cast, scores),
        (before, saved, head_backward(shape, run)),
        (before + head + layer, saved + layer_backward(shape, run), 0.0),
        (max(sums - embedding, 0.0) + layer, first, 0.0),
        # The embeddings of candidates get a gradient, besides those of tokens.
        (sums + table * (2 if run.candidates and not run.hard else 1), run.tokens * FLOAT * shape.hidden, 0.0),
    )
    largest = max(moments, key=sum)
    return dict(zip(("gradients", "activations", "logits"), largest, strict=True)) | {
        "buckets": buckets(shape, run),
        "gathered layers": gathered(shape, run),
    }


def optimizer_step(shape: Shape, run: Run) -> Parts:
    """Gradients, ZeRO's float32 copy of a sub-group of them, and the lists of an optimiser that is not fused."""
    copies = 0.0
    if run.world.stage and not run.world.offload_optimizer:
        copies = FLOAT * min(shape.trained / run.world.gpus, _SUB_GROUP)
    elif run.foreach and not run.world.deepspeed:
        copies = gradients(shape, run)
    return {"gradients": gradients(shape, run), "copies of gradients": copies, "buckets": buckets(shape, run)}
