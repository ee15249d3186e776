# SPDX-License-Identifier: Apache-2.0
"""Bytes that one device holds in each phase of training, as arithmetic: no model, no tensor, no device.

    always      weights, master copies, optimiser states, reference, the batch and its record
    rollout     the whole weights where they are sharded, keys and values, what the slots remember, a step's logits
    scoring     a forward without gradients (old and reference log-probabilities)
    update      gradients, activations, the logits' tiles, gathered layers
    optimizer   gradients, and copies of them

Letters: N tokens of a micro-batch, S of one of its rows, V vocabulary, H hidden, F width of the MLP, A width of all query
heads, KV of all key heads, L layers, K candidates, w bytes of a weight, c bytes of what it computes in. Every figure is
in bytes; GB are 10**9 of them. The coefficients are those of transformers' gated decoders (Llama, Qwen2, Qwen3, Mistral)
read off their saved tensors, and hold to 15 % against `benchmarks/memory.py`.
"""

from dataclasses import dataclass, replace

from ..vocabulary.tiled_softmax import tile_columns


FLOAT = 4
_TRL_TILE = (4096, 32768)  # positions and columns of a tile of TRL's fused head
_PREFILL = 4096  # `EngineOptions.prefill_tokens`
_VARIANCE_ROWS = 32  # `trl_soft.score_variance`
# Parameters, DeepSpeed's defaults: `stage3_max_live_parameters`, `stage3_prefetch_bucket_size`, `reduce_bucket_size`,
# `sub_group_size`.
_LIVE, _PREFETCH, _BUCKET, _SUB_GROUP = 10**9, 5 * 10**7, 5 * 10**8, 10**9

BACKENDS = ("single", "ddp", "zero0", "zero1", "zero2", "zero3", "fsdp2")


@dataclass(frozen=True)
class Shape:
    """
    A decoder's sizes.

    Args:
        parameters (`int`): of the model, tied tables counted once, adapters left out.
        adapter (`int`): trainable parameters of LoRA; 0 is full fine-tuning.
        adapted (`tuple` of `(str, int)`): suffix and input width of each adapted module of a layer (`q_proj`, H).
        lora_r (`int`), lora_dropout (`float`).
        qk_norm (`bool`): queries and keys are normalised (Qwen3).
    """

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    parameters: int
    adapter: int = 0
    adapted: tuple[tuple[str, int], ...] = ()
    lora_r: int = 0
    lora_dropout: float = 0.0
    qk_norm: bool = False

    @property
    def table(self) -> int:
        """Parameters of one V x H table."""
        return self.vocab * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return (self.parameters - self.table * (1 if self.tied else 2)) // self.layers

    @property
    def trained(self) -> int:
        return self.adapter or self.parameters


@dataclass(frozen=True)
class Run:
    """
    Settings that cost memory, each of one device but for `gpus`.

    Args:
        rows (`int`): completions of a rollout. micro_batch (`int`): rows of a forward.
        prompt, completion (`int`): tokens at most; thinking (`int`): of the completion, at most.
        weight, compute (`int`): bytes of a loaded weight, and of what a matrix product is made in.
        copy (`int`): bytes of a weight in the copy that a rollout runs on (`rollout_dtype`); 0: on the training weights.
        action (`int`): bytes of a thought's action at one position.
        candidates (`int`): K; 0 where the thought is scored over the whole vocabulary.
        mixes (`bool`): thoughts mix the whole vocabulary. hard (`bool`): thoughts are tokens.
        accumulates (`bool`): gradients of a micro-batch before are there.
        moments (`float`): bytes of optimiser state for each byte of the trained weight; foreach (`bool`): the optimiser
            makes lists of temporaries.
        old_logps, reference (`bool`): whether old log-probabilities and a reference model are needed.
        slots (`int`), cache (`float`, bytes, *optional*): of a rollout.
        masked (`bool`): rows of a micro-batch have unequal lengths, so that attention takes a mask.
        attention (`str`): sdpa, eager or flash.
        cuda (`bool`): tiles are TRL's Triton kernels. memory (`float`, *optional*): bytes of the device.
    """

    rows: int
    micro_batch: int
    prompt: int
    completion: int
    thinking: int
    weight: int = FLOAT
    compute: int = FLOAT
    copy: int = 0
    action: int = 0
    candidates: int = 0
    mixes: bool = False
    hard: bool = False
    feeds_gradient: bool = True
    accumulates: bool = False
    checkpointing: bool = False
    moments: float = 2.0
    foreach: bool = False
    old_logps: bool = False
    reference: bool = False
    slots: int = 0
    cache: float | None = None
    masked: bool = True
    attention: str = "sdpa"
    backend: str = "single"
    gpus: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    cuda: bool = True
    memory: float | None = None

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.length

    @property
    def length(self) -> int:
        return self.prompt + self.completion

    @property
    def deepspeed(self) -> bool:
        return self.backend.startswith("zero")

    @property
    def stage(self) -> int:
        """DeepSpeed's ZeRO stage, 0 without it."""
        return int(self.backend[-1]) if self.deepspeed else 0

    @property
    def shards(self) -> int:
        """Over how many devices optimiser states are spread."""
        return self.gpus if self.stage or self.backend == "fsdp2" else 1

    @property
    def sharded(self) -> bool:
        """Whether a device holds a part of the weights alone."""
        return self.backend in ("zero3", "fsdp2") and self.gpus > 1

    @property
    def autocast(self) -> bool:
        """Whether float32 weights are cast at each product; DeepSpeed and FSDP2 cast them once."""
        return self.compute < self.weight and not self.deepspeed and self.backend != "fsdp2"


Parts = dict[str, float]


# What is always there


def weights(shape: Shape, run: Run) -> float:
    """w P; w P / n where sharded. DeepSpeed holds them in c, FSDP2 what it trains in float32."""
    if run.backend == "fsdp2":
        frozen = shape.parameters if shape.adapter else 0
        return (run.weight * frozen + FLOAT * shape.trained) / run.gpus
    if run.offload_parameters and run.stage == 3:
        return 0.0
    w = run.compute if run.deepspeed else run.weight
    return w * (shape.parameters + shape.adapter) / (run.gpus if run.sharded else 1)


def master(shape: Shape, run: Run) -> float:
    """ZeRO's float32 copy of what is trained: 4 T / n."""
    return 0.0 if not run.stage or run.offload_optimizer else FLOAT * shape.trained / run.shards


def optimiser(shape: Shape, run: Run) -> float:
    """AdamW: two moments as precise as the weight that is trained, 8 T / n under ZeRO and FSDP2."""
    if run.offload_optimizer and run.stage:
        return 0.0
    if run.stage or run.backend == "fsdp2":
        return run.moments * FLOAT * shape.trained / run.shards
    if run.deepspeed:
        return run.moments * run.compute * shape.trained
    return run.moments * trained_bytes(shape, run)


def trained_bytes(shape: Shape, run: Run) -> float:
    """What is trained, in its own precision; PEFT keeps adapters of half-precision weights in float32."""
    return shape.trained * (FLOAT if shape.adapter else run.weight)


def reference(shape: Shape, run: Run) -> float:
    """A second model where beta > 0 and there is no adapter to switch off: sharded as the first, whole under ZeRO-1 and 2."""
    if not run.reference or shape.adapter:
        return 0.0
    w = run.compute if run.deepspeed else run.weight
    return w * shape.parameters / (run.gpus if run.sharded else 1)


def record(run: Run) -> float:
    """A batch's `soft_*` entries: action, two masks and log-probabilities, for each of rows x completion positions."""
    return run.rows * run.completion * ((0 if run.hard else run.action) + 1 + 1 + 4)


def batch(run: Run) -> float:
    """TRL's own entries: ids and masks in int64, old and reference log-probabilities."""
    scores = 4 * (run.old_logps + run.reference)
    return run.rows * (16 * run.length + (scores * run.completion))


# Gradients


def gradients(shape: Shape, run: Run) -> float:
    """All of them: w T; c T / n under ZeRO-2 and 3; 4 T / n under FSDP2."""
    if run.stage >= 2:
        return 0.0 if run.offload_optimizer else run.compute * shape.trained / run.gpus
    if run.deepspeed:
        return run.compute * shape.trained
    if run.backend == "fsdp2":
        return FLOAT * shape.trained / run.gpus
    return trained_bytes(shape, run)


def gradient(parameters: float, shape: Shape, run: Run) -> float:
    """Of some parameters, before they are added up or sent away."""
    if shape.adapter:
        return 0.0
    return parameters * (run.compute if run.deepspeed or run.backend == "fsdp2" else run.weight)


def buckets(shape: Shape, run: Run) -> float:
    """What gradients travel in: DDP's copy of all of them, ZeRO's bucket of 5e8 numbers whatever the model."""
    if run.backend == "ddp" and run.gpus > 1:
        return trained_bytes(shape, run)
    if run.deepspeed:
        return run.compute * (_BUCKET if run.stage else min(_BUCKET, shape.trained))
    return 0.0


def gathered(shape: Shape, run: Run) -> float:
    """
    Weights that are whole at once in forward and backward. ZeRO-3: up to 1e9 live parameters and the next 5e7. FSDP2: the
    tables for the whole pass, the layer at work and the next, and a layer's gradients on their way out.
    """
    if not run.sharded:
        return 0.0
    if run.stage == 3:
        return run.compute * min(shape.parameters, _LIVE + _PREFETCH)
    return run.compute * (shape.parameters - shape.layers * shape.layer + 3 * shape.layer)


# Activations


def linear_inputs(shape: Shape, run: Run, names: tuple[str, ...]) -> bool:
    """Whether the input of some linear layers is kept as it is; an adapter may keep a cast or dropped copy of its own."""
    if not shape.adapter:
        return True
    return run.compute == FLOAT and not shape.lora_dropout and any(name in names for name, _ in shape.adapted)


def mask_bytes(run: Run) -> float:
    """The additive mask that each layer's attention makes of the boolean one: c S^2 a row."""
    if not run.masked or run.attention != "sdpa":
        return 0.0
    return run.micro_batch * run.length**2 * run.compute


def layer_activations(shape: Shape, run: Run) -> float:
    """
    What one layer keeps for the backward.

        norms       2 x (4 H, and w H where it is trained), their output c H; once for each product under autocast
        attention   c (A + A), keys and values c 2 KV, or c 2 A repeated for a mask; 4 bytes a head; the mask
        MLP         c 4 F: gate, silu(gate), up and their product
        adapters    4 r each, and 4 bytes of each input that dropout or a cast copies, and dropout's mask
    """
    H, F, c = shape.hidden, shape.intermediate, run.compute
    full = not shape.adapter
    A, KV = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    of_norm = FLOAT if run.autocast else c
    token = 2 * (FLOAT * H + full * of_norm * H)
    for names, products in ((("q_proj", "k_proj", "v_proj"), 3), (("gate_proj", "up_proj"), 2)):
        if linear_inputs(shape, run, names):
            token += c * H * (products if run.autocast and full else 1)
    if shape.qk_norm:
        token += (A + KV) * (FLOAT + full * of_norm)
    repeated = (run.masked and run.attention == "sdpa") or run.attention == "eager"
    token += c * (2 * A + 2 * (A if repeated else KV)) + 4 * shape.heads
    token += c * F * (3 + linear_inputs(shape, run, ("down_proj",)))
    for _, width in shape.adapted:
        copied = c < FLOAT or shape.lora_dropout > 0
        token += FLOAT * (shape.lora_r + copied * width) + (shape.lora_dropout > 0) * width
    scores = run.micro_batch * shape.heads * run.length**2 * (FLOAT + c) if run.attention == "eager" else 0.0
    return token * run.tokens + mask_bytes(run) + scores + cast_weights(shape.layer, shape, run)


def cast_weights(parameters: float, shape: Shape, run: Run) -> float:
    """Under autocast the products keep the weights they were cast to."""
    return run.compute * parameters if run.autocast else 0.0


def activations(shape: Shape, run: Run) -> float:
    """Of all layers; with checkpointing the input of each alone, and one layer at a time besides."""
    residual = (FLOAT if run.autocast else run.compute) * shape.hidden
    # Embeddings and mixtures, the last norm, and its output at answers and at thoughts.
    rest = run.tokens * (2 * residual + 2 * FLOAT * shape.hidden) + run.tokens * shape.head_dim * 2 * FLOAT
    shared = run.micro_batch * run.length**2 if run.masked and run.attention != "flash" else 0.0  # the boolean mask
    if run.checkpointing:
        return rest + shared + shape.layers * run.tokens * residual
    return rest + shared + shape.layers * layer_activations(shape, run)


def layer_backward(shape: Shape, run: Run) -> float:
    """What one layer's backward holds besides: gradients through the MLP, and with checkpointing the layer again."""
    passing = run.tokens * (3 * run.compute * shape.intermediate + run.compute * shape.hidden)
    return passing + (layer_activations(shape, run) if run.checkpointing else 0.0)


# Scoring


def answers(run: Run) -> int:
    """Answer positions of a micro-batch."""
    return run.micro_batch * (run.completion if run.hard else run.completion - run.thinking)


def thoughts(run: Run) -> int:
    return 0 if run.hard else run.micro_batch * run.thinking


def answer_tile(shape: Shape, run: Run, backward: bool) -> float:
    """TRL's tile of logits: one of 4096 x 32768 in c, and on the CPU what torch's operations make of it besides."""
    n, columns = min(answers(run), _TRL_TILE[0]), min(shape.vocab, _TRL_TILE[1])
    tile = run.compute * n * _TRL_TILE[1]
    if run.cuda:
        return tile
    # Forward: z, e, and two on the way. Backward: y, z, log p, p, gradient, target, a difference, and where it is.
    return tile + n * columns * (29 if backward else 16)


def thought_tile(shape: Shape, run: Run, backward: bool) -> float:
    """Our own: K rows a position, or a tile of logits and, on the CPU, the rows of W and E that made it in float32."""
    n, H = thoughts(run), shape.hidden
    if n == 0:
        return 0.0
    if run.candidates:
        return n * (FLOAT * H * 3 + 80 * run.candidates)
    columns = tile_columns(n, shape.vocab, "cuda" if run.cuda else "cpu")
    of_rows = n * FLOAT * H * 3
    if not run.cuda:
        rows = FLOAT * columns * H * (2 + (run.compute < FLOAT))
        return FLOAT * n * columns * 3 + rows + of_rows
    # Forward: z, and exp(x) in two parts for a mixture. Backward: z, its gradient, <g, E_v> and exp(x) for a mixture.
    if not backward:
        each = FLOAT + (2 * run.weight if run.mixes and run.weight < FLOAT else 0)
    else:
        low = run.compute if run.compute < FLOAT else 0
        each = FLOAT + low + run.mixes * (FLOAT + (0 if shape.adapter else run.weight))
    cast = run.compute * columns * H if run.autocast else 0
    return n * columns * each + cast + of_rows


def scoring_forward(shape: Shape, run: Run) -> float:
    """Thoughts and answers are scored one after the other."""
    return max(answer_tile(shape, run, False), thought_tile(shape, run, False))


def variance(shape: Shape, run: Run) -> float:
    """`score_variance`: a sample of positions over the vocabulary, with a gradient."""
    return min(_VARIANCE_ROWS, run.tokens) * shape.vocab * FLOAT * 6


def head_backward(shape: Shape, run: Run) -> float:
    """
    The backward of the scores. The thoughts' comes first and leaves the gradient of a table (two where they mix the
    vocabulary and the tables are not one), the answers' sums another in float32 and rounds it.
    """
    first = 0.0
    if thoughts(run):
        first = gradient(shape.table * (1 + run.mixes), shape, run)
    float_sum = (
        0.0 if shape.adapter else FLOAT * shape.table + (run.compute < FLOAT) * gradient(shape.table, shape, run)
    )
    return first + max(thought_tile(shape, run, True), float_sum + answer_tile(shape, run, True))


# A rollout


def per_token(shape: Shape, run: Run) -> float:
    """Keys and values of one token: 2 L KV c; as wide as a copy's weights, or in float32 under autocast, as rotated keys come."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * (run.copy or (FLOAT if run.autocast else run.compute))


def whole_weights(shape: Shape, run: Run) -> float:
    """Gathered for the length of a rollout under ZeRO-3 and FSDP2: c P."""
    return run.compute * (shape.parameters + shape.adapter) if run.sharded else 0.0


def copied_weights(shape: Shape, run: Run) -> float:
    """What a rollout's copy takes: of each weight that is wider than it, adapters among them."""
    wide = (shape.parameters if run.weight > run.copy else 0) + shape.adapter
    return run.copy * wide


def cache(shape: Shape, run: Run, free: float | None) -> float:
    """Slots x (prompt + completion) tokens, as far as the budget goes: `rollout_cache_gb`, or half of what is free."""
    wanted = (run.slots or run.rows) * run.length * per_token(shape, run)
    budget = run.cache if run.cache is not None else None if free is None else max(free, 0) / 2
    return wanted if budget is None else min(wanted, budget)


def slots_memory(run: Run) -> float:
    """What slots remember: ids, masks, values and action, once there and once as the rollout that is handed on."""
    each = (0 if run.hard else run.action) + 8 + 3 + 8
    return run.completion * each * ((run.slots or run.rows) + run.rows)


def decode(shape: Shape, run: Run) -> float:
    """One step: logits of all slots in float32, and what sampling makes of them."""
    slots = run.slots or run.rows
    compute = run.copy or run.compute
    logits = slots * shape.vocab * (FLOAT * 5 + (compute if compute < FLOAT else 0))
    table = FLOAT * shape.table if run.mixes and (run.copy or run.weight) < FLOAT else 0.0
    return logits + table


def prefill(shape: Shape, run: Run) -> float:
    """A piece of the prompts: its MLP, its queries, keys and values, and a mask."""
    tokens = min(_PREFILL, run.rows * run.prompt)
    return tokens * (run.copy or run.compute) * (3 * shape.intermediate + 4 * shape.hidden)


# Phases


@dataclass
class Estimate:
    """
    Bytes of one device.

    Attributes:
        phases (`dict`): of each phase, its parts by name; what is always there is among them.
        host (`float`): bytes in the host's memory, where something is offloaded.
        longest_slots (`float`): how many completions of full length the cache holds at once; below 1 a rollout is refused.
        reserve (`float`): for the CUDA context and communication, in no phase.
        memory (`float`, *optional*): of the device.
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
        """Whether the largest phase and the reserve are within the device's memory, and the longest completion is."""
        return self.longest_slots >= 1 and (self.memory is None or self.peak + self.reserve <= self.memory)


def always(shape: Shape, run: Run) -> Parts:
    """Of every phase. ZeRO-3 keeps room for its part of the gradients, and the bucket, from beginning to end."""
    parts = {
        "weights": weights(shape, run),
        "master weights": master(shape, run),
        "optimiser states": optimiser(shape, run),
        "reference model": reference(shape, run),
        "batch and record": batch(run) + record(run),
    }
    if run.stage == 3:
        parts |= {"gradients": gradients(shape, run), "buckets": buckets(shape, run)}
    return parts


def update(shape: Shape, run: Run) -> Parts:
    """
    The largest of five moments of a micro-batch, the last of an accumulation:

        the variance of scores, the backward of the scores, the last layer's, the first layer's, the embedding's
    """
    kept, all_gradients = activations(shape, run), gradients(shape, run)
    before = all_gradients if run.accumulates or run.stage == 3 else 0.0
    spread = run.stage >= 2 or run.backend == "fsdp2"
    table, layer = gradient(shape.table, shape, run), gradient(shape.layer, shape, run)
    head = 0.0 if run.accumulates or spread else table
    first = activations(replace(shape, layers=1), run) + layer_backward(shape, run)
    untied = 0.0 if shape.tied or run.accumulates or spread else table
    forward = max(variance(shape, run), scoring_forward(shape, run))
    cast = cast_weights(shape.parameters, shape, run) if run.checkpointing else 0.0
    moments = [
        (before, kept + cast, forward),
        (before, kept, head_backward(shape, run)),
        (before + head + layer, kept + layer_backward(shape, run), 0.0),
        (max(all_gradients - untied, 0.0) + layer, first, 0.0),
        (
            all_gradients + table * (1 + (run.feeds_gradient and not run.hard)),
            run.tokens * FLOAT * shape.hidden,
            0.0,
        ),
    ]
    found = max(moments, key=sum)
    return dict(zip(("gradients", "activations", "logits"), found, strict=True)) | {
        "buckets": buckets(shape, run),
        "gathered layers": gathered(shape, run),
    }


def scoring(shape: Shape, run: Run) -> Parts:
    """A micro-batch forward without gradients, over a batch that is on its way into another order."""
    passing = run.tokens * (run.compute * 3 * shape.intermediate + 4 * FLOAT * shape.hidden)
    masks = mask_bytes(run) * (1 + 1 / run.compute)
    needed = run.old_logps or run.reference
    return {
        "activations": (passing + masks + cast_weights(shape.parameters, shape, run)) * needed,
        "logits": scoring_forward(shape, run) * needed,
        "gathered layers": gathered(shape, run) * needed,
        "record in another order": batch(run) + record(run),
    }


def optimizer_step(shape: Shape, run: Run) -> Parts:
    """Gradients, ZeRO's float32 copy of a sub-group of them, and the lists of an optimiser that is not fused."""
    copy = FLOAT * min(shape.trained / run.shards, _SUB_GROUP) if run.stage and not run.offload_optimizer else 0.0
    lists = trained_bytes(shape, run) if run.foreach and not run.deepspeed else 0.0
    return {"gradients": gradients(shape, run), "copies of gradients": copy + lists, "buckets": buckets(shape, run)}


def host_bytes(shape: Shape, run: Run) -> float:
    """What offloading moves to the host, for each device."""
    bytes_ = 0.0
    if run.stage and run.offload_optimizer:
        bytes_ += (FLOAT + run.moments * FLOAT + run.compute) * shape.trained / run.shards
    if run.stage == 3 and run.offload_parameters:
        bytes_ += run.compute * shape.parameters / run.gpus
    return bytes_


def estimate_bytes(shape: Shape, run: Run, reserve: float = 0.0) -> Estimate:
    """All phases of one device."""
    base = always(shape, run)
    held = sum(base.values())
    whole = whole_weights(shape, run)
    free = None if run.memory is None else run.memory - reserve - held - whole
    # Autocast keeps what it cast for the length of a forward, and a copy is there before the cache is measured out.
    copied = copied_weights(shape, run)
    cast = 0.0 if run.copy else cast_weights(shape.parameters, shape, run)
    keys = cache(shape, run, None if free is None else free - copied)
    rollout = {
        "gathered and cast weights": whole + cast + copied,
        "keys and values": keys,
        "record of the slots": slots_memory(run),
        "logits and prompts": max(decode(shape, run), prefill(shape, run)),
    }
    phases = {"rollout": rollout, "scoring": scoring(shape, run)}
    phases |= {"update": update(shape, run), "optimizer": optimizer_step(shape, run)}
    longest = keys / (run.length * per_token(shape, run))
    return Estimate(
        {name: base | parts for name, parts in phases.items()}, host_bytes(shape, run), longest, reserve, run.memory
    )
