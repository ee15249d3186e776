# SPDX-License-Identifier: Apache-2.0
"""Part B of the study, a real model: `make study-gpu`, or

    python -m study.real --minutes 8                        # draw for eight minutes, grade, write the results
    python -m study.real --model FOLDER --model-name NAME --model-note NOTE
    python -m study.real --grade-later --minutes 8          # draw only
    python -m study.real --grade --model FOLDER             # grade what was drawn; FOLDER needs only the tokenizer
    python -m study.real --train gumbel-concrete            # train an arm, and evaluate it before and after

A call continues where an earlier one stopped, and stops by itself before its minutes end. Weights are loaded once for all arms.
`--limit 2` asks two questions of each benchmark, to try it; then name other folders of results and outputs.
"""

import argparse
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from trl_soft.evaluate.manifest import environment, weights_digest
from trl_soft.evaluate.store import Store
from trl_soft.rollout import EngineOptions

from ..inference import rounded
from ..results import RESULTS, Results
from ..tasks import ROOT
from . import grade, training
from .arms import DESIGN, TASK, RealDesign
from .draw import Budget, Drawing, Policy, schedule
from .parts import Drawn, Parts, Round
from .problems import digest, registered_problems


OUTPUTS = ROOT / "outputs/study/real"
# What must be equal in every call that draws into a folder. Each file of samples has the settings of its arm besides.
_SETTLED = ("name", "note", "weights", "dtype", "limit", "problems", "prompt", "max_completion_length", "samples")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m study.real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub id; unset: the design's")
    parser.add_argument("--model-name", help="its name in every table; unset: the last part of --model")
    parser.add_argument(
        "--model-note", default="", help="what a table must say of its weights, such as their quantisation"
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("TRL_SOFT_DATA"),
        help="folder with the benchmarks' files (TRL_SOFT_DATA); unset: the hub",
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="most minutes of the call until nothing more is drawn"
    )
    parser.add_argument("--train", metavar="ARM", help="train this arm of the design's `training`")
    parser.add_argument("--slots", type=int, default=1200, help="completions in flight: 4 samples of 300 problems")
    parser.add_argument("--only", default="", help="arms whose name has this in it (a regular expression)")
    parser.add_argument("--rounds", type=int, nargs="+", help="samples after each round; unset: the design's")
    parser.add_argument("--limit", type=int, help="only the first problems of each benchmark, for a try")
    parser.add_argument("--eager", action="store_true", help="launch every step kernel by kernel, without CUDA graphs")
    stages = parser.add_mutually_exclusive_group()
    stages.add_argument("--grade-later", action="store_true", help="draw only")
    stages.add_argument("--grade", action="store_true", help="grade what was drawn, without the model")
    parser.add_argument(
        "--graders", type=int, help="processes that grade; 0: this one; unset: one core is left to the drawing"
    )
    parser.add_argument("--commit", help="of this code, for the results, where the folder does not know it")
    parser.add_argument("--design", type=Path, default=DESIGN, help="the YAML file of the design")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument(
        "--outputs", type=Path, default=OUTPUTS, help="folder of the samples, one folder in it for each model"
    )
    return parser


def slug_of(name: str) -> str:
    """The name of a model as a part of a path."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def say(line: str) -> None:
    print(line, flush=True)


class Call:
    """
    One call of the program.

    Args:
        options (`argparse.Namespace`).
        budget (`Budget`).
    """

    def __init__(self, options: argparse.Namespace, budget: Budget):
        self.options, self.budget = options, budget
        self.design = RealDesign(options.design)
        self.model = options.model or self.design["model"]
        self.name = options.model_name or Path(self.model).name
        self.slug = slug_of(self.name)
        self.folder = options.outputs / self.slug
        self.parts = Parts(self.folder / "parts")
        self.problems = registered_problems(self.design.problems, options.data, options.limit)
        self.rounds = options.rounds or self.design["rounds"]
        if sorted(set(self.rounds)) != self.rounds or not 1 <= self.rounds[0] <= self.rounds[-1] <= self.design.most:
            raise ValueError(
                f"`--rounds` is {self.rounds}, but rounds grow from 1 to at most {self.design.most} samples."
            )

    @property
    def count(self) -> int:
        """How many problems there are."""
        return sum(map(len, self.problems.values()))

    def manifest(self, policy: Policy) -> dict[str, Any]:
        """What the folder of the samples says about them."""
        about = {
            "name": self.name,
            "note": self.options.model_note,
            "weights": weights_digest(self.model),
            "dtype": str(policy.model.dtype).removeprefix("torch."),
            "limit": self.options.limit,
            "problems": {
                name: {"count": len(rows), "sha256": digest([row.question for row in rows])}
                for name, rows in self.problems.items()
            },
            **{key: self.design[key] for key in ("prompt", "max_completion_length")},
            "samples": self.design.most,
            "silent": sorted({*policy.eos, policy.tokenizer.pad_token_id or policy.eos[0]}),
            "registered": self.design.registered(),
            "environment": environment(1),
        }
        about["environment"]["commit"] = self.options.commit or about["environment"]["commit"]
        return about

    def policy(self, model: str) -> Policy:
        """The weights in a folder, on the device."""
        # A torch that was built for an accelerator names it even where there is none.
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = found or torch.device("cpu")
        options = EngineOptions(self.options.slots, cuda_graphs=not self.options.eager)
        policy = Policy(self.design, self.problems, model, device, options)
        say(f"[{self.budget.spent():6.1f} s] {model} is loaded on {environment(1)['device']}")
        return policy

    def todo(self) -> Iterator[Round]:
        return (part for part in schedule(self.design, self.rounds) if re.search(self.options.only, part.arm))

    def draw(self) -> bool:
        """Draw until the time is up, and grade meanwhile. Returns whether no arm failed."""
        store = Store(self.folder)
        store.lock()
        policy = self.policy(self.model)
        manifest = self.manifest(policy)
        store.open(manifest, _SETTLED)
        if self.options.grade_later:
            drawing = Drawing(policy, self.parts, self.count, self.budget, say)
            drawing.run(self.todo())
            return not drawing.failed
        with grade.executor(self._graders()) as pool:
            grading = self._grading(policy.tokenizer, manifest, pool)
            shown: set[Round] = set()

            def drawn(part: Round, found: Drawn) -> None:
                grading.submit(part, found)
                shown.update(grading.tell(say, shown))

            drawing = Drawing(policy, self.parts, self.count, self.budget, say, drawn)
            drawing.run(self.todo())
            self._write(grading)
        return not drawing.failed

    def train(self) -> bool:
        """Train one arm until it has all its updates or the time is up. Returns whether no evaluation failed."""
        arm = self.options.train
        if arm not in self.design["training"]["arms"]:
            raise ValueError(f"`--train` is {arm!r}. Choose one of {', '.join(self.design['training']['arms'])}.")
        folder, output = self.folder / "training" / arm, self.folder / "training" / arm / "model"
        store = Store(folder)
        store.lock()
        began = self.budget.spent()
        fine = self._evaluate(self.model, folder / "before", store)
        cost = self.budget.spent() - began
        settings = training.recipe(self.design, arm, self.model, self.options.data, output)
        seconds = self.budget.left() - training.SAVING - max(cost, training.EVALUATION)
        if training.reached(output)[0] < settings["max_steps"] and seconds > 0:
            training.train(settings, self.design["training"]["arms"][arm]["trainer"], seconds, say)
        updates, weights = training.reached(output)
        say(f"[{self.budget.spent():6.1f} s] {arm}: {updates} of {settings['max_steps']} updates")
        if weights is not None:
            fine = self._evaluate(str(weights), folder / f"after-{updates}") and fine
        if not self.options.grade_later:
            self._write_training(arm)
        return fine

    def _evaluate(self, model: str, folder: Path, store: Store | None = None) -> bool:
        """Draw the samples of an evaluation before or after training. Returns whether no arm failed."""
        policy = self.policy(model)
        policy.design = self.design.evaluated(self.options.train)
        if store is not None:
            store.open(self.manifest(policy), _SETTLED)
        drawing = Drawing(policy, Parts(folder), self.count, self.budget, say)
        drawing.run(schedule(policy.design, policy.design["rounds"]))
        del policy, drawing.policy  # the training that follows needs the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return not drawing.failed

    def grade_all(self) -> None:
        """Grade all complete rounds in the folder, and write the results."""
        if (self.folder / "manifest.json").exists():
            manifest = grade.read_manifest(self.folder)
            with grade.executor(self._graders()) as pool:
                self._write(self._grading(AutoTokenizer.from_pretrained(self.model), manifest, pool))
        for folder in sorted((self.folder / "training").glob("*/manifest.json")):
            self._write_training(folder.parent.name)

    def _grading(self, tokenizer, manifest: dict[str, Any], pool: Executor) -> grade.Grading:
        return grade.Grading(self.design, self.problems, tokenizer, set(manifest["silent"]), pool)

    def _write(self, grading: grade.Grading) -> None:
        manifest = grade.read_manifest(self.folder)
        grade.write_results(self.design, grading, self.parts, Results(self.options.results), manifest, self.slug, say)

    def _write_training(self, arm: str) -> None:
        """Write the result of an arm that trains: its curve, and its scores before and after."""
        folder = self.folder / "training" / arm
        manifest, design = grade.read_manifest(folder), self.design.evaluated(arm)
        updates = training.evaluated(folder)
        recipe = training.recipe(self.design, arm, self.model, None, folder / "model")
        result: dict[str, Any] = {
            **grade.about_model(self.design, manifest, arm, "train"),
            "recipe": {key: value for key, value in recipe.items() if key not in ("output_dir", "model_name_or_path")},
            "updates": updates,
            "curve": rounded(training.curve(folder / "model"), 4),
        }
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        with grade.executor(self._graders()) as pool:
            for name in ("before", f"after-{updates}"):
                grading = self._grading(tokenizer, manifest, pool)
                found = grade.graded(design, grading, Parts(folder / name))
                result[name.partition("-")[0]] = rounded(found)
                for kind, entry in found.items():
                    say(f"{arm} {name}, {kind}: {grade.summary_line(entry['scores'])}")
        Results(self.options.results).write(f"{TASK}/{arm}/{self.slug}", result)

    def _graders(self) -> int:
        return grade.grader_count() if self.options.graders is None else self.options.graders


def main(
    argv: Sequence[str] | None = None, start: float | None = None, now: Callable[[], float] = time.monotonic
) -> int:
    """
    Args:
        argv (`Sequence[str]`, *optional*): the words of the command.
        start (`float`, *optional*): when the call began on the clock `now`; `None` means now.
    """
    parser = arguments()
    options = parser.parse_args(argv)
    call = Call(options, Budget(60 * options.minutes, now, start))
    if options.grade:
        call.grade_all()
        return 0
    return 0 if (call.train() if options.train else call.draw()) else 1
