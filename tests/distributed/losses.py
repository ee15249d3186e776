# SPDX-License-Identifier: Apache-2.0
"""One soft step of every loss type, in whatever world it is launched; the figures go to a JSON file.

    python losses.py OUT               one process, two micro-batches of four
    torchrun --nproc_per_node 2 ...    two processes of four
    accelerate launch ...              the same under ZeRO-3

TRL shuffles each process's rows by the global RNG; the shuffle is left out here, so that micro-batch i of one process
holds the rows of rank i and losses that average over a local batch can be compared.
"""

import json
import sys

import torch
import trl.trainer.grpo_trainer
from accelerate.utils import DistributedType

from tests import tiny


trl.trainer.grpo_trainer.shuffle_sequence_dict = lambda batch: batch

CASES = [{"loss_type": kind} for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")]
CASES += [{"thought": "gaussian"}, {"gumbel_density": "concrete"}, {"gumbel_density": "softgrpo"}]
CASES += [{"thought": "dirichlet"}, {"thought": "mixture"}, {"thought": "multiplex"}]
CASES += [{"thought": "gaussian", "noise_placement": "hidden"}, {"thought": "gaussian", "noise_placement": "logits"}]
CASES[-1] |= {"thinking_top_k": 8}
CASES += [{"thought": "hard"}, {"beta": 0.1, "num_iterations": 2, "max_steps": 2, "thought": "gumbel"}]


def step(case: dict, folder: str, processes: int) -> dict:
    """Train for a step (two with `num_iterations`) and say what came of it."""
    world = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2 // processes, "optim": "sgd"}
    settings = {"max_steps": 1, "learning_rate": 0.1, "loss_type": "grpo", **world, **case}
    # Loading by name lets ZeRO-3 shard the weights as they are read, as it does for a model too large for one process.
    trainer = tiny.trainer(folder, net=folder, **settings)
    trainer.train()
    log = trainer.state.log_history
    with torch.no_grad():
        weights = {}
        for name, parameter in trainer.model.named_parameters():
            if hasattr(parameter, "ds_id"):
                import deepspeed

                with deepspeed.zero.GatheredParameters([parameter]):
                    weights[name] = parameter.detach().clone().flatten().tolist()
            else:
                weights[name] = parameter.detach().flatten().tolist()
    keys = ("loss", "grad_norm", "reward", "entropy", "thinking/logp_difference/max", "thinking/mean_length", "kl")
    return {
        "case": case,
        "world_size": trainer.accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "zero_stage": 3 if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED else 0,
        "sharded": trainer.model.get_input_embeddings().weight.numel() == 0,
        "log": [{key: row[key] for key in keys if key in row} for row in log if "loss" in row],
        "weights": weights,
    }


def main(out: str, folder: str):
    import os

    processes = int(os.environ.get("WORLD_SIZE", 1))
    results = [step(case, folder, processes) for case in CASES]
    if int(os.environ.get("RANK", 0)) == 0:
        with open(out, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
