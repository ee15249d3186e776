# SPDX-License-Identifier: Apache-2.0
"""Run a training script as it is, and have each process note the world its trainer found itself in.

accelerate launch ... witness.py FOLDER examples/grpo_soft.py --config ...
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

from tests.distributed.world import world_of
from trl_soft import SoftGRPOTrainer


def main(folder: str, script: str, *arguments: str):
    train = SoftGRPOTrainer.train

    def witnessed(self, *args, **kwargs):
        result = train(self, *args, **kwargs)
        addresses = subprocess.run(["ip", "-brief", "-4", "address"], capture_output=True, text=True).stdout
        world = {**world_of(self), "local_world_size": int(os.environ["LOCAL_WORLD_SIZE"]), "addresses": addresses}
        Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(world))
        return result

    SoftGRPOTrainer.train = witnessed
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
