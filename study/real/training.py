# SPDX-License-Identifier: Apache-2.0
"""Train one arm of part B within a number of minutes, and evaluate it before and after: `python -m study.real --train ARM`.

Training is a process of its own, by the scripts of the package. Near the end of its time it gets SIGTERM: it then writes a checkpoint at the
end of its update. The next call continues from there, as if nothing had stopped it. The weights that a call leaves are evaluated in
the time that is kept for it, so that a short call has a result too.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from ..curves import read_curve
from ..tasks import ROOT
from .arms import RealDesign


TRAINERS = {"grpo": "trl_soft.scripts.grpo", "rloo": "trl_soft.scripts.rloo"}
STOPPED = 128 + signal.SIGTERM  # the exit status of a training that was stopped and wrote a checkpoint


# What a call keeps back of its time: seconds for the update in progress and its checkpoint, and least for the evaluation afterwards.
SAVING, EVALUATION = 40.0, 40.0


def recipe(design: RealDesign, arm: str, model: str, data_dir: str | None, output_dir: Path) -> dict[str, Any]:
    """What the training script reads."""
    training = design["training"]
    method = training["arms"][arm]
    device = {} if torch.accelerator.is_available() else {"bf16": False, "use_cpu": True}
    common = training["common"] | training[method["trainer"]]
    return {
        "model_name_or_path": model,
        "prompt_template": design["prompt"],
        **({} if data_dir is None else {"data_dir": data_dir}),
        **design["thinking"],
        "max_completion_length": design["max_completion_length"],
        **common,
        **method["training"],
        **device,
        "seed": design["seed"],
        "resume_from_checkpoint": "auto",
        "output_dir": str(output_dir),
    }


def reached(output_dir: Path) -> tuple[int, Path | None]:
    """The updates that the newest weights of a run have had, and their folder. 0 and `None` before the first checkpoint."""
    found = {int(path.name.rpartition("-")[2]): path for path in output_dir.glob("checkpoint-*") if path.is_dir()}
    if (output_dir / "trainer_state.json").exists():  # the run has ended, and saved its model
        return json.loads((output_dir / "trainer_state.json").read_text("utf-8"))["global_step"], output_dir
    return (max(found), found[max(found)]) if found else (0, None)


def evaluated(folder: Path) -> int:
    """After how many updates an arm was evaluated the last time. 0 if only before training."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("after-*")), default=0)


def train(
    settings: dict[str, Any],
    trainer: str,
    seconds: float,
    say: Callable[[str], None],
    *,
    start: Callable[..., subprocess.Popen] = subprocess.Popen,
) -> bool:
    """
    Train for at most so many seconds, and then stop with a checkpoint. What the process prints goes to `log.txt` beside the recipe.

    Returns:
        Whether training has ended. False: it stopped, and a later call goes on.

    Raises:
        RuntimeError: if the process fails. The message names the log.
    """
    folder = Path(settings["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    file, log = folder.with_suffix(".yaml"), folder.with_suffix(".log")
    file.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    with open(log, "a", encoding="utf-8") as printed:
        process = start(
            [sys.executable, "-m", TRAINERS[trainer], "--config", str(file)], cwd=ROOT, stdout=printed, stderr=printed
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            say("the time for training is up: it stops after this update, with a checkpoint")
            process.terminate()
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status not in (0, STOPPED, -signal.SIGTERM):
        raise RuntimeError(f"Training failed with status {status}. {log} says why.")
    return status == 0


def curve(output_dir: Path) -> dict[str, list[float | None]]:
    """The metrics of each update so far."""
    path = output_dir / "metrics.jsonl"
    return read_curve(path) if path.exists() else {}
