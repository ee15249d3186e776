# SPDX-License-Identifier: Apache-2.0
"""Every test runs offline, on one thread, and finds the global RNG seeded."""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a model of 20k parameters only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
