# SPDX-License-Identifier: Apache-2.0
"""The folder that `tests.real.prepare` filled, models by precision, and the figures that the run ends with."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.real.prepare import QWEN, SMOLLM2


FOLDER = Path(os.environ.get("TRL_SOFT_REAL", ""))
if "TRL_SOFT_REAL" not in os.environ:  # minutes, and not what `make test` waits for
    collect_ignore_glob = ["test_*.py"]
else:
    # On a machine that is busy with other work fewer are faster.
    torch.set_num_threads(int(os.environ.get("TRL_SOFT_THREADS", len(os.sched_getaffinity(0)))))

_FIGURES: list[tuple] = []
DATA = Path(__file__).parent / "data"


def _found(name: str) -> Path:
    if not (FOLDER / name).is_dir():
        missing = FOLDER / f"{name}.missing"
        pytest.skip(missing.read_text() if missing.is_file() else f"{FOLDER / name} is not there: `make test-real`.")
    return FOLDER / name


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct."""
    return _found(SMOLLM2)


@pytest.fixture(scope="session")
def qwen_tokenizer():
    return AutoTokenizer.from_pretrained(_found(QWEN))


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def smollm2_in(smollm2):
    """SmolLM2 in a precision, loaded once; tests leave it as it was."""
    loaded: dict = {}

    def load(dtype: str):
        if dtype not in loaded:
            loaded[dtype] = AutoModelForCausalLM.from_pretrained(smollm2, dtype=dtype).eval()
        return loaded[dtype]

    return load


@pytest.fixture(scope="session")
def figure():
    """Keep a row for the table that the run ends with."""
    return lambda *row: _FIGURES.append(row)


def pytest_terminal_summary(terminalreporter):
    if not _FIGURES:
        return
    terminalreporter.section("mean |drawn - re-scored| in nats")
    row = "{:28} {:9} {:>9} {:>10} {:>10} {:>10}"
    terminalreporter.write_line(row.format("thought", "precision", "thoughts", "measured", "hard fed", "limit"))
    for thought, dtype, count, mean, shadow, limit in _FIGURES:
        numbers = (f"{value:.3g}" for value in (mean, shadow, limit))
        terminalreporter.write_line(row.format(thought, dtype, count, *numbers))
