# SPDX-License-Identifier: Apache-2.0
"""How the tests launch several processes: the command, and an environment in which nothing waits for ever."""

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "tests" / "distributed"
RECIPES = ROOT / "recipes" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
_BUILD = """
from deepspeed.accelerator import get_accelerator
for name in ("ShareMemCommBuilder", "CPUAdamBuilder"):
    get_accelerator().create_op_builder(name).load()
"""


@functools.cache
def environment() -> dict[str, str]:
    """Of a launched world: on the CPU, one thread a process, with DeepSpeed's operators built."""
    extensions = Path(sys.prefix) / "test_operators"
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(extensions),
    }
    extensions.mkdir(exist_ok=True)
    # torch marks a build by a file, and waits for ever for one that a killed run has left. This lock ends with its process,
    # so whoever holds it knows that nobody builds, and may take such files away.
    with open(extensions / "tests.lock", "w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for left in extensions.glob("*/lock"):
            left.unlink()
        done = subprocess.run(
            [sys.executable, "-c", _BUILD], env=variables, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, (
            f"DeepSpeed's CPU operators do not build (is there a C++ compiler?):\n{done.stderr}"
        )
    return variables
