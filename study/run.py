# SPDX-License-Identifier: Apache-2.0
"""Run what the study has no result of: `make study`, or

    python -m study.run --workers 2                      # all of it
    python -m study.run --workers 2 --only 'sum/gumbel'  # cells whose name has this in it (a regular expression)
    python -m study.run --list                           # what is left, and what waits

Each cell is a process of its own with one thread. Stop this program at any moment, and start it again: a cell with a result is not
run again, and a cell that was interrupted is. A cell that fails is left out until the next start; its log says why.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .cell import BUSY, arguments
from .cells import Cell, Design, pending
from .results import Results
from .tasks import ROOT


class Workers:
    """
    Runs cells in processes, several at a time.

    Args:
        design (`Design`), results (`Results`): of the study.
        outputs (`Path`): folder of weights, samples and logs.
        count (`int`): processes at a time.
        wants (`Callable[[Cell], bool]`): which cells to run.

    Attributes:
        look (`float`): seconds between two looks at the processes.
    """

    look = 0.5

    def __init__(
        self,
        design: Design,
        results: Results,
        outputs: Path,
        count: int,
        wants: Callable[[Cell], bool] = lambda cell: True,
    ):
        self.design, self.results, self.outputs, self.count, self.wants = design, results, outputs, count, wants
        self.running: dict[subprocess.Popen, tuple[Cell, float]] = {}
        self.left_out: set[str] = set()  # cells that failed, or that another process works on
        self.failed: list[str] = []
        self.seconds: dict[str, list[float]] = {}  # by phase

    def todo(self) -> list[Cell]:
        """The cells that can start now."""
        taken = self.left_out | {cell.name for cell, _ in self.running.values()}
        return [cell for cell in pending(self.design, self.results) if cell.name not in taken and self.wants(cell)]

    def run(self) -> None:
        """Run cells until none is left. An exception, such as Ctrl-C, stops the processes."""
        try:
            while True:
                for cell in self.todo()[: self.count - len(self.running)]:
                    self._start(cell)
                if not self.running:
                    return
                for process in [process for process in self.running if process.poll() is not None]:
                    self._finish(process)
                time.sleep(self.look if self.running else 0)
        finally:
            for process in self.running:
                process.terminate()
            for process in self.running:
                process.wait()

    def log(self, cell: Cell) -> Path:
        """What the process of a cell prints."""
        return self.outputs / cell.name / "log.txt"

    def command(self, cell: Cell) -> list[str]:
        """What runs a cell and writes its result."""
        command = [sys.executable, "-m", "study.cell", cell.name, "--design", str(self.design.path.resolve())]
        return [*command, "--results", str(self.results.folder.resolve()), "--outputs", str(self.outputs.resolve())]

    def _start(self, cell: Cell) -> None:
        self.log(cell).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log(cell), "a", encoding="utf-8") as log:
            process = subprocess.Popen(self.command(cell), cwd=ROOT, env=self._environment(), stdout=log, stderr=log)
        self.running[process] = cell, time.monotonic()

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
        if self.design["device"] == "cpu":
            own["CUDA_VISIBLE_DEVICES"] = ""
        return os.environ | own

    def _finish(self, process: subprocess.Popen) -> None:
        cell, start = self.running.pop(process)
        self.results.refresh()
        if process.returncode == BUSY:
            self.left_out.add(cell.name)
            print(f"{cell.name}: another process works on it", flush=True)
        elif process.returncode or cell.name not in self.results:
            self.left_out.add(cell.name)
            self.failed.append(cell.name)
            print(f"{cell.name}: failed ({process.returncode}), see {self.log(cell)}", flush=True)
        else:
            seconds = time.monotonic() - start
            self.seconds.setdefault(cell.phase, []).append(seconds)
            print(
                f"[{self._done()}/{self.design.count()}] {self._line(cell)}, {seconds:.0f} s{self._left()}", flush=True
            )

    def _done(self) -> int:
        return self.design.done(self.results)

    def _line(self, cell: Cell) -> str:
        """One line on a result."""
        result = self.results.found[cell.name]
        if cell.phase == "measure":
            measured = result["scores_of_thoughts"]
            return f"{cell.name}: score variance {measured['mean']:.3g}, 0 on {100 * measured['zero_float32']:.0f} % of thoughts"
        reward = [value for value in result["curve"]["reward"] if value is not None]
        scores = result["scores"]["test" if cell.phase == "final" else "tune"]
        hard = scores.get("hard", scores.get("hard 1"))
        ends = f"reward {reward[0]:.2f} to {reward[-1]:.2f}" if reward else "no reward"
        return f"{cell.name}: {ends}, hard {hard['mean']:.3f}, own {scores['own']['mean']:.3f}"

    def _left(self) -> str:
        """About how long the rest takes, from the cells that this program has run."""
        final = self.seconds.get("final")
        if not final:
            return ""
        left = (self.design.count() - self._done()) * sum(final) / len(final) / self.count
        return f"; about {left / 3600:.1f} h left"


def show_list(design: Design, results: Results) -> None:
    """What is left, and what waits for a kind of thought."""
    for cell in pending(design, results):
        print(cell.name)
    waiting = [name for name, method in design.methods.items() if method.waits]
    print(f"{design.done(results)} of {design.count()} cells have a result.", end=" ")
    print(f"Not in this version: {', '.join(waiting)}." if waiting else "")


def main() -> int:
    parser = arguments(argparse.ArgumentParser(description="Run the cells of the study that have no result."))
    parser.add_argument("--workers", type=int, default=2, help="processes at a time, each with one thread")
    parser.add_argument("--only", default="", help="run cells whose name has this regular expression in it")
    parser.add_argument("--list", action="store_true", help="show what is left, and run nothing")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error(f"`--workers` is {options.workers}, but it counts processes and must be at least 1.")
    design, results = Design(options.design), Results(options.results)
    if options.list:
        show_list(design, results)
        return 0
    # A scheduler stops a job by SIGTERM. It ends this program as Ctrl-C does, with its processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workers = Workers(
        design, results, options.outputs, options.workers, lambda cell: bool(re.search(options.only, cell.name))
    )
    try:
        workers.run()
    except KeyboardInterrupt:
        print(f"\nStopped. {design.done(results)} of {design.count()} cells have a result. Start again to continue.")
        return 130
    print(
        f"{design.done(results)} of {design.count()} cells have a result, {len(workers.failed)} failed: {workers.failed}"
    )
    return 1 if workers.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
