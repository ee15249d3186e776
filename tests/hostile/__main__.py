# SPDX-License-Identifier: Apache-2.0
"""Every hostile program, as this user and as one without any rights; prints what did not hold, and writes the table.

python -m tests.hostile [--table docs/sandbox.md]
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.judge import faults
from tests.hostile.programs import FAMILIES
from trl_soft.evaluate import sandbox


NOBODY = 65534
ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"
_COMMAND = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.hostile.judge import faults
print(json.dumps(faults(sys.argv[3:], int(sys.argv[2]))))
"""


def unprivileged_interpreter() -> str | None:
    """A Python that a user without rights may start; the one of this process may lie in a closed folder."""
    for name in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        command = [name, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if name and not subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/").returncode:
                return name
        except OSError:
            pass
    return None


def faults_unprivileged(
    interpreter: str, families: Sequence[str] = tuple(FAMILIES), every: int = 1
) -> dict[str, dict[str, str]]:
    """The same as a user without rights, from a copy of the sandbox that this user may read."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for package in ("trl_soft", "trl_soft/evaluate", "trl_soft/evaluate/sandbox", "tests", "tests/hostile"):
            (copy / package).mkdir()
            bare = package in ("trl_soft", "trl_soft/evaluate", "tests")
            names = ["__init__.py", "version.py", "files.py"] if bare else ["*.py"]
            for file in (file for name in names for file in (ROOT / package).glob(name)):
                shutil.copy(file, copy / package)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)
        done = subprocess.run(
            [interpreter, "-c", _COMMAND, folder, str(every), *families], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/",
            env={}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def table(found: dict[str, dict[str, dict[str, str]]]) -> str:
    """Markdown: one row an attack, one column a user."""
    users = list(found)
    lines = ["| tries | program | " + " | ".join(users) + " |", "| --- | --- |" + " --- |" * len(users)]
    for family, attacks in FAMILIES.items():
        for name in attacks:
            cells = ["held" if not found[user][family][name] else found[user][family][name] for user in users]
            lines.append(f"| {family} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description="Hostile programs in the sandbox.")
    parser.add_argument("--table", type=Path, metavar="FILE", help="a page whose table of attacks is written anew")
    options = parser.parse_args()
    print(f"As this user: {sandbox.isolation()}.")
    here = "root" if os.geteuid() == 0 else "a user without rights"
    found = {here: faults()}
    interpreter = unprivileged_interpreter() if here == "root" else None
    if interpreter:
        found["a user without rights"] = faults_unprivileged(interpreter)
    elif here == "root":
        print("Not run as a user without rights: no Python of 3.11 or later here may be started by one.")
    bad = [
        f"{user}: {family}: {name}: {fault}"
        for user, families in found.items()
        for family, attacks in families.items()
        for name, fault in attacks.items()
        if fault
    ]
    print("\n".join(bad))
    count = sum(map(len, FAMILIES.values()))
    print(f"{count * len(found) - len(bad)} of {count * len(found)} held ({count} programs, {len(found)} users).")
    if options.table:
        page = options.table.read_text(encoding="utf-8")
        pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
        options.table.write_text(pattern.sub(lambda _: f"{BEGIN}\n{table(found)}\n{END}", page), encoding="utf-8")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
