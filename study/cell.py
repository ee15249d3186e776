# SPDX-License-Identifier: Apache-2.0
"""One cell of the study in one process: train, evaluate, write the result. `python -m study.run` starts it.

    python -m study.cell sum/gumbel/final-lr0.0003-seed0

Weights and samples stay in `outputs/study`. A run that was killed continues with what it has finished there: training as a whole,
and each chunk of the evaluation.
"""

import argparse
import fcntl
import gzip
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig

from trl_soft.evaluate.manifest import environment
from trl_soft.files import replace_text
from trl_soft.runs.replay import tolerance
from trl_soft.scripts import grpo, rloo

from .cells import DESIGN, Cell, Design, pending
from .curves import read_curve
from .inference import evaluate_run, rounded
from .measure import measure, thinking_settings
from .results import RESULTS, Results
from .tasks import ROOT


OUTPUTS = ROOT / "outputs/study"
TRAINERS = {"grpo": grpo.main, "rloo": rloo.main}
BUSY = 75  # the exit status if another process works on the cell (EX_TEMPFAIL)


def run(design: Design, cell: Cell, folder: Path) -> dict[str, Any]:
    """The result of a cell, which uses `folder` for what it keeps outside of the result."""
    recipe = design.settings(cell, folder / "model")
    result: dict[str, Any] = {
        "cell": vars(cell),
        "recipe": {name: value for name, value in recipe.items() if name != "output_dir"},
        "trainer": design.methods[cell.method].trainer,
        "environment": {**environment(1), "processor": processor(), "registered": registered(design)},
    }
    if cell.phase == "measure":
        result["scores_of_thoughts"] = rounded(measure(recipe, **design["measurement"]))
        return result
    spent = train(recipe, result["trainer"], folder)
    start, cpu = time.perf_counter(), cpu_seconds()
    scores, chosen = evaluate_run(design, cell, folder / "model", folder)
    spent |= {"evaluation": time.perf_counter() - start, "evaluation_cpu": cpu_seconds() - cpu}
    curve = rounded(read_curve(folder / "model/metrics.jsonl"), 4)
    result |= {"healthy_logp_difference": rounded(healthy_difference(recipe, folder / "model")), "chosen": chosen}
    return {**result, "seconds": rounded(spent, 4), "curve": curve, "scores": scores}


def train(recipe: dict[str, Any], trainer: str, folder: Path) -> dict[str, float]:
    """Train, unless that is done already. Returns the seconds that it took."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "trained.json"
    if done.exists():
        return json.loads(done.read_text("utf-8"))
    shutil.rmtree(folder / "model", ignore_errors=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    start, cpu = time.perf_counter(), cpu_seconds()
    TRAINERS[trainer](["--config", str(file)])
    spent = {"training": time.perf_counter() - start, "training_cpu": cpu_seconds() - cpu}
    replace_text(done, json.dumps(spent))
    return spent


def healthy_difference(recipe: dict[str, Any], model: Path) -> float:
    """The largest healthy mean of `thinking/logp_difference` of a run."""
    hidden_size = AutoConfig.from_pretrained(model).get_text_config().hidden_size
    return tolerance(thinking_settings(recipe), hidden_size, exact=recipe["dtype"] == "float32")


def cpu_seconds() -> float:
    """Processor time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def processor() -> str:
    """Name of the processor and the number of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def registered(design: Design) -> str | None:
    """The last commit that changed the questions or the design. `None` outside of a repository."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", "study/README.md", str(design.path.resolve())]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def lock(folder: Path):
    """A lock on the folder of a cell, for as long as the returned file lives. `None` if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / ".lock", "w")  # held until the process ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return file


def pack(folder: Path) -> None:
    """Compress the samples of a finished cell. After `gunzip`, `trl-soft inspect` reads them again."""
    for path in folder.glob("*/samples/*.jsonl"):
        with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        path.unlink()


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments that this program and `study.run` share."""
    parser.add_argument("--design", type=Path, default=DESIGN, help="the YAML file of the design")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="folder of weights and samples")
    return parser


def main() -> int:
    parser = arguments(argparse.ArgumentParser(description="Run one cell of the study."))
    parser.add_argument("cell", help="its name, such as sum/gumbel/final-lr0.0003-seed0")
    options = parser.parse_args()
    design, results = Design(options.design), Results(options.results)
    found = {cell.name: cell for cell in pending(design, results)}
    if options.cell not in found:
        parser.error(f"{options.cell} has a result, or waits for another cell, or is not in {options.design}.")
    folder = options.outputs.resolve() / options.cell
    held = lock(folder)
    if held is None:
        return BUSY
    torch.set_num_threads(1)
    results.write(options.cell, run(design, found[options.cell], folder))
    pack(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
