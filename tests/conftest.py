# SPDX-License-Identifier: Apache-2.0
"""Every test runs offline, on one thread, and finds the global generators seeded; hypothesis searches the same examples."""

import functools
import gc
import importlib.metadata
import logging
import os
import random


os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a model of 20k parameters only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported; see `trl_soft.kernels`

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.interpreter import fuse_fma


fuse_fma()
torch.set_num_threads(1)
# accelerate asks for the versions of packages whenever a trainer is made, and each time a file is parsed again.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
importlib.metadata.version = functools.cache(importlib.metadata.version)
# Helpers whose assertions are to say what they compared.
pytest.register_assert_rewrite("tests.distributed.compare")

# What is found must be found again: by whoever runs the suite, and on every commit. `make test-search` looks elsewhere.
settings.register_profile("repeatable", max_examples=100, derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", max_examples=5000, derandomize=False, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which not every environment of the tests has
def pytest_xdist_auto_num_workers(config) -> int:
    """`-n auto`: the cores that this process may use. Beyond eight, starting a worker takes longer than it saves."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def pytest_collection_finish():
    """
    Take what has been imported out of Python's garbage collection.

    `Trainer.train` calls `gc.collect`, which looks at every object that is alive. Half a million of them belong to modules and
    stay alive. To look at them took longer than the training of a tiny model.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # else nanobind reports the types of its modules as leaks when Python exits


class _Raising(logging.Handler):
    """A text that a grader cannot read fails the test, where a training run goes on."""

    def emit(self, record):
        if record.exc_info and record.exc_info[1] is not None:
            raise record.exc_info[1]


@pytest.fixture(autouse=True)
def readable(monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_soft.evaluate.grading.verdict"), "handlers", [_Raising()])


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def oracle(monkeypatch) -> str:
    """The naive oracle as an engine of `soft_generate`: its name."""
    from tests.naive_rollout import naive
    from trl_soft.rollout import ENGINES

    monkeypatch.setitem(ENGINES, "naive", naive)
    return "naive"
