# SPDX-License-Identifier: Apache-2.0
"""What is trained in each world, by name: every thought, and what distribution could get wrong.

A case is settings of `SoftGRPOConfig` and marks that `losses.py` reads: `trainer: rloo`, `lora`, `data` (`ragged`, `odd`),
`rare` (rewards), `evaluate`, `save`, `resume`, `record` and `replay` (of rollouts), and `only`, the worlds it is for.
"""

WORLDS = ("ddp", "zero2", "zero3", "zero3_offload", "fsdp2")
_ALL = ("ddp", "zero2", "zero3", "fsdp2")
# Offloading takes every optimizer for DeepSpeedCPUAdam. The epsilon keeps a gradient's last bit from deciding a step.
_ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-3}
_OFFLOAD = {**_ADAM, "only": ("zero3_offload",)}
# As an 8B model is trained: the frozen weights are bf16 themselves.
_BF16_LORA = {"bf16": True, "replay": "lora", "lora": True, "beta": 0.1, "gradient_checkpointing": True}
_BF16_LORA |= {"model_init_kwargs": {"dtype": "bfloat16"}}
# A large step would unlearn what makes the ranks ragged.
_RAGGED = {"data": "ragged", "learning_rate": 1e-2}
LOSS_TYPES = ("bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")

CASES: dict[str, dict] = {
    # Every stochastic thought.
    "gumbel": {"thought": "gumbel", "save": True, "record": True},
    "gumbel-concrete": {"gumbel_density": "concrete"},
    "gumbel-softgrpo": {"gumbel_density": "softgrpo"},
    "gaussian": {"thought": "gaussian", "record": True},
    "gaussian-hidden": {"thought": "gaussian", "noise_placement": "hidden"},
    "gaussian-logits": {"thought": "gaussian", "noise_placement": "logits", "thinking_top_k": 8},
    "gaussian-probabilities": {"thought": "gaussian", "noise_placement": "probabilities"},
    "dirichlet": {"thought": "dirichlet"},
    "mixture": {"thought": "mixture"},
    "multiplex": {"thought": "multiplex"},
    "multiplex-draw": {"thought": "multiplex", "multiplex_ratio": "draw"},
    "hard": {"thought": "hard"},
    # A reference model; two updates a rollout, the second off-policy.
    "beta-iterations": {"beta": 0.1, "num_iterations": 2, "max_steps": 4},
    "rloo": {"trainer": "rloo", "thought": "gaussian", "beta": 0.1},
    # A fresh group is on both ranks, and takes the place of a group on one of them.
    "refill": {"max_refill_rollouts": 2, "rare": True},
    "lora": {"lora": True, "beta": 0.1, "record": True},
    "lora-checkpointing": {"lora": True, "gradient_checkpointing": True, "thought": "gaussian"},
    "checkpointing": {"gradient_checkpointing": True, "gumbel_density": "concrete"},
    # Rank 1 has finished at its first token when rank 0 goes on.
    "ragged": {**_RAGGED, "beta": 0.1, "save": True},
    "ragged-gaussian": {**_RAGGED, "thought": "gaussian", "gradient_checkpointing": True},
    # Five prompts, two a step: an epoch leaves one over. Five to evaluate, two a step: the last step is short.
    "odd": {"data": "odd", "evaluate": True, "max_steps": 3},
    "accumulation": {"gradient_accumulation_steps": 4, "loss_type": "dapo", "only": ("ddp", "zero2", "fsdp2")},
    "adamw": {**_ADAM, "save": True},
    "adamw-gaussian": {"thought": "gaussian", **_OFFLOAD},
    "adamw-lora": {"lora": True, "beta": 0.1, **_OFFLOAD},
    "adamw-ragged": {"data": "ragged", "beta": 0.1, "gradient_checkpointing": True, **_OFFLOAD},
    # Stopped after two of four steps, and gone on with from the checkpoint.
    "resume": {"resume": 2, "max_steps": 4, **_ADAM, "only": ("zero2", "fsdp2")},
    # The rollouts of the float32 case, so that both update on the same tokens: one rounded logit draws another token.
    "bf16": {"bf16": True, "replay": "gumbel", "only": _ALL},
    "bf16-gaussian": {"bf16": True, "replay": "gaussian", "thought": "gaussian", "only": _ALL},
    "bf16-lora": {**_BF16_LORA, "only": _ALL},
    # One step, as an update's last bit can round a weight of the next copy otherwise, and another token is drawn.
    "rollout-copy": {"rollout_dtype": "bfloat16", "beta": 0.1, "max_steps": 1, "only": ("ddp", "zero2")},
    # A loss is computed before any wrapper sees it, so these run where reduction differs most.
    **{f"loss-{kind}": {"loss_type": kind, "max_steps": 1, "only": ("ddp", "zero3")} for kind in LOSS_TYPES},
}
# One prompt of the ragged data ends in a letter that makes the model end its sequence.
RAGGED = ["1+2=", "7-h", "3+44=", "88h"]


def cases_of(world: str) -> dict[str, dict]:
    """The cases of one world; one process runs all of them."""
    worlds = {name: case.get("only", WORLDS if name == "adamw" else _ALL) for name, case in CASES.items()}
    return {name: case for name, case in CASES.items() if world == "plain" or world in worlds[name]}
