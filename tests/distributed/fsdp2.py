# SPDX-License-Identifier: Apache-2.0
"""Rollouts, a loss and its gradient on a model that `fully_shard` has cut in two; writes what rank 0 found."""

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard

from tests import tiny
from trl_soft import ThinkingSettings, add_soft_tokens
from trl_soft.rollout import ENGINES, EngineOptions, Key, assemble
from trl_soft.rollout.gather import unsharded
from trl_soft.rollout.make_plan import make_plan, table_rms
from trl_soft.thoughts import Hard


def shard(net):
    add_soft_tokens(net)
    for layer in net.model.layers:
        fully_shard(layer)
    fully_shard(net)


def draw(net, rank: int, thought: str):
    """Rank 1 completes fewer and shorter: it has finished long before rank 0."""
    settings = ThinkingSettings(thought=thought, max_thinking_length=8)
    plan = make_plan(
        settings,
        tiny.tokenizer(),
        Hard(),
        vocab_size=26,
        max_completion_length=24,
        eos_token_ids=[],
        rms=table_rms(net),
    )
    prompts = [[4, 5, 6, 7]] * (6 if rank == 0 else 2)
    lengths = [24] * 6 if rank == 0 else [10] * 2
    options = EngineOptions(slots=3, lengths=lengths)
    with unsharded(net):
        key = Key(0, 0, torch.arange(len(prompts)) + 10 * rank)
        return assemble(ENGINES["slots"](net, prompts, plan, key, options), len(prompts), plan)


def loss_of(net, drawn) -> torch.Tensor:
    prompt = torch.tensor([[4, 5, 6, 7]]).expand(len(drawn.completion_ids), -1)
    ids = torch.cat([prompt, drawn.completion_ids], 1)
    logits = net(input_ids=ids, soft_tokens=drawn.record).logits[:, prompt.size(1) - 1 : -1]
    log_p = torch.log_softmax(logits, -1).gather(-1, drawn.completion_ids.unsqueeze(-1)).squeeze(-1)
    return -(log_p * drawn.completion_mask).sum()


def main():
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {"world_size": dist.get_world_size()}
    for thought in ("hard", "gumbel", "gaussian"):
        sharded, plain = tiny.model(), tiny.model()
        add_soft_tokens(plain)
        shard(sharded)
        reshards = [group.post_forward_mesh_info is None for m in sharded.modules() if isinstance(m, FSDPModule)
                    for group in m._get_fsdp_state()._fsdp_param_groups]  # fmt: skip
        ours, theirs = draw(sharded, rank, thought), draw(plain, rank, thought)
        same = torch.equal(ours.completion_ids, theirs.completion_ids)
        sharded_again = all(hasattr(p, "full_tensor") for p in sharded.parameters())
        restored = reshards == [
            group.post_forward_mesh_info is None for m in sharded.modules() if isinstance(m, FSDPModule)
            for group in m._get_fsdp_state()._fsdp_param_groups
        ]  # fmt: skip
        (loss_of(sharded, theirs) / 2).backward()
        (loss_of(plain, theirs) / 2).backward()
        difference = 0.0
        for a, b in zip(sharded.parameters(), plain.parameters(), strict=True):
            dist.all_reduce(b.grad)
            # FSDP2 averages over ranks.
            difference = max(difference, ((a.grad.full_tensor() * 2 - b.grad).norm() / b.grad.norm()).item())
        found[thought] = {
            "same": same, "sharded": sharded_again, "restored": restored, "gradient": difference,
            "shards": sum(isinstance(m, FSDPModule) for m in sharded.modules()),
        }  # fmt: skip
    if rank == 0:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
