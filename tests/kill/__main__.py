# SPDX-License-Identifier: Apache-2.0
"""Twenty kills in a row in each world, with each thought and with refill; prints the figures as one JSON object last.

python -m tests.kill [--kills 20] [--worlds plain ddp zero3] [--seed 0]
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.kill.chain import chain, prepare
from tests.kill.world import WORLDS


# Longer than the tests' completions, so that rollouts and updates take their share of the kills beside the saves.
LENGTHS = {"max_steps": 40, "max_completion_length": 96, "max_thinking_length": 64}
SETTINGS = [{"thought": thought, **LENGTHS} for thought in ("gumbel", "gaussian")]
SETTINGS.append({"thought": "gumbel", "max_refill_rollouts": 2, **LENGTHS})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results = []
    for world in arguments.worlds:
        for number, settings in enumerate(SETTINGS):
            with tempfile.TemporaryDirectory() as name:
                prepare(Path(name))
                results.append(chain(Path(name), world, settings, arguments.kills, arguments.seed + number))
            print(json.dumps(results[-1]), flush=True)
    print(json.dumps({"runs": [{k: v for k, v in r.items() if k != "moments"} for r in results]}))
    return int(any(result["largest_difference"] > 0 for result in results))


if __name__ == "__main__":
    sys.exit(main())
