# SPDX-License-Identifier: Apache-2.0
"""The command `trl-soft`: its first word chooses what runs, and the rest are that command's own flags."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from ..command_line import MISTAKE, one_sentence
from ..version import __version__


# Each command: the module whose `main` takes the other words, and what the command does.
COMMANDS = {
    "train": ("trl_soft.scripts.train", "train a policy by GRPO or RLOO, as a recipe says"),
    "evaluate": ("trl_soft.scripts.run_evaluation", "evaluate a model under any ways of thinking"),
    "report": ("trl_soft.evaluate.report.command", "make tables and figures of evaluations"),
    "compare": ("trl_soft.evaluate.compare", "compare two ways of thinking on the same problems"),
    "inspect": ("trl_soft.evaluate.inspect", "make a page that shows the thoughts of an evaluation"),
    "chat": ("trl_soft.scripts.chat", "type a question, see the thought and the answer"),
    "plan": ("trl_soft.plan.recipe", "say whether a recipe fits into a device's memory"),
    "recipes": ("trl_soft.scripts.recipes", "list the recipes, show one, or copy one here"),
    "doctor": ("trl_soft.scripts.doctor", "check versions, device and known problems"),
    "merge": ("trl_soft.scripts.merge", "merge an adapter into its model, which keeps how to think"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"trl-soft {__version__}: reinforcement learning on soft chain-of-thought tokens",
            "",
            "usage: trl-soft COMMAND [flags]",
            "",
            *lines,
            "",
            "`trl-soft COMMAND --help` lists the flags of a command. On several devices, start a command with",
            "`accelerate launch -m trl_soft COMMAND [flags]`.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else MISTAKE
    if words[0] == "--version":
        print(__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        print(f"error: there is no command {name!r}. The nearest is {nearest!r}.\n\n{usage()}", file=sys.stderr)
        return MISTAKE
    # Bars of what takes less than two seconds would be most of what a small run shows. tqdm reads this when it is imported.
    os.environ.setdefault("TQDM_DELAY", "2")
    with one_sentence():
        return importlib.import_module(COMMANDS[name][0]).main(rest) or 0
