# SPDX-License-Identifier: Apache-2.0
"""The manifest of a run: its settings as given, their resolved values, and the machine that computed it."""

import hashlib
import json
import platform
import subprocess
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .decoding import Decoding, saved_beside
from .evaluation import Evaluation
from .presets import get_preset
from .problems import Problem


def manifest_of(run: Evaluation, problems: dict[str, list[Problem]], processes: int) -> dict[str, Any]:
    """
    The content of `manifest.json`.

    Args:
        run (`Evaluation`).
        problems (`dict[str, list[Problem]]`): by benchmark.
        processes (`int`): how many processes compute the run.
    """
    manifest: dict[str, Any] = {name: getattr(run, name) for name in run.ASKED}
    manifest["decodings"] = [_decoding_entry(decoding, run, problems) for decoding in run.decodings]
    manifest["name"] = run.name or Path(run.output_dir).name
    seeds = sorted({decoding.seed for decoding in run.decodings})
    manifest["seed"] = seeds[0] if len(seeds) == 1 else seeds
    manifest["environment"] = environment(processes)
    manifest["commit"] = manifest["environment"]["commit"]
    manifest["problems"] = {
        name: {"count": len(rows), "sha256": _problems_digest(rows)} for name, rows in problems.items()
    }
    models = sorted({decoding.model or run.model for decoding in run.decodings})
    manifest["weights"] = {model: weights_digest(model) for model in models}
    return manifest


def _decoding_entry(decoding: Decoding, run: Evaluation, problems: dict[str, list[Problem]]) -> dict[str, Any]:
    """A decoding with its complete settings: the given fields, and the resolved values of the others."""
    preset, saved = get_preset(run.preset), saved_beside(decoding.model or run.model)
    kinds = sorted({rows[0].meta["kind"] for rows in problems.values()})
    settings = [decoding.settings(preset, kind, saved).thinking_dict() for kind in kinds]
    common = {k: v for k, v in settings[0].items() if all(other[k] == v for other in settings)}
    return {
        **asdict(decoding),
        "thinking": common,
        "answer": decoding.sampling(preset),
        "num_samples": decoding.num_samples or preset.num_samples,
    }


def _problems_digest(problems: list[Problem]) -> str:
    text = json.dumps([[p.number, p.question, p.gold] for p in problems], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def weights_digest(path: str) -> str | None:
    """Digest of the weights in a local folder: size, first and last megabyte of each file. `None` for a hub id."""
    files = sorted(file for ending in ("*.safetensors", "*.bin") for file in Path(path).glob(ending))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as weights:
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            digest.update(weights.read(2**20))
            weights.seek(max(file.stat().st_size - 2**20, 0))
            digest.update(weights.read(2**20))
    return digest.hexdigest()


def environment(processes: int) -> dict[str, Any]:
    """Where a run is computed: versions, commit and machine."""
    versions: dict[str, str | None] = {}
    for name in ("trl_soft", "trl", "transformers", "torch", "accelerate", "math-verify"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
        "commit": commit or None,
        "python": platform.python_version(),
        "device": device,
        "processes": processes,
        "threads": torch.get_num_threads(),
    }
