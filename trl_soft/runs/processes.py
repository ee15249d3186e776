# SPDX-License-Identifier: Apache-2.0
"""What the processes of a run decide together. Every process must make each of these calls that communicates."""

import os

import torch
from accelerate.utils import gather_object


def any_process(accelerator, flag: bool) -> bool:
    """Whether `flag` is true on any process."""
    count = torch.tensor(float(flag), device=accelerator.device)
    return accelerator.reduce(count, reduction="sum").item() > 0


def gather_sentences(sentence: str | None) -> list[str]:
    """The sentences of all processes, by rank. A process with nothing to say gives `None`."""
    return gather_object([] if sentence is None else [sentence])


def share_of_files(args) -> tuple[int, int]:
    """
    The share of a checkpoint's files that this process reads: part i of n. It does not communicate.

    With `save_on_each_node` each host has a checkpoint of its own, so the processes of one host share the work.
    """
    if args.save_on_each_node:
        return args.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return args.process_index, args.world_size
