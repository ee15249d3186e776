# SPDX-License-Identifier: Apache-2.0
"""Two processes against one, in every kind of world: the short form of `tests/distributed`.

One case has noise on both ranks, a reference model and two updates a rollout. In the two ragged ones a rank ends at its first
token, so that its noise is seen by nobody: they show that ranks do not wait for each other, with candidates and with a mixture
of the whole vocabulary. In the fourth, groups move from one rank to another. What a world wraps the model in is what `accelerate launch` would tell it by its recipe. The processes are
forked (`tests/forked.py`), since an interpreter takes longer to start than the cases to run.
"""

import pytest
import torch

from tests import forked
from tests.distributed import losses
from tests.distributed.compare import check_case, check_saved
from tests.distributed.launch import told
from tests.distributed.models import save_models


CASES = ("beta-iterations", "ragged", "ragged-gaussian", "refill")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """`worlds(name)`: the folder and the figures of the cases in a world of two processes, or in `plain`, of one."""
    folder = tmp_path_factory.mktemp("worlds")
    save_models(folder)

    def figures(name: str):
        processes = 1 if name == "plain" else 2
        variables = told("single" if name == "plain" else name, processes) | forked.operators()
        options = {"processes": processes, "folder": folder / f"{name}-logs", "environment": variables}
        forked.run(losses.main, name, str(folder), *CASES, **options)
        return folder, torch.load(folder / f"{name}.pt", weights_only=False)

    return figures


@pytest.fixture(scope="module")
def plain(worlds):
    return worlds("plain")[1]


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
def test_two_processes_equal_one(worlds, plain, name):
    folder, found = worlds(name)
    for case in CASES:
        check_case(name, case, plain[case], found[case])
    check_saved(folder / f"{name}-ragged", plain["ragged"]["weights"], "gumbel")
